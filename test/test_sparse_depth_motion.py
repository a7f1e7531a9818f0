"""Range hits of a robot that moves, over DDS: each beam lands where the camera sees what it hit, and several sensors share one image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticStatus
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, Range
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from depth_ros.frames import R_BODY_OPTICAL
from depth_ros.ros import cloud, codecs, poses
from depth_ros.ros.sparse_depth_node import SparseDepthNode

SIZE = 640, 480
K = np.array([[525.0, 0.0, 319.5], [0.0, 525.0, 239.5], [0.0, 0.0, 1.0]])
START = 10 ** 18
MS = 1_000_000
TURN, SPEED = 1.5, 0.6      # rad/s, m/s
BEAMS, SWEEP = 31, 90 * MS      # few beams, 20 pixels and more apart: none can pass for another


def placed(R, *t):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


T_BASE_LENS, T_BASE_LASER = placed(R_BODY_OPTICAL, 0.1, 0.0, 0.3), placed(np.eye(3), -0.05, 0.03, 0.12)


def T_odom_base(stamp):
    """The robot drives and turns at once."""
    t = (stamp - START) * 1e-9
    yaw = TURN * t
    return placed(Rotation.from_euler('z', yaw).as_matrix(), SPEED / TURN * math.sin(yaw), SPEED / TURN * (1.0 - math.cos(yaw)), 0.0)


def to_the_wall(T_odom_laser, angle):
    """Distance along a beam to the walls of a room of 6 x 5 m."""
    direction, origin = T_odom_laser[:2, :2] @ [math.cos(angle), math.sin(angle)], T_odom_laser[:2, 3]
    return min(((wall if d > 0 else -wall) - o) / d for d, o, wall in zip(direction, origin, (3.0, 2.5)) if abs(d) > 1e-9)


def sweep(start):
    """A scan from a stamp on and the points (N, 3) [m] of the room that it hits."""
    angles = np.linspace(-0.8, 0.8, BEAMS)
    step = SWEEP // (BEAMS - 1)
    poses_, ranges = [T_odom_base(start + i * step) @ T_BASE_LASER for i in range(BEAMS)], []
    for T, angle in zip(poses_, angles):
        ranges.append(to_the_wall(T, angle))
    beams = np.stack([ranges * np.cos(angles), ranges * np.sin(angles), np.zeros(BEAMS), np.ones(BEAMS)], -1)
    hit = np.stack([(T @ p)[:3] for T, p in zip(poses_, beams)])
    return LaserScan(header=codecs.make_header(start, 'laser'), angle_min=-0.8, angle_max=0.8, angle_increment=1.6 / (BEAMS - 1), time_increment=step * 1e-9,
                     range_min=0.1, range_max=10.0, ranges=[float(r) for r in ranges]), hit


def pixels_at(stamp, hit):
    """Where a camera that stands still at the robot's place of this stamp sees points of the room: (N, 2) [px], those in view."""
    camera = np.linalg.inv(T_odom_base(stamp) @ T_BASE_LENS)
    seen = (hit @ camera[:3, :3].T + camera[:3, 3]) @ K.T
    pixels = seen[:, :2] / seen[:, 2:]
    return pixels[((pixels > 0.5) & (pixels < np.array(SIZE) - 1.5)).all(1) & (seen[:, 2] > 0.0)]


class Bench:
    def __init__(self, world, **parameters):
        self.world = world
        self.infos, self.scans = world.publisher(CameraInfo, 'camera_info'), world.publisher(LaserScan, 'scan')
        self.ranges, self.clouds = world.publisher(Range, 'range'), world.publisher(PointCloud2, 'points')
        self.tf, self.static = TransformBroadcaster(world.tester), StaticTransformBroadcaster(world.tester)
        self.images = world.record(Image, 'sparse_depth/image')
        self.node = world.node(SparseDepthNode, **parameters)
        world.connected(self.infos, self.scans, self.ranges, self.clouds, self.tf.pub_tf)
        mounts = [poses.transform(T, codecs.make_header(0, 'base'), name) for T, name in ((T_BASE_LENS, 'lens'), (T_BASE_LASER, 'laser'))]
        self.static.sendTransform(mounts)
        world.until(lambda: self.knows('lens', 'laser', 0), 'the mounts')

    def knows(self, target, source, stamp):
        return self.node._buffer.can_transform(target, source, codecs.to_stamp(stamp))

    def drive(self, first, last):
        """Tell where the robot is, every 20 ms from one stamp to another, as wheel odometry does."""
        for stamp in range(first, last + 1, 20 * MS):
            self.tf.sendTransform(poses.transform(T_odom_base(stamp), codecs.make_header(stamp, 'odom'), 'base'))
        self.world.until(lambda: self.knows('odom', 'base', last), 'the odometry')

    def see(self, *stamps):
        for stamp in stamps:
            self.infos.publish(codecs.camera_info(K, SIZE, codecs.make_header(stamp, 'lens')))

    def range(self, stamp, distance, frame='laser', angle=0.1):
        self.ranges.publish(Range(header=codecs.make_header(stamp, frame), min_range=0.1, max_range=5.0, range=distance, field_of_view=angle))

    def until_hits(self, count, shoot):
        """Shoot images 100 ms apart until one comes back with so many hits."""
        stamps = itertools.count(START + 100 * MS, 100 * MS)

        def see_and_shoot():
            image = next(stamps)
            self.see(image)
            shoot(image)

        hit = lambda: [m for m in self.images if codecs.depth_array(m, '')[1].sum() == count]
        depth, valid = codecs.depth_array(self.world.repeat(see_and_shoot, hit, f'an image with {count} hits')[0], '')
        return sorted(depth[valid].round(3).tolist())

    def status(self):
        return self.node.diagnostics.status()

    def value(self, key):
        return {v.key: v.value for v in self.status().values}[key]

    def received(self, topic, count):
        self.world.until(lambda: self.value(f'/{topic} received') == str(count), topic)

    def close(self):
        self.world.remove(self.node)
        self.world.forget(self.infos, self.scans, self.ranges, self.clouds, self.tf.pub_tf, self.static.pub_tf)


@pytest.fixture
def bench(world):
    with ros_support.benches(Bench, world) as make:
        yield make


def swept(one):
    """The pixels hit (N, 2) in the image 50 ms into a sweep, and where they belong."""
    scan, hit = sweep(START)
    image = START + 50 * MS
    one.drive(START - 40 * MS, START + 140 * MS)
    one.see(START + 17 * MS, image, START + 83 * MS, START + 117 * MS)
    one.received('camera_info', 4)
    one.scans.publish(scan)
    one.world.until(lambda: one.images, 'a sparse depth image')
    assert codecs.stamp_ns(one.images[0].header.stamp) == image
    depth, valid = codecs.depth_array(one.images[0], '')
    return np.argwhere(valid)[:, ::-1], pixels_at(image, hit)


def test_a_scan_taken_while_the_robot_turns_hits_the_same_pixels_as_one_taken_standing(bench):
    one = bench()
    found, expected = swept(one)
    assert len(found) > 15 and np.ptp(expected[:, 0]) > 400
    apart = np.abs(found[:, None] - expected[None]).max(-1)
    assert apart.min(1).max() <= 0.55 and apart.min(0).max() <= 0.55      # half a pixel is what whole pixels can tell
    assert one.value('/scan motion') == 'heeded through odom'


def test_without_a_fixed_frame_it_is_placed_as_if_nothing_moved_and_says_so(bench):
    one = bench(fixed_frame='')
    found, expected = swept(one)
    assert np.abs(found[:, None] - expected[None]).max(-1).min(1).max() > 5.0
    assert 'not heeded' in one.value('/scan motion')


def test_hits_wait_for_odometry_no_longer_than_told_and_work_goes_on(world, bench):
    one = bench(tf_timeout=0.05)
    scan, _ = sweep(START)
    one.drive(START - 40 * MS, START + 20 * MS)     # too little
    one.see(START + 50 * MS, START + 83 * MS)
    one.received('camera_info', 2)
    one.scans.publish(scan)
    world.until(lambda: one.status().level == DiagnosticStatus.ERROR, 'the error')
    assert "no transform from 'laser' to 'lens'" in one.status().message and one.images == []
    one.drive(START + 20 * MS, START + 240 * MS)
    one.see(START + 117 * MS, START + 150 * MS, START + 183 * MS)
    one.scans.publish(sweep(START + 100 * MS)[0])
    world.until(lambda: one.images, 'a sparse depth image')
    assert one.status().level != DiagnosticStatus.ERROR


def test_sensors_of_every_kind_share_one_image(world, bench):
    one = bench(gather=1.0)
    points = np.array([[2.15, 0.5, 0.3], [2.65, -0.4, -0.2]], np.float32)

    def shoot(image):
        header = codecs.make_header(image, 'laser')
        one.range(image, 1.15)
        one.scans.publish(LaserScan(header=header, angle_min=0.2, angle_max=0.3, angle_increment=0.1, range_min=0.1, range_max=9.0, ranges=[3.0, 3.5]))
        one.clouds.publish(cloud.coloured_cloud(points, np.zeros((2, 3), np.uint8), header))

    # The lens is 0.15 m in front of the laser.
    expected = [1.0, 2.0, 2.5, 3.0 * math.cos(0.2) - 0.15, 3.5 * math.cos(0.3) - 0.15]
    np.testing.assert_allclose(one.until_hits(5, shoot), expected, atol=1e-3)
    stamps = [codecs.stamp_ns(m.header.stamp) for m in one.images]
    assert stamps == sorted(set(stamps))        # each image once, in order


def test_two_rangefinders_of_one_topic_are_told_apart_by_their_frames(world, bench):
    one = bench(gather=1.0)
    mounts = {'laser': T_BASE_LASER, 'left': placed(Rotation.from_euler('z', 0.25).as_matrix(), 0.1, 0.1, 0.2), 'lens': T_BASE_LENS}
    one.static.sendTransform([poses.transform(T, codecs.make_header(0, 'base'), name) for name, T in mounts.items()])
    world.until(lambda: one.knows('lens', 'left', 0), 'the mounts')

    def shoot(image):
        one.range(image, 1.15)
        one.range(image, 2.0, frame='left')

    np.testing.assert_allclose(one.until_hits(2, shoot), [1.0, 2.0 * math.cos(0.25)], atol=1e-3)


def test_a_cone_too_wide_is_skipped_with_the_reason(world, bench):
    one = bench(max_cone=0.4)
    one.see(START)
    one.received('camera_info', 1)
    one.range(START, 1.15, angle=0.5)
    world.until(lambda: 'max_cone' in one.status().message, 'the warning')
    assert one.status().level == DiagnosticStatus.WARN and one.images == []
    one.see(START + 100 * MS)
    one.range(START + 100 * MS, 1.15, angle=0.3)
    world.until(lambda: one.images, 'a sparse depth image')
    assert one.status().level == DiagnosticStatus.OK


def test_hits_from_the_future_are_told_from_those_that_come_early(world, bench):
    one = bench()
    one.see(START)
    one.received('camera_info', 1)
    one.range(START + 100_000 * MS, 1.15)
    world.until(lambda: 'do the clocks agree' in one.status().message, 'the complaint')
    assert '100.00 s after the newest' in one.status().message
    one.range(START + 40 * MS, 1.15)        # an image at least as new is on its way
    one.received('range', 2)
    assert one.images == []
    one.see(START + 45 * MS)
    world.until(lambda: one.images, 'a sparse depth image')
    assert codecs.stamp_ns(one.images[0].header.stamp) == START + 45 * MS


def test_configure_and_cleanup_leave_nothing_open(world, bench):
    one = bench()
    node = one.node

    def cycle():
        for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
            assert getattr(node, f'trigger_{transition}')().name == 'SUCCESS'

    def entities():
        return [len(list(each)) for each in (node.subscriptions, node.publishers, node.services, node.timers)]

    cycle()
    before = entities()
    for _ in range(3):
        cycle()
    assert entities() == before
    node.trigger_deactivate(), node.trigger_cleanup()
    assert not [s.topic_name for s in node.subscriptions if s.topic_name in ('/tf', '/tf_static', '/scan', '/camera_info')]
