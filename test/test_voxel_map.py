"""The map: averaged by cubes, bounded, and readable as PLY."""

from __future__ import annotations

import numpy as np

from depth_ros.engines.voxel_map import VoxelMap, write_ply


def test_points_of_a_cube_become_their_mean_however_they_are_split():
    rng = np.random.default_rng(0)
    points, colours = rng.uniform(-2.0, 2.0, (500, 3)), rng.integers(0, 255, (500, 3), dtype=np.uint8)
    once, often = VoxelMap(0.5, 10 ** 6), VoxelMap(0.5, 10 ** 6)
    once.add(points, colours)
    for part in np.array_split(np.arange(500), 7):
        often.add(points[part], colours[part])
    np.testing.assert_allclose(once.arrays()[0], often.arrays()[0], atol=1e-6)
    np.testing.assert_array_equal(once.arrays()[1], often.arrays()[1])
    cell = np.all(np.floor(points / 0.5) == [1, -2, 0], axis=1)
    assert cell.any()
    nearest = np.abs(once.arrays()[0] - points[cell].mean(0)).sum(1).argmin()
    np.testing.assert_allclose(once.arrays()[0][nearest], points[cell].mean(0), atol=1e-6)


def test_invalid_and_far_points_are_left_out():
    grid = VoxelMap(0.1, 100)
    grid.add(np.array([[np.nan, 0, 0], [np.inf, 0, 0], [1e9, 0, 0], [1.0, 2.0, 3.0]]), np.zeros((4, 3), np.uint8))
    np.testing.assert_allclose(grid.arrays()[0], [[1.0, 2.0, 3.0]])


def test_memory_is_bounded_and_the_longest_unseen_go_first():
    grid = VoxelMap(1.0, 10)
    for x in range(30):
        grid.add(np.array([[x + 0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]), np.zeros((2, 3), np.uint8))
        assert 1 <= len(grid) <= 10
    left = sorted(grid.arrays()[0][:, 0])
    assert len(left) >= 9 and left == [0.5, *(x + 0.5 for x in range(31 - len(left), 30))]


def test_ply_holds_the_points_exactly(tmp_path):
    points, colours = np.array([[1, 2, 3], [-4, 5, 0.5]], np.float32), np.array([[1, 2, 3], [255, 0, 9]], np.uint8)
    write_ply(tmp_path / 'map.ply', points, colours)
    header, body = (tmp_path / 'map.ply').read_bytes().split(b'end_header\n')
    assert header.startswith(b'ply\nformat binary_little_endian 1.0\nelement vertex 2\n') and len(body) == 2 * 15
    assert np.frombuffer(body[:12], '<f4').tolist() == [1, 2, 3] and list(body[12:15]) == [1, 2, 3]
