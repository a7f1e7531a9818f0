"""Augmentation of clips that keeps images, depth, intrinsics and poses true to each other."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import se3
from depth_ros.geometry.depth_maps import reduce_depth
from depth_ros.learning.clips import ClipBatch

_GAMMA, _BRIGHTNESS, _CHANNELS, _FRAME = 0.15, 0.2, 0.08, 0.05      # deviations of logarithms; the last is that from view to view, of all three


def mirror(clips: ClipBatch, which: Tensor) -> ClipBatch:
    """The clips with left and right exchanged where which (B,) bool holds: M T M with M = diag(-1, 1, 1, 1) is the motion between mirrored cameras."""
    def turned(values: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (values.dim() - 1)), values.flip(-1), values)

    K = clips.K.clone()
    K[:, 0, 2] = torch.where(which, clips.images.shape[-1] - 1 - K[:, 0, 2], K[:, 0, 2])
    sign = torch.ones(len(clips), 4).to(clips.K)
    sign[:, 0] = torch.where(which, -1.0, 1.0)
    T = sign[:, None, :, None] * clips.T_cam_world * sign[:, None, None, :]
    return ClipBatch(turned(clips.images), turned(clips.depth), turned(clips.valid), K, T)


def rescale(clips: ClipBatch, factors: Tensor) -> ClipBatch:
    """The clips in a world that is factors (B,) times as large."""
    T = clips.T_cam_world.clone()
    T[:, :, :3, 3] *= factors[:, None, None]
    return dataclasses.replace(clips, depth=clips.depth * factors[:, None, None, None], T_cam_world=T)


def typical_factors(clips: ClipBatch, typical: float) -> Tensor:
    """What lengths are multiplied by (B,) so that the keyframe's median depth is `typical`; 1 for a keyframe without depth."""
    medians = [depth[valid].median() if valid.any() else depth.new_tensor(typical) for depth, valid in zip(clips.depth[:, 0], clips.valid[:, 0])]
    return typical / torch.stack(medians)


def reduce(clips: ClipBatch, factor: int) -> ClipBatch:
    """The clips at 1 / factor of their size, which has to be a multiple of it; depth is valid where all that it is made of was."""
    height, width = clips.images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f'reduce: expected a divisor of {width} and {height}, got {factor}')
    if factor == 1:
        return clips
    images = F.avg_pool2d(clips.images.flatten(0, 1), factor).unflatten(0, clips.images.shape[:2])
    valid = ~F.max_pool2d((~clips.valid).float(), factor).bool()
    depth = torch.where(valid, reduce_depth(clips.depth, factor), 0.0)
    return dataclasses.replace(clips, images=images, depth=depth, valid=valid, K=resize_intrinsics(clips.K, 1 / factor, 1 / factor))


def recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of one clip with another brightness, gamma and scale of each channel, and with a little of these from view to view."""
    views = len(images)
    own, each = (strength * torch.randn(n, 5, 1, 1, generator=generator) * deviation for n, deviation in
                 ((1, torch.tensor([_GAMMA, _BRIGHTNESS, *[_CHANNELS] * 3])[:, None, None]), (views, torch.full((5, 1, 1), _FRAME))))
    change = (own + each).exp()
    return (images.clamp(min=1e-4) ** change[:, :1] * change[:, 1:2] * change[:, 2:]).clamp(0.0, 1.0)


def draw_stretch(largest: float, generator: torch.Generator) -> float:
    """A factor on lengths between 1 / largest and largest, even in its logarithm."""
    return math.exp(math.log(largest) * (2 * torch.rand((), generator=generator).item() - 1))


def disturb(T_cam_world: Tensor, errors: Tensor) -> Tensor:
    """Poses (..., N, 4, 4) with errors (..., N, 6), twists in their own cameras, of all but the first, the keyframe's."""
    moved = se3.exp(errors) @ T_cam_world
    return torch.cat([T_cam_world[..., :1, :, :], moved[..., 1:, :, :]], -3)
