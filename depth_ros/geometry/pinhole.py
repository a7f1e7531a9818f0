"""The pinhole camera: pixel grids, lifting and projection.

Pixel (0, 0) is the centre of the first pixel; the camera frame is optical: x right, y down, z forward.
"""
from __future__ import annotations

import torch
from torch import Tensor

MIN_DEPTH = 1e-6  # metres: nearer than this, or behind, a point has no pixel


def pixel_grid(height: int, width: int, like: Tensor | None = None) -> Tensor:
    """Pixel centres (H, W, 2) as (u, v) [px], in the type and on the device of `like`."""
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    v, u = torch.meshgrid(torch.arange(height, dtype=dtype, device=device),
                          torch.arange(width, dtype=dtype, device=device), indexing="ij")
    return torch.stack([u, v], dim=-1)


def apply_to_grid(M: Tensor, height: int, width: int) -> Tensor:
    """M @ (u, v, 1) for every pixel centre: (..., H, W, 3) of M (..., 3, 3).

    Summed from a row and a column part, which is several times faster than a product of every pixel with a 3 x 3 matrix.
    """
    u = torch.arange(width, dtype=M.dtype, device=M.device)[:, None]
    v = torch.arange(height, dtype=M.dtype, device=M.device)[:, None]
    along_row = u * M[..., None, :, 0] + M[..., None, :, 2]
    return along_row[..., None, :, :] + (v * M[..., None, :, 1])[..., :, None, :]


def planes_of_grid(M: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three components of `apply_to_grid`, (..., H, W) each: what is worked on further component by component takes a third of the time."""
    u, v = (torch.arange(n, dtype=M.dtype, device=M.device) for n in (width, height))
    along_row = u * M[..., 0, None] + M[..., 2, None]
    return (along_row[..., None, :] + (v * M[..., 1, None])[..., None]).unbind(-3)


def inverse(K: Tensor) -> Tensor:
    """Inverse (..., 3, 3) of intrinsics (..., 3, 3) [px], which are upper triangular with a last row of 0, 0, 1. In closed form, which exports to any graph."""
    fx, skew, cx, fy, cy = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2], K[..., 1, 1], K[..., 1, 2]
    none, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([1 / fx, -skew / (fx * fy), (skew * cy / fy - cx) / fx, none, 1 / fy, -cy / fy, none, none, one], -1).reshape(K.shape)


def rays(height: int, width: int, K: Tensor) -> Tensor:
    """Directions (..., H, W, 3) with z = 1 through every pixel centre, K (..., 3, 3) [px]."""
    return apply_to_grid(inverse(K), height, width)


def unproject(depth: Tensor, K: Tensor) -> Tensor:
    """Lift z-depth (..., H, W) [m] through K (..., 3, 3) [px] to camera points (..., H, W, 3) [m]."""
    return depth[..., None] * rays(*depth.shape[-2:], K)


def project(points_cam: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Project (..., H, W, 3) [m] through K (..., 3, 3) [px] to pixels (..., H, W, 2) and a mask (..., H, W) of points in front.

    Pixels of points that are not in front are finite but mean nothing.
    """
    return dehomogenise(points_cam @ K.mT[..., None, :, :])


def dehomogenise(homogeneous: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (..., 2) of homogeneous ones (..., 3) scaled by depth [px m], and the mask (...) of those in front."""
    z = homogeneous[..., 2]
    in_front = z > MIN_DEPTH
    return homogeneous[..., :2] / torch.where(in_front, z, 1.0)[..., None], in_front
