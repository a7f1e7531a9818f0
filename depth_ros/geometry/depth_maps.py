"""Depth maps at other sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reduce_depth(depth: Tensor, factor: int) -> Tensor:
    """Depth (..., ceil(H / factor), ceil(W / factor)) [m] of depth (..., H, W), 0 where unknown: inverse depth, which is linear on planes, is averaged over what is known.

    That is depth at the size of the feature maps for factor 4, with intrinsics resized by 1 / factor. Unknown where nothing below is known.
    """
    if factor == 1:
        return depth
    known = (depth > 0.0) & torch.isfinite(depth)
    inverse = torch.where(known, torch.where(known, depth, 1.0).reciprocal(), 0.0)
    both = torch.stack([inverse, known.to(depth.dtype)], -3).flatten(0, -4) if depth.dim() > 2 else torch.stack([inverse, known.to(depth.dtype)])[None]
    height, width = depth.shape[-2:]
    summed = F.avg_pool2d(F.pad(both, (0, -width % factor, 0, -height % factor)), factor)
    mean = torch.where(summed[:, 1] > 0.0, summed[:, 1], 0.0) / torch.where(summed[:, 1] > 0.0, summed[:, 0], 1.0)
    return mean.reshape(*depth.shape[:-2], *mean.shape[-2:])
