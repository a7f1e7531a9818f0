"""Poses of an odometry at any rate: the motion between two stamps of the last seconds, and bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_ros.ros import poses
from depth_ros.ros.pose_history import PoseHistory
from depth_ros.ros.wire import make_header

START, SECOND = 10 ** 18, 10 ** 9


def T_odom_base(stamp):
    """A robot that drives a curve at 1 m/s and looks about."""
    t = (stamp - START) * 1e-9
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_euler('zy', [t, 0.2 * np.sin(3.0 * t)]).as_matrix(), [np.sin(t), 1.0 - np.cos(t), 0.0]
    return T


def filled(rate, seconds):
    """A history that heard an odometry of this rate [Hz] for so long, and the stamps of it."""
    history, stamps = PoseHistory(None), [START + round(i * SECOND / rate) for i in range(round(rate * seconds) + 1)]
    for stamp in stamps:
        history.put(poses.odometry(T_odom_base(stamp), np.eye(6) * 1e-4, make_header(stamp, 'odom'), 'lens'), 'odometry')
        assert history.newest == stamp
    return history, stamps


@pytest.mark.parametrize('rate', [20, 30, 100, 400, 1000])
def test_a_motion_of_the_last_seconds_is_known_whatever_the_rate_of_the_odometry(rate):
    history, stamps = filled(rate, 12.0)
    rng, last = np.random.default_rng(rate), stamps[-1]
    for age in rng.uniform(0.0, 9.0, 50):
        reference, current = last - int(age * SECOND) - SECOND // 2, last - int(age * SECOND)
        motion = history.motion(reference, current, 'lens')
        expected = np.linalg.inv(T_odom_base(reference)) @ T_odom_base(current)
        np.testing.assert_allclose(motion, expected, atol=1e-3 if rate >= 30 else 2e-3)
    assert history.pose(last - 11 * SECOND, 'lens') is None
    assert len(history._poses) <= 1002


def test_a_camera_finds_the_very_pose_of_each_of_its_images():
    history, stamps = filled(60, 2.0)
    assert all(np.array_equal(history.pose(stamp, 'lens'), poses.matrix(poses.pose(T_odom_base(stamp)))) for stamp in stamps)


def test_when_the_clock_jumps_back_poses_of_before_are_forgotten_and_those_of_after_are_not():
    history, stamps = filled(30, 3.0)
    history.rewind(stamps[-1] - SECOND // 2)
    assert history.newest == stamps[-1] and history.breaks == 0
    history.rewind(START - SECOND)
    assert history.newest is None and history.breaks == 1
