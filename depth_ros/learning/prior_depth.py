"""What a recursive filter of depth from flow would know of synthetic pairs beforehand, for networks that begin with it (models/pose_aware.py).

The filter itself (engines/depth_filter.py) needs flow both ways and the images between; here its steps are repeated on a batch: the pair's flow is triangulated, weighed by what
texture, parallax and the flow's error make it worth, its error lessened as if some frames had been fused, and spread from sure pixels to unsure ones of like colour. So it
errs where flow errs, is smooth where that is unsure, and says how sure it is by the same measure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import two_view
from depth_ros.learning.pairs import PairBatch

_WIDTH = 320.0                      # [px] of the images that the filter's numbers are meant for
_NOISE, _DOUBT = 0.2, 3.0           # [px] of good flow; times that its inconsistency and epipolar distance add to it
_INCONSISTENT = 5.0                 # [px] from which flow is not triangulated
_NEAR_FAR = 0.1, 10.0               # bounds in multiples of the median
_TEXTURE, _WINDOW = 2.0, 22.0       # [grey levels/px] of gradient that hold flow by half; [px] over which they count
_SPREAD = 0.16                      # deviation about the smooth fit, as a share of the median
_EDGE = 4.0                         # difference of colour, of 255, that cuts the ties between neighbours to a third
_STEPS = 4, 2, 1, 4, 2, 1           # 80ths of the width over which depth flows at a time
_CONFIDENT = 0.15                   # relative deviation at which confidence is a half
_MOST_FRAMES = 30.0                 # that are fused: what is carried along is forgotten by then
_SHARED = 0.25                      # power of their number by which errors lessen: those of like images are alike
_LEFT, _OTHER = 0.5, 0.7            # of a pair's error, what fusion leaves and what other frames add: so that the pair's difference from what was fused says little of its sign
_BESIDES, _MOST_BESIDES = 0.2, 0.15     # of the filter's own deviation: errors that the pair does not have; their bound
_UNIT_VARIANCE = 1.5                # undoes what interpolation takes of it
_SURE = 4.0                         # times the information that errors would bear out: on a real camera the filter is that much surer than it is right
_SEEN = 0.7                         # of the log by which inconsistency tells more, or less, than the flow's error
_TINY = 1e-9


@dataclass(frozen=True)
class Draw:
    """A pair's draws."""

    frames: float       # that are fused
    noise: Tensor       # (3, 12, 16) normal: how far the inconsistency of flow tells its error, what of that is left after the fusion, and what errs besides


def draw(share: float, generator: torch.Generator) -> Draw | None:
    """Whether, with that probability, a pair has depth beforehand, and of how much."""
    chance, frames = torch.rand(2, generator=generator).tolist()
    noise = torch.randn(3, 12, 16, generator=generator)
    return Draw(math.exp(frames * math.log(_MOST_FRAMES)), noise) if chance < share else None


def add(pairs: PairBatch, draws: Sequence[Draw | None]) -> PairBatch:
    """The pairs with `prior`, zero for those without a draw; by the motion T_2_1 as it is, errors and all."""
    there = [i for i, one in enumerate(draws) if one is not None]
    prior = pairs.flow.new_zeros(pairs.flow.shape)
    if there:
        prior[there] = _filtered(pairs.pick(there), [draws[i] for i in there])
    return dataclasses.replace(pairs, prior=prior)


def _filtered(pairs: PairBatch, draws: Sequence[Draw]) -> Tensor:
    """Inverse depth [1/baseline] and confidence (B, 2, H, W)."""
    height, width = pairs.flow.shape[-2:]
    unit = _WIDTH / width
    found = two_view.triangulate_inverse_depth(pairs.flow.movedim(1, -1), pairs.K, pairs.T_2_1, _precision(pairs.image1, unit))
    tells, left, besides = _UNIT_VARIANCE * F.interpolate(torch.stack([d.noise for d in draws], 1).to(pairs.flow), (height, width), mode='bilinear')[:, :, None]
    error = torch.where(pairs.visible, unit * (pairs.flow - pairs.exact_flow).norm(dim=1, keepdim=True) * (_SEEN * tells).exp(), _INCONSISTENT)
    usable = (found.inverse_depth[:, None] > 0) & (error < _INCONSISTENT)
    doubt = error.square() + (unit * found.epipolar[:, None]).square()
    information = usable * unit ** 2 * found.information[:, None] / (_NOISE ** 2 + _DOUBT ** 2 * doubt)
    frames = pairs.flow.new_tensor([d.frames for d in draws])[:, None, None, None]
    middle = _median(found.inverse_depth[:, None], usable)
    farthest, nearest = (bound * middle for bound in _NEAR_FAR)
    value = torch.where(usable, found.inverse_depth[:, None].clamp(farthest, nearest), middle)
    value = torch.where(pairs.valid, pairs.inverse_depth + (value - pairs.inverse_depth) * frames ** -_SHARED * (_LEFT + _OTHER * left), value)
    value = value.clamp(farthest, nearest)
    information = _SURE * frames * information
    weight = information * (_SPREAD * middle).square()
    value = (value * weight + _spread(value, weight + _TINY, pairs.image1)) / (weight + 1)
    deviation = 1 / (information.sqrt() * value).clamp(min=1)
    value = value * (besides * (_BESIDES * deviation).clamp(max=_MOST_BESIDES)).exp()
    return torch.cat([value, 1 / (1 + (deviation / _CONFIDENT).square())], 1)


def _precision(image: Tensor, unit: float) -> Tensor:
    """Precision (B, H, W, 3) of flow as xx, xy and yy, as depth_filter.flow_precision tells it, of images (B, 3, H, W)."""
    grey = 255 * image.mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode='replicate')
    u, v = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / (2 * unit), (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / (2 * unit)
    half = max(1, round(_WINDOW / unit / 2))
    xx, xy, yy = F.avg_pool2d(torch.cat([u * u, u * v, v * v], 1), 2 * half + 1, 1, half, count_include_pad=False).unbind(1)
    noise = _TEXTURE ** 2
    determinant = (xx + noise) * (yy + noise) - xy * xy
    return torch.stack([xx * (yy + noise) - xy * xy, noise * xy, yy * (xx + noise) - xy * xy], -1) / determinant[..., None]


def _median(value: Tensor, usable: Tensor) -> Tensor:
    """Median (B, 1, 1, 1) of value (B, 1, H, W) where it is usable; 1 where nothing is."""
    found = torch.where(usable, value, torch.nan).flatten(1).nanmedian(1).values
    return torch.nan_to_num(found, nan=1.0)[:, None, None, None]


def _spread(value: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """value (B, 1, H, W) drawn, the more the less its weight, towards pixels around it of like colour."""
    both = torch.cat([value * weight, weight], 1)
    for share in _STEPS:
        step = max(1, round(share * image.shape[-1] / 80))
        total, ties = both, torch.ones_like(weight)
        for axis, by in ((-1, step), (-1, -step), (-2, step), (-2, -step)):
            tie = (-255 / _EDGE * (image - _shifted(image, axis, by)).abs().amax(1, keepdim=True)).exp()
            total, ties = total + tie * _shifted(both, axis, by), ties + tie
        both = total / ties
    return both[:, :1] / both[:, 1:]


def _shifted(x: Tensor, axis: int, by: int) -> Tensor:
    """x (B, C, H, W) moved along an axis, its border repeated."""
    index = (torch.arange(x.shape[axis], device=x.device) + by).clamp(0, x.shape[axis] - 1)
    return x.index_select(axis, index)
