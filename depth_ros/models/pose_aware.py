"""The local module that knows the pose: it corrects the inverse depth which flow and a tracker's motion triangulate.

The paper's tables compare triangulation with the true pose against a network without it (Global-Local, appendix 6.4, table 7): the one is exact where flow
is, the other bears its errors. This one starts at triangulation and learns where not to believe it. Where a recursive filter has fused what earlier frames triangulated, it
starts at that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import two_view, warp
from depth_ros.models.layers import TYPICAL, Conv, FilterGenerator, Pairs, conv_leaky, enlarged, leaky, local_network, pooled, resize

BANKS = [16, 16, 16]                # output channels of the generated filter banks
_WIDTH = 64                         # cells across the image in which it computes: what triangulation errs by is smooth, and so is the flow
_LEVELS = 5                         # means of the triangulation over 1, 2, 4, 8 and 16 cells
_CHANNELS = (40, 64, 80, 96)        # of the refiner, at 1, 2, 4 and 8 cells
_LOWEST, _HIGHEST = -1.8, 2.5       # bounds of the log of triangulated over usual inverse depth
_REACH = 4.0                        # bound of the same log in the result
_SURER = 0.44                       # (0.10 / 0.15)^2, the deviation of a correction and that of depth whose confidence is a half
_NOMINAL_WIDTH = 256                # lengths in pixels are meant at this width, so that the same weights serve others
_FEATURES, _OF_PRIOR = 8, 4         # channels that describe the triangulation, and the depth that is known beforehand


@torch.no_grad()
def geometry(flow: Tensor, K: Tensor, T_2_1: Tensor) -> tuple[Tensor, ...]:
    """What PoseAwareLocal takes, of flow (B, 2, H, W) [px], K (B, 3, 3) [px] and T_2_1 (B, 4, 4).

    Derotated flow (B, 2, H, W) [px], triangulated inverse depth [1/baseline], signed, epipolar distance [px] and parallax [px baseline], all (B, 1, H, W).
    """
    found = two_view.triangulate_inverse_depth(flow.permute(0, 2, 3, 1), K, T_2_1)
    return found.derotated.permute(0, 3, 1, 2), found.inverse_depth[:, None], found.epipolar[:, None], found.parallax[:, None]


def looked_at(batch: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both images, flow and K of a batch at the size that they are described at where depth known beforehand has the detail."""
    step = _to_description(batch.flow)
    image1, image2, flow = (pooled(x, step) for x in (batch.image1, batch.image2, batch.flow))
    return image1, image2, flow / step, resize_intrinsics(batch.K, 1 / step, 1 / step)


def _to_cells(x: Tensor) -> int:
    """Pixels of x (B, C, H, W) across a cell."""
    return max(1, round(int(x.shape[-1]) / _WIDTH))


def _to_description(x: Tensor) -> int:
    """Pixels of x (B, C, H, W), of full size, across one of the description: of these two make a cell, if that can be."""
    both = _to_cells(x)
    return both // 2 if both % 2 == 0 else 1


def usual(inverse_depth: Tensor) -> Tensor:
    """Usual positive value (B, 1, 1, 1) of inverse depth (B, 1, H, W), unmoved by a few huge ones and exactly proportional to all.

    A mean of what is positive, cut again and again at three times the mean so far. Unlike a median it exports to any graph and costs no sorting.
    """
    positive = inverse_depth.clamp(min=0)
    count = (positive > 0).sum((2, 3), keepdim=True).clamp(min=1)
    mean = positive.sum((2, 3), keepdim=True) / count
    for _ in range(5):
        mean = torch.minimum(positive, 3 * mean).sum((2, 3), keepdim=True) / count
    return torch.where(mean > 0, mean, TYPICAL)


class PoseAwareLocal(nn.Module):
    """Corrects triangulated inverse depth: log z = (1 - A) log z_tri + C, with smooth maps A and C.

    C is a correction plus shares of means of log z_tri over growing neighbourhoods, A is the sum of the shares. So the network may put the mean over a neighbourhood of
    its choice in place of a pixel that lies, or move it. Its last layer starts at zero, so the whole at triangulation, and the shares have a gradient from the first step.
    Depth that is known beforehand is moved the less the surer it is, as if the correction were a measurement to be fused with it.
    Lengths enter only as ratios to the image's usual inverse depth: scaling the baseline scales the result.
    """

    def __init__(self, parameters: int, extra: int, prior: bool = False) -> None:
        super().__init__()
        seen = _FEATURES + 2 + extra + _OF_PRIOR * prior
        self.generator = FilterGenerator(parameters, [seen, *BANKS])
        self.refiner = Hourglass(BANKS[-1] + seen + _LEVELS, _LEVELS + 1)
        nn.init.zeros_(self.refiner.last.weight)

    def forward(self, parameters: Tensor, seen: Tensor, image1: Tensor, image2: Tensor, flow: Tensor,
                derotated_flow: Tensor, triangulated: Tensor, epipolar: Tensor, parallax: Tensor, prior: Tensor | None = None) -> Tensor:
        """Inverse depth (B, 1, H, W) [1/baseline] from the global parameters, what the published local module sees, the pair, geometry(), and models.layers.Pairs.prior.

        The prior is of full size, as the result is; what comes with it is as `looked_at` gives it.
        """
        known = None if prior is None else _coarse(prior)
        begun = triangulated if known is None else torch.where(known.there, known.inverse_depth, triangulated)
        scale = usual(begun)
        unit = _NOMINAL_WIDTH / seen.shape[-1]
        log_ratio = _log_ratio(begun, scale).clamp(_LOWEST, _HIGHEST)
        shift = parallax * scale * unit             # [px] of a usual point: what an error of the flow is to be compared with
        epipolar = epipolar * unit
        grey1, grey2 = (grey - grey.mean((2, 3), keepdim=True) for grey in (image1.mean(1, keepdim=True), image2.mean(1, keepdim=True)))
        matched, inside = warp.warp_by_flow(grey2, flow.permute(0, 2, 3, 1))
        trust = (triangulated > 0) * inside[:, None] * shift.square() / ((1 + shift.square()) * (1 + epipolar.square()))
        if known is not None:
            of_pair = torch.where(known.there, _log_ratio(triangulated, scale).clamp(_LOWEST, _HIGHEST) - log_ratio, 0.0)
            seen = torch.cat([seen, known.there.to(seen), known.confidence, of_pair, trust], 1)
            trust = torch.where(known.there, known.confidence, trust)
        cells = pooled(torch.cat([log_ratio, log_ratio.square(), shift.log1p() - 2, epipolar.log1p(), 5 * (grey1 - matched).abs(), grey1,
                                   derotated_flow * (10 / seen.shape[-1]), seen, log_ratio * trust, trust], 1), _to_cells(seen))
        cells, trusted = cells[:, :-2], cells[:, -2:]
        means = _means(trusted)
        filtered = local_network(cells, self.generator(parameters))
        out = self.refiner(torch.cat([filtered, cells, means - cells[:, :1]], 1))
        shares = out[:, 1:]
        change = torch.cat([shares.sum(1, keepdim=True), out[:, :1] + (shares * means).sum(1, keepdim=True)], 1)
        if prior is None:
            return _corrected(scale, log_ratio, enlarged(change, _to_cells(seen), triangulated))
        return _at_full_size(scale, prior, triangulated, change)


class _Known(NamedTuple):
    """Depth known beforehand at the size of the description, (B, 1, h, w) each."""

    there: Tensor               # bool
    inverse_depth: Tensor       # [1/baseline]
    confidence: Tensor


def _coarse(prior: Tensor) -> _Known:
    """Means of what is known, where that is more than half of the pixels."""
    z, confidence = prior.split(1, 1)
    known = (z > 0).to(z)
    share, z, confidence = pooled(torch.cat([known, known * z, known * confidence], 1), _to_description(prior)).split(1, 1)
    there = share > 0.5
    return _Known(there, z / share.clamp(min=0.5), torch.where(there, confidence / share.clamp(min=0.5), 0.0))


def _at_full_size(scale: Tensor, prior: Tensor, triangulated: Tensor, change: Tensor) -> Tensor:
    """Inverse depth (B, 1, H, W) of a prior of that size, else of the triangulation, changed by A and C (B, 2, h, w); a surer prior is changed less."""
    z, confidence = prior.split(1, 1)
    known = z > 0
    log_ratio = _log_ratio(torch.where(known, z, enlarged(triangulated, _to_description(z), z)), scale)
    freely = torch.where(known, 1 / (1 + _SURER * confidence / (1.001 - confidence)), 1.0)
    return _corrected(scale, torch.where(known, log_ratio, log_ratio.clamp(_LOWEST, _HIGHEST)), freely * enlarged(change, _to_cells(triangulated) * _to_description(z), z))


def _corrected(scale: Tensor, log_ratio: Tensor, change: Tensor) -> Tensor:
    """Inverse depth (B, 1, H, W) of its log over a usual one, changed by A and C (B, 2, H, W)."""
    away, towards = change.split(1, 1)
    return scale * ((1 - away) * log_ratio + towards).clamp(-_REACH, _REACH).exp()


def _log_ratio(inverse_depth: Tensor, scale: Tensor) -> Tensor:
    """Log of inverse depth (B, 1, H, W), signed, over a usual one (B, 1, 1, 1)."""
    return (inverse_depth / scale).clamp(min=1e-6).log()


def _means(trusted: Tensor) -> Tensor:
    """Means (B, L, h, w) over 1, 2, 4, ... cells, by trust, of what was multiplied with it: `trusted` (B, 2, h, w) is product and trust.

    Where nothing is trusted, the mean over the next larger neighbourhood.
    """
    pyramid = [trusted]
    for _ in range(_LEVELS - 1):
        pyramid.append(pooled(pyramid[-1], 2))
    coarser, means = None, []
    for parts in reversed(pyramid):
        total, weight = parts.split(1, 1)
        if coarser is not None:
            total, weight = total + 0.01 * resize(coarser, total), weight + 0.01
        coarser = total / (weight + 1e-6)
        means.append(resize(coarser, trusted))
    return torch.cat(means[::-1], 1)


class Hourglass(nn.Module):
    """Encoder and decoder of (B, C, H, W) with skip connections by sums: every output pixel has seen most of the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = conv_leaky(inputs, _CHANNELS[0])
        pairs = list(zip(_CHANNELS[:-1], _CHANNELS[1:]))
        self.down = nn.ModuleList(nn.Sequential(conv_leaky(a, b, stride=2), conv_leaky(b, b)) for a, b in pairs)
        self.narrow = nn.ModuleList(Conv(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(conv_leaky(a, a) for a, _ in pairs)
        self.last = Conv(_CHANNELS[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Output channels at the size of x."""
        x = self.first(x)
        passed = []
        for down in self.down:
            passed.append(x)
            x = down(x)
        for narrow, up, skip in zip(reversed(self.narrow), reversed(self.up), reversed(passed)):
            x = up(leaky(skip + resize(narrow(x), skip)))
        return self.last(x)
