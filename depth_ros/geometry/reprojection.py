"""Depth seen from another camera: forward warping with a z-buffer, filling of the holes it leaves, and whether two views agree.

Depth is 0 where it is unknown, and whatever is not finite and positive counts as unknown.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import sample

_MIN_NEIGHBOURS = 3     # known ones of a pixel's eight from which it is filled: fewer let surfaces grow into what nobody saw


def reproject_depth(depth: Tensor, K: Tensor, T_target_source: Tensor, K_target: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Depth (B, h, w) [m] of the target camera from depth (B, H, W) [m] of the source, K (3, 3) or (B, 3, 3) [px], T_target_source (4, 4) or (B, 4, 4).

    `K_target` and `size` (h, w) are those of the source where not given. Every point goes to the pixel nearest to it, and the nearest of several is kept;
    points behind the camera or outside the image are dropped.
    """
    height, width = size or depth.shape[-2:]
    z, pixels, seen = _moved(depth, K, T_target_source, K if K_target is None else K_target)
    seen &= _inside(pixels, height, width)
    column, row = torch.where(seen[..., None], pixels, 0.0).round().long().unbind(-1)
    z = torch.where(seen, z, torch.inf).flatten(1)
    nearest = torch.full_like(z[:, :1], torch.inf).repeat(1, height * width).scatter_reduce(1, (row * width + column).flatten(1), z, 'amin')
    return torch.where(nearest.isfinite(), nearest, 0.0).unflatten(1, (height, width))


def fill_holes(depth: Tensor, reach: int = 2) -> Tensor:
    """Depth (B, H, W) [m] with small holes filled: `reach` times, every unknown pixel beside three known ones or more takes the median of its neighbours.

    The median is always one of them (the nearer where it falls between two), so that no surface appears between two real ones. Larger holes, seen from
    no other place, stay unknown, which weighs nothing in alignment. Known pixels never change.
    """
    values = torch.where(_known(depth), depth, torch.nan)
    for _ in range(reach):
        values = _grown(values)
    return torch.where(values.isnan(), 0.0, values)


def agreement(depth: Tensor, K: Tensor, T_other_self: Tensor, other: Tensor, K_other: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Whether another camera's depth (B, h, w) [m] confirms each pixel of depth (B, H, W) [m], and whether it denies it: two masks (B, H, W).

    A point is confirmed where the other measured it at its own depth, to a share of it (`tolerance`), and denied where the other sees farther than that: it
    would have to look through the point. Behind what the other sees, outside its image and where it measured nothing it has no say.
    """
    z, pixels, seen = _moved(depth, K, T_other_self, K_other)
    height, width = other.shape[-2:]
    seen &= _inside(pixels, height, width)
    pixels = torch.where(seen[..., None], pixels, 0.0).round()
    there = sample(torch.where(_known(other), other, 0.0)[:, None], pixels, 'nearest')[0][:, 0]
    seen &= there > pinhole.MIN_DEPTH
    margin = tolerance * z
    return seen & ((there - z).abs() <= margin), seen & (there - z > margin)


def _moved(depth: Tensor, K: Tensor, T_target_source: Tensor, K_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth (B, H, W) [m] and pixels (B, H, W, 2) in the target of all source pixels, and the mask (B, H, W) of those known and in front of it."""
    known = _known(depth)
    points = se3.transform(T_target_source, pinhole.unproject(torch.where(known, depth, 1.0), K))
    pixels, in_front = pinhole.project(points, K_target)
    return points[..., 2], pixels, known & in_front


def _known(depth: Tensor) -> Tensor:
    return depth.isfinite() & (depth > pinhole.MIN_DEPTH)


def _inside(pixels: Tensor, height: int, width: int) -> Tensor:
    """Mask (..., H, W) of pixels (..., H, W, 2) that some pixel of an image is nearest to."""
    return ((pixels > -0.5) & (pixels < pixels.new_tensor([width - 0.5, height - 0.5]))).all(-1)


def _grown(values: Tensor) -> Tensor:
    """Values (B, H, W), NaN where unknown, with those pixels filled that have enough known neighbours."""
    unknown = values.isnan()
    around = 9.0 * F.avg_pool2d((~unknown)[:, None].to(values.dtype), 3, stride=1, padding=1)[:, 0]
    image, row, column = (unknown & (around > _MIN_NEIGHBOURS - 0.5)).nonzero(as_tuple=True)
    padded = F.pad(values, (1, 1, 1, 1), value=torch.nan)
    neighbours = torch.stack([padded[image, row + i, column + j] for i in range(3) for j in range(3)], dim=-1)
    grown = values.clone()
    grown[image, row, column] = neighbours.nanmedian(-1).values
    return grown
