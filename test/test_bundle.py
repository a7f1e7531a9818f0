"""Bundle adjustment with an unknown focal length: what it finds, and what it says of it."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from depth_ros.geometry import bundle, se3
from depth_ros.geometry.bundle import Bundle, KnownPoints, Tracks

WIDTH, HEIGHT = 320, 240
K = np.array([[260.0, 0.0, 159.5], [0.0, 260.0, 119.5], [0.0, 0.0, 1.0]])
TURNING = np.array([[0.0] * 6, [0.2, 0.05, 0.0, 0.02, 0.12, 0.0], [-0.1, 0.1, 0.1, -0.1, 0.02, 0.05], [0.05, -0.1, 0.15, 0.05, -0.1, -0.03]])
SLIDING = TURNING * [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def poses(twists: np.ndarray) -> np.ndarray:
    return se3.exp(torch.from_numpy(twists)).numpy()


def guessed(factor: float) -> np.ndarray:
    return K * [[factor, 1, 1], [1, factor, 1], [1, 1, 1]]


def tracks(T: np.ndarray, sigma: float = 0.0, wrong: float = 0.0, readout: np.ndarray | None = None, count: int = 120, seed: int = 0) -> Tracks:
    """Of points at depths from 1 to 3 in every view, seen with noise [px], some of them somewhere else, by cameras that read rows with a shift (V, 2) [px]."""
    rng = np.random.default_rng(seed)
    views = len(T)
    source = np.repeat(np.arange(views), count)
    straight = rng.uniform([0, 0], [WIDTH, HEIGHT], (len(source), 2))
    rays = np.pad((straight - K[:2, 2]) / K[0, 0], ((0, 0), (0, 1)), constant_values=1.0) * rng.uniform(1.0, 3.0, (len(source), 1))
    T_all = T[None] @ np.linalg.inv(T)[source][:, None]                     # (P, V, 4, 4)
    moved = (T_all[..., :3, :3] @ rays[:, None, :, None])[..., 0] + T_all[..., :3, 3]
    ends = K[0, 0] * moved[..., :2] / moved[..., 2:] + K[:2, 2]
    shift = np.zeros((views, 2)) if readout is None else readout
    pixels = straight + (straight[:, 1:] - K[1, 2]) / HEIGHT * shift[source]
    ends = ends + (ends[..., 1:] - K[1, 2]) / HEIGHT * shift + rng.normal(0.0, sigma, ends.shape)
    lost = rng.random(ends.shape[:2]) < wrong
    ends[lost] = rng.uniform([0, 0], [WIDTH, HEIGHT], (lost.sum(), 2))
    seen = (moved[..., 2] > 0.1) & (np.arange(views) != source[:, None])
    return Tracks(source, pixels, ends, seen, HEIGHT)


def near(T: np.ndarray, seed: int = 1) -> np.ndarray:
    """Poses that are somewhat off, but for the first."""
    off = np.random.default_rng(seed).normal(0.0, 0.02, (len(T), 6))
    off[0] = 0.0
    return poses(off) @ T


@pytest.mark.parametrize('factor', [0.75, 1.0, 1.3])
@pytest.mark.parametrize(('sigma', 'wrong', 'tolerance'), [(0.0, 0.0, 1e-3), (0.3, 0.0, 0.01), (0.3, 0.15, 0.01)])
def test_turning_views_tell_the_focal_length_and_the_motion(factor, sigma, wrong, tolerance):
    T = poses(TURNING)
    found = bundle.adjust(tracks(T, sigma, wrong), near(T), guessed(factor), factor * K[0, 0])
    assert found.K[0, 0] == pytest.approx(K[0, 0], rel=tolerance) and found.K[1, 1] == pytest.approx(found.K[0, 0])
    np.testing.assert_allclose(found.T_cam_world[:, :3, :3], T[:, :3, :3], atol=3 * tolerance)
    assert np.array_equal(found.T_cam_world[0], T[0]) and found.focal_deviation < 0.05


@pytest.mark.parametrize('twists', [TURNING, SLIDING], ids=['turning', 'sliding'])
def test_a_calibrated_camera_keeps_its_focal_length_and_one_wrong_view_is_put_right_by_the_others(twists):
    T = poses(twists)
    start = T.copy()
    start[3] = poses(np.array([[0.0, 0.1, 0.0, 0.0, -0.14, 0.0]]))[0] @ T[3]        # some that turns by 8 degrees more
    found = bundle.adjust(tracks(T, 0.3), start, K, None)
    assert np.array_equal(found.K, K) and not found.readout.any()
    np.testing.assert_allclose(found.T_cam_world[:, :3, :3], T[:, :3, :3], atol=3e-3)
    unit = np.linalg.norm(T[1, :3, 3]) / np.linalg.norm(found.T_cam_world[1, :3, 3])
    np.testing.assert_allclose(unit * found.T_cam_world[:, :3, 3], T[:, :3, 3], atol=5e-3)


def inverse_depths(T: np.ndarray, exact: Tracks) -> np.ndarray:
    """(P,) [1/m] of noise-free tracks in their sources' cameras, by the first other view that sees each."""
    every, target = np.arange(len(exact.pixels)), exact.seen.argmax(1)
    T_target_source = T[target] @ np.linalg.inv(T)[exact.source]
    rays, ends = (np.pad((p - K[:2, 2]) / K[0, 0], ((0, 0), (0, 1)), constant_values=1.0) for p in (exact.pixels, exact.ends[every, target]))
    turned = (T_target_source[:, :3, :3] @ rays[..., None])[..., 0]
    away = np.cross(ends, T_target_source[:, :3, 3])                    # ends x (turned + inverse_depth t) = 0
    return -(np.cross(ends, turned) * away).sum(1) / (away ** 2).sum(1)


def off(found: Bundle, T: np.ndarray) -> float:
    """Mean error of the directions of translation [degrees]."""
    a, b = found.T_cam_world[1:, :3, 3], T[1:, :3, 3]
    return float(np.degrees(np.arccos(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).clip(-1, 1))).mean())


@pytest.mark.parametrize('unit', [1.0, 3.0])
def test_known_depth_gives_the_unit_of_length(unit):
    T = poses(TURNING)
    seen = tracks(T)
    inverse = inverse_depths(T, seen) / unit
    found = bundle.adjust(seen, near(T), K, None, KnownPoints(inverse, 0.1 * inverse))
    np.testing.assert_allclose(found.T_cam_world[:, :3, 3], unit * T[:, :3, 3], atol=2e-3 * unit)
    np.testing.assert_allclose(found.inverse_depth, inverse, rtol=0.02)


def test_known_depth_helps_where_flow_alone_hardly_tells():
    T, errors = poses(0.1 * TURNING), []                                # two centimetres of motion at two metres
    for seed in range(5):
        noisy = tracks(T, 1.0, seed=seed)
        inverse = inverse_depths(T, tracks(T, seed=seed)) * np.exp(np.random.default_rng(seed).normal(0.0, 0.05, len(noisy.pixels)))
        known = None, KnownPoints(inverse, 0.1 * inverse), KnownPoints(inverse, np.full(len(inverse), np.inf))
        errors.append([off(bundle.adjust(noisy, near(T, seed), K, None, some), T) for some in known])
    nothing, something, begun = np.mean(errors, 0)
    assert something < 0.85 * nothing
    assert begun == pytest.approx(nothing, rel=0.1)                     # a place to begin at, and no more


@pytest.mark.parametrize('sigma', [0.05, 0.3])
def test_known_depth_gives_way_where_flow_contradicts_it(sigma):
    T = poses(TURNING)
    seen, true = tracks(T, sigma), inverse_depths(T, tracks(T))
    mistaken = np.arange(len(true)) % 10 == 0
    inverse = np.where(mistaken, 1.5, 1.0) * true
    found = bundle.adjust(seen, near(T), K, None, KnownPoints(inverse, 0.1 * inverse))
    assert np.median(np.abs(found.inverse_depth[mistaken] / true[mistaken] - 1)) < 0.1
    assert off(found, T) < off(bundle.adjust(seen, near(T), K, None), T) + 0.2
    stubborn = bundle.adjust(seen, near(T), K, None, KnownPoints(inverse, np.where(mistaken, 1e-6, 0.1) * inverse))
    assert np.median(np.abs(stubborn.inverse_depth[mistaken] / true[mistaken] - 1)) > 0.3       # else this would show nothing


def test_pixels_that_are_not_square_stay_as_they_are():
    T = poses(TURNING)
    squeezed, half = tracks(T), np.array([1.0, 0.5])
    squeezed = Tracks(squeezed.source, squeezed.pixels * half, squeezed.ends * half, squeezed.seen, HEIGHT // 2)
    start = np.diag([1.0, 0.5, 1.0]) @ guessed(1.2)
    found = bundle.adjust(squeezed, near(T), start, start[0, 0])
    assert found.K[0, 0] == pytest.approx(K[0, 0], rel=2e-3) and found.K[1, 1] == pytest.approx(0.5 * found.K[0, 0])


def test_without_rotation_the_guess_stays_and_is_said_to_be_one():
    T = poses(SLIDING)
    found = bundle.adjust(tracks(T, 0.3), T, guessed(1.2), 1.2 * K[0, 0])
    assert found.focal_deviation > 0.15 and abs(np.log(found.K[0, 0] / K[0, 0] / 1.2)) < 2 * found.focal_deviation
    turned = bundle.adjust(tracks(poses(TURNING), 0.3), poses(TURNING), guessed(1.2), 1.2 * K[0, 0])
    assert turned.focal_deviation < 0.2 * found.focal_deviation


@pytest.mark.parametrize(('sigma', 'count'), [(0.3, 60), (2.0, 60), (0.5, 10)])
def test_it_is_as_sure_of_the_focal_length_as_it_is_right(sigma, count):
    """Over many draws the error is no more than twice what is claimed, whatever the noise and however few the points."""
    T, off = poses(TURNING), []
    for seed in range(8):
        found = bundle.adjust(tracks(T, sigma, count=count, seed=seed), T, guessed(1.0), K[0, 0])
        off.append(np.log(found.K[0, 0] / K[0, 0]) / found.focal_deviation)
    assert np.sqrt(np.mean(np.square(off))) < 2.0


def test_rows_that_are_read_one_after_the_other_are_not_taken_for_another_focal_length():
    T, readout = poses(0.4 * TURNING), np.random.default_rng(5).normal(0.0, 1.0, (4, 2))
    found = bundle.adjust(tracks(T, 0.0, readout=readout), T, guessed(1.1), 1.1 * K[0, 0])
    assert found.K[0, 0] == pytest.approx(K[0, 0], rel=0.02)
    np.testing.assert_allclose(found.readout - found.readout.mean(0), readout - readout.mean(0), atol=0.25)


def test_nothing_seen_leaves_all_as_it_was():
    T = poses(TURNING)
    blind = tracks(T)
    blind.seen[:] = False
    found = bundle.adjust(blind, T, guessed(1.2), 1.2 * K[0, 0])
    assert np.array_equal(found.K, guessed(1.2)) and np.array_equal(found.T_cam_world, T)
    assert found.focal_deviation == pytest.approx(bundle.GIVEN)


def test_the_derivatives_are_those_of_the_residuals():
    rng = np.random.default_rng(2)
    T = poses(TURNING)
    seen = tracks(T, 1.0, count=10)
    state = Bundle(T, rng.uniform(0.5, 1.0, len(seen.pixels)), K * [[1.0], [1.1], [1.0]], rng.normal(0.0, 1.0, (4, 2)))
    linear, unknowns, small = bundle._linearise(seen, state), 8 * len(T) + 1, 1e-6

    def slope(rest, depths):
        before, after = (bundle._linearise(seen, bundle._stepped(state, sign * rest, sign * depths)).error for sign in (-small, small))
        return -(after - before) / (2 * small)

    still = np.zeros(len(seen.pixels))
    by_rest = np.stack([slope(one, still) for one in np.eye(unknowns)], -1)
    np.testing.assert_allclose(linear.by_rest, by_rest, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(linear.by_depth, slope(np.zeros(unknowns), still + 1), rtol=1e-4, atol=1e-3)
