"""`sparse_depth`: the hits of 2D LiDARs, rangefinders or sparse clouds as a depth image of the camera."""

from __future__ import annotations

import math
import threading
import time
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
from depth_ros.frames import resize_intrinsics
from depth_ros.ros import cloud, codecs, diagnostics, poses
from depth_ros.ros.cloud import Hits
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.diagnostics import Flow
from depth_ros.ros.hit_gathering import Gathered, HitGathering
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.ros.sync import JUMP_BACK, Order, StampBuffer, StampOrder
from depth_ros.settings import setting

_SAME_TIME = 1_000_000          # [ns] in which no robot moves by a pixel
_AHEAD = 1_000_000_000          # [ns] by which hits may be newer than the newest image before clocks are doubted
_MAX_SENSORS = 16               # of one topic


@dataclass(frozen=True)
class SparseDepthConfig(NodeConfig):
    """Parameters of `sparse_depth`."""

    max_offset: float = setting(0.05, 'longest time between the middle of a measurement and the image that its hits are projected into', 's', low=0.001, high=1.0)
    tf_timeout: float = setting(0.1, 'longest wait for the transform from the sensor to the camera', 's', low=0.0, high=5.0)
    fixed_frame: str = setting('odom', 'frame that stands still while the robot moves: through it each beam is placed by where the sensor was at the time of the beam. '
                               'Where it is empty or TF does not have it, hits are placed as if nothing moved')
    width: int = setting(0, 'width of the published image, whose height follows from the camera\'s; 0, or wider than the camera\'s image: that of the camera', 'px', low=0, high=10000)
    occlusion_radius: int = setting(8, 'a hit is dropped if another within so many pixels of the camera lies at less than 0.8 of its depth: what a sensor beside the camera sees '
                                    'past an edge, the camera does not; 0: none is', 'px', low=0, high=100)
    max_cone: float = setting(0.5, 'widest field of view of a rangefinder whose hits are used: of a wider one nobody knows which pixel it measured', 'rad', low=0.0, high=3.1)
    gather: float = setting(0.1, 'longest wait for the hits of other sensors in the same image', 's', low=0.0, high=1.0)


class Source:
    """One range sensor: its measurement waits here for the camera_info nearest in time."""

    def __init__(self, name: str, flow: Flow, worker: LatestWorker, to_hits: Callable[[Any, str], Hits | None]) -> None:
        self.name, self.flow, self.worker, self.to_hits = name, flow, worker, to_hits
        self.order = StampOrder()
        self.waiting: Any | None = None


class SparseDepthNode(ManagedNode):
    """Projects what each sensor measured into the image nearest in time. Where TF does not know the sensor, its hits are skipped, never guessed."""

    config_class = SparseDepthConfig
    config: SparseDepthConfig

    def __init__(self, **options: Any) -> None:
        self._listener: TransformListener | None = None
        super().__init__('sparse_depth', **options)

    def setup(self) -> None:
        """Make the publishers and listen to TF."""
        self._image = self.publisher(Image, 'sparse_depth/image')
        self._info = self.publisher(CameraInfo, 'sparse_depth/camera_info')
        # Made without the node, whose clock and services would hold on to it for ever; jumps of the clock are seen to here.
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, self)
        self._cameras: StampBuffer[CameraInfo] = StampBuffer()
        self._camera_order = StampOrder()
        self._gathering = HitGathering(self.config.gather)
        self._publishing = threading.Lock()     # keeps images in order

    def start(self) -> None:
        """Listen to every kind of range sensor; which of them there is, is not known."""
        self._sources: dict[tuple[str, str], Source] = {}
        self._restart()
        self._camera_input = self.listen(CameraInfo, 'camera_info', self._take_camera)
        for kind, topic, to_hits in ((LaserScan, 'scan', cloud.scan_hits), (Range, 'range', self._range_hit), (PointCloud2, 'points', cloud.cloud_hits)):
            self._listen_to(kind, topic, to_hits)

    def reconfigured(self, before: SparseDepthConfig) -> None:
        """Only the gathering keeps a copy."""
        self._gathering.patience = self.config.gather

    def teardown(self) -> None:
        """Stop listening to TF."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None

    # In the executor's thread: which measurement belongs to which image

    def _listen_to(self, kind: type, topic: str, to_hits: Callable[[Any, str], Hits | None]) -> None:
        flow = self.listen(kind, topic, lambda message: self._take_measurement(self._source(topic, message.header.frame_id, flow, to_hits), message), stalls=False)

    def _source(self, topic: str, frame_id: str, flow: Flow, to_hits: Callable[[Any, str], Hits | None]) -> Source:
        """The sensor that a message comes from: several of a kind may share a topic, their frames tell them apart."""
        source = self._sources.get((topic, frame_id))
        if source is None:
            shared = [of for of, _ in self._sources].count(topic)
            if shared >= _MAX_SENSORS:
                raise ValueError(f'{flow.topic}: more than {_MAX_SENSORS} frame_ids, the last one {frame_id!r}; each is taken as a sensor of its own')
            name = f'{flow.topic} of {frame_id}' if shared else flow.topic
            worker = self.worker(lambda job: self._place(source, *job), f'{topic} {frame_id}' if shared else topic)
            source = self._sources[topic, frame_id] = Source(name, flow, worker, to_hits)
        return source

    def _restart(self) -> None:
        """Forget what belongs to the time before the clock jumped."""
        self._cameras.clear()
        self._buffer.clear()
        self._gathering.clear()
        for source in self._sources.values():
            source.waiting = None

    def _take_measurement(self, source: Source, message: Any) -> None:
        source.flow.stalls = True       # a sensor that spoke once is missed when it falls silent
        stamp = codecs.stamp_ns(message.header.stamp)
        order = source.order.sort(stamp)
        if order is Order.LATE:
            source.flow.late += 1
            return
        if order is Order.JUMP and (self._cameras.newest or 0) > stamp + JUMP_BACK:     # else the camera has told already
            self._restart()
        source.waiting = message
        self._match(source)

    def _take_camera(self, info: CameraInfo) -> None:
        stamp = codecs.stamp_ns(info.header.stamp)
        if self._camera_order.sort(stamp) is Order.JUMP:
            self._restart()
        self._cameras.put(stamp, info)
        for source in self._sources.values():
            self._match(source)
        self._publish()     # what waited long enough

    def _match(self, source: Source) -> None:
        """Hand a waiting measurement to the worker once the image nearest in time is known: one at least as new has come."""
        if source.waiting is None or self._cameras.newest is None:
            return
        moment = cloud.middle(source.waiting)
        ahead = moment - self._cameras.newest
        if 0 < ahead <= _AHEAD:
            return
        message, source.waiting = source.waiting, None
        info = self._cameras.nearest(moment, int(self.config.max_offset * 1e9))
        if info is not None:
            source.worker.put((self._gathering.epoch, message, info))
            return
        away = f'{abs(ahead) * 1e-9:.2f} s {"after" if ahead > 0 else "before"} the newest' + (': do the clocks agree?' if ahead > _AHEAD else '')
        self.diagnostics.complain('match', f'{source.name}: no {self._camera_input.topic} within {self.config.max_offset} s of the hits, '
                                           f'which are stamped {away}; skipped')

    # In the workers' threads: where the hits lie

    def _place(self, source: Source, epoch: int, message: Any, info: CameraInfo) -> None:
        stamp, name = codecs.stamp_ns(info.header.stamp), source.name
        try:
            hits = source.to_hits(message, name)
        except BadMessage as error:
            self.diagnostics.reject(source.flow, str(error))
            hits = None
        points = None if hits is None else self._in_camera(name, hits, message.header, info.header)
        if points is None:
            self._gathering.skip(epoch, name, stamp, time.monotonic())
        else:
            self.diagnostics.value(f'{name} hits', len(points))
            self._gathering.put(epoch, name, stamp, info, points, hits.spread, time.monotonic())
        self._publish()

    def _range_hit(self, message: Range, name: str) -> Hits | None:
        """A rangefinder's hit; None, told, where its cone is too wide to know what it measured."""
        hits = cloud.range_hit(message, name)
        if message.field_of_view <= self.config.max_cone:
            self.diagnostics.clear(f'cone {name}')
            return hits
        self.diagnostics.hold(f'cone {name}', diagnostics.WARN, f'{name}: a cone of {math.degrees(message.field_of_view):.0f} deg is too wide to know which pixel was '
                                                                 f'measured, so its hits are skipped; max_cone is {math.degrees(self.config.max_cone):.0f} deg')
        return None

    def _in_camera(self, name: str, hits: Hits, sensor: Header, camera: Header) -> np.ndarray | None:
        """The hits (N, 3) [m] in the optical frame at the image's time; None, told, where TF does not know enough."""
        image = codecs.stamp_ns(camera.stamp)
        stamps = hits.stamps if len(hits.stamps) else np.array([image])
        still = np.abs(stamps - image).max() <= _SAME_TIME
        times = np.array([image]) if still else range_projection.knots(stamps)
        try:
            fixed = None if still else self._fixed_frame(sensor.frame_id, camera.frame_id)
            transforms = self._transforms(times, image, sensor.frame_id, camera.frame_id, fixed)
        except TransformException as error:
            self.diagnostics.hold(f'tf {name}', diagnostics.ERROR,
                                  f'{name}: no transform from {sensor.frame_id!r} to {camera.frame_id!r}, so its hits are skipped: {error}')
            return None
        self.diagnostics.clear(f'tf {name}')
        self.diagnostics.value(f'{name} motion', 'none to heed' if still else f'heeded through {fixed}' if fixed else f'not heeded: TF has no {self.config.fixed_frame!r}')
        return range_projection.moved(hits.points, hits.stamps, times, transforms)

    def _fixed_frame(self, *frames: str) -> str | None:
        """The fixed frame, where TF has a way from it to each of the frames."""
        fixed = self.config.fixed_frame
        return fixed if fixed and all(self._buffer.can_transform(fixed, frame, Time()) for frame in frames) else None

    def _transforms(self, times: np.ndarray, image: int, sensor: str, camera: str, fixed: str | None) -> np.ndarray:
        """T_cam_sensor (K, 4, 4) from the sensor at each of the times (K,) [ns] into the camera at the image's time [ns]. Raises TransformException."""
        deadline = time.monotonic() + self.config.tf_timeout
        found = []
        for stamp in reversed(times.tolist()):      # the newest first: once it is there, the others are
            left = Duration(seconds=max(deadline - time.monotonic(), 0.0))
            if fixed is None:
                found.append(self._buffer.lookup_transform(camera, sensor, Time(nanoseconds=stamp), left))
            else:
                found.append(self._buffer.lookup_transform_full(camera, Time(nanoseconds=image), sensor, Time(nanoseconds=stamp), fixed, left))
        return np.stack([poses.matrix(message) for message in reversed(found)])

    # In either: publishing

    def _publish(self) -> None:
        with self._publishing:
            for gathered in self._gathering.take(time.monotonic()):
                self._project(gathered)

    def _project(self, gathered: Gathered) -> None:
        info, points = gathered.info, np.concatenate(gathered.points)
        size = _image_size(info)
        try:
            K = codecs.camera_matrix(info, size, self._camera_input.topic)
        except BadMessage as error:
            self._camera_input.rejected += 1
            self.diagnostics.hold('camera_info', diagnostics.ERROR, str(error))
            return
        self.diagnostics.clear('camera_info')
        shrink = min(1.0, (self.config.width or size[0]) / size[0])
        radius, (K, size) = math.ceil(shrink * self.config.occlusion_radius), _shrunk(K, size, shrink)
        depth, valid = range_projection.project_points(points, K, size, radius, np.concatenate(gathered.spreads))
        self.diagnostics.value('pixels hit', f'{int(valid.sum())} by {len(points)} hits')
        self.tell(self._info, codecs.camera_info(K, size, info.header))
        self.tell(self._image, codecs.depth_image(depth, valid, info.header))


def _image_size(info: CameraInfo) -> tuple[int, int]:
    """(width, height) [px] of the image that a calibration is for, after its window and binning."""
    return (info.roi.width or info.width) // max(info.binning_x, 1), (info.roi.height or info.height) // max(info.binning_y, 1)


def _shrunk(K: np.ndarray, size: tuple[int, int], shrink: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Intrinsics (3, 3) [px] and (width, height) of an image at a share of its size."""
    width, height = (max(1, round(shrink * extent)) for extent in size)
    return resize_intrinsics(K, width / size[0], height / size[1]), (width, height)
