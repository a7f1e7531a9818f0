"""Range hits in the camera, over DDS: where they belong, in metres, at an image's time; and never without TF."""

from __future__ import annotations

import math

import numpy as np
import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image, LaserScan, Range
from tf2_ros import StaticTransformBroadcaster

from depth_ros.frames import resize_intrinsics
from depth_ros.ros import cloud, codecs, poses
from depth_ros.ros.sparse_depth_node import SparseDepthNode

SIZE = 160, 120
K = np.array([[100.0, 0.0, 79.5], [0.0, 100.0, 59.5], [0.0, 0.0, 1.0]])
# The sensor looks along the camera's axis, 0.2 m below it and 0.1 m behind.
T_CAM_LASER = np.array([[0, -1, 0, 0], [0, 0, -1, 0.2], [1, 0, 0, -0.1], [0, 0, 0, 1.0]])
STEP = 33_000_000


class Bench:
    def __init__(self, world, mounted=True, **parameters):
        self.world = world
        self.infos = world.publisher(CameraInfo, 'camera_info')
        self.scans, self.ranges = world.publisher(LaserScan, 'scan'), world.publisher(Range, 'range')
        self.static = StaticTransformBroadcaster(world.tester)
        self.images, self.out_infos = world.record(Image, 'sparse_depth/image'), world.record(CameraInfo, 'sparse_depth/camera_info')
        self.node = world.node(SparseDepthNode, **parameters)
        self.stamp = 10 ** 18
        world.connected(self.infos, self.scans, self.ranges)
        if mounted:
            self.mount()
            world.until(lambda: self.node._buffer.can_transform('lens', 'laser', codecs.to_stamp(0)), 'the transform')

    def mount(self):
        self.static.sendTransform(poses.transform(T_CAM_LASER, codecs.make_header(0, 'lens'), 'laser'))

    def camera(self, stamp):
        self.infos.publish(codecs.camera_info(K, SIZE, codecs.make_header(stamp, 'lens')))

    def scan(self, stamp, ranges, **fields):
        angles = math.radians(60)
        message = LaserScan(header=codecs.make_header(stamp, 'laser'), angle_min=-angles, angle_max=angles, angle_increment=2 * angles / (len(ranges) - 1),
                            range_min=0.1, range_max=10.0, ranges=[float(r) for r in ranges])
        for name, value in fields.items():
            setattr(message, name, value)
        self.scans.publish(message)

    def see(self):
        """The next image; its stamp."""
        self.stamp += 3 * STEP
        self.camera(self.stamp)
        return self.stamp

    def shoot(self, ranges):
        """A scan between two images, nearer to the first, whose stamp it returns."""
        stamp = self.see()
        self.scan(stamp + STEP // 4, ranges)
        self.camera(stamp + STEP)
        return stamp

    def until_hits(self, ranges):
        """Shoot until an image comes back that is of an image of now; (depth, valid) of it."""
        shot = []
        return self.until_image(lambda: shot.append(self.shoot(ranges)), lambda m: codecs.stamp_ns(m.header.stamp) in shot)

    def until_image(self, act, is_meant=lambda message: True):
        """Act again and again until an image is there that is meant; (depth, valid) of the first."""
        found = self.world.repeat(act, lambda: [m for m in self.images if is_meant(m)], 'a sparse depth image')
        return codecs.depth_array(found[0], '')

    def status(self):
        return self.node.diagnostics.status()

    def value(self, key):
        return {v.key: v.value for v in self.status().values}[key]

    def close(self):
        self.world.remove(self.node)
        self.world.forget(self.infos, self.scans, self.ranges, self.static.pub_tf)


@pytest.fixture
def bench(world):
    with ros_support.benches(Bench, world) as make:
        yield make


def wall(distance, beams=241):
    """Ranges of a laser to a wall square to its x axis."""
    return distance / np.cos(np.linspace(-math.radians(60), math.radians(60), beams))


def test_hits_on_a_wall_have_its_depth_and_lie_where_the_camera_sees_them(bench):
    one = bench()
    depth, valid = one.until_hits(wall(2.1))
    assert one.images[0].encoding == '32FC1' and (one.images[0].width, one.images[0].height) == SIZE and one.images[0].header.frame_id == 'lens'
    np.testing.assert_allclose(depth[valid], 2.0, atol=1e-5)
    rows = np.unique(np.nonzero(valid)[0])
    assert abs(rows.mean() - (59.5 + 100.0 * 0.2 / 2.0)) <= 1.0 and len(rows) <= 2
    assert valid.sum() > 100
    one.world.until(lambda: one.out_infos, 'the calibration')
    np.testing.assert_array_equal(codecs.camera_matrix(one.out_infos[0], SIZE, ''), K)
    assert one.out_infos[0].header == one.images[0].header


def test_hits_come_at_the_width_asked_for_with_the_calibration_of_that_size(bench):
    one = bench(width=80)
    depth, valid = one.until_hits(wall(2.1))
    assert valid.shape == (60, 80)
    np.testing.assert_allclose(depth[valid], 2.0, atol=1e-5)
    one.world.until(lambda: one.out_infos, 'the calibration')
    half = codecs.camera_matrix(one.out_infos[0], (80, 60), '')
    np.testing.assert_allclose(half, resize_intrinsics(K, 0.5, 0.5))
    assert abs(np.nonzero(valid)[0].mean() - (half[1, 2] + half[1, 1] * 0.2 / 2.0)) <= 1.0


@pytest.mark.parametrize('width', [0, 1000])
def test_hits_come_at_the_size_of_the_camera_where_no_narrower_one_is_asked_for(bench, width):
    _, valid = bench(width=width).until_hits(wall(2.1))
    assert valid.shape == SIZE[::-1]


def test_what_is_no_hit_leaves_no_trace(bench):
    one = bench()
    ranges = wall(2.1)
    ranges[:40], ranges[40:80], ranges[80:120], ranges[200:] = math.nan, math.inf, -math.inf, 50.0
    depth, valid = one.until_hits(ranges)
    assert valid.any() and np.isfinite(depth).all()
    np.testing.assert_allclose(depth[valid], 2.0, atol=1e-5)
    columns = np.nonzero(valid)[1]
    angles = np.linspace(-math.radians(60), math.radians(60), 241)
    assert columns.max() <= 79.5 - 100.0 * 2.1 * math.tan(angles[120]) / 2.0 + 1.0     # beams run from right to left


def test_without_a_transform_hits_are_skipped_with_the_reason_until_it_comes(world, bench):
    one = bench(mounted=False, tf_timeout=0.02)
    world.repeat(lambda: one.shoot(wall(2.1)), lambda: one.status().level == DiagnosticStatus.ERROR, 'the error')
    assert 'laser' in one.status().message and 'lens' in one.status().message and one.images == []
    one.mount()
    depth, valid = one.until_hits(wall(2.1))
    np.testing.assert_allclose(depth[valid], 2.0, atol=1e-5)
    assert one.status().level != DiagnosticStatus.ERROR


def test_a_rangefinder_hits_one_place(world, bench):
    one = bench()
    message = Range(radiation_type=Range.INFRARED, min_range=0.1, max_range=5.0, range=1.1, field_of_view=0.1)

    def shoot():
        message.header = codecs.make_header(one.see(), 'laser')
        one.ranges.publish(message)

    depth, valid = one.until_image(shoot)
    assert valid.sum() >= 1
    np.testing.assert_allclose(depth[valid], 1.0, atol=1e-5)
    row, column = np.argwhere(valid).mean(0)
    assert abs(column - 79.5) <= 1.0 and abs(row - (59.5 + 100.0 * 0.2)) <= 1.0


def test_a_sparse_cloud_serves_too(world, bench):
    from sensor_msgs.msg import PointCloud2
    clouds = world.publisher(PointCloud2, 'points')
    one = bench()
    world.connected(clouds)
    points = np.array([[2.1, 0.3, 0.1], [3.1, -0.5, 0.2], [math.nan, 0.0, 0.0], [-4.0, 0.0, 0.0]], np.float32)

    depth, valid = one.until_image(lambda: clouds.publish(cloud.coloured_cloud(points, np.zeros((4, 3), np.uint8), codecs.make_header(one.see(), 'laser'))))
    np.testing.assert_allclose(sorted(set(depth[valid].round(4))), [2.0, 3.0])
    world.tester.destroy_publisher(clouds)


def test_hits_far_from_any_image_are_skipped(world, bench):
    one = bench()
    one.camera(one.stamp)
    world.until(lambda: one.value('/camera_info received') == '1', 'the calibration')
    one.scan(one.stamp + 10 ** 9 // 2, wall(2.1))
    world.until(lambda: one.value('/scan received') == '1', 'the scan')
    one.camera(one.stamp + 10 ** 9)
    world.until(lambda: 'within' in one.status().message, 'the complaint')
    assert '/camera_info' in one.status().message and '/scan' in one.status().message and one.images == []


def test_malformed_scans_are_refused_and_counted(world, bench):
    one = bench()
    one.until_hits(wall(2.1))
    one.scan(one.see(), wall(2.1), angle_increment=0.0)
    world.until(lambda: 'angle_increment' in one.status().message, 'the complaint')
    assert one.value('/scan rejected') == '1'
    one.until_hits(wall(2.1))


def test_it_goes_on_after_the_clock_jumped_back(bench):
    one = bench()
    one.until_hits(wall(2.1))
    one.stamp -= 60 * 10 ** 9
    depth, valid = one.until_hits(wall(3.1))
    np.testing.assert_allclose(depth[valid], 3.0, atol=1e-5)


def test_a_scan_without_beams_gives_an_image_without_hits(world, bench):
    one = bench()
    _, valid = one.until_image(lambda: one.scans.publish(LaserScan(header=codecs.make_header(one.see(), 'laser'), range_min=0.1, range_max=10.0)))
    assert not valid.any() and one.status().level != DiagnosticStatus.ERROR


def test_a_camera_that_changes_its_size_takes_its_hits_along(world, bench):
    one = bench()
    one.until_hits(wall(2.1))
    half = np.array([[50.0, 0.0, 39.5], [0.0, 50.0, 29.5], [0.0, 0.0, 1.0]])

    def shoot():
        one.stamp += 3 * STEP
        one.infos.publish(codecs.camera_info(half, (80, 60), codecs.make_header(one.stamp, 'lens')))
        one.scan(one.stamp, wall(2.1))

    depth, valid = one.until_image(shoot, lambda m: m.width == 80)
    assert valid.any()
    np.testing.assert_allclose(depth[valid], 2.0, atol=1e-5)
