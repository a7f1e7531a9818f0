"""The images of one calibrated camera as a node takes them in: in order of time, with their calibration, every refusal counted and explained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from depth_ros.frames import CameraFrame
from depth_ros.ros import codecs, diagnostics
from depth_ros.ros.codecs import BadMessage, Topics
from depth_ros.ros.diagnostics import Flow
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.ros.sync import Order, StampOrder
from depth_ros.settings import setting

_GRACE = 1.0    # [s] that an image may wait for the first camera_info before this counts as trouble


@dataclass(frozen=True)
class CameraConfig(NodeConfig):
    """Parameters of a node that takes images."""

    image_transport: str = setting('raw', 'how images come: raw on `image`, or compressed (jpeg, png) on `image/compressed`', choices=('raw', 'compressed'),
                                   read_only=True)


class CameraInput:
    """Subscribes `image` and `camera_info` of a node; images with newer stamps go to `on_image`; the stamp of one after the clock jumped back goes to `on_jump` first.

    An image that comes before the first camera_info waits for it. Calibration is taken as it comes: it says nothing new with every image.
    """

    def __init__(self, node: ManagedNode, on_image: Callable[[Image | CompressedImage], None], on_jump: Callable[[int], None]) -> None:
        self._node, self._on_image, self._on_jump = node, on_image, on_jump
        self._order = StampOrder()
        self._info: CameraInfo | None = None
        self._waiting: Image | CompressedImage | None = None
        self._waiting_since: float | None = None
        compressed = node.config.image_transport == 'compressed'
        # As image_transport does: behind the name that `image` is remapped to.
        kind, topic = (CompressedImage, f'{node.resolve_topic_name("image")}/compressed') if compressed else (Image, 'image')
        self.images: Flow = node.listen(kind, topic, self._take_image)
        # Drivers may send it once and latch it: its age means nothing.
        self.infos: Flow = node.listen(CameraInfo, 'camera_info', self._take_info, stalls=False)
        self._topics = Topics(image=self.images.topic, camera_info=self.infos.topic)

    def frame(self, image: Image | CompressedImage, depth: Image | None = None, depth_input: Flow | None = None) -> CameraFrame | None:
        """The frame of a message, or None, reported, where the image, its calibration or its depth cannot be used."""
        topics = self._topics if depth_input is None else self._topics._replace(depth=depth_input.topic)
        try:
            frame = codecs.camera_frame(image, self._info, depth, topics)
        except BadMessage as error:
            self._refuse(error, depth_input)
            return None
        self._node.diagnostics.clear('camera_info')
        return frame

    def _refuse(self, error: BadMessage, depth_input: Flow | None) -> None:
        if error.topic == self.infos.topic:
            self.infos.rejected += 1
            self._node.diagnostics.hold('camera_info', diagnostics.ERROR, str(error))
        else:
            flow = depth_input if depth_input is not None and error.topic == depth_input.topic else self.images
            self._node.diagnostics.reject(flow, str(error))

    def _take_info(self, info: CameraInfo) -> None:
        if self._info is None or any(self._info.d) != any(info.d):
            self._heed_distortion(info)
        self._info = info
        waiting, self._waiting, self._waiting_since = self._waiting, None, None
        if waiting is not None:
            self._node.diagnostics.clear('camera_info')
            self._on_image(waiting)

    def _heed_distortion(self, info: CameraInfo) -> None:
        """Warn of a lens that distorts, unless the image's name tells that it is rectified: image_proc hands on the raw image's calibration."""
        if any(info.d) and 'rect' not in self.images.topic:
            self._node.diagnostics.hold('distortion', diagnostics.WARN, f'{self.infos.topic}: the lens distorts (D = {[round(d, 4) for d in info.d]}), but {self.images.topic} is taken '
                                        'as rectified: give an image of image_proc (image_rect), or a calibration with D = 0 if it is')
        else:
            self._node.diagnostics.clear('distortion')

    def _take_image(self, image: Image | CompressedImage) -> None:
        stamp = codecs.stamp_ns(image.header.stamp)
        last, order = self._order.last, self._order.sort(stamp)
        if order is Order.LATE:
            self.images.late += 1
            self._node.diagnostics.complain('late', f'{self.images.topic}: got stamp {stamp} ns, not newer than the last one, {last} ns; dropped')
            return
        if order is Order.JUMP:
            self._node.get_logger().info(f'{self.images.topic}: the clock jumped back by {(last - stamp) * 1e-9:.1f} s; starting afresh')
            self._on_jump(stamp)
        if self._info is not None:
            self._on_image(image)
            return
        self._waiting, self._waiting_since = image, self._waiting_since or time.monotonic()
        if time.monotonic() - self._waiting_since > _GRACE:
            self._node.diagnostics.hold('camera_info', diagnostics.ERROR, f'no camera_info on {self.infos.topic}, so no image of {self.images.topic} can be used')
