"""Whether a camera hangs: the same picture though poses or ranges change, in either image of a pair, and not where it merely stands."""

from __future__ import annotations

import numpy as np
import pytest

from depth_ros.engines.hanging_image import HANGS, HUNG, RANGES_TELL, HangingImage
from depth_ros.frames import CameraFrame, ImagePair

MOMENT = 100_000_000    # [ns]
K = np.array([[60.0, 0.0, 31.5], [0.0, 60.0, 23.5], [0.0, 0.0, 1.0]])


def image(number: int) -> np.ndarray:
    """What a sensor with a little noise sees of one grey place."""
    return np.random.default_rng(number).integers(99, 102, (48, 64, 3), np.uint8)


def pair(now: int, shows: int, before: int, showed: int) -> ImagePair:
    """Images of two moments that show what was there at others."""
    return ImagePair(*(CameraFrame(stamp * MOMENT, 'camera', image(number), K) for stamp, number in ((now, shows), (before, showed))))


def at(x: float) -> np.ndarray:
    T = np.eye(4)
    T[0, 3] = x
    return T


def test_a_living_camera_never_hangs_moving_or_not():
    for speed in (0.0, 0.1):
        camera = HangingImage()
        assert not any(camera.step(pair(n, n, n - 3, n - 3), at(speed * n), at(3 * speed), np.full((48, 64), 2.0 + n)) for n in range(3, 20))


def test_a_repeated_image_hangs_once_the_pose_has_changed_and_its_pairs_are_no_good_until_both_images_live():
    camera, told = HangingImage(), []
    for now in range(3, 20):
        shown = [8 if 8 <= n < 13 else n for n in (now, now - 3)]
        told.append(camera.step(pair(now, shown[0], now - 3, shown[1]), at(0.1 * now), at(0.3)))
    assert told == [''] * 6 + [HANGS] * 4 + [HUNG] * 3 + [''] * 4
    assert camera.hung.stamp == 8 * MOMENT and camera.hung.is_of(image(8))


def test_what_is_all_but_the_same_hangs_too_and_noise_does_not():
    for changed, hangs in ((10, True), (3000, False)):
        camera = HangingImage()
        assert not camera.step(pair(3, 3, 0, 0), at(0.0))
        again = image(3).ravel()
        again[:changed] += 1
        frame = CameraFrame(4 * MOMENT, 'camera', again.reshape(48, 64, 3), K)
        assert bool(camera.step(ImagePair(frame, pair(3, 3, 0, 0).reference), at(0.1))) is hangs


@pytest.mark.parametrize(('share', 'wild', 'reason'), [(1.0, 0, ''), (1.3, 0, RANGES_TELL), (1.03, 0, ''), (5.0, 20, '')])
def test_ranges_tell_where_no_odometry_does_and_a_few_wild_ones_do_not(share, wild, reason):
    camera, hits = HangingImage(), np.zeros((48, 64), np.float32)
    hits[20] = 2.0
    changed = hits.copy()
    changed[20, :wild or None] *= share
    assert not camera.step(pair(3, 3, 0, 0), None, None, hits)
    assert camera.step(pair(4, 3, 0, 0), None, None, changed) == reason


def test_a_pair_of_one_image_that_moved_hangs_and_one_of_a_place_where_it_stands_does_not():
    assert HangingImage().step(pair(3, 3, 0, 3), None, at(0.1)) == HANGS
    assert not HangingImage().step(pair(3, 3, 0, 3), None, at(0.0)) and not HangingImage().step(pair(3, 3, 0, 3))


def test_a_recording_that_begins_again_is_another_run():
    camera = HangingImage()
    camera.step(pair(8, 8, 5, 5), at(0.8))
    assert camera.step(pair(9, 8, 6, 6), at(0.9)) == HANGS
    assert not camera.step(pair(8, 8, 5, 5), at(0.8)) and camera.hung is None
