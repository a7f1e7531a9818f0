"""The depth filter on a textured plane with exact poses and flow, and on a rendered room with real flow."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from depth_ros.engines.depth_filter import DepthFilter, DepthFilterConfig, InverseDepth, Reference
from depth_ros.engines.flow import FlowEngine, pixel_grid
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, FlowResult, ImagePair
from depth_ros.learning import synthetic
from depth_ros.learning.sample import SampleSettings, camera_poses, sample_scene

WIDTH, HEIGHT = 160, 120
K = np.array([[131.0, 0.0, 79.5], [0.0, 131.0, 59.5], [0.0, 0.0, 1.0]])
RAYS = np.concatenate([pixel_grid(WIDTH, HEIGHT), np.ones((HEIGHT, WIDTH, 1))], -1) @ np.linalg.inv(K).T
PLANE = (1 / (0.5 + 0.12 * RAYS[..., 0] - 0.2 * RAYS[..., 1])).astype(np.float32)      # depth [m] of a slanted plane in the current frame
IMAGE = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3), dtype=np.uint8)
INSIDE = np.s_[10:-10, 15:-15]
ROUGH = DepthFilterConfig(filter_smoothness=10.0)     # smoothing averages noise away, and so hides what fusion does
SMALL = DepthFilterConfig(filter_reach=10.0)             # the default suits 320 x 240


def moved(x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """T_ref_cur of a small motion."""
    T = np.eye(4)
    T[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    T[:3, 3] = x, y, z
    return T


def exact(T_ref_cur: np.ndarray, noise: float = 0.0, seed: int = 0) -> Reference:
    """The flow of the plane to a reference, with Gaussian noise [px] on it."""
    points = (RAYS * PLANE[..., None]) @ T_ref_cur[:3, :3].T + T_ref_cur[:3, 3]
    projected = points @ K.T
    flow = (projected[..., :2] / projected[..., 2:] - pixel_grid(WIDTH, HEIGHT)).astype(np.float32)
    flow += np.random.default_rng(seed).normal(0, noise, flow.shape).astype(np.float32)
    error = np.full((HEIGHT, WIDTH), noise, np.float32)
    return Reference(FlowResult(ImagePair(frame(), frame(0)), flow, -flow, error, error < 1), T_ref_cur)


def frame(stamp: int = 1) -> CameraFrame:
    return CameraFrame(stamp, 'camera', IMAGE, K)


def abs_rel(estimate: InverseDepth, truth: np.ndarray) -> float:
    return float((np.abs(estimate.depth - truth) / truth)[INSIDE].mean())


def sound(estimate: InverseDepth) -> bool:
    """All finite, depth positive, information not negative."""
    return bool(np.isfinite(estimate.value).all() and np.isfinite(estimate.information).all() and (estimate.value > 0).all()
                and (estimate.information >= 0).all() and np.isfinite(estimate.relative_sigma).all())


def test_exact_flow_gives_the_plane():
    for T in (moved(x=0.1), moved(y=-0.1), moved(x=0.08, z=0.05, yaw=0.02)):
        estimate = DepthFilter().step(frame(), [exact(T)])
        assert sound(estimate) and abs_rel(estimate, PLANE) < 0.03


def test_depth_has_the_unit_of_the_poses():
    plain, double = (DepthFilter().step(frame(), [replace(exact(moved(x=0.1)), T_ref_cur=moved(x=x))]) for x in (0.1, 0.2))
    np.testing.assert_allclose(double.depth, 2 * plain.depth, rtol=1e-4)
    np.testing.assert_allclose(double.relative_sigma, plain.relative_sigma, rtol=1e-4)


def test_more_parallax_is_surer():
    near, far = (DepthFilter(ROUGH).step(frame(), [exact(moved(x=x), noise=0.3)]) for x in (0.05, 0.15))
    assert np.median(far.relative_sigma) < 0.5 * np.median(near.relative_sigma)
    assert abs_rel(far, PLANE) < 0.5 * abs_rel(near, PLANE)


def test_measuring_again_from_the_same_place_averages_noise():
    """The camera rests and the other view is seen anew each time: with independent noise the error falls with every frame."""
    errors, sigmas, depth_filter = [], [], DepthFilter(ROUGH)
    rest = exact(np.eye(4))
    for seed in range(12):
        carried = depth_filter.carry(rest, K)
        estimate = depth_filter.step(frame(), [exact(moved(x=0.1), noise=0.5, seed=seed)], carried)
        errors.append(abs_rel(estimate, PLANE))
        sigmas.append(np.median(estimate.relative_sigma))
    assert errors[-1] < 0.7 * errors[0] and errors[-1] < 0.05, errors
    assert all(b < a for a, b in zip(sigmas, sigmas[1:]))


@pytest.mark.parametrize('T', [moved(x=0.1), moved(z=0.2), moved(x=-0.05, y=0.05, z=-0.1, yaw=0.05)])
def test_carrying_moves_inverse_depth_with_the_camera(T):
    """What the previous frame knew exactly is exact at the current frame's pixels, and less sure."""
    reference = exact(T)
    plane = np.array([0.12, -0.2, 0.5])            # plane . X = 1 in the current frame
    there = plane @ np.linalg.inv(T)[:3, :3] / (1 - plane @ np.linalg.inv(T)[:3, 3])
    previous = DepthFilter()
    previous.estimate = InverseDepth((RAYS @ there).astype(np.float32), np.full((HEIGHT, WIDTH), 400.0, np.float32))
    carried = previous.carry(reference, K)
    ends = pixel_grid(WIDTH, HEIGHT) + reference.flow.flow
    inside = ((ends > 1) & (ends < [WIDTH - 2, HEIGHT - 2])).all(-1)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(carried.depth[inside], PLANE[inside], rtol=2e-3)
    relative = carried.relative_sigma[inside] / previous.estimate.relative_sigma.mean()
    assert np.median(relative) > 1
    assert not carried.information[~((ends > -1) & (ends < [WIDTH, HEIGHT])).all(-1)].any()      # nothing is known of what comes into view


def test_carrying_at_rest_changes_nothing():
    depth_filter = DepthFilter()
    assert depth_filter.carry(exact(np.eye(4)), K) is None
    before = depth_filter.step(frame(), [exact(moved(x=0.1))])
    after = depth_filter.carry(exact(np.eye(4)), K)
    np.testing.assert_allclose(after.value, before.value, rtol=1e-3)
    np.testing.assert_allclose(after.information, before.information, rtol=1e-2)


def test_pure_rotation_tells_nothing():
    assert DepthFilter().step(frame(), [exact(moved(yaw=0.05))]) is None
    assert DepthFilter().step(frame(), []) is None
    barely = DepthFilter().step(frame(), [exact(moved(x=1e-5, yaw=0.05), noise=0.3)])     # a pose is never exactly a rotation
    assert barely is None or (sound(barely) and np.median(barely.relative_sigma) > 0.9)


def test_rotation_keeps_what_is_known():
    depth_filter = DepthFilter()
    depth_filter.step(frame(), [exact(moved(x=0.1))])
    carried = depth_filter.carry(exact(np.eye(4)), K)
    estimate = depth_filter.step(frame(), [exact(moved(yaw=0.05))], carried)
    assert sound(estimate) and abs_rel(estimate, PLANE) < 0.03


def hostile() -> dict[str, Reference]:
    """Flows that no camera gives."""
    good = exact(moved(x=0.1))
    rng = np.random.default_rng(2)
    wild = rng.normal(0, 40, good.flow.flow.shape).astype(np.float32)
    infinite = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    return {
        'zero': replace(good, flow=replace(good.flow, flow=np.zeros_like(wild))),
        'wild': replace(good, flow=replace(good.flow, flow=wild)),
        'inconsistent': replace(good, flow=replace(good.flow, error=infinite)),
        'backwards': replace(good, T_ref_cur=moved(x=-0.1)),
        'far away': replace(good, T_ref_cur=moved(x=1e6)),
        'tiny': replace(good, T_ref_cur=moved(x=1e-8)),
    }


@pytest.mark.parametrize('name', hostile())
def test_nothing_but_finite_positive_depth_comes_out(name):
    reference = hostile()[name]
    fresh = DepthFilter().step(frame(), [reference])
    assert fresh is None or sound(fresh)
    running = DepthFilter()
    running.step(frame(), [exact(moved(x=0.1))])
    for _ in range(3):
        carried = running.carry(reference, K)
        assert sound(carried)
        assert sound(running.step(frame(), [reference], carried))


def test_a_contradicting_reference_lowers_the_weight():
    good, other = exact(moved(x=0.1)), replace(exact(moved(x=0.1)), T_ref_cur=moved(x=0.3))
    agreed = DepthFilter().step(frame(), [good, good])
    contradicted = DepthFilter().step(frame(), [good, other])
    assert np.median(contradicted.information) < 0.8 * np.median(agreed.information)


def test_what_is_forgotten_is_not_carried():
    depth_filter = DepthFilter()
    depth_filter.step(frame(), [exact(moved(x=0.1))])
    depth_filter.reset()
    assert depth_filter.estimate is None and depth_filter.carry(exact(np.eye(4)), K) is None


@lru_cache(maxsize=1)
def room() -> tuple[list[CameraFrame], list[np.ndarray], np.ndarray]:
    """Twelve frames of the sample's room, every second one of its camera's path, with their depth and poses."""
    settings = SampleSettings()
    poses = np.asarray(camera_poses(settings), np.float64)[90:114:2]
    with single_threaded():
        image, depth = synthetic.render(sample_scene(settings.seed), torch.tensor(poses, dtype=torch.float32), torch.tensor(K, dtype=torch.float32), HEIGHT, WIDTH)
    return [CameraFrame(i, 'camera', im.numpy(), K) for i, im in enumerate(image)], list(depth.numpy()), poses


def test_in_a_room_the_error_is_small_and_falls_as_frames_come():
    frames, depths, poses = room()
    engine, depth_filter, errors = FlowEngine(), DepthFilter(SMALL), []

    def towards(current: int, reference: int) -> Reference:
        return Reference(engine.step(ImagePair(frames[current], frames[reference])), np.linalg.inv(poses[reference]) @ poses[current])

    for i in range(1, len(frames)):
        previous = towards(i, i - 1)
        estimate = depth_filter.step(frames[i], [*([towards(i, i - 4)] if i >= 4 else []), previous], depth_filter.carry(previous, K))
        assert sound(estimate)
        errors.append(abs_rel(estimate, depths[i]))
    assert np.mean(errors[-3:]) < 0.7 * errors[0], errors
    assert np.mean(errors[-3:]) < 0.08, errors
