"""`sparse_depth`: the hits of a 2D LiDAR, a rangefinder or a sparse cloud as a depth image of the camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, Range
from std_msgs.msg import Header
from tf2_ros import Buffer, TransformException, TransformListener

from depth_ros.engines import range_projection
from depth_ros.ros import cloud, codecs, diagnostics, poses
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.diagnostics import Flow
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.ros.sync import Order, StampBuffer, StampOrder
from depth_ros.settings import setting


@dataclass(frozen=True)
class SparseDepthConfig(NodeConfig):
    """Parameters of `sparse_depth`."""

    max_offset: float = setting(0.05, 'longest time between the hits and the image that they are projected into', 's', low=0.001, high=1.0)
    tf_timeout: float = setting(0.1, 'longest wait for the transform from the sensor to the camera', 's', low=0.0, high=5.0)


class Source:
    """One kind of range sensor: hits wait here for the camera_info nearest in time."""

    def __init__(self, flow: Flow, worker: LatestWorker, to_points: Callable[[Any, str], np.ndarray]) -> None:
        self.flow, self.worker, self.to_points = flow, worker, to_points
        self.order = StampOrder()
        self.waiting: Any | None = None


class SparseDepthNode(ManagedNode):
    """Projects each scan into the image nearest in time. Where TF does not know the sensor, its hits are skipped, never guessed."""

    config_class = SparseDepthConfig
    config: SparseDepthConfig

    def __init__(self, **options: Any) -> None:
        self._listener: TransformListener | None = None
        super().__init__('sparse_depth', **options)

    def setup(self) -> None:
        """Make the publishers and listen to TF."""
        self._image = self.publisher(Image, 'sparse_depth/image')
        self._info = self.publisher(CameraInfo, 'sparse_depth/camera_info')
        self._buffer = Buffer(node=self)
        self._listener = TransformListener(self._buffer, self)
        self._cameras: StampBuffer[CameraInfo] = StampBuffer()

    def start(self) -> None:
        """Listen to every kind of range sensor; which of them there is, is not known."""
        self._cameras.clear()
        self._sources: list[Source] = []
        self._camera_input = self.listen(CameraInfo, 'camera_info', self._take_camera)
        self._add(LaserScan, 'scan', lambda message, topic: cloud.scan_hits(message, topic).points())
        self._add(Range, 'range', lambda message, topic: cloud.range_hit(message, topic).points())
        self._add(PointCloud2, 'points', cloud.cloud_points)

    def teardown(self) -> None:
        """Stop listening to TF."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None

    def _add(self, kind: type, topic: str, to_points: Callable[[Any, str], np.ndarray]) -> None:
        worker = self.worker(lambda job: self._project(source, *job), topic)
        flow = self.listen(kind, topic, lambda message: self._take_hits(source, message), stalls=False)
        source = Source(flow, worker, to_points)
        self._sources.append(source)

    def _take_hits(self, source: Source, message: Any) -> None:
        source.flow.stalls = True       # a sensor that spoke once is missed when it falls silent
        order = source.order.sort(codecs.stamp_ns(message.header.stamp))
        if order is Order.LATE:
            source.flow.late += 1
            return
        if order is Order.JUMP:
            self._cameras.clear()
            self._buffer.clear()
        source.waiting = message
        self._match(source)

    def _take_camera(self, info: CameraInfo) -> None:
        self._cameras.put(codecs.stamp_ns(info.header.stamp), info)
        for source in self._sources:
            self._match(source)

    def _match(self, source: Source) -> None:
        """Hand waiting hits to the worker once the image nearest in time is known: one at least as new has come."""
        if source.waiting is None or self._cameras.newest is None:
            return
        stamp = codecs.stamp_ns(source.waiting.header.stamp)
        if self._cameras.newest < stamp:
            return
        message, source.waiting = source.waiting, None
        info = self._cameras.nearest(stamp, int(self.config.max_offset * 1e9))
        if info is None:
            self.diagnostics.complain('match', f'{source.flow.topic}: no {self._camera_input.topic} within {self.config.max_offset} s of the hits; skipped')
            return
        source.worker.put((message, info))

    def _project(self, source: Source, message: Any, info: CameraInfo) -> None:
        try:
            points = source.to_points(message, source.flow.topic)
        except BadMessage as error:
            self.diagnostics.reject(source.flow, str(error))
            return
        size = _image_size(info)
        try:
            K = codecs.camera_matrix(info, size, self._camera_input.topic)
        except BadMessage as error:
            self._camera_input.rejected += 1
            self.diagnostics.hold('camera_info', diagnostics.ERROR, str(error))
            return
        self.diagnostics.clear('camera_info')
        T_cam_sensor = self._transform(source, message.header, info.header)
        if T_cam_sensor is None:
            return
        depth, valid = range_projection.project_points(points @ T_cam_sensor[:3, :3].T + T_cam_sensor[:3, 3], K, size)
        self.diagnostics.value(f'{source.flow.topic} hits in view', f'{int(valid.sum())} of {len(points)}')
        self.tell(self._info, codecs.camera_info(K, size, info.header))
        self.tell(self._image, codecs.depth_image(depth, valid, info.header))

    def _transform(self, source: Source, sensor: Header, camera: Header) -> np.ndarray | None:
        """T_cam_sensor (4, 4) at the image's time, waiting for it a little; None, told, where TF does not know it."""
        time = Time.from_msg(camera.stamp)
        try:
            found = self._buffer.lookup_transform(camera.frame_id, sensor.frame_id, time, Duration(seconds=self.config.tf_timeout))
        except TransformException as error:
            self.diagnostics.hold(f'tf {source.flow.topic}', diagnostics.ERROR,
                                  f'{source.flow.topic}: no transform from {sensor.frame_id!r} to {camera.frame_id!r}, so its hits are skipped: {error}')
            return None
        self.diagnostics.clear(f'tf {source.flow.topic}')
        return poses.matrix(found)


def _image_size(info: CameraInfo) -> tuple[int, int]:
    """(width, height) [px] of the image that a calibration is for, after its window and binning."""
    return (info.roi.width or info.width) // max(info.binning_x, 1), (info.roi.height or info.height) // max(info.binning_y, 1)
