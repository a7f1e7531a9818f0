"""Depth carried along: exact on planes, still at rest, and none where it would be of another place or time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_ros.engines.carried_depth import CarriedDepth
from depth_ros.frames import CameraFrame, pixel_grid

SIZE = 128, 96      # [px]
K = np.array([[110.0, 0.0, 63.5], [0.0, 110.0, 47.5], [0.0, 0.0, 1.0]])
NORMAL, DISTANCE = np.array([0.1, -0.3, 1.0]), 2.0      # of a plane in the world, n . x = d [m]
LONGEST = 5.0       # [s]


def frame(seconds=0.0, size=SIZE, focal=K):
    return CameraFrame(round(1e9 * seconds), 'camera', np.zeros((size[1], size[0], 3), np.uint8), focal)


def pose(x=0.0, y=0.0, z=0.0, turned=(0.0, 0.0, 0.0)):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(turned).as_matrix(), (x, y, z)
    return T


def plane(T_world_cam):
    """Depth (H, W) [m] of the plane as seen from a pose."""
    pixels = pixel_grid(*SIZE)
    rays = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1) @ np.linalg.inv(K).T @ T_world_cam[:3, :3].T
    return ((DISTANCE - NORMAL @ T_world_cam[:3, 3]) / (rays @ NORMAL)).astype(np.float32)


def carrying(T_world_cam=np.eye(4), confidence=None):
    carried = CarriedDepth()
    carried.remember(frame(), T_world_cam, plane(T_world_cam), np.full(SIZE[::-1], 0.7, np.float32) if confidence is None else confidence)
    return carried


@pytest.mark.parametrize('T', [pose(), pose(0.03), pose(0.02, -0.01, 0.05), pose(turned=(0.02, 0.05, -0.03)), pose(0.01, 0.02, -0.04, (0.0, -0.04, 0.02))])
def test_a_plane_is_seen_as_it_lies_from_elsewhere(T):
    start = pose(0.3, 0.1, -0.2, (0.1, 0.2, 0.0))
    carried = carrying(start).at(frame(1.0), start @ T, LONGEST)
    known = carried.depth > 0
    assert known.mean() > 0.85
    np.testing.assert_allclose(carried.depth[known], plane(start @ T)[known], rtol=0.02)        # half a pixel of it


def test_what_comes_into_view_is_not_known_beyond_a_few_pixels():
    turned = pose(turned=(0.0, 0.15, 0.0))      # to the right, by some 17 pixels
    carried = carrying().at(frame(1.0), turned, LONGEST)
    assert (carried.depth[:, -10:] == 0).all() and (carried.depth[:, :100] > 0).mean() > 0.99
    assert (carried.confidence[:, -10:] == 0).all() and carried.confidence[48, 40] == pytest.approx(0.7)


def test_confidence_goes_along_with_its_place():
    confidence = np.zeros(SIZE[::-1], np.float32)
    confidence[:, 64:] = 1.0
    carried = carrying(confidence=confidence).at(frame(1.0), pose(turned=(0.0, 20 / 110, 0.0)), LONGEST)
    row = carried.confidence[48]
    assert row[:40].max() == 0.0 and row[48:80].min() == 1.0


def test_rest_however_long_changes_nothing():
    carried, steps = carrying(), plane(pose()).copy()
    steps[:, 50:] *= 1.6        # an edge
    carried.remember(frame(), pose(), steps, np.ones_like(steps))
    for i in range(60):
        found = carried.at(frame(0.03 * i), pose(1e-4 * (i % 3)), LONGEST)
    np.testing.assert_allclose(found.depth, steps, rtol=1e-3)


@pytest.mark.parametrize(('why', 'now', 'T'), [('too old', frame(5.1), pose()), ('from before', frame(-0.1), pose()), ('out of view', frame(1.0), pose(turned=(0.0, 0.6, 0.0))),
                                                ('behind', frame(1.0), pose(turned=(0.0, 3.0, 0.0))), ('another size', frame(1.0, (64, 48)), pose()),
                                                ('another focal length', frame(1.0, focal=K * [[2.0], [2.0], [1.0]]), pose())])
def test_none_where_it_would_be_of_another_place_or_time(why, now, T):
    assert carrying().at(now, T, LONGEST) is None


def test_nothing_is_carried_before_anything_was_seen_or_after_it_was_forgotten():
    assert CarriedDepth().at(frame(), pose(), LONGEST) is None
    carried = carrying()
    carried.clear()
    assert carried.at(frame(), pose(), LONGEST) is None
