"""Range hits that come late, from a camera that turns and goes sideways in a room: they tell the scale that hits in time would tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_ros.engines.depth_filter import InverseDepth
from depth_ros.engines.late_hits import LateHits
from depth_ros.engines.scale import MetricScale
from depth_ros.frames import CameraFrame

SIZE = 160, 120
K = np.array([[140.0, 0.0, 79.5], [0.0, 140.0, 59.5], [0.0, 0.0, 1.0]])
FACTOR = 1.7                # [m per unit of the odometry]
TURN, SPEED = 1.0, 0.5      # [rad/s, m/s]
STEP = 33_000_000           # [ns]
START = 10 ** 18


def pose(stamp: int) -> np.ndarray:
    """T_room_cam (4, 4) [m]."""
    t, T = (stamp - START) * 1e-9, np.eye(4)
    T[:3, :3] = Rotation.from_euler('y', TURN * t).as_matrix()
    T[:3, 3] = SPEED * t, 0.0, 0.0
    return T


def depth(stamp: int) -> np.ndarray:
    """(H, W) [m] of a box around the camera, 2 m to the sides, 1 m up and down, 3 m ahead."""
    T, (width, height) = pose(stamp), SIZE
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T @ T[:3, :3].T
    walls = np.array([2.0, 1.0, 3.0])
    return ((np.sign(rays) * walls - T[:3, 3]) / rays).min(-1).astype(np.float32)


def row(stamp: int) -> np.ndarray:
    """What a laser in the camera hits: the middle row."""
    hits = np.zeros(SIZE[::-1], np.float32)
    hits[60, ::2] = depth(stamp)[60, ::2]
    return hits


def after(frames: int, late: LateHits | None = None) -> LateHits:
    """A memory of so many frames, all in units of FACTOR metres."""
    late = late or LateHits(0.1, 0.5)
    for i in range(frames):
        stamp, T = START + i * STEP, pose(START + i * STEP)
        T[:3, 3] /= FACTOR
        frame = CameraFrame(stamp, 'camera', np.zeros((*SIZE[::-1], 3), np.uint8), K)
        late.remember(frame, T, InverseDepth(FACTOR / depth(stamp), np.ones(SIZE[::-1], np.float32)))
    return late


def told(late: LateHits, factor: float | None = FACTOR) -> float | None:
    """The scale that the hits give."""
    scale = MetricScale()
    for estimate, hits in late.compared(factor):
        scale.update(estimate.depth, np.ones(hits.shape, bool), hits)
    return scale.factor


@pytest.mark.parametrize('behind', [0, 1, 3, 20])
def test_hits_however_late_give_the_scale_that_exact_hits_give(behind):
    late = after(30)
    late.put(START + (29 - behind) * STEP, row(START + (29 - behind) * STEP))
    assert told(late) == pytest.approx(FACTOR, rel=1e-6)


def test_the_newest_image_would_tell_another_scale():
    scale, now, then = MetricScale(), START + 29 * STEP, START + 26 * STEP
    scale.update(depth(now) / FACTOR, np.ones(SIZE[::-1], bool), row(then))
    assert abs(scale.factor / FACTOR - 1.0) > 0.05


@pytest.mark.parametrize(('factor', 'share'), [(FACTOR, 0.002), (None, 0.02)])
def test_hits_of_an_image_that_was_not_tracked_are_moved_into_the_nearest(factor, share):
    late, stamp = after(30), START + 20 * STEP + STEP // 3
    late.put(stamp, row(stamp))
    assert told(late, factor) == pytest.approx(FACTOR, rel=share)       # without a factor nobody knows how far the camera went in those 11 ms


def test_hits_that_come_before_their_image_wait_for_it():
    late = LateHits(0.1, 0.5)
    after(3, late)
    stamp = START + 4 * STEP
    late.put(stamp, row(stamp))
    assert told(late) is None
    late.remember(CameraFrame(stamp, 'camera', np.zeros((*SIZE[::-1], 3), np.uint8), K), pose(stamp), InverseDepth(FACTOR / depth(stamp), np.ones(SIZE[::-1], np.float32)))
    assert told(late) == pytest.approx(FACTOR, rel=1e-6)
    assert told(late) is None       # once


@pytest.mark.parametrize('stamp', [START - 10 * STEP, START + 40 * STEP, START + 10 ** 11], ids=['before', 'too far behind', 'another run of the clock'])
def test_hits_of_no_known_image_tell_nothing(stamp):
    late = after(30)
    if stamp < START + 10 ** 11:
        far = CameraFrame(START + 50 * STEP, 'camera', np.zeros((*SIZE[::-1], 3), np.uint8), K)
        late.remember(far, np.eye(4), InverseDepth(np.ones(SIZE[::-1], np.float32), np.ones(SIZE[::-1], np.float32)))
    late.put(stamp, row(START))
    assert told(late) is None


def test_hits_at_another_size_are_taken():
    late = after(10)
    large = np.zeros((240, 320), np.float32)
    large[120, ::4] = depth(START + 9 * STEP)[60, ::2]
    late.put(START + 9 * STEP, large)
    assert told(late) == pytest.approx(FACTOR, rel=1e-3)
