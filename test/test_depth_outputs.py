"""Depth, points and map as they are published: metres or NaN, calibrated, stamped, and no more often than asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.ros import cloud, codecs, params
from depth_ros.ros.depth_outputs import DepthOutputConfig, DepthOutputs, MapConfig, MapOutput
from depth_ros.ros.managed_node import ManagedNode, NodeConfig

K = np.array([[40.0, 0.0, 31.5], [0.0, 41.0, 23.5], [0.0, 0.0, 1.0]])
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class Config(NodeConfig):
    output: DepthOutputConfig = params.included(DepthOutputConfig)
    map: MapConfig = params.included(MapConfig)


class Teller(ManagedNode):
    config_class = Config

    def __init__(self, **options):
        super().__init__('teller', **options)

    def setup(self):
        self.depth = DepthOutputs(self, 'deepv2d')
        self.map = MapOutput(self, self.config.map, 'deepv2d/map')


def result(seed=0, stamp=10 ** 18):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.0, 3.0, (48, 64)).astype(np.float32)
    valid = rng.random((48, 64)) > 0.2
    frame = CameraFrame(stamp, 'lens', rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), K)
    return DepthResult(frame, np.where(valid, depth, 0).astype(np.float32), valid, rng.random((48, 64), dtype=np.float32), Scale.METRIC)


@pytest.fixture
def node(world):
    made = []

    def make(**parameters):
        made.append(world.node(Teller, **parameters))
        world.until(lambda: made[-1].state == 'active', 'the node')
        return made[-1]

    yield make
    for one in made:
        world.remove(one)
    world.forget()


def publishers(node, *topics):
    return [p for p in node.publishers if p.topic_name in topics]


def test_depth_comes_with_its_calibration_points_and_stamp(world, node):
    images, infos, points = (world.record(k, t) for k, t in ((Image, 'deepv2d/depth/image'), (CameraInfo, 'deepv2d/depth/camera_info'), (PointCloud2, 'deepv2d/points')))
    one = node(min_confidence=0.5, points_stride=2)
    world.connected(*publishers(one, '/deepv2d/depth/image', '/deepv2d/depth/camera_info', '/deepv2d/points'))
    given = result()
    one.depth.publish(given, one.config.output)
    world.until(lambda: images and infos and points, 'the depth')
    wanted = given.valid & (given.confidence >= 0.5)
    got = np.frombuffer(images[0].data, np.float32).reshape(48, 64)
    np.testing.assert_array_equal(got, np.where(wanted, given.depth, np.nan))
    assert {(codecs.stamp_ns(m.header.stamp), m.header.frame_id) for m in (images[0], infos[0], points[0])} == {(10 ** 18, 'lens')}
    depth, valid = codecs.depth_array(images[0], '')
    np.testing.assert_array_equal(codecs.camera_matrix(infos[0], (64, 48), ''), K)
    lifted = cloud.cloud_points(points[0], '')
    assert len(lifted) == valid[::2, ::2].sum() and not points[0].is_dense and (points[0].width, points[0].height) == (32, 24)
    pixels = lifted @ K.T
    columns, rows = np.rint(pixels[:, 0] / pixels[:, 2]).astype(int), np.rint(pixels[:, 1] / pixels[:, 2]).astype(int)
    np.testing.assert_allclose(depth[rows, columns], lifted[:, 2])


def test_points_are_throttled_and_nothing_is_made_for_nobody(world, node):
    points = world.record(PointCloud2, 'deepv2d/points')
    one = node(points_rate=0.1)
    world.connected(*publishers(one, '/deepv2d/points'))
    for index in range(5):
        one.depth.publish(result(stamp=10 ** 18 + index), one.config.output)
    world.until(lambda: points, 'the points')
    published = {v.key: v.value for v in one.diagnostics.status().values if 'published' in v.key}
    assert published == {'/deepv2d/points published': '1'}


def test_the_map_holds_what_was_seen_and_waits_for_late_listeners(world, node, tmp_path):
    one = node(map_voxel=0.01, map_confidence=0.5, map_stride=1)
    given = result()
    T = np.eye(4)
    T[:3, 3] = [5.0, 6.0, 7.0]
    one.map.add(given, T, one.config.map)
    late = world.record(PointCloud2, 'deepv2d/map', LATCHED)
    world.connected(*publishers(one, '/deepv2d/map'))
    one.map.publish(10 ** 18, 'odom', one.config.map)
    later = world.record(PointCloud2, 'deepv2d/map', LATCHED)
    world.until(lambda: late and later, 'the map, twice')
    assert late[0].header.frame_id == 'odom'
    rows, columns = np.nonzero(given.valid & (given.confidence >= 0.5))
    rays = np.stack([(columns - 31.5) / 40.0, (rows - 23.5) / 41.0, np.ones(len(rows))], 1)
    seen = rays * given.depth[rows, columns][:, None] + T[:3, 3]
    points = cloud.cloud_points(late[0], '')
    nearest = np.min(np.linalg.norm(points[:, None] - seen[None], axis=-1), axis=1)
    assert nearest.max() < 0.01 and 0.8 * len(seen) < len(points) <= len(seen)
    assert one.map.save(tmp_path / 'map.ply') == len(points) and (tmp_path / 'map.ply').stat().st_size > 15 * len(points)
    one.map.clear()
    assert one.map.save(tmp_path / 'empty.ply') == 0


class Interrupted:
    """A lock that somebody else was waiting for: `other` runs as soon as it is let go, once."""

    def __init__(self, other: Callable[[], None]) -> None:
        self._lock, self._other = threading.Lock(), other

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        other, self._other = self._other, lambda: None
        other()


def test_a_map_cleared_while_it_is_published_is_published_empty(world, node):
    maps = world.record(PointCloud2, 'deepv2d/map', LATCHED)
    one = node(map_rate=10.0)
    world.connected(*publishers(one, '/deepv2d/map'))
    one.map.add(result(), np.eye(4), one.config.map)
    one.map._lock = Interrupted(one.map.clear)

    def published(count: int) -> bool:
        one.map.publish(10 ** 18, 'odom', one.config.map)
        return len(maps) >= count

    world.until(lambda: published(2), 'the map and the empty one')
    assert maps[0].width > 0 and maps[1].width == 0
