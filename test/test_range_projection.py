"""Range hits in the image: where the pinhole puts them, which of two wins, what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_ros.engines.range_projection import hit_pixels, knots, moved, project_points, resize_hits

SIZE = WIDTH, HEIGHT = 160, 120
K = np.array([[131.0, 0.0, 79.5], [0.0, 133.0, 59.5], [0.0, 0.0, 1.0]])


def unproject(columns: np.ndarray, rows: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Points (N, 3) [m] seen at pixels."""
    return np.stack([(columns - K[0, 2]) / K[0, 0] * z, (rows - K[1, 2]) / K[1, 1] * z, z], axis=-1)


def scattered(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different pixels and a depth [m] for each."""
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(rng.choice(WIDTH * HEIGHT, count, replace=False), WIDTH)
    return columns, rows, rng.uniform(0.3, 8.0, count)


def test_points_come_back_at_the_pixels_that_they_were_seen_at():
    columns, rows, z = scattered(400)
    offset = np.random.default_rng(1).uniform(-0.45, 0.45, (2, 400))     # anywhere within the pixel
    depth, valid = project_points(unproject(columns + offset[0], rows + offset[1], z), K, SIZE)
    expected = np.zeros((HEIGHT, WIDTH))
    expected[rows, columns] = z
    assert depth.dtype == np.float32 and depth.shape == valid.shape == (HEIGHT, WIDTH)
    assert np.array_equal(valid, expected > 0)
    np.testing.assert_allclose(depth, expected, rtol=1e-6)


def test_the_nearest_of_the_points_on_a_pixel_wins_in_any_order():
    columns, rows, z = scattered(50)
    points = np.concatenate([unproject(columns, rows, factor * z) for factor in (1.0, 0.5, 2.0, 0.7)])
    expected = project_points(unproject(columns, rows, 0.5 * z), K, SIZE)
    for seed in range(5):
        found = project_points(np.random.default_rng(seed).permutation(points), K, SIZE)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_what_cannot_be_seen_leaves_nothing():
    columns, rows, z = scattered(60)
    seen = unproject(columns, rows, z)
    unseen = [-seen, seen * [1, 1, 0], np.full((3, 3), np.nan), np.full((3, 3), np.inf), np.array([[0, 0, np.inf], [0, np.nan, 1], [-np.inf, 0, 1]]),
              unproject(columns + WIDTH, rows, z), unproject(columns, rows - HEIGHT, z), np.array([[1e30, 0, 1e-30], [0, 0, 1e-6]])]
    for points in unseen:
        depth, valid = project_points(points, K, SIZE)
        assert not valid.any() and not depth.any()
    together = project_points(np.concatenate([*unseen, seen]), K, SIZE)
    alone = project_points(seen, K, SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_no_points_are_an_empty_image():
    depth, valid = project_points(np.zeros((0, 3)), K, SIZE)
    assert depth.shape == valid.shape == (HEIGHT, WIDTH) and not valid.any()


def test_the_image_ends_where_its_outer_pixels_do():
    corners = np.array([[-0.49, -0.49], [WIDTH - 0.51, HEIGHT - 0.51]])
    _, valid = project_points(unproject(*corners.T, np.ones(2)), K, SIZE)
    assert valid[0, 0] and valid[-1, -1] and valid.sum() == 2
    _, valid = project_points(unproject(*(1.02 * (corners - K[:2, 2]) + K[:2, 2]).T, np.ones(2)), K, SIZE)
    assert not valid.any()


def test_a_scan_cut_from_a_depth_image_lands_on_its_depths():
    row = 70
    image = (2 + np.sin(np.arange(WIDTH) / 9) + np.arange(HEIGHT)[:, None] / 100).astype(np.float32)
    points = unproject(np.arange(WIDTH), np.full(WIDTH, row), image[row].astype(np.float64))
    # the laser looks along the row's plane: x to the pixel between left and right, y to the left
    forward = np.array([0.0, (row - K[1, 2]) / K[1, 1], 1.0])
    scale = np.linalg.norm(forward)
    angles, ranges = np.arctan2(-points[:, 0], points @ forward / scale), np.linalg.norm(points, axis=1)
    returned = (ranges * np.cos(angles))[:, None] * forward / scale - (ranges * np.sin(angles))[:, None] * [1.0, 0.0, 0.0]
    depth, valid = project_points(returned, K, SIZE)
    assert valid[row].all() and valid.sum() == WIDTH
    np.testing.assert_allclose(depth[row], image[row], rtol=1e-6)


def test_hits_just_behind_an_edge_are_dropped_and_a_slope_is_kept():
    columns = np.arange(20, 60)
    beside = unproject(columns, np.full(40, 50), np.where(columns < 40, 1.0, 3.0))
    depth, valid = project_points(beside, K, SIZE, occlusion_radius=3)
    assert np.array_equal(np.flatnonzero(valid[50]), np.r_[20:40, 43:60])
    assert not depth[~valid].any()
    sloping = unproject(columns, np.full(40, 50), 1 + 0.02 * (columns - 20.0))
    assert project_points(sloping, K, SIZE, occlusion_radius=3)[1].sum() == 40


@pytest.mark.parametrize('size', [(80, 60), (320, 240), (161, 119), SIZE])
def test_resized_hits_stay_in_place_and_keep_their_depth(size):
    columns, rows, z = scattered(150, seed=3)
    hits = project_points(unproject(columns, rows, z), K, SIZE)[0]
    resized = resize_hits(hits, size)
    expected = np.full(size[::-1], np.inf, np.float32)
    for column, row in zip(columns, rows, strict=True):
        at = row * size[1] // HEIGHT, column * size[0] // WIDTH
        expected[at] = min(expected[at], hits[row, column])
    np.testing.assert_array_equal(resized, np.where(np.isfinite(expected), expected, 0))


def test_resized_hits_hold_nothing_that_is_no_hit():
    hits = np.zeros((HEIGHT, WIDTH), np.float32)
    hits[3:6, 7] = np.nan, np.inf, -2.0
    assert not resize_hits(hits, (40, 30)).any()


def test_a_narrower_hit_speaks_for_what_lies_in_a_cone():
    """133 px of focal length: a cone of 0.15 rad to each side reaches 20 px."""
    axis = unproject(np.array([80.0]), np.array([60.0]), np.array([2.0]))
    beside = unproject(np.array([80.0, 80.0]), np.array([60.0 + 25.0, 60.0 - 30.0]), np.array([3.0, 1.0]))
    spread = np.array([0.15, 0.0, 0.0])
    depth, valid = project_points(np.concatenate([axis, beside]), K, SIZE, spread=spread)
    assert valid.sum() == 3 and depth[60, 80] == 2.0
    within = unproject(np.array([80.0, 80.0]), np.array([60.0 + 15.0, 60.0 - 30.0]), np.array([3.0, 1.0]))
    depth, valid = project_points(np.concatenate([axis, within]), K, SIZE, spread=spread)
    assert valid.sum() == 2 and not valid[60, 80]
    both = np.concatenate([axis, unproject(np.array([85.0]), np.array([60.0]), np.array([2.5]))])
    depth, valid = project_points(both, K, SIZE, spread=np.array([0.15, 0.05]))
    assert valid.sum() == 1 and depth[60, 85] == 2.5        # the wider of two cones gives way


def turning(stamps: np.ndarray, rate: float, lever: np.ndarray) -> np.ndarray:
    """T_cam_sensor (N, 4, 4) of a sensor on a lever [m] that turns about the camera's y axis at a rate [rad/s] from stamp 0 [ns]."""
    T = np.tile(np.eye(4), (len(stamps), 1, 1))
    T[:, :3, :3] = Rotation.from_rotvec(np.outer(rate * stamps * 1e-9, [0.0, 1.0, 0.0])).as_matrix()
    T[:, :3, 3] = T[:, :3, :3] @ lever
    return T


def test_points_of_a_turning_sensor_come_to_stand_where_they_were_measured():
    """Each beam at its own time: half a hundredth of a pixel of what its own pose gives."""
    stamps = np.sort(np.random.default_rng(4).integers(-50_000_000, 50_000_000, 300))
    points = np.random.default_rng(5).uniform([-2.0, -1.0, 1.0], [2.0, 1.0, 6.0], (300, 3))
    T = turning(stamps, 2.5, np.array([0.3, -0.1, 0.2]))
    expected = (T[:, :3, :3] @ points[..., None])[..., 0] + T[:, :3, 3]
    times = knots(stamps)
    assert times[0] == stamps[0] and times[-1] == stamps[-1] and np.diff(times).max() <= 5_000_001
    found = moved(points, stamps, times, turning(times, 2.5, np.array([0.3, -0.1, 0.2])))
    seen = expected[:, 2] > 0.5
    pixel = lambda p: (p @ K.T)[:, :2] / (p @ K.T)[:, 2:]
    assert np.abs(pixel(found[seen]) - pixel(expected[seen])).max() < 0.005


def test_points_of_one_moment_need_one_transform():
    stamps = np.full(7, 3)
    points = np.random.default_rng(6).normal(size=(7, 3))
    T = turning(np.array([80_000_000]), 2.0, np.ones(3))
    assert len(knots(stamps)) == 1
    np.testing.assert_allclose(moved(points, stamps, knots(stamps), T), points @ T[0, :3, :3].T + T[0, :3, 3])


def test_only_positive_finite_ranges_are_hits():
    rows, columns = hit_pixels(np.array([[0.0, 1.5, np.nan], [-1.0, np.inf, 2.0]], np.float32))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 2]
