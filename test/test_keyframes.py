"""What is remembered, for how long, and what goes first."""
from __future__ import annotations

import numpy as np
import pytest

from depth_ros.engines.keyframes import Keyframes, View, apart
from depth_ros.frames import CameraFrame

K = np.eye(3)


def view(stamp: int, x: float = 0.0, image: np.ndarray | None = None) -> View:
    T = np.eye(4)
    T[0, 3] = x
    image = np.zeros((24, 32, 3), np.uint8) if image is None else image
    return View(CameraFrame(stamp, 'camera', image, K), T)


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((30, 32, 1), np.uint8))


def test_recent_views_are_bounded_and_keyframes_outlive_them():
    memory = Keyframes(max_recent=5, max_keyframes=3)
    for stamp in range(20):
        memory.remember(view(stamp, x=stamp))
        if stamp == 2:
            memory.promote(memory.find(stamp))
    assert memory.find(2) is not None and memory.is_key(2)
    assert memory.find(3) is None and memory.find(15) is not None
    assert memory.last.stamp == 19


def test_keyframes_are_bounded_and_the_most_redundant_goes_first():
    memory = Keyframes(max_keyframes=6)
    for stamp, x in enumerate([0.0, 1.0, 2.0, 2.01, 3.0, 4.0, 5.0]):
        memory.promote(view(stamp, x))
    assert len(memory) == 6
    assert not (memory.is_key(2) and memory.is_key(3))
    assert all(memory.is_key(k) for k in (0, 1, 4, 5, 6))


def test_newest_come_first_and_promoting_again_makes_newest():
    memory = Keyframes()
    views = [view(stamp) for stamp in range(4)]
    for v in views:
        memory.promote(v)
    assert [v.stamp for v in memory.newest(2)] == [3, 2]
    memory.promote(views[0])
    assert [v.stamp for v in memory.newest(2)] == [0, 3]


def test_likest_finds_the_same_picture():
    memory = Keyframes()
    for seed in range(8):
        memory.promote(view(seed, image=picture(seed)))
    brighter = np.clip(picture(5).astype(int) + 20, 0, 255).astype(np.uint8)
    assert memory.likest(view(100, image=brighter), 1)[0].stamp == 5


def test_texture_is_zero_where_blank_and_the_slope_of_a_ramp():
    ramp = np.broadcast_to((np.arange(64, dtype=np.uint8) * 3)[None, :, None], (48, 64, 3))
    inner = np.s_[8:-8, 8:-8]
    assert not view(0, image=np.full((48, 64, 3), 90, np.uint8)).texture.any()
    assert view(0, image=ramp.copy()).texture[inner] == pytest.approx(3.0, abs=1e-3)


def test_blank_thumbnail_is_finite():
    assert np.isfinite(view(0).thumbnail).all()


def test_apart_counts_metres_and_angle():
    a, b = np.eye(4), np.eye(4)
    b[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    b[:3, 3] = 3, 4, 0
    assert apart(a, b) == pytest.approx(5 + np.pi)
    assert apart(a, a) == 0


def test_clear_forgets():
    memory = Keyframes()
    memory.remember(view(1))
    memory.promote(view(2))
    memory.clear()
    assert len(memory) == 0 and memory.last is None and memory.find(2) is None
