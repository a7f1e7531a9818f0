"""The depth filter on a textured plane with exact poses and flow, and on a rendered room with real flow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch

from depth_ros.engines.depth_filter import DepthFilter, DepthFilterConfig, InverseDepth, Reference, flow_precision, sharpen, smooth_along_colour
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, pixel_grid
from depth_ros.learning import synthetic
from depth_ros.learning.sample import SampleSettings, camera_poses, sample_scene

WIDTH, HEIGHT = 160, 120
AT_REST = np.zeros((HEIGHT, WIDTH, 2), np.float32)
K = np.array([[131.0, 0.0, 79.5], [0.0, 131.0, 59.5], [0.0, 0.0, 1.0]])
RAYS = np.concatenate([pixel_grid(WIDTH, HEIGHT), np.ones((HEIGHT, WIDTH, 1))], -1) @ np.linalg.inv(K).T
PLANE = (1 / (0.5 + 0.12 * RAYS[..., 0] - 0.2 * RAYS[..., 1])).astype(np.float32)      # depth [m] of a slanted plane in the current frame
IMAGE = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3), dtype=np.uint8)
INSIDE = np.s_[10:-10, 15:-15]
ROUGH = DepthFilterConfig(filter_smoothness=10.0)     # smoothing averages noise away, and so hides what fusion does
SMALL = DepthFilterConfig(filter_reach=10.0)           # the default suits 320 x 240


@dataclass(frozen=True)
class JudgedFlow(FlowResult):
    """Flow whose inconsistency (H, W) [px] is known."""

    error: np.ndarray | None = None


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
    return Reference(JudgedFlow(ImagePair(frame(), frame(0)), flow, -flow, error=error), T_ref_cur)


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
        carried = depth_filter.carry(rest.flow.flow, rest.T_ref_cur, K)
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
    carried = previous.carry(reference.flow.flow, reference.T_ref_cur, K)
    ends = pixel_grid(WIDTH, HEIGHT) + reference.flow.flow
    inside = ((ends > 1) & (ends < [WIDTH - 2, HEIGHT - 2])).all(-1)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(carried.depth[inside], PLANE[inside], rtol=2e-3)
    relative = carried.relative_sigma[inside] / previous.estimate.relative_sigma.mean()
    assert np.median(relative) > 1
    assert not carried.information[~((ends > -1) & (ends < [WIDTH, HEIGHT])).all(-1)].any()      # nothing is known of what comes into view


def test_carrying_at_rest_changes_nothing():
    depth_filter = DepthFilter()
    assert depth_filter.carry(AT_REST, np.eye(4), K) is None
    before = depth_filter.step(frame(), [exact(moved(x=0.1))])
    after = depth_filter.carry(AT_REST, np.eye(4), K)
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
    carried = depth_filter.carry(AT_REST, np.eye(4), K)
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
        carried = running.carry(reference.flow.flow, reference.T_ref_cur, K)
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
    assert depth_filter.estimate is None and depth_filter.carry(AT_REST, np.eye(4), K) is None


BOX = np.s_[30:90, 50:110]      # stands at depth 1 before a wall at depth 2


def box_before_wall() -> tuple[CameraFrame, Reference, np.ndarray]:
    """Two views 16/131 apart, so that the wall moves by 8 px and the box by 16, the motion between them and the true depth of the first."""
    rng = np.random.default_rng(5)
    wall, box = (cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH + 40, 3), dtype=np.uint8), (0, 0), 1.0) for _ in range(2))
    views = []
    for shift in (0, 8):        # in the reference, all stands further left
        image = wall[:, 20 + shift:20 + shift + WIDTH].copy()
        image[BOX[0], BOX[1].start - 2 * shift:BOX[1].stop - 2 * shift] = box[BOX]
        views.append(CameraFrame(1 - shift, 'camera', image, K))
    depth = np.full((HEIGHT, WIDTH), 2, np.float32)
    depth[BOX] = 1
    flow = np.stack([np.where(depth == 1, -16, -8), np.zeros_like(depth)], -1).astype(np.float32)
    zero = np.zeros((HEIGHT, WIDTH), np.float32)
    return views[0], Reference(JudgedFlow(ImagePair(*views), flow, -flow, error=zero), moved(x=-16 / K[0, 0])), depth


def test_depth_that_reaches_beyond_its_edge_is_called_back_to_it():
    """Within two pixels, except left of the box: what is behind it in the reference no image tells."""
    view, reference, depth = box_before_wall()
    smeared = cv2.dilate(1 / depth, np.ones((11, 11), np.uint8))
    sharp = sharpen(InverseDepth(smeared, np.ones_like(depth)), view, reference, 7)
    told = np.ones(depth.shape, bool)
    told[:, :50], told[:, -8:] = False, False
    unsure = cv2.dilate(depth, np.ones((5, 5))) > cv2.erode(depth, np.ones((5, 5)))
    wrong = [np.abs(w * depth - 1)[told & ~unsure] > 0.1 for w in (smeared, sharp.value)]
    assert wrong[0].sum() > 300 and wrong[1].sum() < 0.03 * wrong[0].sum(), [w.sum() for w in wrong]
    assert (sharp.information[sharp.value != smeared] < 1).all() and (sharp.information[sharp.value == smeared] == 1).all()


def test_sharp_depth_stays_as_it_is():
    view, reference, depth = box_before_wall()
    sharp = sharpen(InverseDepth(1 / depth, np.ones_like(depth)), view, reference, 7)
    assert (sharp.value != 1 / depth)[:, 50:-8].mean() < 0.01


def two_colours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image red on the left and green of the same grey on the right, x = 1 and 3 known at one pixel of each, and its weight."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30, 0], image[:, 30:, 1] = 160, 82
    x, weight = np.zeros((2, 40, 60), np.float32)
    x[8, 5], x[30, 50], weight[8, 5], weight[30, 50] = 1, 3, 1, 1
    return x, weight, image


def test_what_is_known_spreads_within_its_colour_and_no_further():
    x, weight, image = two_colours()
    spread = smooth_along_colour(x, weight, image, reach=30.0, edge=4.0)
    np.testing.assert_allclose(spread[:, :30], 1, atol=0.01)
    np.testing.assert_allclose(spread[:, 30:], 3, atol=0.01)
    blind = smooth_along_colour(x, weight, np.zeros_like(image), reach=30.0, edge=4.0)
    assert np.ptp(blind[20]) > 0.3 and np.abs(np.diff(blind[20])).max() < 0.1        # no step where there is no edge


def test_smoothing_keeps_the_mean_and_what_is_smooth():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    x, weight = rng.normal(2, 0.5, (40, 60)).astype(np.float32), rng.uniform(0.5, 2, (40, 60)).astype(np.float32)
    assert smooth_along_colour(x, np.ones_like(x), image, 10.0, 200.0).mean() == pytest.approx(x.mean(), rel=1e-3)
    assert smooth_along_colour(x, weight, image, 10.0, 200.0).std() < 0.3 * x.std()
    np.testing.assert_allclose(smooth_along_colour(np.full_like(x, 2), weight, image, 10.0, 4.0), 2, rtol=1e-4)


def test_surer_pixels_weigh_more():
    x, weight, image = two_colours()
    plain, surer = (smooth_along_colour(x, weight * w, np.zeros_like(image), 30.0, 4.0) for w in (1, np.where(x == 3, 5, 1).astype(np.float32)))
    assert surer.mean() > plain.mean() + 0.2


def test_what_was_never_seen_is_guessed_within_what_was():
    """A region of a colour of its own that flow leaves out takes a depth like the others', and no certainty."""
    reference = exact(moved(x=0.1))
    image = IMAGE.copy()
    image[40:80, 60:100] = 255, 0, 0
    error = reference.flow.error.copy()
    error[40:80, 60:100] = np.inf
    estimate = DepthFilter().step(replace(frame(), image=image), [replace(reference, flow=replace(reference.flow, error=error))])
    hole = np.s_[44:76, 64:96]
    assert estimate.depth[hole].min() > 0.8 * PLANE.min() and estimate.depth[hole].max() < 1.2 * PLANE.max()
    assert (estimate.relative_sigma[hole] > 0.99).all()


def test_flow_is_as_precise_as_texture_holds_it():
    """Half across a slope of the given steepness, nothing along it; everything in strong texture, nothing in none."""
    slope = np.repeat((2 * np.arange(120, dtype=np.uint8))[None, :, None], 3, -1).repeat(80, 0)
    inner = np.s_[10:-10, 10:-10]
    np.testing.assert_allclose(flow_precision(slope, 2.0)[inner], np.broadcast_to([0.5, 0, 0], (20, 40, 3)), atol=0.01)
    np.testing.assert_allclose(flow_precision(slope.transpose(1, 0, 2).copy(), 2.0)[inner], np.broadcast_to([0, 0, 0.5], (40, 20, 3)), atol=0.01)
    texture = np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    np.testing.assert_allclose(flow_precision(texture, 1.0)[inner], np.broadcast_to([1, 0, 1], (20, 40, 3)), atol=0.1)
    assert not flow_precision(np.full((80, 120, 3), 90, np.uint8), 2.0).any()


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
        estimate = depth_filter.step(frames[i], [*([towards(i, i - 4)] if i >= 4 else []), previous], depth_filter.carry(previous.flow.flow, previous.T_ref_cur, K))
        assert sound(estimate)
        errors.append(abs_rel(estimate, depths[i]))
    assert np.mean(errors[-3:]) < 0.7 * errors[0], errors
    assert np.mean(errors[-3:]) < 0.08, errors
