"""Depth of one image from others with known poses: a sweep over planes of inverse depth with semi-global smoothing.

Zero-mean normalised cross-correlation (ZNCC) over a window, the mean over the better share of the views (Kang, Szeliski and Chai,
CVPR 2001: what one view cannot see, another can), semi-global matching (Hirschmuller, PAMI 2008), a parabola through the
best plane, and a guided filter (He, Sun and Tang, PAMI 2013) that carries depth from sure pixels to unsure ones of like colour.

Coarse to fine: the sweep runs on a small image, where smoothing is cheap and windows are wide; `refine` then lets every pixel of a larger image choose
between what the coarse depth says around it, and adjusts what it chose. Costs are filtered along the image's edges (Rhemann et al., CVPR 2011).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import pinhole

_NEIGHBOURS = 2     # planes each side of the best that count as the same minimum
_AT_ONCE = 8        # planes: their costs stay in the cache, which is worth a quarter of the time


# Of the references, as shares of the usual depth. Short ones match without ambiguity and see past few edges; long ones are more exact, if poses are.
BASELINES = 1 / 90, 2 / 90, 3 / 90, 4 / 90


@dataclass(frozen=True)
class SweepConfig:
    """Planes, window and smoothness. Costs are 1 - ZNCC: 0 for equal windows, 1 for unrelated ones, 2 for negatives."""

    planes: int = 64
    min_inverse_depth: float = 1 / 8    # [1/m]
    max_inverse_depth: float = 3.0      # [1/m]
    window: int = 7                     # [px] odd
    noise: float = 0.01                 # grey values in [0, 1]: windows with less contrast match nothing
    best_share: float = 0.75            # of the views that see a pixel, the share whose costs are averaged
    small_step: float = 0.2             # cost of one plane up or down between neighbours
    large_step: float = 2.4             # cost of a larger step, where the image is even
    edge: float = 0.04                  # grey difference of neighbours that halves the cost of a large step
    margin: float = 0.1                 # lead over the second minimum that gives a confidence of 1 - 1/e
    min_confidence: float = 0.3         # below, a pixel counts as filled, not measured
    fill_margin: float = 0.4            # lead from which a pixel keeps its own depth rather than the guided filter's
    fill_radius: int = 4                # [px] of the guided filter; 0 leaves it out
    fill_edge: float = 0.02             # grey deviation that the filter respects as an edge
    refine_reach: int = 2               # coarse pixels around, whose nearest and farthest depth a fine pixel may take
    refine_radius: int = 4              # [fine px] of the guided filter on the costs of these
    refine_edge: float = 0.05           # grey deviation that it respects as an edge
    refine_step: float = 0.5            # planes each way at which the chosen depth is tried again
    refine_prior: float = 0.02          # curvature of a cost that holds on to the chosen depth


@dataclass(frozen=True)
class SweepResult:
    """Inverse depth of every pixel of the current image, and what it is worth."""

    inverse_depth: Tensor   # (H, W) [1/m], dense: filled where the views say nothing
    confidence: Tensor      # (H, W) in [0, 1]
    valid: Tensor           # (H, W) bool: measured, not filled


@torch.no_grad()
def sweep(image: Tensor, references: Tensor, K: Tensor, T_ref_cur: Tensor, config: SweepConfig = SweepConfig()) -> SweepResult:
    """Inverse depth of image (3, H, W) in [0, 1] from references (V, 3, H, W) with T_ref_cur (V, 4, 4) [m] and one K (3, 3) [px].

    Every view must have moved: see choose_views. It ends in a choice of planes, so it carries no gradient.
    """
    _check_views(image, references, T_ref_cur)
    grey = image.mean(0)
    planes = torch.linspace(config.min_inverse_depth, config.max_inverse_depth, config.planes, dtype=image.dtype, device=image.device)
    cost, seen = _cost_of(planes[:, None, None], grey, references.mean(1), K.to(image), T_ref_cur.to(image), config)
    smooth = _semi_global(cost, grey, config)
    inverse_depth, best, lead = _minimum(cost.permute(1, 2, 0), smooth, planes)
    in_sight = torch.take_along_dim(seen, best[None], dim=0)[0]
    confidence = torch.where(in_sight, 1 - torch.exp(-lead / config.margin), 0.0)
    if config.fill_radius:
        filled = _guided_filter(grey, inverse_depth, confidence.square() + 1e-3, config.fill_radius, config.fill_edge)
        inverse_depth = torch.lerp(filled, inverse_depth, torch.where(in_sight, 1 - torch.exp(-lead / config.fill_margin), 0.0))
    inverse_depth = inverse_depth.clamp(config.min_inverse_depth, config.max_inverse_depth)
    return SweepResult(inverse_depth, confidence, confidence > config.min_confidence)


@torch.no_grad()
def refine(image: Tensor, references: Tensor, K: Tensor, T_ref_cur: Tensor, coarse: SweepResult, config: SweepConfig = SweepConfig()) -> SweepResult:
    """The result of a sweep on smaller versions of the same images, brought to the size of image (3, H, W); the other arguments are as for `sweep`.

    At a depth edge the coarse depth is blurred or off by a pixel: the nearest and the farthest depth around are tried too. `config` is that of the sweep.
    """
    _check_views(image, references, T_ref_cur)
    grey, size, reach = image.mean(0), image.shape[1:], 2 * config.refine_reach + 1
    views = grey, references.mean(1), K.to(image), T_ref_cur.to(image), config
    around = F.pad(coarse.inverse_depth[None], (config.refine_reach,) * 4, mode="replicate")
    nearest, farthest = F.max_pool2d(around, reach, 1), -F.max_pool2d(-around, reach, 1)
    choices = torch.cat([_resize(coarse.inverse_depth[None], size), _resize(nearest, size, "nearest"), _resize(farthest, size, "nearest")])
    cost = _guided_filter(grey, _cost_of(choices, *views)[0], torch.ones_like(grey), config.refine_radius, config.refine_edge)
    chosen = torch.take_along_dim(choices, cost.argmin(0)[None], 0)[0]
    step = config.refine_step * (config.max_inverse_depth - config.min_inverse_depth) / (config.planes - 1)
    (before, at, after), _ = _cost_of(chosen + step * torch.tensor([-1.0, 0.0, 1.0]).to(image)[:, None, None], *views)
    curvature = (before - 2 * at + after).clamp(min=0) + config.refine_prior
    chosen += step * ((before - after) / (2 * curvature)).clamp(-1, 1)
    confidence = _resize(coarse.confidence[None], size)[0]
    inverse_depth = chosen.clamp(config.min_inverse_depth, config.max_inverse_depth)
    return SweepResult(inverse_depth, confidence, confidence > config.min_confidence)


def _check_views(image: Tensor, references: Tensor, T_ref_cur: Tensor) -> None:
    if references.shape[0] == 0 or references.shape[1:] != image.shape or T_ref_cur.shape != (references.shape[0], 4, 4):
        raise ValueError(f"expected references (V, *{tuple(image.shape)}) with V >= 1 and transforms (V, 4, 4), "
                         f"got {tuple(references.shape)} and {tuple(T_ref_cur.shape)}")


def _resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """x (C, h, w) at another size (H, W), pixel areas matched as in an area-averaged resize."""
    return F.interpolate(x[None], size, mode=mode, align_corners=False if mode == "bilinear" else None)[0]


def choose_views(T_ref_cur: Tensor, depth: float, baselines: tuple[float, ...] = BASELINES) -> list[int]:
    """Indices of the candidates T_ref_cur (N, 4, 4) [m] whose baselines, as shares of the usual depth [m], come nearest to `baselines`.

    Each is taken once; fewer come back when there are fewer candidates. Of equals the last, which is the most recent.
    """
    shares = (T_ref_cur[:, :3, 3].norm(dim=-1) / depth).tolist()
    chosen: list[int] = []
    for wanted in baselines:
        left = [i for i in reversed(range(len(shares))) if i not in chosen]
        if left:
            chosen.append(min(left, key=lambda i: abs(shares[i] - wanted)))
    return chosen


def _cost_of(w: Tensor, grey: Tensor, references: Tensor, K: Tensor, T_ref_cur: Tensor, config: SweepConfig) -> tuple[Tensor, Tensor]:
    """Matching cost (D, H, W) of inverse depths w (D, 1, 1) or (D, H, W) [1/m] over the better views, and the mask of what any view sees."""
    own = _mean_and_inverse_deviation(grey, config)
    parts = [_cost_of_some(some, grey, own, references, K, T_ref_cur, config) for some in w.split(_AT_ONCE)]
    cost, seen = zip(*parts)
    return torch.cat(cost), torch.cat(seen)


def _cost_of_some(w: Tensor, grey: Tensor, own: tuple[Tensor, Tensor], references: Tensor, K: Tensor, T_ref_cur: Tensor,
                  config: SweepConfig) -> tuple[Tensor, Tensor]:
    """1 - ZNCC of grey (H, W), whose statistics are `own`, with references (V, H, W) by way of w; see _cost_of."""
    warped, seen = _sample_by_depth(references, K, T_ref_cur, w)
    mean, scale = _mean_and_inverse_deviation(warped, config)
    covariance = box_mean(warped.mul_(grey), config.window).addcmul_(mean, own[0], value=-1)
    return _better_views(1 - covariance.mul_(scale).mul_(own[1]), seen, config.best_share), seen.any(0)


def _sample_by_depth(references: Tensor, K: Tensor, T_ref_cur: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """References (V, H, W) seen from the current camera by way of inverse depths w (D, 1, 1) or (D, H, W) [1/m]: (V, D, H, W), and the mask of what they cover.

    The pixel a + w b of two_view for all w at once, written in the sampler's own units, in place: this is most of the memory traffic.
    """
    height, width = references.shape[-2:]
    a = pinhole.apply_to_grid(K @ T_ref_cur[:, :3, :3] @ pinhole.inverse(K), height, width)[:, None]     # (V, 1, H, W, 3)
    b = (K @ T_ref_cur[:, :3, 3:])[:, None, None, None, :, 0]                                             # (V, 1, 1, 1, 3)
    z = a[..., 2] + w * b[..., 2]
    seen = z > pinhole.MIN_DEPTH
    scale = z.clamp_(min=pinhole.MIN_DEPTH).reciprocal_()
    positions = torch.empty(*scale.shape, 2, dtype=scale.dtype, device=scale.device)
    for axis, size in enumerate((width, height)):
        position = (a[..., axis] + w * b[..., axis]).mul_(scale)
        seen &= (position >= 0) & (position <= size - 1)
        positions[..., axis] = position.mul_(2 / (size - 1)).sub_(1)
    views, depths = scale.shape[:2]
    sampled = F.grid_sample(references[:, None], positions.view(views, depths * height, width, 2),
                            mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.view(views, depths, height, width), seen


def _mean_and_inverse_deviation(x: Tensor, config: SweepConfig) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation (noise included) of the window around each pixel of (..., H, W)."""
    mean = box_mean(x, config.window)
    variance = box_mean(x * x, config.window).addcmul_(mean, mean, value=-1)
    return mean, variance.clamp_(min=0).add_(config.noise ** 2).rsqrt_()


def _better_views(cost: Tensor, seen: Tensor, share: float) -> Tensor:
    """Mean (D, H, W) over the lowest `share` of the costs (V, D, H, W) that are seen; 1, which says nothing, where none is."""
    ordered = list(torch.where(seen, cost, torch.inf).unbind(0))
    for last in range(len(ordered) - 1, 0, -1):        # bubble sort across the few views: many times faster than torch.sort along a long stride
        for i in range(last):
            ordered[i], ordered[i + 1] = torch.minimum(ordered[i], ordered[i + 1]), torch.maximum(ordered[i], ordered[i + 1])
    count = seen.sum(0)
    kept = (count * share).ceil().clamp(min=1)
    total = torch.where(count > 0, ordered[0], 1.0)
    for rank, value in enumerate(ordered[1:], 1):
        total += torch.where(rank < kept, value, 0.0)
    return total / kept


def _semi_global(cost: Tensor, grey: Tensor, config: SweepConfig) -> Tensor:
    """Mean over eight directions of the path costs (H, W, D) of cost (D, H, W), steps being dear where grey (H, W) is even."""
    cost = cost.permute(1, 2, 0).contiguous()
    rows = _both_ways(cost, grey, (0, 1, -1), config)
    columns = _both_ways(cost.transpose(0, 1).contiguous(), grey.T, (0,), config)
    return rows.add_(columns.transpose(0, 1)).div_(8)


def _both_ways(cost: Tensor, grey: Tensor, shifts: tuple[int, ...], config: SweepConfig) -> Tensor:
    """Sum of path costs (S, N, D) along the first axis, forwards and backwards; a path moves by `shift` across at each step."""
    total = _scan(torch.stack([cost, cost.flip(0)], 1), torch.stack([grey, grey.flip(0)], 1), shifts, config)
    return total[:, 0] + total[:, 1].flip(0)


def _scan(cost: Tensor, grey: Tensor, shifts: tuple[int, ...], config: SweepConfig) -> Tensor:
    """Sum over shifts of the path costs (S, G, N, D) of cost (S, G, N, D), grey (S, G, N) (Hirschmuller, eq. 14).

    The one loop is over S; all shifts, groups, places and planes go at once. A path that enters starts from zero.
    """
    contrast = torch.stack([(grey - grey.roll((1, shift), (0, 2))).abs() for shift in shifts], 1)
    large = (config.large_step / (1 + contrast / config.edge)).clamp(min=config.small_step)[..., None]
    path = torch.zeros(len(shifts), *cost.shape[1:], dtype=cost.dtype, device=cost.device)
    total = torch.empty_like(cost)
    for i in range(len(cost)):
        for k, shift in enumerate(shifts):
            if shift:
                path[k] = path[k].roll(shift, 1)
                path[k, :, 0 if shift > 0 else -1] = 0
        least = path.amin(-1, keepdim=True)
        reached = torch.minimum(path, least + large[i])
        path += config.small_step
        torch.minimum(reached[..., 1:], path[..., :-1], out=reached[..., 1:])
        torch.minimum(reached[..., :-1], path[..., 1:], out=reached[..., :-1])
        path = reached.sub_(least).add_(cost[i])
        torch.sum(path, 0, out=total[i])
    return total


def _minimum(cost: Tensor, smooth: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse depth (H, W) [1/m] of the lowest smoothed cost (H, W, D), its plane, and its lead over the next minimum.

    Between planes the parabola is that of the cost (H, W, D) itself: the smoothed one draws neighbours onto the same plane.
    """
    least, best = smooth.min(-1)
    inner = best.clamp(1, len(planes) - 2)
    before, at, after = (torch.take_along_dim(cost, (inner + k)[..., None], -1)[..., 0] for k in (-1, 0, 1))
    curvature = before - 2 * at + after
    vertex = ((before - after) / (2 * curvature).clamp(min=1e-6)).clamp(-0.5, 0.5)
    position = best + torch.where((best == inner) & (curvature > 0), vertex, 0.0)
    index = torch.arange(len(planes), device=cost.device)
    elsewhere = smooth.masked_fill((index - best[..., None]).abs() <= _NEIGHBOURS, torch.inf).amin(-1)
    return planes[0] + position * (planes[1] - planes[0]), best, elsewhere - least


def _guided_filter(guide: Tensor, x: Tensor, weight: Tensor, radius: int, edge: float) -> Tensor:
    """x (..., H, W) as a locally affine function of guide (H, W), fitted by weight (H, W): smooth, but with the guide's edges."""
    window = 2 * radius + 1
    total = box_mean(weight, window)
    mean_guide, mean_x = (box_mean(weight * y, window) / total for y in (guide, x))
    covariance = box_mean(weight * guide * x, window) / total - mean_guide * mean_x
    variance = (box_mean(weight * guide * guide, window) / total - mean_guide * mean_guide).clamp(min=0)
    slope = covariance / (variance + edge ** 2)
    offset = mean_x - slope * mean_guide
    return (box_mean(total * slope, window) * guide + box_mean(total * offset, window)) / box_mean(total, window)


def box_mean(x: Tensor, window: int) -> Tensor:
    """Mean over window x window (odd) around each pixel of (..., H, W); the border's values go on beyond it."""
    return _running_sum(_running_sum(x, window, -1), window, -2).div_(window * window)


def _running_sum(x: Tensor, window: int, dim: int) -> Tensor:
    """Sum of `window` values around each along dim, by doubling: log2(window) passes over memory instead of window."""
    n, radius = x.shape[dim], window // 2
    ends = [x.narrow(dim, 0, 1)] * radius, [x.narrow(dim, n - 1, 1)] * radius
    run = torch.cat([*ends[0], x, *ends[1]], dim)              # run[i]: sum of `length` values from i
    total, start, length = None, 0, 1
    while True:
        if window & length:
            part = run.narrow(dim, start, n)
            total = part.clone() if total is None else total.add_(part)
            start += length
        if 2 * length > window:
            return total
        shorter = run.shape[dim] - length
        run = run.narrow(dim, 0, shorter) + run.narrow(dim, length, shorter)
        length *= 2
