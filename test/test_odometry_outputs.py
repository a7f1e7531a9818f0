"""Odometry, TF, twist and path as a robot reads them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import ros_support
from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Odometry, Path
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage
from tf2_ros import StaticTransformBroadcaster

from depth_ros.frames import Scale, TrackResult, TrackStatus
from depth_ros.ros import codecs, odometry_outputs, params, poses
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE, OdometryConfig, OdometryOutputs

STEP = 40_000_000


@dataclass(frozen=True)
class Config(NodeConfig):
    odometry: OdometryConfig = params.included(OdometryConfig)


class Teller(ManagedNode):
    config_class = Config

    def __init__(self, **options):
        self.outputs = None
        super().__init__('teller', **options)

    def setup(self):
        self.outputs = OdometryOutputs(self, self.config.odometry, 'deepv2d')

    def teardown(self):
        if self.outputs is not None:
            self.outputs.close()
            self.outputs = None


def rigid(translation, rotvec):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(rotvec).as_matrix(), translation
    return T


LEVEL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])     # an optical frame looking along +x
COVARIANCE = np.diag([1e-4, 2e-4, 3e-4, 1e-5, 2e-5, 3e-5])


def track(index, T, status=TrackStatus.OK):
    return TrackResult(10 ** 18 + index * STEP, T, COVARIANCE, 0.9, status, Scale.METRIC)


class Bench:
    def __init__(self, world, **parameters):
        self.world = world
        self.odometry = world.record(Odometry, 'deepv2d/odometry')
        self.tf = world.record(TFMessage, '/tf')
        self.path = world.record(Path, 'deepv2d/path')
        self.node = world.node(Teller, **parameters)
        world.until(lambda: self.node.state == 'active', 'the node')
        world.connected(*[p for p in self.node.publishers if p.topic_name in ('/deepv2d/odometry', '/deepv2d/path')])
        own = sum(s.topic_name == '/tf' for s in self.node.subscriptions)
        world.until(lambda: all(p.get_subscription_count() > own for p in self.node.publishers if p.topic_name == '/tf'), 'the recorder of TF')

    def tell(self, *tracks):
        count = len(self.odometry) + len(tracks)
        found = [self.node.outputs.publish(t, 'lens') for t in tracks]
        self.world.until(lambda: len(self.odometry) >= count, 'the odometry')
        return found

    def close(self):
        self.world.remove(self.node)
        self.world.forget()


@pytest.fixture
def bench(world, tf_settled):
    with ros_support.benches(Bench, world) as make:
        yield make


def test_odometry_of_the_camera_and_its_transform_agree(bench):
    one = bench()
    T = LEVEL @ rigid([0.1, 0.2, 0.3], [0.2, -0.1, 0.4])
    one.tell(track(0, LEVEL), track(1, T))
    message = one.odometry[-1]
    assert (message.header.frame_id, message.child_frame_id) == ('odom', 'lens')
    assert codecs.stamp_ns(message.header.stamp) == 10 ** 18 + STEP
    np.testing.assert_allclose(poses.matrix(message), T, atol=1e-12)
    one.world.until(lambda: len(one.tf) >= 2, 'the transforms')
    transform = one.tf[-1].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id, transform.header.stamp) == ('odom', 'lens', message.header.stamp)
    np.testing.assert_allclose(poses.matrix(transform), T, atol=1e-12)


def test_twist_takes_one_pose_to_the_next(bench):
    one = bench()
    before, after = LEVEL @ rigid([0.1, 0.2, 0.3], [0.2, -0.1, 0.4]), LEVEL @ rigid([0.15, 0.18, 0.32], [0.25, -0.12, 0.41])
    one.tell(track(0, before), track(1, after))
    twist, dt = one.odometry[-1].twist.twist, STEP * 1e-9
    linear, angular = (np.array([v.x, v.y, v.z]) for v in (twist.linear, twist.angular))
    np.testing.assert_allclose(after[:3, 3] - after[:3, :3] @ linear * dt, before[:3, 3], atol=1e-9)
    np.testing.assert_allclose(after[:3, :3] @ Rotation.from_rotvec(-angular * dt).as_matrix(), before[:3, :3], atol=1e-9)
    assert one.odometry[0].twist.covariance[0] > 1e3       # nothing is known of the first one's
    assert 0.0 < one.odometry[-1].twist.covariance[0] < 10.0


def test_with_a_base_frame_the_robot_stands_at_the_origin_first(world, bench):
    T_base_cam = rigid([0.3, 0.0, 0.5], [0.0, 0.2, 0.0]) @ LEVEL
    static = StaticTransformBroadcaster(world.tester)
    static.sendTransform(poses.transform(T_base_cam, codecs.make_header(0, 'base_link'), 'lens'))
    one = bench(base_frame='base_link', tf_timeout=0.0)
    motion = rigid([0.05, -0.02, 0.2], [0.01, 0.3, -0.02])      # of the camera, in its own frame
    world.until(lambda: one.node.outputs.publish(track(0, LEVEL), 'lens') is not None, 'the transform of the camera')
    world.until(lambda: one.odometry, 'the first odometry')
    one.tell(track(1, LEVEL @ motion))
    assert one.odometry[-1].child_frame_id == 'base_link'
    np.testing.assert_allclose(poses.matrix(one.odometry[0]), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(poses.matrix(one.odometry[-1]), T_base_cam @ motion @ np.linalg.inv(T_base_cam), atol=1e-9)
    # The camera's translation variance grows by its lever arm times the rotation variance in the base frame.
    assert np.trace(np.reshape(one.odometry[-1].pose.covariance, (6, 6))[:3, :3]) > np.trace(COVARIANCE[:3, :3])
    world.tester.destroy_publisher(static.pub_tf)


def test_a_frame_that_has_a_parent_gets_no_second_one_and_the_robots_own_frame_is_asked_for(world, bench):
    static = StaticTransformBroadcaster(world.tester)
    static.sendTransform(poses.transform(LEVEL, codecs.make_header(0, '/base_link'), 'lens'))
    one = bench()
    world.until(lambda: one.node.outputs._parents.other('lens') == 'base_link', 'the transform of the camera')
    one.tell(track(0, LEVEL), track(1, LEVEL))
    told = one.node.diagnostics.status().message
    assert 'no TF odom -> lens' in told and 'base_link' in told and 'base_frame' in told
    robot = bench(base_frame='base_link', tf_timeout=0.0)
    world.until(lambda: robot.node.outputs.publish(track(2, LEVEL), 'lens') is not None, 'the transform of the camera')
    world.until(lambda: one.tf and robot.tf, 'the transform of the robot')
    pairs = {(t.header.frame_id, t.child_frame_id) for message in one.tf for t in message.transforms}
    assert pairs == {('odom', 'base_link')} and 'no TF' not in robot.node.diagnostics.status().message
    world.tester.destroy_publisher(static.pub_tf)


def test_what_is_latched_has_time_to_come_before_the_first_transform(bench, monkeypatch):
    one = bench()
    monkeypatch.setattr(one.node.outputs._parents, '_settled', float('inf'))
    one.tell(track(0, LEVEL))
    monkeypatch.setattr(one.node.outputs._parents, '_settled', 0.0)
    one.tell(track(1, LEVEL))
    one.world.until(lambda: one.tf, 'the transform')
    assert [codecs.stamp_ns(m.transforms[0].header.stamp) for m in one.tf] == [10 ** 18 + STEP]


def test_an_unknown_base_is_told_and_nothing_is_assumed(bench):
    one = bench(base_frame='nowhere', tf_timeout=0.0)
    assert one.node.outputs.publish(track(0, LEVEL), 'lens') is None
    assert 'nowhere' in one.node.diagnostics.status().message and 'lens' in one.node.diagnostics.status().message
    assert one.odometry == [] and one.tf == []


def test_lost_means_large_covariance_and_no_transform(bench):
    one = bench()
    one.tell(track(0, LEVEL), track(1, LEVEL, TrackStatus.LOST), track(2, LEVEL))
    one.world.until(lambda: len(one.tf) >= 2, 'the transforms')
    assert [np.reshape(m.pose.covariance, (6, 6))[0, 0] >= UNKNOWN_VARIANCE for m in one.odometry] == [False, True, False]
    assert len(one.tf) == 2 and len(one.node.outputs.trail) == 2
    assert one.odometry[-1].twist.covariance[0] > 1e3      # no velocity over the gap


def test_lost_is_told_exactly_whatever_the_pose(bench):
    one, rng = bench(), np.random.default_rng(5)
    one.tell(*(track(i, LEVEL @ rigid([0, 0, 0], rng.normal(size=3)), TrackStatus.LOST) for i in range(20)))
    assert all(np.array_equal(np.reshape(m.pose.covariance, (6, 6)), np.eye(6) * UNKNOWN_VARIANCE) for m in one.odometry)


def test_the_path_is_bounded_and_begins_anew_after_a_jump(bench):
    one = bench(path_poses=5)
    for index in range(20):
        one.tell(track(index, LEVEL @ rigid([0, 0, index], [0, 0, 0])))
    one.node.outputs._path_at = 0.0
    one.tell(track(20, LEVEL @ rigid([0, 0, 20.0], [0, 0, 0])))
    one.world.until(lambda: one.path and [p.pose.position.x for p in one.path[-1].poses] == [0, 5, 10, 15, 20], 'the path')
    assert one.path[-1].header.frame_id == 'odom' and max(len(path.poses) for path in one.path) == 5
    one.node.outputs.restart()
    one.node.outputs._path_at = 0.0
    one.tell(track(-1000, LEVEL))
    one.world.until(lambda: len(one.path[-1].poses) == 1, 'the new path')


def test_odometry_does_not_wait_for_the_path(bench, monkeypatch):
    one = bench()
    go_on, begun, made = threading.Event(), threading.Event(), poses.path

    def slow(*arguments):
        begun.set()
        assert go_on.wait(ros_support.TIMEOUT)
        return made(*arguments)

    monkeypatch.setattr(poses, 'path', slow)
    try:
        one.tell(track(0, LEVEL))
        one.world.until(begun.is_set, 'the path to be begun')
        one.tell(track(1, LEVEL), track(2, LEVEL))
        assert one.path == [] and len(one.odometry) == 3
    finally:
        go_on.set()
    one.world.until(lambda: one.path, 'the path')


def test_the_path_is_told_again_after_a_pause(bench):
    one = bench()
    one.tell(track(0, LEVEL))
    one.world.until(lambda: one.path, 'the path')
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        assert one.world.change_state(one.node, transition).success
    one.node.outputs._path_at = 0.0
    one.tell(track(1, LEVEL))
    one.world.until(lambda: len(one.path) == 2 and len(one.path[-1].poses) == 2, 'the path after the pause')


def test_the_path_is_told_once_a_second_at_most(bench, monkeypatch):
    one, asked, counts = bench(), [], []
    monkeypatch.setattr(one.node.outputs._path_worker, 'put', asked.append)
    for index, now in enumerate((100.0, 100.5, 100.9, 101.0, 101.5)):
        monkeypatch.setattr(odometry_outputs, 'time', SimpleNamespace(monotonic=lambda now=now: now))
        one.tell(track(index, LEVEL))
        counts.append(len(asked))
    assert counts == [1, 1, 1, 2, 2]
