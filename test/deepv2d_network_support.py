"""A small DeepV2D, and what its networks are shown in tests: smooth random images, motions, and exact flow."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from depth_ros.geometry import se3
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.geometry.warp import induced_flow
from depth_ros.models import deepv2d_depth
from depth_ros.models.deepv2d import LIVE, DeepV2D
from depth_ros.models.deepv2d_motion import MeasuredFlow

SMALL = replace(LIVE, planes=8)


def camera(height: int, width: int, batch: int = 1) -> Tensor:
    """K (B, 3, 3) of maps of that size, focal length 0.8 of the width."""
    return torch.tensor([[0.8 * width, 0.0, (width - 1) / 2], [0.0, 0.8 * width, (height - 1) / 2], [0.0, 0.0, 1.0]]).expand(batch, 3, 3)


def motions(batch: int, views: int, size: float = 0.03, seed: int = 5) -> Tensor:
    return se3.exp(size * torch.randn(batch, views, 6, generator=torch.Generator().manual_seed(seed)))


def images(*shape: int, seed: int = 6) -> Tensor:
    """Smooth random images (..., 3, H, W)."""
    coarse = torch.rand(math.prod(shape[:-2]), 1, shape[-2] // 4, shape[-1] // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, shape[-2:], mode='bicubic', align_corners=False).clamp(0, 1).view(*shape)


def flow_of(depth: Tensor, K: Tensor, T_view_key: Tensor) -> MeasuredFlow:
    """Exact and consistent flow from depth (B, h, w) to views (B, V, 4, 4)."""
    flow, _ = induced_flow(depth[:, None].expand(-1, T_view_key.shape[1], -1, -1), K[:, None], T_view_key)
    return MeasuredFlow(flow + pixel_grid(*depth.shape[-2:]), torch.zeros(flow.shape[:-1]))


def depth_of(network: DeepV2D, clips: Tensor, T_view_key: Tensor, seen: Tensor | None = None) -> deepv2d_depth.DepthEstimate:
    """A network's, shown the flow of a wall at 2 m if it sees any."""
    features = network.depth.features(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
    K = camera(*features.shape[-2:], len(clips))
    measured = flow_of(torch.full((len(clips), *features.shape[-2:]), 2.0), K, T_view_key) if network.depth.sees_flow else None
    return network.depth(features, K, T_view_key, network.planes(clips), clips.shape[-2:], seen, measured)
