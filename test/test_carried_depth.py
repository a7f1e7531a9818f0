"""Depth carried along: exact on planes, still at rest, and none where it would be of something else, another place or time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_ros.engines.carried_depth import CarriedDepth
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, pixel_grid

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


def rays():
    pixels = pixel_grid(*SIZE)
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1) @ np.linalg.inv(K).T


def plane(T_world_cam):
    """Depth (H, W) [m] of the plane as seen from a pose."""
    return ((DISTANCE - NORMAL @ T_world_cam[:3, 3]) / (rays() @ T_world_cam[:3, :3].T @ NORMAL)).astype(np.float32)


def flow(T_world_from, T_world_to):
    """Of the plane [px]."""
    T = np.linalg.inv(T_world_to) @ T_world_from
    moved = (plane(T_world_from)[..., None] * rays() @ T[:3, :3].T + T[:3, 3]) @ K.T
    return (moved[..., :2] / np.where(moved[..., 2:] > 0.1, moved[..., 2:], 1e-3) - pixel_grid(*SIZE)).astype(np.float32)


class Course:
    """A camera whose depth is known at its start, and what it sees of the plane from elsewhere."""

    def __init__(self, start=pose(), depth=None, confidence=0.7):
        self.start, self.carried = start, CarriedDepth()
        self.carried.remember(frame(), start, plane(start) if depth is None else depth, np.broadcast_to(np.float32(confidence), SIZE[::-1]).copy())

    def pair(self, T, seconds=1.0):
        now = self.start @ T
        return FlowResult(ImagePair(frame(seconds), frame()), flow(now, self.start), flow(self.start, now))

    def at(self, T, seconds=1.0, result=None):
        return self.carried.at(result or self.pair(T, seconds), T, self.start @ T, LONGEST)


@pytest.mark.parametrize('T', [pose(), pose(0.03), pose(0.02, -0.01, 0.05), pose(turned=(0.02, 0.05, -0.03)), pose(0.01, 0.02, -0.04, (0.0, -0.04, 0.02))])
def test_a_plane_is_seen_as_it_lies_from_elsewhere(T):
    course = Course(pose(0.3, 0.1, -0.2, (0.1, 0.2, 0.0)))
    carried = course.at(T)
    known = carried.depth > 0
    assert known.mean() > 0.85
    np.testing.assert_allclose(carried.depth[known], plane(course.start @ T)[known], rtol=0.02)        # half a pixel of it


def test_what_comes_into_view_is_not_known_beyond_a_few_pixels():
    carried = Course().at(pose(turned=(0.0, 0.15, 0.0)))        # to the right, by some 17 pixels
    assert (carried.depth[:, -10:] == 0).all() and (carried.depth[:, :100] > 0).mean() > 0.99
    assert (carried.confidence[:, -10:] == 0).all() and carried.confidence[48, 40] == pytest.approx(0.7)


def test_confidence_goes_along_with_its_place():
    confidence = np.zeros(SIZE[::-1], np.float32)
    confidence[:, 64:] = 1.0
    row = Course(confidence=confidence).at(pose(turned=(0.0, 20 / 110, 0.0))).confidence[48]
    assert row[:40].max() == 0.0 and row[48:80].min() == 1.0


def test_rest_however_long_changes_nothing():
    steps = plane(pose())
    steps[:, 50:] *= 1.6        # an edge
    course = Course(depth=steps)
    for i in range(60):
        found = course.at(pose(1e-4 * (i % 3)), 0.03 * i)
    np.testing.assert_allclose(found.depth, steps, rtol=1e-3)


def test_nothing_is_known_of_what_moves_by_itself():
    """Somebody who walks by, before a camera that hardly moves: the depth behind is no longer seen."""
    course, T = Course(), pose(0.004)
    result = course.pair(T)
    result.flow[30:60, 40:70] += (6.0, 0.0)
    result.backward[30:60, 46:76] -= (6.0, 0.0)
    carried = course.at(T, result=result)
    assert not carried.depth[30:60, 40:70].any() and not carried.confidence[30:60, 40:70].any()
    around = np.ones(SIZE[::-1], bool)
    around[27:63, 30:80] = False
    assert (carried.depth[around] > 0).mean() > 0.99


@pytest.mark.parametrize(('T', 'seconds'), [(pose(), 5.1), (pose(), -0.1), (pose(turned=(0.0, 0.6, 0.0)), 1.0), (pose(turned=(0.0, 3.0, 0.0)), 1.0)],
                         ids=['too old', 'from before', 'out of view', 'behind'])
def test_none_where_it_would_be_of_another_place_or_time(T, seconds):
    assert Course().at(T, seconds) is None


@pytest.mark.parametrize('now', [frame(1.0, (64, 48)), frame(1.0, focal=K * [[2.0], [2.0], [1.0]])], ids=['another size', 'another focal length'])
def test_none_for_another_camera(now):
    nothing = np.zeros((*now.image.shape[:2], 2), np.float32)
    assert Course().at(pose(), result=FlowResult(ImagePair(now, now), nothing, nothing)) is None


def test_nothing_is_carried_before_anything_was_seen_or_after_it_was_forgotten():
    course = Course()
    course.carried.clear()
    assert course.at(pose()) is None and CarriedDepth().at(course.pair(pose()), pose(), pose(), LONGEST) is None
