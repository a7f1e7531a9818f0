"""Sampling images at pixels, flow induced by depth and motion, and forward-backward consistency.

The one sampler of the package: (0, 0) is a pixel centre, `align_corners=True`, width - 1 in the denominator. Flow has its two
components (u, v) last, (..., H, W, 2), as OpenCV and the 32FC2 message have it; images have channels first.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import pinhole


def sample(image: Tensor, pixels: Tensor, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """Values (B, C, h, w) of image (B, C, H, W) at pixels (B, h, w, 2) [px], and the mask (B, h, w) of pixels inside.

    Outside, the value is that of the border. mode: bilinear | nearest.
    """
    height, width = image.shape[-2:]
    u, v = pixels.unbind(-1)    # by planes: along an axis of two, ONNX Runtime takes several times as long, and torch a third longer
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    grid = torch.stack([u * (2 / max(width - 1, 1)) - 1, v * (2 / max(height - 1, 1)) - 1], -1)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True), inside


def induced_flow(depth: Tensor, K: Tensor, T_ref_cur: Tensor) -> tuple[Tensor, Tensor]:
    """Flow (..., H, W, 2) [px] current -> reference of z-depth (..., H, W) [m], K (..., 3, 3), T_ref_cur (..., 4, 4).

    The mask (..., H, W) holds where depth is positive and the point lies in front of the reference; elsewhere flow is zero.
    Differentiable in depth, K and T_ref_cur.
    """
    present = torch.isfinite(depth) & (depth > pinhole.MIN_DEPTH)
    height, width = depth.shape[-2:]
    infinity = pinhole.planes_of_grid(K @ T_ref_cur[..., :3, :3] @ pinhole.inverse(K), height, width)
    epipole = (K @ T_ref_cur[..., :3, 3:])[..., None].unbind(-3)
    known = torch.where(present, depth, 1.0)
    x, y, z = (known * a + b for a, b in zip(infinity, epipole))
    valid = present & (z > pinhole.MIN_DEPTH)
    z = torch.where(valid, z, 1.0)
    columns, rows = (torch.arange(n, dtype=depth.dtype, device=depth.device) for n in (width, height))
    return torch.stack([torch.where(valid, x / z - columns, 0.0), torch.where(valid, y / z - rows[:, None], 0.0)], -1), valid


def warp_by_flow(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Image 2 (B, C, H, W) brought onto image 1 by flow 1 -> 2 (B, H, W, 2) [px], and the mask (B, H, W) that it covers."""
    return sample(image, flow + pinhole.pixel_grid(*flow.shape[-3:-1], like=flow))


def forward_backward_error(flow: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Length (..., H, W) [px] of flow(p) + backward(p + flow(p)), and the mask of pixels whose flow ends inside.

    Both flows are (..., H, W, 2) [px]. Where the error is large, one of them is wrong or the pixel is hidden.
    """
    batch = flow.shape[:-3]
    ahead = flow.reshape(-1, *flow.shape[-3:])
    returned, inside = warp_by_flow(backward.reshape(-1, *flow.shape[-3:]).movedim(-1, 1), ahead)
    error = (ahead + returned.movedim(1, -1)).norm(dim=-1)
    return error.reshape(*batch, *error.shape[1:]), inside.reshape(*batch, *inside.shape[1:])
