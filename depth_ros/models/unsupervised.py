"""Depth and motion learned from images alone, with known intrinsics: image 2, brought onto image 1 by depth and motion, must look like it.

The idea of T. Zhou et al., "Unsupervised learning of depth and ego-motion from video", CVPR 2017, and of V. Casser et al., "Depth prediction without the
sensors" (Struct2Depth), AAAI 2019, without the latter's models of moving objects. Here both networks see what the others see, images and flow: without the pair
no network could tell depth in units of its baseline. The loss is losses.photometric, with the motion of `motion`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.geometry import se3
from depth_ros.models.baselines import INPUTS, BaselineConfig, PairNetwork
from depth_ros.models.layers import Conv, centred, conv_leaky, resize, scaled_flow, start_typical

_ENCODER = ((32, 7), (64, 5), (128, 3), (256, 3), (512, 3))     # channels and kernel of each level, of stride 2 at first (Zhou et al., figure 4, without the two coarsest)
_POSE = ((16, 7), (32, 5), (64, 3), (128, 3), (256, 3))
_ROTATION = 0.1                                                 # [rad] of a unit output


def unit_motion(rotation: Tensor, translation: Tensor) -> Tensor:
    """T_2_1 (B, 4, 4) of a rotation vector (B, 3) [rad] and the direction of a translation (B, 3), whose norm becomes 1."""
    turned = se3.exp(torch.cat([torch.zeros_like(rotation), rotation], 1))
    return se3.from_rotation_translation(turned[:, :3, :3], F.normalize(translation, dim=1))


class Unsupervised(PairNetwork):
    """An encoder-decoder for depth and an encoder for motion."""

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__(config)
        widths = [INPUTS, *(channels for channels, _ in _ENCODER)]
        self.encoder = nn.ModuleList(nn.Sequential(conv_leaky(a, b, kernel, stride=2), conv_leaky(b, b, kernel)) for a, (b, kernel) in zip(widths, _ENCODER))
        levels = list(zip(reversed(widths[1:]), [*reversed(widths[1:-1]), 16]))
        self.upwards = nn.ModuleList(conv_leaky(a, b) for a, b in levels)
        self.merge = nn.ModuleList(conv_leaky(2 * b, b) for _, b in levels[:-1])
        self.last = Conv(levels[-1][1], 1)
        start_typical(self.last)
        poses = [INPUTS, *(channels for channels, _ in _POSE)]
        self.pose = nn.Sequential(*(conv_leaky(a, b, kernel, stride=2) for a, (b, kernel) in zip(poses, _POSE)), Conv(poses[-1], 6, 1))

    def predict(self, x: Tensor) -> Tensor:
        """At full size."""
        levels = [x]
        for part in self.encoder:
            levels.append(part(levels[-1]))
        x = levels[-1]
        for up, merge, finer in zip(self.upwards[:-1], self.merge, reversed(levels[1:-1])):
            x = merge(torch.cat([up(resize(x, finer)), finer], 1))
        return self.last(self.upwards[-1](resize(x, levels[0])))

    def motion(self, image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
        """T_2_1 (B, 4, 4), translation of norm 1, of what forward takes."""
        x = self.pose(torch.cat([centred(image1), centred(image2), scaled_flow(flow)], 1)).mean((2, 3))
        return unit_motion(_ROTATION * x[:, 3:], x[:, :3])
