"""Poses survive the way through a message; covariances turn with their axes; what is not a rigid motion is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from geometry_msgs.msg import Pose, PoseStamped, TransformStamped
from scipy.spatial.transform import Rotation

from depth_ros.ros import poses
from depth_ros.ros.wire import BadMessage, make_header, stamp_ns

HEADER = make_header(12_500_000_000, 'odom')


@pytest.fixture
def rng():
    return np.random.default_rng(9)


def random_motion(rng):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    T[:3, 3] = rng.normal(0.0, 3.0, 3)
    return T


def test_every_message_of_a_pose_gives_the_matrix_back(rng):
    for _ in range(20):
        T = random_motion(rng)
        messages = [poses.pose(T), poses.pose_stamped(T, HEADER), poses.transform(T, HEADER, 'camera'), poses.transform(T, HEADER, 'camera').transform,
                    poses.odometry(T, np.eye(6), HEADER, 'camera')]
        for msg in messages:
            np.testing.assert_allclose(poses.matrix(msg), T, atol=1e-12)


def test_frames_and_stamps_are_in_the_messages(rng):
    T = random_motion(rng)
    sent = poses.transform(T, HEADER, 'camera')
    assert (sent.header.frame_id, sent.child_frame_id, stamp_ns(sent.header.stamp)) == ('odom', 'camera', 12_500_000_000)
    odometry = poses.odometry(T, np.eye(6), HEADER, 'camera', twist=np.arange(6.0))
    assert (odometry.header.frame_id, odometry.child_frame_id) == ('odom', 'camera')
    assert (odometry.twist.twist.linear.z, odometry.twist.twist.angular.x) == (2.0, 3.0)


def test_a_transform_takes_points_of_the_child_into_the_parent():
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler('z', 90, degrees=True).as_matrix()
    msg = poses.transform(T, HEADER, 'camera')
    assert msg.transform.rotation.z == pytest.approx(math.sqrt(0.5)) and msg.transform.rotation.w == pytest.approx(math.sqrt(0.5))
    np.testing.assert_allclose(poses.matrix(msg) @ [1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], atol=1e-12)


def test_covariance_is_given_along_the_axes_of_the_header(rng):
    """Samples drawn in the child's axes and turned into odom's have the covariance that the message tells."""
    T = random_motion(rng)
    root = rng.normal(size=(6, 6))
    samples = rng.normal(size=(200_000, 6)) @ root.T
    turned = np.hstack([samples[:, :3] @ T[:3, :3].T, samples[:, 3:] @ T[:3, :3].T])
    told = np.reshape(poses.odometry(T, root @ root.T, HEADER, 'camera').pose.covariance, (6, 6))
    np.testing.assert_allclose(told, np.cov(turned.T), atol=0.03 * np.abs(told).max())


def test_a_velocity_that_nobody_measured_is_marked_as_unknown(rng):
    assert min(np.diag(np.reshape(poses.odometry(random_motion(rng), np.eye(6), HEADER, 'camera').twist.covariance, (6, 6)))) >= 1e3


def test_a_path_holds_each_pose_at_its_own_time(rng):
    motions = [(stamp * 1_000_000_000, random_motion(rng)) for stamp in range(1, 4)]
    path = poses.path(motions, HEADER)
    assert [stamp_ns(p.header.stamp) for p in path.poses] == [stamp for stamp, _ in motions]
    assert {p.header.frame_id for p in (path, *path.poses)} == {'odom'}
    for msg, (_, T) in zip(path.poses, motions):
        np.testing.assert_allclose(poses.matrix(msg), T, atol=1e-12)
    assert len(poses.path([], HEADER).poses) == 0


def test_a_time_reference_names_both_images():
    msg = poses.time_reference(5_000_000_002, 4_000_000_001, 'camera', 'flow')
    assert (stamp_ns(msg.header.stamp), stamp_ns(msg.time_ref), msg.header.frame_id, msg.source) == (5_000_000_002, 4_000_000_001, 'camera', 'flow')


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_what_is_not_finite_is_neither_sent_nor_taken(bad):
    T = np.eye(4)
    T[0, 3] = bad
    for send in (poses.pose, lambda T: poses.transform(T, HEADER, 'camera'), lambda T: poses.odometry(T, np.eye(6), HEADER, 'camera'),
                 lambda T: poses.path([(0, np.eye(4)), (1, T)], HEADER)):
        with pytest.raises(ValueError, match='NaN or inf'):
            send(T)
    received = PoseStamped(header=HEADER)
    received.pose.position.y = bad
    with pytest.raises(BadMessage, match='^/pose: '):
        poses.matrix(received, '/pose')


@pytest.mark.parametrize('scale', [0.0, 0.5, 2.0])
def test_a_quaternion_that_is_no_rotation_is_refused(scale):
    received = TransformStamped()
    received.transform.rotation.w = scale
    with pytest.raises(BadMessage, match='unit quaternion'):
        poses.matrix(received, '/tf')


def test_a_quaternion_of_nearly_unit_length_gives_a_pure_rotation():
    T = poses.matrix(Pose(orientation=Pose().orientation.__class__(x=0.6001, y=0.0, z=0.0, w=0.8001)))
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
