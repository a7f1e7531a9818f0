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
    last = pixels.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    inside = ((pixels >= 0) & (pixels <= pixels.new_tensor([width - 1, height - 1]))).all(-1)
    values = F.grid_sample(image, pixels * (2 / last) - 1, mode=mode, padding_mode="border", align_corners=True)
    return values, inside


def induced_flow(depth: Tensor, K: Tensor, T_ref_cur: Tensor) -> tuple[Tensor, Tensor]:
    """Flow (..., H, W, 2) [px] current -> reference of z-depth (..., H, W) [m], K (..., 3, 3), T_ref_cur (..., 4, 4).

    The mask (..., H, W) holds where depth is positive and the point lies in front of the reference; elsewhere flow is zero.
    Differentiable in depth, K and T_ref_cur.
    """
    present = torch.isfinite(depth) & (depth > pinhole.MIN_DEPTH)
    infinity = pinhole.apply_to_grid(K @ T_ref_cur[..., :3, :3] @ pinhole.inverse(K), *depth.shape[-2:])
    epipole = (K @ T_ref_cur[..., :3, 3:])[..., None, None, :, 0]
    pixels, in_front = pinhole.dehomogenise(torch.where(present, depth, 1.0)[..., None] * infinity + epipole)
    valid = present & in_front
    flow = pixels - pinhole.pixel_grid(*depth.shape[-2:], like=depth)
    return torch.where(valid[..., None], flow, 0.0), valid


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
