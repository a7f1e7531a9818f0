"""Laws of triangulation and of the relative pose, on synthetic truth with noise and outliers."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.geometry import two_view
from depth_ros.geometry import warp
from depth_ros.geometry.two_view import TwoViewStatus

HEIGHT, WIDTH = 96, 128
K = torch.tensor([[120.0, 0.0, 62.9], [0.0, 122.0, 48.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
SIDEWAYS = torch.tensor([0.3, -0.1, 0.05, 0.05, -0.08, 0.1], dtype=torch.float64)
FORWARD = torch.tensor([0.02, 0.0, -0.4, 0.02, 0.03, -0.01], dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(seed: int = 0) -> torch.Tensor:
    """Depth (H, W) of boxes at random distances before a slanted wall [m]."""
    g = generator(seed)
    depth = 3 + 2 * torch.linspace(0, 1, WIDTH, dtype=torch.float64).expand(HEIGHT, WIDTH).clone()
    for _ in range(12):
        y, x = (int(torch.randint(n, (1,), generator=g)) for n in (HEIGHT - 24, WIDTH - 24))
        depth[y:y + 24, x:x + 24] = 1.5 + 3 * torch.rand(1, generator=g, dtype=torch.float64)
    return depth


def noise(*shape: int, sigma: float, seed: int = 1) -> torch.Tensor:
    return sigma * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two directions [deg]."""
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


# --- triangulation

@pytest.mark.parametrize("xi", [SIDEWAYS, FORWARD])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_triangulating_induced_flow_returns_the_depth(xi: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    depth, T = scene().to(dtype), se3.exp(xi).to(dtype)
    flow, _ = warp.induced_flow(depth, K.to(dtype), T)
    result = two_view.triangulate_inverse_depth(flow, K.to(dtype), T)
    seen = result.parallax > 1.0
    assert result.valid[seen].all() and seen.double().mean() > 0.95
    torch.testing.assert_close(result.inverse_depth[seen], 1 / depth[seen], atol=tolerance, rtol=0)
    assert result.epipolar[seen].max() < 10 * tolerance


def test_batches_are_the_single_results() -> None:
    depth, T = torch.stack([scene(0), scene(1)]), torch.stack([se3.exp(SIDEWAYS), se3.exp(FORWARD)])
    flow, _ = warp.induced_flow(depth, K, T)
    both = two_view.triangulate_inverse_depth(flow, K.expand(2, 3, 3), T)
    for i in range(2):
        one = two_view.triangulate_inverse_depth(flow[i], K, T[i])
        torch.testing.assert_close(both.inverse_depth[i], one.inverse_depth)
        torch.testing.assert_close(both.epipolar[i], one.epipolar)


def test_parallax_is_the_derivative_of_the_pixel_by_inverse_depth() -> None:
    depth, T, step = scene(), se3.exp(SIDEWAYS), 1e-5
    flow, _ = warp.induced_flow(depth, K, T)
    nearer, _ = warp.induced_flow(1 / (1 / depth + step), K, T)
    result = two_view.triangulate_inverse_depth(flow, K, T)
    torch.testing.assert_close(result.parallax, (nearer - flow).norm(dim=-1) / step, rtol=1e-3, atol=0)


def test_epipolar_distance_counts_what_is_off_the_line_and_nothing_along_it() -> None:
    depth, T = scene(), se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(depth, K, T)
    nearer, _ = warp.induced_flow(0.8 * depth, K, T)
    along = torch.nn.functional.normalize(nearer - flow, dim=-1)
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    off = two_view.triangulate_inverse_depth(flow + 0.7 * across, K, T)
    torch.testing.assert_close(off.epipolar, torch.full_like(depth, 0.7), atol=1e-9, rtol=0)
    assert two_view.triangulate_inverse_depth(flow + 0.7 * along, K, T).epipolar.max() < 1e-9


def test_derotated_flow_of_a_rotation_is_nothing_and_no_depth_is_claimed() -> None:
    T = se3.exp(SIDEWAYS)
    T[:3, 3] = 0
    flow, _ = warp.induced_flow(scene(), K, T)
    result = two_view.triangulate_inverse_depth(flow, K, T)
    assert result.derotated.abs().max() < 1e-9 and not result.valid.any()
    assert (result.inverse_depth == 0).all() and result.parallax.max() < 1e-5
    torch.testing.assert_close(two_view.triangulate_inverse_depth(flow + 1, K, T).epipolar, torch.full_like(flow[..., 0], 2 ** 0.5))


def test_flow_against_the_motion_is_not_valid() -> None:
    T = se3.exp(torch.tensor([0.3, 0, 0, 0, 0, 0], dtype=torch.float64))
    flow = torch.tensor([-2.0, 0.0], dtype=torch.float64).expand(HEIGHT, WIDTH, 2)
    result = two_view.triangulate_inverse_depth(flow, K, T)
    assert (result.inverse_depth < 0).all() and not result.valid.any()


def test_error_with_noise_is_what_the_parallax_says() -> None:
    depth, T, sigma = scene(), se3.exp(SIDEWAYS), 0.2
    flow, _ = warp.induced_flow(depth, K, T)
    result = two_view.triangulate_inverse_depth(flow + noise(HEIGHT, WIDTH, 2, sigma=sigma), K, T)
    normalised = (result.inverse_depth - 1 / depth) * result.parallax / sigma
    assert abs(normalised.std() - 1) < 0.05 and abs(normalised.mean()) < 0.05
    assert abs(result.epipolar.square().mean().sqrt() / sigma - 1) < 0.05


def precision(flow: torch.Tensor, along: torch.Tensor, strong: float, weak: float) -> torch.Tensor:
    """Precisions (H, W, 3) [1/px^2]: `strong` along a direction (2,), `weak` across it."""
    xx, xy, yy = along[0] ** 2, along[0] * along[1], along[1] ** 2
    return torch.stack([weak + (strong - weak) * xx, (strong - weak) * xy, weak + (strong - weak) * yy]).expand(*flow.shape[:2], 3)


def test_flow_that_texture_does_not_hold_is_not_listened_to() -> None:
    """Flow slides along an edge of the image; with the precision that says so, depth stays right."""
    depth, T = scene(), se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(depth, K, T)
    held = torch.tensor([0.8, 0.6], dtype=torch.float64)
    slid = flow + noise(HEIGHT, WIDTH, 1, sigma=2.0) * torch.tensor([-0.6, 0.8], dtype=torch.float64)
    plain = two_view.triangulate_inverse_depth(slid, K, T)
    listened = two_view.triangulate_inverse_depth(slid, K, T, precision(flow, held, 1.0, 1e-9))
    assert (plain.inverse_depth - 1 / depth).std() > 0.02
    torch.testing.assert_close(listened.inverse_depth, 1 / depth, atol=1e-6, rtol=0)


def test_information_is_the_inverse_variance_under_noise_of_that_precision() -> None:
    depth, T, sigma_u, sigma_v = scene(), se3.exp(SIDEWAYS), 0.05, 0.4
    flow, _ = warp.induced_flow(depth, K, T)
    noisy = flow + noise(HEIGHT, WIDTH, 2, sigma=1.0) * torch.tensor([sigma_u, sigma_v])
    given = precision(flow, torch.tensor([1.0, 0.0], dtype=torch.float64), sigma_u ** -2, sigma_v ** -2)
    result = two_view.triangulate_inverse_depth(noisy, K, T, given)
    normalised = (result.inverse_depth - 1 / depth) * result.information.sqrt()
    assert abs(normalised.std() - 1) < 0.05 and abs(normalised.mean()) < 0.05


def test_flow_that_is_not_finite_tells_nothing() -> None:
    depth, T = scene(), se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(depth, K, T)
    flow[:40] = float("nan")
    flow[40, :9] = float("inf")
    result = two_view.triangulate_inverse_depth(flow, K, T)
    assert not result.valid[:40].any() and not result.information[40, :9].any() and result.valid[41:].all()
    assert all(torch.isfinite(a).all() for a in (result.inverse_depth, result.information, result.parallax, result.epipolar))
    torch.testing.assert_close(result.inverse_depth[41:], 1 / depth[41:])


def test_gradients_are_the_numeric_ones() -> None:
    T = se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(scene()[20:24, 30:33], K, T)
    flow = (flow + noise(4, 3, 2, sigma=0.2)).requires_grad_()
    given = precision(flow, torch.tensor([0.6, 0.8], dtype=torch.float64), 2.0, 0.5)
    for trust in (None, given):
        assert torch.autograd.gradcheck(
            lambda f, x: two_view.triangulate_inverse_depth(f, K, se3.exp(x), trust).inverse_depth, (flow, SIDEWAYS.clone().requires_grad_()))


# --- relative pose

def relative_pose(flow: torch.Tensor, valid: np.ndarray | None = None) -> two_view.RelativePose:
    return two_view.essential_from_flow(flow.numpy(), K.numpy(), np.ones((HEIGHT, WIDTH), bool) if valid is None else valid)


@pytest.mark.parametrize("xi", [SIDEWAYS, FORWARD])
@pytest.mark.parametrize("sigma, degrees", [(0.0, 1e-4), (0.1, 1.0)])
def test_relative_pose_of_induced_flow_is_the_motion(xi: torch.Tensor, sigma: float, degrees: float) -> None:
    T = se3.exp(xi)
    flow, _ = warp.induced_flow(scene(), K, T)
    result = relative_pose(flow + noise(HEIGHT, WIDTH, 2, sigma=sigma))
    assert result.status is TwoViewStatus.OK
    assert abs(np.linalg.norm(result.T_ref_cur[:3, 3]) - 1) < 1e-12
    assert angle(result.T_ref_cur[:3, 3], T[:3, 3].numpy()) < degrees
    assert se3.log(torch.from_numpy(result.T_ref_cur) @ se3.inverse(T))[3:].norm().rad2deg() < 0.3 * degrees
    assert result.inliers.mean() > 0.99


def test_outliers_are_found_and_do_no_harm() -> None:
    T = se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(scene(), K, T)
    wrong = torch.rand(HEIGHT, WIDTH, generator=generator(2)) < 0.3
    flow = flow + noise(HEIGHT, WIDTH, 2, sigma=0.1)
    flow[wrong] += noise(HEIGHT, WIDTH, 2, sigma=8.0, seed=3)[wrong]
    result = relative_pose(flow)
    assert result.status is TwoViewStatus.OK
    assert angle(result.T_ref_cur[:3, 3], T[:3, 3].numpy()) < 1.5
    assert result.inliers[~wrong.numpy()].mean() > 0.99 and result.inliers[wrong.numpy()].mean() < 0.35


def test_masked_pixels_take_no_part_and_are_no_inliers() -> None:
    T = se3.exp(SIDEWAYS)
    flow, _ = warp.induced_flow(scene(), K, T)
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[:, :80] = True
    flow[:, 80:], flow[0, 90] = 9.0, float("nan")
    result = relative_pose(flow, valid)
    assert angle(result.T_ref_cur[:3, 3], T[:3, 3].numpy()) < 1e-3
    assert result.inliers[:, :80].all() and not result.inliers[:, 80:].any()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_pure_rotation_is_degenerate_and_its_rotation_right(sigma: float, outliers: float) -> None:
    xi = SIDEWAYS.clone()
    xi[:3] = 0
    T = se3.exp(xi)
    flow, _ = warp.induced_flow(scene(), K, T)
    flow = flow + noise(HEIGHT, WIDTH, 2, sigma=sigma)
    wrong = torch.rand(HEIGHT, WIDTH, generator=generator(4)) < outliers
    flow[wrong] += noise(HEIGHT, WIDTH, 2, sigma=8.0, seed=5)[wrong]
    result = relative_pose(flow)
    assert result.status is TwoViewStatus.DEGENERATE
    assert not result.T_ref_cur[:3, 3].any()
    assert se3.log(torch.from_numpy(result.T_ref_cur) @ se3.inverse(T))[3:].norm().rad2deg() < 0.05
    assert result.inliers[~wrong.numpy()].mean() > 0.8


def test_standing_still_and_noise_alone_are_degenerate() -> None:
    still = torch.zeros(HEIGHT, WIDTH, 2, dtype=torch.float64)
    assert relative_pose(still).status is TwoViewStatus.DEGENERATE
    assert relative_pose(noise(HEIGHT, WIDTH, 2, sigma=20.0)).status is TwoViewStatus.DEGENERATE


def test_too_few_matches_are_degenerate() -> None:
    flow, _ = warp.induced_flow(scene(), K, se3.exp(SIDEWAYS))
    valid = np.zeros((HEIGHT, WIDTH), bool)
    assert relative_pose(flow, valid).status is TwoViewStatus.DEGENERATE
    valid[0, :20] = True
    result = relative_pose(flow, valid)
    assert result.status is TwoViewStatus.DEGENERATE and not result.inliers.any()


def test_same_input_gives_the_same_pose() -> None:
    flow, _ = warp.induced_flow(scene(), K, se3.exp(SIDEWAYS))
    noisy = flow + noise(HEIGHT, WIDTH, 2, sigma=0.3)
    assert np.array_equal(relative_pose(noisy).T_ref_cur, relative_pose(noisy).T_ref_cur)


# --- several views of one

def test_pairs_with_one_view_come_to_one_scale() -> None:
    turned = torch.tensor([0.2, 0.25, -0.1, 0.12, 0.1, -0.05], dtype=torch.float64)
    true = [se3.exp(xi) for xi in (SIDEWAYS, turned, torch.zeros(6, dtype=torch.float64))]
    flows = [warp.induced_flow(scene(), K, T)[0].numpy() for T in true]
    pairs = [relative_pose(torch.from_numpy(flow)) for flow in flows]
    poses, inverse_depth = two_view.at_one_scale(pairs, flows, K.numpy(), usual=0.5)
    known = inverse_depth > 0
    unit = np.median(inverse_depth[known] * scene().numpy().reshape(inverse_depth.shape)[known])
    assert np.median(inverse_depth[known]) == pytest.approx(0.5) and not poses[2, :3, 3].any()
    np.testing.assert_allclose(poses[:2, :3, 3] * unit, np.stack([T[:3, 3].numpy() for T in true[:2]]), atol=0.01)
    metric, kept = two_view.at_one_scale(pairs, flows, K.numpy(), 1.0 / scene().numpy().reshape(inverse_depth.shape))
    np.testing.assert_allclose(metric[:2, :3, 3], np.stack([T[:3, 3].numpy() for T in true[:2]]), atol=0.01)
    np.testing.assert_allclose(kept, 1.0 / scene().numpy().reshape(inverse_depth.shape))


def test_a_pose_known_from_elsewhere_is_judged_as_one_that_was_found() -> None:
    T = se3.exp(SIDEWAYS)
    flow = warp.induced_flow(scene(), K, T)[0].numpy() + noise(HEIGHT, WIDTH, 2, sigma=0.1).numpy()
    valid, longer = np.ones(flow.shape[:2], bool), T.numpy().copy()
    longer[:3, 3] *= 5.0
    found, told = relative_pose(torch.from_numpy(flow)), two_view.pair_at(longer, flow, K.numpy(), valid)
    assert told.status is TwoViewStatus.OK and np.linalg.norm(told.T_ref_cur[:3, 3]) == pytest.approx(1.0)
    assert (told.inliers & found.inliers).sum() > 0.95 * found.inliers.sum() and told.parallax > 1.0
    for wrong in (np.eye(4), se3.exp(-3.0 * SIDEWAYS.flip(0)).numpy()):
        assert two_view.pair_at(wrong, flow, K.numpy(), valid).status is TwoViewStatus.DEGENERATE


def test_without_parallax_no_pair_has_a_scale() -> None:
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    poses, inverse_depth = two_view.at_one_scale([relative_pose(torch.from_numpy(flow))], [flow], K.numpy())
    assert inverse_depth is None and np.allclose(poses, np.eye(4), atol=1e-6)
