"""The fused map: what two views agree on enters, what flies between surfaces does not."""
from __future__ import annotations

import numpy as np
import pytest
from deepv2d_support import Clip, clip

from depth_ros.engines.keyframe_map import COMPARED, KeyframeMap
from depth_ros.frames import DepthResult, Scale

pytestmark = pytest.mark.usefixtures('one_thread')

CHECK = {'min_confidence': 0.5, 'stride': 2, 'views': 1, 'tolerance': 0.03}


@pytest.fixture(scope='module')
def drive() -> Clip:
    t = np.linspace(0, 1, 6)[1:, None]
    return clip(np.hstack([-0.6 * t, 0.1 * np.sin(6 * t), 0.1 * t, 0.04 * np.sin(5 * t), 0.1 * t, 0.03 * t]))


def poses(of: Clip) -> np.ndarray:
    """T_map_cam (N, 4, 4)."""
    return np.concatenate([np.eye(4)[None], np.linalg.inv(of.T_view_key)])


def seen(of: Clip, index: int, depth: np.ndarray | None = None, confidence: float = 1.0) -> DepthResult:
    depth = of.depth[index] if depth is None else depth
    return DepthResult(of.frames[index], depth, depth > 0, np.full(depth.shape, confidence, np.float32), Scale.METRIC)


def off_the_wall(points: np.ndarray) -> np.ndarray:
    """How far (N,) [m] along z points are from the wall that the clips show."""
    wall = 2.0 + 0.35 * np.sin(2.3 * points[:, 0]) + 0.25 * np.cos(3.1 * points[:, 1] + 0.5)
    return np.abs(points[:, 2] - wall)


def spoiled(of: Clip, index: int, share: float = 0.05) -> np.ndarray:
    """Depth with some pixels that fly before the wall."""
    depth = of.depth[index].copy()
    depth[np.random.default_rng(index).random(depth.shape) < share] *= 0.7
    return depth


def test_exact_depth_enters_and_lies_on_the_wall(drive):
    grid = KeyframeMap(0.03, 10 ** 6)
    for i, T in enumerate(poses(drive)):
        grid.add(seen(drive, i), T, **CHECK)
    unchecked = KeyframeMap(0.03, 10 ** 6)
    for i, T in enumerate(poses(drive)):
        unchecked.add(seen(drive, i), T, **{**CHECK, 'views': 0})
    points, colours = grid.arrays()
    assert len(grid) == len(points) == len(colours) > 0.9 * len(unchecked)
    assert np.quantile(off_the_wall(points), 0.99) < 0.02


def test_flying_points_stay_out(drive):
    shares = []
    for views in (0, 1):
        grid = KeyframeMap(0.03, 10 ** 6)
        for i, T in enumerate(poses(drive)):
            grid.add(seen(drive, i, spoiled(drive, i)), T, **{**CHECK, 'views': views})
        shares.append(float((off_the_wall(grid.arrays()[0]) > 0.1).mean()))
    assert shares[0] > 0.1 and shares[1] < 0.05 * shares[0]


def test_what_was_seen_once_waits_for_the_next_view_and_a_lone_one_is_shown_as_it_is(drive):
    grid = KeyframeMap(0.03, 10 ** 6)
    grid.add(seen(drive, 0, spoiled(drive, 0)), np.eye(4), **CHECK)
    alone = grid.arrays()[0]
    assert (off_the_wall(alone) > 0.1).any()
    grid.add(seen(drive, 1), poses(drive)[1], **CHECK)
    both = grid.arrays()[0]
    assert len(both) > 0.7 * len(alone) and not (off_the_wall(both) > 0.1).any()


def test_of_two_views_that_disagree_nothing_enters(drive):
    grid = KeyframeMap(0.03, 10 ** 6)
    grid.add(seen(drive, 0), np.eye(4), **CHECK)
    grid.add(seen(drive, 1, 1.2 * drive.depth[1]), poses(drive)[1], **CHECK)
    assert len(grid) == 0 and grid.arrays()[0].shape == (0, 3)


def test_unsure_depth_and_that_of_no_value_take_no_part(drive):
    grid = KeyframeMap(0.03, 10 ** 6)
    depth = drive.depth[1].copy()
    depth[:60] = np.nan
    for i, result in enumerate((seen(drive, 0, confidence=0.4), seen(drive, 0), seen(drive, 1, np.where(np.isnan(depth), 0, depth)))):
        grid.add(result, poses(drive)[max(0, i - 1)], **CHECK)
    pixels = grid.arrays()[0] @ drive.frames[0].K.T
    rows = pixels[:, 1] / pixels[:, 2]
    assert len(rows) and rows.min() > 40     # the upper half was known to one view only


def test_memory_is_bounded(drive):
    grid = KeyframeMap(0.01, 500)
    for i in range(3 * COMPARED):
        grid.add(seen(drive, i % 6), poses(drive)[i % 6], **CHECK)
        assert len(grid) <= 500 or i == 0
    assert len(grid._recent) == COMPARED
    grid.clear()
    assert len(grid) == 0 and not grid._recent


def test_points_keep_the_colour_of_their_pixel(drive):
    grid = KeyframeMap(0.005, 10 ** 6)
    for i in range(2):
        grid.add(seen(drive, 0), np.eye(4), **CHECK)
    points, colours = grid.arrays()
    pixels = points @ drive.frames[0].K.T
    columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    wanted = drive.frames[0].image[rows, columns].astype(int)
    assert (np.abs(wanted - colours).max(1) < 40).mean() > 0.9
