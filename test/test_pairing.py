"""When a reference is kept and when it ends."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depth_ros.engines.pairing import ObservedMotion, Pairing, PairingConfig, Restart, observed_motion
from depth_ros.frames import CameraFrame, FlowResult, ImagePair

K = np.array([[50.0, 0.0, 31.5], [0.0, 50.0, 23.5], [0.0, 0.0, 1.0]])
STEP = 33_000_000   # ns


def frame(index: int) -> CameraFrame:
    return CameraFrame(1_000_000_000 + index * STEP, 'camera', np.zeros((48, 64, 3), np.uint8), K)


def result(pair: ImagePair, moved: float, valid: float = 1.0) -> FlowResult:
    """A pair's flow that moves every pixel by a share of the width, with a share of them valid."""
    flow = np.zeros((48, 64, 2), np.float32)
    flow[..., 0] = moved * 64
    flow[np.random.default_rng(0).random((48, 64)) >= valid] = 1000.0
    return FlowResult(pair, flow, np.full_like(flow, [-64 * moved, 0]))


def run(moved_a_frame: float, frames: int, valid: float = 1.0) -> list[int]:
    """Indices of the reference of frames 1.. when every frame moves by the same share of the width."""
    pairing, references = Pairing(), []
    for index in range(frames):
        pair = pairing.pair(frame(index))
        if pair is None:
            continue
        reference = (pair.reference.stamp - 1_000_000_000) // STEP
        references.append(reference)
        pairing.update(result(pair, moved_a_frame * (index - reference), valid))
    return references


def test_reference_is_kept_until_the_image_has_moved():
    assert run(0.02, 8) == [0, 0, 0, 3, 3, 3, 6]


def test_reference_ends_when_the_overlap_falls():
    assert run(0.0, 4, valid=0.3) == [0, 1, 2]


def test_reference_grows_old_only_if_something_moved():
    assert set(run(0.0, 40)) == {0}
    assert set(run(0.001, 40)) == {0, 16, 32}


def test_first_image_pairs_with_nothing():
    pairing = Pairing()
    assert pairing.pair(frame(0)) is None and pairing.restarted is Restart.FIRST
    assert pairing.pair(frame(1)).reference.stamp == frame(0).stamp and pairing.restarted is None


@pytest.mark.parametrize(('odd', 'reason'), [
    (frame(50), Restart.GAP), (frame(-5), Restart.CLOCK), (replace(frame(2), K=K * [[2], [2], [1]]), Restart.CAMERA),
    (frame(2).resized(32, 24), Restart.CAMERA)])
def test_pairing_starts_anew(odd: CameraFrame, reason: Restart):
    pairing = Pairing()
    pairing.pair(frame(0))
    pairing.pair(frame(1))
    assert pairing.pair(odd) is None and pairing.restarted is reason
    following = replace(odd, stamp=odd.stamp + STEP)
    assert pairing.pair(following).reference is odd


def test_motion_counts_consistent_pixels_only():
    given = result(ImagePair(frame(1), frame(0)), 0.1)
    flow = given.flow.copy()
    flow[:, :40] = 1000
    moved, overlap = observed_motion(replace(given, flow=flow))
    assert moved == pytest.approx(0.1) and overlap == pytest.approx(18 / 64, abs=0.05)      # of the other 24 columns, 6 leave the image
    assert observed_motion(replace(given, flow=np.full_like(flow, 1000))) == ObservedMotion(0.0, 0.0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match='displacement'):
        Pairing(PairingConfig(displacement=-1.0))
