"""Laws of the plane sweep, on a painted room whose depth is known exactly."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import pinhole
from depth_ros.geometry import plane_sweep
from depth_ros.geometry import se3
from depth_ros.geometry.plane_sweep import SweepConfig
from depth_ros.geometry.plane_sweep import refine
from depth_ros.geometry.plane_sweep import sweep

HEIGHT, WIDTH = 96, 128
K = torch.tensor([[105.0, 0.0, 63.2], [0.0, 105.0, 47.4], [0.0, 0.0, 1.0]])
CONFIG = SweepConfig()
# Walls n . X = d of a room around the first camera [m], and a pillar's front before the back wall.
WALLS = [((0.0, 0.0, 1.0), 3.5), ((0.0, 1.0, 0.0), 1.1), ((0.0, -1.0, 0.0), 1.2), ((1.0, 0.0, 0.2), 1.9), ((-1.0, 0.0, 0.1), 1.5)]
PILLAR = (-0.3, 0.35, 1.8)     # from x, to x, at z [m]
MOTIONS = [[0.10, 0.00, 0.02, 0.0, 0.02, 0.0], [-0.08, 0.03, 0.0, 0.01, -0.02, 0.01], [0.03, -0.10, 0.03, 0.02, 0.0, -0.01],
           [-0.02, 0.05, -0.12, -0.01, 0.01, 0.0]]


def paint(points: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """RGB (..., 3) in [0, 1] of points (..., 3) [m]: waves of 10 to 60 cm, other ones on each surface."""
    waves = torch.Generator().manual_seed(0)
    colours = []
    for _ in range(3):
        vectors = torch.nn.functional.normalize(torch.randn(10, 3, generator=waves), dim=-1)
        vectors = vectors * torch.linspace(10, 60, 10)[:, None]
        phase = points @ vectors.T + surface[..., None] * torch.arange(1, 11) * 1.7
        colours.append(0.5 + 0.08 * torch.sin(phase).sum(-1))
    return torch.stack(colours, dim=-1).clamp(0, 1)


def render(T_world_cam: torch.Tensor, finer: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (3, H, W) and z-depth (H, W) [m] of the room from a camera with `finer` times as many rows and columns."""
    height, width = finer * HEIGHT, finer * WIDTH
    directions = pinhole.rays(height, width, resize_intrinsics(K, finer, finer)) @ T_world_cam[:3, :3].T
    centre = T_world_cam[:3, 3]
    depth = torch.full((height, width), torch.inf)
    surface = torch.zeros(height, width)
    for i, (normal, distance) in enumerate(WALLS):
        n = torch.tensor(normal)
        reach = (distance - n @ centre) / (directions @ n)
        nearer = (reach > 0) & (reach < depth)
        depth, surface = torch.where(nearer, reach, depth), torch.where(nearer, float(i), surface)
    reach = (PILLAR[2] - centre[2]) / directions[..., 2]
    x = centre[0] + reach * directions[..., 0]
    hit = (x > PILLAR[0]) & (x < PILLAR[1]) & (reach < depth)
    depth, surface = torch.where(hit, reach, depth), torch.where(hit, 9.0, surface)
    return paint(centre + depth[..., None] * directions, surface).movedim(-1, 0), depth


@pytest.fixture(scope="module")
def room() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, references (4, 3, H, W), T_ref_cur (4, 4, 4) and true depth (H, W)."""
    T_cur_ref = se3.exp(torch.tensor(MOTIONS))
    image, depth = render(torch.eye(4))
    return image, torch.stack([render(T)[0] for T in T_cur_ref]), se3.inverse(T_cur_ref), depth


def abs_rel(inverse_depth: torch.Tensor, depth: torch.Tensor, where: torch.Tensor | None = None) -> float:
    error = (1 / inverse_depth - depth).abs() / depth
    return float(error.mean() if where is None else error[where].mean())


def test_room_is_recovered_everywhere_without_any_scaling(room) -> None:
    image, references, T_ref_cur, depth = room
    result = sweep(image, references, K, T_ref_cur)
    assert result.inverse_depth.shape == result.confidence.shape == result.valid.shape == depth.shape
    assert abs_rel(result.inverse_depth, depth) < 0.03
    assert result.valid.float().mean() > 0.7
    assert (1 / result.inverse_depth / depth - 1).abs().median() < 0.01


def test_doubled_lengths_double_the_depth(room) -> None:
    image, references, T_ref_cur, depth = room
    doubled = T_ref_cur.clone()
    doubled[:, :3, 3] *= 2
    config = replace(CONFIG, min_inverse_depth=CONFIG.min_inverse_depth / 2, max_inverse_depth=CONFIG.max_inverse_depth / 2)
    a, b = sweep(image, references, K, T_ref_cur).inverse_depth, sweep(image, references, K, doubled, config).inverse_depth
    assert (a / b - 2).abs().quantile(0.99) < 0.01


def test_confident_pixels_are_the_better_ones(room) -> None:
    image, references, T_ref_cur, depth = room
    result = sweep(image, references[:1], K, T_ref_cur[:1])
    sure = result.confidence > result.confidence.median()
    assert abs_rel(result.inverse_depth, depth, sure) < 0.7 * abs_rel(result.inverse_depth, depth, ~sure)


def test_depth_between_planes_is_found(room) -> None:
    image, references, T_ref_cur, depth = room
    config = replace(CONFIG, planes=24, min_inverse_depth=0.2, max_inverse_depth=1.0)
    step = 0.8 / 23
    result = sweep(image, references, K, T_ref_cur, config)
    error = (result.inverse_depth - 1 / depth)[result.valid].abs().median()
    assert error < step / 8                               # taking the nearest plane would leave a quarter of a step


def test_brightness_and_contrast_of_a_reference_do_not_matter(room) -> None:
    image, references, T_ref_cur, _ = room
    config = replace(CONFIG, noise=0.0)
    changed = references.clone()
    changed[1] = 0.6 * changed[1] + 0.3
    a, b = (sweep(image, r, K, T_ref_cur, config).inverse_depth for r in (references, changed))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_order_of_the_references_does_not_matter(room) -> None:
    image, references, T_ref_cur, _ = room
    a = sweep(image, references, K, T_ref_cur).inverse_depth
    b = sweep(image, references.flip(0), K, T_ref_cur.flip(0)).inverse_depth
    assert (a - b).abs().quantile(0.99) < 1e-3            # sums in another order may tip a tie


def test_one_view_of_another_place_does_little_harm(room) -> None:
    image, references, T_ref_cur, depth = room
    spoilt = references.clone()
    spoilt[2] = torch.rand(spoilt[2].shape, generator=torch.Generator().manual_seed(1))
    assert abs_rel(sweep(image, spoilt, K, T_ref_cur).inverse_depth, depth) < 0.04


def test_blank_images_and_views_without_motion_claim_nothing(room) -> None:
    image, references, _, _ = room
    blank = torch.full_like(image, 0.5)
    assert not sweep(blank, blank[None], K, se3.exp(torch.tensor(MOTIONS[:1]))).valid.any()
    still = sweep(image, image[None], K, torch.eye(4)[None])
    assert not still.valid.any() and torch.isfinite(still.inverse_depth).all()


def test_what_no_view_sees_is_not_valid_but_filled(room) -> None:
    image, references, _, _ = room
    turned = se3.exp(torch.tensor([[0.0, 0.0, 0.0, 0.0, 3.0, 0.0]]))
    result = sweep(image, references[:1], K, turned)
    assert not result.valid.any() and (result.confidence == 0).all() and torch.isfinite(result.inverse_depth).all()


def test_wrong_shapes_are_refused(room) -> None:
    image, references, T_ref_cur, _ = room
    for wrong in ((image, references[:0], T_ref_cur[:0]), (image, references[..., 1:], T_ref_cur), (image, references, T_ref_cur[:2])):
        with pytest.raises(ValueError, match="expected references"):
            sweep(wrong[0], wrong[1], K, wrong[2])
        with pytest.raises(ValueError, match="expected references"):
            refine(wrong[0], wrong[1], K, wrong[2], sweep(image, references, K, T_ref_cur))


@pytest.fixture(scope="module")
def pyramid() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Image and references at the usual size and at twice that, T_ref_cur, and the true depth at the larger size."""
    T_cur_ref = se3.exp(torch.tensor(MOTIONS))
    image, depth = render(torch.eye(4), 2)
    references = torch.stack([render(T, 2)[0] for T in T_cur_ref])
    small = tuple(torch.nn.functional.avg_pool2d(x, 2) for x in (image, references))
    return small, (image, references), se3.inverse(T_cur_ref), depth


def edge_of(depth: torch.Tensor) -> torch.Tensor:
    """Mask (H, W) of the pixels within three of a jump of depth (H, W)."""
    low, high = (-s * torch.nn.functional.max_pool2d(-s * depth[None], 7, 1, 3)[0] for s in (1, -1))
    return high > 1.1 * low


def test_refining_is_more_exact_than_enlarging_at_edges_and_elsewhere(pyramid) -> None:
    small, large, T_ref_cur, depth = pyramid
    coarse = sweep(*small, K, T_ref_cur)
    fine = refine(*large, resize_intrinsics(K, 2.0, 2.0), T_ref_cur, coarse)
    enlarged = plane_sweep._resize(coarse.inverse_depth[None], tuple(depth.shape))[0]
    edge = edge_of(depth)
    assert 0.02 < edge.float().mean() < 0.4
    assert fine.inverse_depth.shape == fine.confidence.shape == fine.valid.shape == depth.shape
    assert abs_rel(fine.inverse_depth, depth, edge) < 0.9 * abs_rel(enlarged, depth, edge)
    assert abs_rel(fine.inverse_depth, depth, ~edge) < 0.9 * abs_rel(enlarged, depth, ~edge)


def test_refining_blank_images_keeps_the_coarse_depth_and_doubts_it(pyramid) -> None:
    _, large, T_ref_cur, depth = pyramid
    coarse = plane_sweep.SweepResult(torch.full((HEIGHT, WIDTH), 0.5), torch.zeros(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))
    fine = refine(*(torch.full_like(x, 0.5) for x in large), resize_intrinsics(K, 2.0, 2.0), T_ref_cur, coarse)
    torch.testing.assert_close(fine.inverse_depth, torch.full_like(depth, 0.5))
    assert not fine.valid.any()


def test_planes_swept_at_once_do_not_matter(room, monkeypatch) -> None:
    image, references, T_ref_cur, _ = room
    w = torch.linspace(0.2, 2.0, 11)[:, None, None]
    found = []
    for count in (1, 4, 64):
        monkeypatch.setattr(plane_sweep, "_AT_ONCE", count)
        found.append(plane_sweep._cost_of(w, image.mean(0), references.mean(1), K, T_ref_cur, CONFIG))
    for cost, seen in found[1:]:
        torch.testing.assert_close(cost, found[0][0])
        assert torch.equal(seen, found[0][1])


def test_better_views_are_the_lowest_costs_of_those_that_see() -> None:
    g = torch.Generator().manual_seed(5)
    cost, seen = torch.rand(5, 2, 6, 7, generator=g, dtype=torch.float64), torch.rand(5, 2, 6, 7, generator=g) < 0.6
    found = plane_sweep._better_views(cost, seen, 0.6)
    for index in np.ndindex(2, 6, 7):
        values = sorted(cost[(slice(None), *index)][seen[(slice(None), *index)]].tolist())
        kept = values[:int(np.ceil(0.6 * len(values)))]
        assert float(found[index]) == pytest.approx(np.mean(kept) if kept else 1.0)


def plain_path(cost: np.ndarray, grey: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Hirschmuller's recursion, pixel by pixel, for one direction: path costs (H, W, D)."""
    height, width, depths = cost.shape
    path = np.zeros_like(cost)
    for y in range(height)[::dy or 1]:
        for x in range(width)[::dx or 1]:
            path[y, x] = cost[y, x]
            if 0 <= y - dy < height and 0 <= x - dx < width:
                before = path[y - dy, x - dx]
                large = max(CONFIG.large_step / (1 + abs(grey[y, x] - grey[y - dy, x - dx]) / CONFIG.edge), CONFIG.small_step)
                for d in range(depths):
                    near = [before[k] + CONFIG.small_step for k in (d - 1, d + 1) if 0 <= k < depths]
                    path[y, x, d] += min(before[d], before.min() + large, *near) - before.min()
    return path


def test_semi_global_costs_are_those_of_the_plain_recursion() -> None:
    g = torch.Generator().manual_seed(2)
    cost, grey = torch.rand(5, 7, 9, generator=g, dtype=torch.float64), torch.rand(7, 9, generator=g, dtype=torch.float64)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    expected = np.mean([plain_path(cost.permute(1, 2, 0).numpy(), grey.numpy(), *step) for step in steps], axis=0)
    np.testing.assert_allclose(plane_sweep._semi_global(cost, grey, CONFIG).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 11])
def testbox_mean_agrees_with_scipy(window: int) -> None:
    x = torch.rand(3, 14, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = np.stack([uniform_filter(image, window, mode="nearest") for image in x.numpy()])
    np.testing.assert_allclose(plane_sweep.box_mean(x, window).numpy(), expected, atol=1e-12)


def test_guided_filter_keeps_what_the_guide_explains_and_forgets_what_weighs_nothing() -> None:
    g = torch.Generator().manual_seed(4)
    guide = (torch.rand(30, 40, generator=g, dtype=torch.float64) > 0.5).double()
    weight = torch.ones_like(guide)
    x = 2 * guide - 0.3
    torch.testing.assert_close(plane_sweep._guided_filter(guide, x, weight, 4, 1e-6), x, atol=1e-8, rtol=0)
    wrong = torch.rand(30, 40, generator=g) < 0.2
    filtered = plane_sweep._guided_filter(guide, torch.where(wrong, 50.0, x), torch.where(wrong, 1e-9, weight), 4, 1e-6)
    torch.testing.assert_close(filtered, x, atol=1e-5, rtol=0)


def test_views_are_chosen_by_baseline_each_once_and_the_newest_of_equals() -> None:
    T = torch.eye(4).repeat(6, 1, 1)
    T[:, 0, 3] = torch.tensor([0.30, 0.20, 0.20, 0.11, 0.05, 0.0])
    assert plane_sweep.choose_views(T, depth=2.0, baselines=(0.1, 0.05, 0.1)) == [2, 3, 1]
    assert plane_sweep.choose_views(2 * T, depth=2 * 2.0, baselines=(0.1, 0.05, 0.1)) == [2, 3, 1]
    assert sorted(plane_sweep.choose_views(T[:2], depth=2.0)) == [0, 1]
