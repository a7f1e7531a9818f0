"""Scans cut from depth: every hit lies on the surface that the depth shows."""

from __future__ import annotations

import numpy as np

from depth_ros.learning import depth_scan

K = np.array([[525.0, 0.0, 319.3], [0.0, 525.0, 238.5], [0.0, 0.0, 1.0]])


def points_of(scan, T):
    angles = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    in_laser = np.stack([scan.ranges * np.cos(angles), scan.ranges * np.sin(angles), np.zeros_like(angles), np.ones_like(angles)])
    return (T @ in_laser)[:3].T


def test_hits_of_a_slanted_wall_lie_on_it_and_in_the_plane_of_the_beams():
    # z = 2 + 0.5 x, so z (1 - 0.5 (u - cx) / fx) = 2
    depth = np.broadcast_to(2.0 / (1.0 - 0.5 * (np.arange(640) - K[0, 2]) / K[0, 0]), (480, 640)).astype(np.float32)
    scan = depth_scan.cut(depth, K, 7)
    points = points_of(scan, depth_scan.MOUNT.T_cam_laser)
    np.testing.assert_allclose(points[:, 1], 0.0, atol=1e-9)
    np.testing.assert_allclose(points[:, 2], 2.0 + 0.5 * points[:, 0], atol=0.01)      # half a pixel of a slanted wall
    assert points[:, 0].min() < -0.9 and points[:, 0].max() > 1.0
    assert (np.diff(points[:, 0]) < 0.0).all()      # anticlockwise seen from above: from the right to the left


def test_unknown_depth_is_nan():
    depth = np.full((480, 640), np.nan, np.float32)
    depth[:, :320] = 2.0
    scan = depth_scan.cut(depth, K, 7)
    points = points_of(scan, depth_scan.MOUNT.T_cam_laser)
    assert np.isnan(scan.ranges[:10]).all() and np.isfinite(scan.ranges[-10:]).all()
    assert np.nanmax(points[:, 0]) < 0.01
    assert scan.stamp == 7 and abs(scan.angle_max - (scan.angle_min + scan.angle_increment * (len(scan.ranges) - 1))) < 1e-9


def test_the_points_of_a_scan_are_its_hits_by_rep_117():
    depth = np.full((480, 640), 2.0, np.float32)
    scan = depth_scan.cut(depth, K, 7)
    everything = points_of(scan, np.eye(4))
    np.testing.assert_allclose(scan.points(), everything, atol=1e-6)
    for index, bad in enumerate((np.nan, np.inf, -np.inf, scan.range_max + 0.1, scan.range_min - 0.1)):
        scan.ranges[index] = bad
    np.testing.assert_allclose(scan.points(), everything[5:], atol=1e-6)


def test_so_many_beams_as_asked_for_span_the_view_and_one_looks_straight_ahead():
    depth = np.full((480, 640), 2.0, np.float32)
    many, one = depth_scan.cut(depth, K, 7, beams=64), depth_scan.cut(depth, K, 7, beams=1)
    points = points_of(many, depth_scan.MOUNT.T_cam_laser)
    np.testing.assert_allclose(points[:, 2], 2.0, rtol=1e-6)
    assert len(many.ranges) == 64 and np.ptp(points[:, 0]) * K[0, 0] / 2.0 > 638
    np.testing.assert_allclose(points_of(one, depth_scan.MOUNT.T_cam_laser), [[0.0, 0.0, 2.0]], atol=1e-9)


def test_noise_is_a_share_of_the_range_and_the_same_for_the_same_stamp():
    depth = np.full((480, 640), 2.0, np.float32)
    true, noisy, other = (depth_scan.cut(depth, K, stamp, 1000, noise).ranges for stamp, noise in ((7, 0.0), (7, 0.01), (8, 0.01)))
    assert 0.009 < (noisy / true - 1).std() < 0.011 and (other != noisy).any()
    np.testing.assert_array_equal(noisy, depth_scan.cut(depth, K, 7, 1000, 0.01).ranges)
