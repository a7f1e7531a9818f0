"""What a node with depth publishes: the depth image, its calibration, its points, and the map that grows of them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from depth_ros.engines.keyframe_map import KeyframeMap
from depth_ros.engines.keyframes import apart
from depth_ros.engines.voxel_map import write_ply
from depth_ros.frames import DepthResult
from depth_ros.ros import cloud, codecs
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.ros.managed_node import LATCHED_QOS, ManagedNode
from depth_ros.settings import setting


@dataclass(frozen=True)
class DepthOutputConfig:
    """Parameters of a node that publishes depth."""

    min_confidence: float = setting(0.0, 'confidence from which on depth is published', '', low=0.0, high=1.0)
    points_rate: float = setting(10.0, 'highest rate of the point cloud', 'Hz', low=0.1, high=100.0)
    points_stride: int = setting(2, 'every so many pixels and rows become a point', 'px', low=1, high=64)


@dataclass(frozen=True)
class MapConfig:
    """Parameters of a node that publishes a map."""

    map_rate: float = setting(0.5, 'highest rate of the map', 'Hz', low=0.01, high=10.0)
    map_voxel: float = setting(0.03, 'edge of the cubes that the map has one point for', 'm', low=0.002, high=10.0, read_only=True)
    map_points: int = setting(500_000, 'most points of the map; those unseen for longest make room', low=1000, high=20_000_000, read_only=True)
    map_confidence: float = setting(0.5, 'confidence from which on depth enters the map', '', low=0.0, high=1.0)
    map_motion: float = setting(0.15, 'motion of the camera from one frame of the map to the next, a radian counting as two metres', 'm', low=0.0, high=100.0)
    map_stride: int = setting(4, 'every so many pixels and rows enter the map', 'px', low=1, high=64)
    map_views: int = setting(1, 'so many more of the map\'s frames must confirm a point than see through it before it enters the map; 0: all points enter', '', low=0, high=5)
    map_tolerance: float = setting(0.03, 'difference of depth up to which a frame confirms a point, as a share of it', '', low=0.001, high=1.0)


class Throttle:
    """True at most `rate` times a second."""

    def __init__(self) -> None:
        self._at = -1.0e9

    def due(self, rate: float) -> bool:
        """Whether the period is over; begins the next one if so."""
        now = time.monotonic()
        if now - self._at < 1.0 / rate:
            return False
        self._at = now
        return True


class DepthOutputs:
    """Publishers of one node under `prefix`. Only what somebody listens to is made."""

    def __init__(self, node: ManagedNode, prefix: str) -> None:
        self._node = node
        self._image = node.publisher(Image, f'{prefix}/depth/image')
        self._info = node.publisher(CameraInfo, f'{prefix}/depth/camera_info')
        self._points = node.publisher(PointCloud2, f'{prefix}/points')
        self._throttle = Throttle()

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return any(publisher.get_subscription_count() for publisher in (self._image, self._info, self._points))

    def publish(self, result: DepthResult, config: DepthOutputConfig) -> None:
        """Publish depth with the stamp and the frame of the image it belongs to; NaN where it is not valid or not confident enough."""
        frame, header = result.frame, codecs.make_header(result.frame.stamp, result.frame.frame_id)
        valid = result.valid & (result.confidence >= config.min_confidence)
        if self._info.get_subscription_count():
            self._node.tell(self._info, codecs.camera_info(frame.K, frame.size, header))
        if self._image.get_subscription_count():
            self._node.tell(self._image, codecs.depth_image(result.depth, valid, header))
        if self._points.get_subscription_count() and self._throttle.due(config.points_rate):
            self._node.tell(self._points, cloud.point_cloud(result.depth, valid, frame.K, frame.image, header, config.points_stride))


class MapOutput:
    """Grows a map of depth with known poses and publishes it, latched, when it changed. Safe across threads.

    It works in a thread of its own: odometry must not wait for the map.
    """

    def __init__(self, node: ManagedNode, config: MapConfig, topic: str) -> None:
        self._node = node
        self._publisher = node.publisher(PointCloud2, topic, LATCHED_QOS)
        self._worker: LatestWorker | None = None
        self._T_map_last: np.ndarray | None = None      # pose of the last frame added
        self._map = KeyframeMap(config.map_voxel, config.map_points)
        self._lock = threading.Lock()
        self._throttle = Throttle()
        self._changed = False
        self._cleared = 0       # how often; tells depth from before

    def start(self) -> None:
        """Begin to work; the node ends it when it is deactivated."""
        self._worker = self._node.worker(lambda job: self._work(*job), 'map')

    @property
    def generation(self) -> int:
        """How often the map was cleared: depth of an earlier generation no longer belongs in it."""
        return self._cleared

    def put(self, result: DepthResult, T_map_cam: np.ndarray, map_frame: str, config: MapConfig, generation: int | None = None) -> None:
        """Offer the depth of a frame at its pose (4, 4) in the map's frame, tracked in a generation of the map, by default the present one."""
        self._worker.put((self._cleared if generation is None else generation, result, T_map_cam, map_frame, config))

    def _work(self, cleared: int, result: DepthResult, T_map_cam: np.ndarray, map_frame: str, config: MapConfig) -> None:
        last = self._T_map_last
        if last is None or apart(last, T_map_cam) >= config.map_motion:
            self.add(result, T_map_cam, config, cleared)
        self.publish(result.frame.stamp, map_frame, config)

    def add(self, result: DepthResult, T_map_cam: np.ndarray, config: MapConfig, cleared: int | None = None) -> None:
        """Add the confident depth of a frame at its pose (4, 4), unless the map was cleared since it was put."""
        with self._lock:
            if cleared not in (None, self._cleared):
                return
            self._map.add(result, T_map_cam, config.map_confidence, config.map_stride, config.map_views, config.map_tolerance)
            self._T_map_last = T_map_cam
            self._changed = True

    def publish(self, stamp: int, frame_id: str, config: MapConfig) -> None:
        """Publish the map if it changed, somebody listens and the last time is long enough ago."""
        if not self._changed or not self._publisher.get_subscription_count() or not self._throttle.due(config.map_rate):
            return
        points, colours = self._snapshot(publish=True)
        self._node.tell(self._publisher, cloud.coloured_cloud(points, colours, codecs.make_header(stamp, frame_id)))

    def save(self, path: Path) -> int:
        """Write the map as PLY, unless it is empty: that is not worth a file that may be there. How many points it has."""
        points, colours = self._snapshot()
        if len(points):
            write_ply(path, points, colours)
        return len(points)

    def clear(self) -> None:
        """Forget the map."""
        with self._lock:
            self._map.clear()
            self._T_map_last = None
            self._cleared += 1
            self._changed = True

    def _snapshot(self, publish: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The map's points and colours; if they are to be published, only what comes after them is a change."""
        with self._lock:
            self._changed = self._changed and not publish
            return self._map.arrays()
