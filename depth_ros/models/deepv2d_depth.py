"""The depth module of DeepV2D: features, a volume over planes of depth, and 3D hourglasses that choose between them.

Source: Teed & Deng, "DeepV2D", section 3.1 and appendix F. Beside the paper's form, where features of the keyframe and of a view stand side by side in the
volume, there is a lighter one, `matching: correlation`: group-wise correlation (Guo et al., CVPR 2019) and, with `zncc`, the zero-mean normalised
cross-correlation of grey windows, which matches before anything is learned. With `depth_flow` (not in the paper) it also sees how near each plane comes to optical flow that
was measured, which errs elsewhere than features do, and what it chose moves between planes to where that flow says. With `correction` (not in the paper either) a 2D network, which
sees farther than the 3D one can afford to, then corrects it by what the image shows and the choice looked like. Maps have a quarter of the images' size, and so has K here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.geometry import pinhole
from depth_ros.geometry.plane_sweep import box_mean
from depth_ros.geometry.precision import full_precision
from depth_ros.geometry.warp import sample
from depth_ros.models.deepv2d_blocks import Hourglass, NormConv, Residual, Trunk, grey_maps, normalisation, plain_conv, standardised, unit
from depth_ros.models.deepv2d_motion import INCONSISTENT, MeasuredFlow
from depth_ros.models.layers import resize

if TYPE_CHECKING:
    from depth_ros.models.deepv2d import DeepV2DNetworkConfig

SPACINGS = 'linear', 'inverse'
MATCHING = 'concatenation', 'correlation'
FORMS = 'mean', 'concatenation'
UPSAMPLING = 'logits', 'convex'
WINDOW = 5                  # [px of the maps] of the grey windows
_NOISE = 0.02               # grey values: windows with less contrast match nothing
_NEAR_FLOW = 0.25, 1.0      # [px of the maps] between a plane's pixel and the measured one, at which the two channels of the volume have halved
_HALF_TRUSTED = 0.25        # [px of the maps] of inconsistency that halves what measured flow counts
_FLOW_DEVIATION = 0.2       # [px of the maps] of measured flow
_LEAST_DEVIATION = 0.4      # planes, of the expected inverse depth, however sure the network is
_REFINEMENTS = 2            # Gauss-Newton steps
_SURE = 1.5                 # planes each side of the expected one whose probability is the confidence
_PRIOR = 8.0                # how much the logits follow the mean of all costs, correlations and nearness to flow, before anything is learned
_BINS = 12                  # of the planes' probabilities that the correction sees
_CONTEXT = 16               # channels of the hidden layer that the convex weights come from, for each channel of the matching features: see _Convex
_UP = 4                     # from the maps to the images


@dataclass(frozen=True)
class DepthEstimate:
    """Depth of the keyframe at the images' size."""

    depths: list[Tensor]    # (B, H, W) [m] of each 3D hourglass, the last one the best
    confidence: Tensor      # (B, H, W) in [0, 1]: probability near the expected plane


def planes_between(near: float, far: float, count: int, spacing: str = 'linear', like: Tensor | None = None) -> Tensor:
    """Depths (count,) [m] from near to far, increasing; equally spaced in depth (linear) or in inverse depth (inverse)."""
    if spacing not in SPACINGS:
        raise ValueError(f'expected one of the spacings {", ".join(SPACINGS)}, got {spacing!r}')
    if not 0 < near < far or count < 2:
        raise ValueError(f'expected 0 < near < far and at least 2 planes, got {near} m, {far} m and {count}')
    options = {} if like is None else {'dtype': like.dtype, 'device': like.device}
    if spacing == 'linear':
        return torch.linspace(near, far, count, **options)
    return 1.0 / torch.linspace(1.0 / near, 1.0 / far, count, **options)


class DepthModule(nn.Module):
    """Depth of a keyframe from its features, those of other views, and how these views stand to it."""

    def __init__(self, config: DeepV2DNetworkConfig) -> None:
        super().__init__()
        self.config = config
        wide, volume = 2 * config.depth_width, config.volume_width
        self.trunk = Trunk(config.depth_width, config.depth_blocks, config.depth_norm)
        self.hourglasses = nn.Sequential(*(Hourglass(config.depth_levels, wide, config.depth_growth, config.depth_norm, 2) for _ in range(config.depth_hourglasses)))
        self.embed = plain_conv(wide, config.depth_features + config.context, 1)
        self.stem = _stem(config)
        self.matchers = nn.ModuleList(Hourglass(config.volume_levels, volume, config.volume_growth, config.volume_norm, 3) for _ in range(config.volume_hourglasses))
        self.heads = nn.ModuleList(_Head(volume, config.volume_norm) for _ in range(config.volume_hourglasses))
        self.prior = _Prior(_costs(config)) if config.matching == 'correlation' else None
        self.excite = nn.ModuleList(nn.Conv2d(config.context, volume, 1) for _ in range(config.volume_hourglasses)) if config.context else None
        self.correction = _Correction(config) if config.correction else None
        self.convex = _Convex(config.depth_features + config.context) if config.upsampling == 'convex' else None

    @property
    def sees_flow(self) -> bool:
        """Whether it is made to see measured flow."""
        return self.config.depth_flow

    def features(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w), h = ceil(H / 4), of images (B, 3, H, W) in [0, 1]: those that are matched, those of the context, and grey if `zncc` asks for it."""
        maps = self.embed(self.hourglasses(self.trunk(images)))
        if self.config.matching == 'correlation':
            matched = self.config.depth_features
            maps = torch.cat([unit(standardised(maps[:, :matched])), maps[:, matched:]], 1)
        if not self.config.zncc:
            return maps
        return torch.cat([maps, grey_maps(images, maps.shape[-2:])], 1)

    def forward(self, features: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor, size: tuple[int, int], seen: Tensor | None = None,
                measured: MeasuredFlow | None = None) -> DepthEstimate:
        """Depth at `size` (H, W) of the keyframe, from features (B, 1 + V, C, h, w), the keyframe's first, K (B, 3, 3) [px of the maps], T_view_key (B, V, 4, 4).

        planes (B, D) [m], increasing and evenly spaced as configured. seen (B, V) bool: views that count, all by default; every sample needs one. Any V will do, unless the form is concatenation.
        measured: flow from the keyframe to each view (E = V). A module that is made to see it raises ValueError without, any other looks at none.
        """
        self._check(features, T_view_key, planes, measured)
        key, context = features[:, 0], None
        matched = self.config.depth_features
        if self.config.context:
            context = key[:, matched:matched + self.config.context]
        volume, x = self._volume(features, K, T_view_key, planes, seen, measured)
        refine = partial(refined_by_flow, K=K, T_view_key=T_view_key, measured=measured, seen=seen) if self.sees_flow else None
        depths, confidence = [], key[:, 0]
        for i, (matcher, head) in enumerate(zip(self.matchers, self.heads)):
            if self.excite is not None:
                x = x * (2 * torch.sigmoid(self.excite[i](context)))[:, :, None]
            x = matcher(x)
            logits = head(x) if self.prior is None else head(x) + self.prior(volume)
            depth, confidence = self._choose(logits, planes, key, size, refine)
            depths.append(depth)
        return DepthEstimate(depths, confidence)

    def _check(self, features: Tensor, T_view_key: Tensor, planes: Tensor, measured: MeasuredFlow | None) -> None:
        batch, frames = features.shape[:2]
        if frames < 2 or T_view_key.shape != (batch, frames - 1, 4, 4) or planes.dim() != 2 or len(planes) != batch:
            raise ValueError(f'expected features (B, 1 + V, C, h, w), T_view_key (B, V, 4, 4) and planes (B, D) with V >= 1, '
                             f'got {tuple(features.shape)}, {tuple(T_view_key.shape)} and {tuple(planes.shape)}')
        if self.config.form == 'concatenation' and frames != 1 + self.config.views:
            raise ValueError(f'the form concatenation was made for {self.config.views} views, got {frames - 1}')
        if self.sees_flow and (measured is None or measured.error.shape != (batch, frames - 1, *features.shape[-2:])):
            raise ValueError(f'expected measured flow {(batch, frames - 1, *features.shape[-2:])}, which this depth module sees, got '
                             f'{None if measured is None else tuple(measured.error.shape)}')

    def _volume(self, features: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor, seen: Tensor | None, measured: MeasuredFlow | None) -> tuple[Tensor | None, Tensor]:
        """The mean of all views' costs (B, c, D, h, w), None where no prior looks at it, and what the 3D network starts with (B, volume_width, D, h, w)."""
        key, views = features[:, 0], features[:, 1:].unbind(1)
        if self.config.form == 'concatenation':
            swept_views = (swept(view, K, T, planes) for view, T in zip(views, T_view_key.unbind(1)))
            volume = torch.cat([_repeated(key, planes), *(warped * inside[:, None] for warped, inside in swept_views)], 1)
            return None, self.stem(volume)
        weight = torch.ones_like(T_view_key[..., 0, 0]) if seen is None else seen.to(features)
        share = weight / weight.sum(1, keepdim=True).clamp(min=1.0)
        mean, x = None if self.prior is None else 0.0, 0.0
        for i, (view, T, part) in enumerate(zip(views, T_view_key.unbind(1), share.unbind(1))):     # one after the other: memory that is written once costs most of the time
            flow = measured.pick(i) if self.sees_flow else None
            cost, part = self._cost(key, view, K, T, planes, flow), part[:, None, None, None, None]
            x = x + self.stem(cost) * part
            mean = None if mean is None else mean + cost * part
        return mean, x

    def _cost(self, key: Tensor, view: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor, flow: MeasuredFlow | None) -> Tensor:
        """One view's volume (B, c, D, h, w)."""
        if self.config.matching == 'correlation':
            return _correlation(self.config, key, view, K, T_view_key, planes, flow)
        warped, inside = swept(view, K, T_view_key, planes)
        return torch.cat([_repeated(key, planes), warped * inside[:, None]], 1)

    def _choose(self, logits: Tensor, planes: Tensor, key: Tensor, size: tuple[int, int], refine: Callable[[Tensor, Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        """Expected depth and its confidence (B, H, W) of logits (B, D, h, w). With inverse spacing it is the inverse of the expected inverse depth.

        `refine`: what an expected inverse depth and its variance (B, h, w) are refined by.
        """
        inverse = self.config.spacing == 'inverse'
        if self.convex is None:
            logits = F.interpolate(logits, size, mode='bilinear', align_corners=False)
        value = (1.0 / planes if inverse else planes)[..., None, None]
        probability = torch.softmax(logits, 1)
        index = torch.arange(planes.shape[1], dtype=logits.dtype, device=logits.device)[:, None, None]
        expected = (probability * value).sum(1)
        step = (value[:, -1] - value[:, 0]) / (planes.shape[1] - 1)
        if refine is not None or self.correction is not None:
            variance = (probability * (value - expected[:, None]).square()).sum(1) + (_LEAST_DEVIATION * step).square()
        if refine is not None:
            expected = refine(expected, variance).clamp(value[:, -1], value[:, 0])
        if self.correction is not None:
            at, deviation = (expected - value[:, 0]) / (value[:, -1] - value[:, 0]), variance.sqrt() / step.abs()
            expected = (expected * self.correction(key, probability, at, deviation).exp()).clamp(value[:, -1], value[:, 0])
        place = ((expected - value[:, 0]) / step)[:, None]
        confidence = torch.where((index - place).abs() <= _SURE, probability, 0.0).sum(1)
        if self.convex is not None:
            expected = resized(self.convex(expected, key), size)
            confidence = resized(confidence, size)
        return (1.0 / expected if inverse else expected), confidence


def _costs(config: DeepV2DNetworkConfig) -> int:
    """Channels of one view's volume in `matching: correlation`: groups, the grey windows' correlation, nearness to measured flow, and where it is inside."""
    return config.groups + config.zncc + len(_NEAR_FLOW) * config.depth_flow + 1


def _stem(config: DeepV2DNetworkConfig) -> nn.Module:
    """From one view's volume (or all views', in the form concatenation) to the 3D network's width."""
    width, norm = config.volume_width, config.volume_norm
    if config.form == 'concatenation':
        return nn.Sequential(plain_conv(config.depth_features * (1 + config.views), width, 3, dimensions=3), Residual(width, width, 1, norm, 3))
    if config.matching == 'concatenation':
        return nn.Sequential(plain_conv(2 * config.depth_features, width, 1, dimensions=3), Residual(width, width, 1, norm, 3))
    return nn.Sequential(plain_conv(_costs(config), width, 1, dimensions=3), nn.ReLU())


class _Head(nn.Sequential):
    """Norm, ReLU, two convolutions and one to logits: (B, D, h, w) of (B, width, D, h, w)."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__(normalisation(norm, width, 3), nn.ReLU(), plain_conv(width, width, 3, dimensions=3), nn.ReLU(),
                         plain_conv(width, width, 3, dimensions=3), nn.ReLU(), plain_conv(width, 1, 1, dimensions=3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x)[:, 0]


class _Prior(nn.Module):
    """Logits (B, D, h, w) as a weighted sum of the views' mean costs (B, c, D, h, w): the network need only learn what to correct."""

    def __init__(self, costs: int) -> None:
        super().__init__()
        weight = torch.full((costs,), _PRIOR / costs)
        weight[-1] = 0.0            # being inside says nothing about the plane
        self.weight = nn.Parameter(weight)

    def forward(self, mean: Tensor) -> Tensor:
        """Logits."""
        return (mean * self.weight[:, None, None, None]).sum(1)


class _Correction(nn.Module):
    """A 2D hourglass that says by which factor, as its log, inverse depth is to be corrected; by none at first."""

    def __init__(self, config: DeepV2DNetworkConfig) -> None:
        super().__init__()
        self.channels, width = config.depth_features + config.context, config.correction
        self.stem = plain_conv(self.channels + _BINS + 2, width, 1)
        self.hourglass = Hourglass(config.correction_levels, width, config.correction_growth, config.depth_norm, 2)
        self.head = NormConv(width, 1, 1, config.depth_norm, 2)
        nn.init.zeros_(self.head[-1].weight)

    def forward(self, features: Tensor, probability: Tensor, at: Tensor, deviation: Tensor) -> Tensor:
        """(B, h, w) of the keyframe's features (B, C, h, w), the planes' probabilities (B, D, h, w), and the choice (B, h, w): from 0 to 1 among the planes, and its deviation in planes."""
        planes = probability.shape[1]
        which = torch.eye(planes, dtype=probability.dtype, device=probability.device)
        bins = F.adaptive_avg_pool1d(which, _BINS).mT * (planes / _BINS)      # (_BINS, D): each bin sums up its planes, of which neighbours share some unless they divide evenly
        told = torch.cat([features[:, :self.channels], F.conv2d(probability, bins[..., None, None]), 2.0 * at[:, None] - 1.0, deviation.log()[:, None]], 1)
        return self.head(self.hourglass(self.stem(told)))[:, 0]


class _Convex(nn.Module):
    """A map to four times its size: each new pixel is a mean of 3 x 3 old ones with weights that the image's features give (RAFT, Teed & Deng, ECCV 2020, section 3.3)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(plain_conv(features, 2 * _CONTEXT, 3), nn.ReLU(), plain_conv(2 * _CONTEXT, 9 * _UP ** 2, 1))
        self.channels = features
        with torch.no_grad():
            self.weights[-1].weight.mul_(0.1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, 4 h, 4 w) of x (B, h, w)."""
        batch, height, width = x.shape
        weights = torch.softmax(self.weights(features[:, :self.channels]).view(batch, 9, _UP ** 2, height, width), 1)
        around = F.unfold(F.pad(x[:, None], (1, 1, 1, 1), mode='replicate'), 3).view(batch, 9, 1, height, width)
        return F.pixel_shuffle((weights * around).sum(1), _UP)[:, 0]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (B, h, w) at another size (H, W), bilinearly."""
    return resize(x[:, None], x.new_empty(1, 1, *size))[:, 0]


def swept(features: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, C, h, w) of a view as the keyframe would see them at every plane (B, D) [m]: (B, C, D, h, w), and where they are inside (B, D, h, w).

    K (B, 3, 3) [px of the maps], T_view_key (B, 4, 4). Equation 3 of the paper.
    """
    return _sampled(features, *swept_pixels(*features.shape[-2:], K, T_view_key, planes))


@full_precision
def swept_pixels(height: int, width: int, K: Tensor, T_view_key: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Where a view sees the keyframe's pixels at every plane: (B, D, h, w, 2) [px of the maps], and whether that is in front of it (B, D, h, w); arguments as for `swept`."""
    infinity = pinhole.apply_to_grid(K @ T_view_key[:, :3, :3] @ pinhole.inverse(K), height, width)[:, None]      # (B, 1, h, w, 3)
    epipole = (K @ T_view_key[:, :3, 3:])[:, None, None, None, :, 0]
    # Divided by depth, so that far planes keep their digits.
    return pinhole.dehomogenise(infinity + epipole / planes[:, :, None, None, None])


@full_precision
def _sampled(features: Tensor, pixels: Tensor, in_front: Tensor) -> tuple[Tensor, Tensor]:
    values, inside = sample(features, pixels.flatten(1, 2))
    return values.unflatten(2, (-1, features.shape[-2])), inside.view_as(in_front) & in_front


def flow_nearness(pixels: Tensor, flow: MeasuredFlow) -> Tensor:
    """How near each plane's pixels (B, D, h, w, 2) come to measured flow, pixels (B, h, w, 2) and error (B, h, w): (B, 2, D, h, w) in [0, 1], as a Geman-McClure
    estimator sees it, at a fine and at a coarse scale, less where the flow is inconsistent.
    """
    (u, v), (told_u, told_v) = pixels.unbind(-1), flow.pixels[:, None].unbind(-1)
    missed, trust = (u - told_u).square() + (v - told_v).square(), _trust(flow.error)[:, None]
    return torch.stack([trust * scale ** 2 / (scale ** 2 + missed) for scale in _NEAR_FLOW], 1)


def _trust(error: Tensor) -> Tensor:
    """How much measured flow of an inconsistency [px of the maps] counts: 1 of none, 0 of as much as can be."""
    return torch.where(error < INCONSISTENT, _HALF_TRUSTED ** 2 / (_HALF_TRUSTED ** 2 + error.square()), 0.0)


def _repeated(key: Tensor, planes: Tensor) -> Tensor:
    """Features (B, C, h, w) of the keyframe at every plane: (B, C, D, h, w)."""
    return key[:, :, None].expand(-1, -1, planes.shape[1], -1, -1)


@full_precision
def refined_by_flow(inverse: Tensor, variance: Tensor, K: Tensor, T_view_key: Tensor, measured: MeasuredFlow, seen: Tensor | None = None) -> Tensor:
    """Inverse depth (B, h, w) [1/m] of the keyframe moved to where measured flow to all views puts it, which it gives way to as far as its variance [1/m^2] lets it.

    The sum of squares of what it misses of the flow, each view's by its Geman-McClure weight, and of how far it moves is made small by Gauss-Newton steps, which are one division a pixel.
    K (B, 3, 3) [px of the maps], T_view_key (B, V, 4, 4), seen (B, V) bool: views that count, all by default.
    """
    height, width = inverse.shape[-2:]
    infinity = pinhole.planes_of_grid(K[:, None] @ T_view_key[..., :3, :3] @ pinhole.inverse(K)[:, None], height, width)     # 3 x (B, V, h, w)
    epipole = (K[:, None] @ T_view_key[..., :3, 3:])[..., None].unbind(-3)
    told, trust = measured.pixels.unbind(-1), _trust(measured.error)
    trust = trust if seen is None else trust * seen[:, :, None, None]
    stiffness, start = _FLOW_DEVIATION ** 2 / variance, inverse
    for _ in range(_REFINEMENTS):
        x, y, z = (a + b * inverse[:, None] for a, b in zip(infinity, epipole))
        in_front = z > pinhole.MIN_DEPTH
        z = torch.where(in_front, z, 1.0)       # that of the view over that of the keyframe
        u, v = x / z, y / z
        slopes = (epipole[0] - u * epipole[2]) / z, (epipole[1] - v * epipole[2]) / z
        missed = told[0] - u, told[1] - v
        weight = trust * in_front * (_FLOW_DEVIATION ** 2 / (_FLOW_DEVIATION ** 2 + missed[0].square() + missed[1].square())).square()
        pull, hold = ((weight * (slopes[0] * a + slopes[1] * b)).sum(1) for a, b in (missed, slopes))
        inverse = inverse + (pull + stiffness * (start - inverse)) / (hold + stiffness)
    return inverse


def _correlation(config: DeepV2DNetworkConfig, key: Tensor, view: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor, flow: MeasuredFlow | None = None) -> Tensor:
    """Costs (B, c, D, h, w) of one view: correlation of each group of features, of the grey windows, nearness to measured flow, and 1 where it is inside; 0 where it is not."""
    matched = config.depth_features
    which = torch.cat([view[:, :matched], view[:, -1:]], 1) if config.zncc else view[:, :matched]
    pixels, in_front = swept_pixels(*view.shape[-2:], K, T_view_key, planes)
    warped, inside = _sampled(which, pixels, in_front)
    mask = inside[:, None].to(key)
    product = (warped[:, :matched] * key[:, :matched, None]).unflatten(1, (config.groups, -1)).sum(2) * config.groups
    parts = [product * mask]
    if config.zncc:
        parts.append(_zncc(key[:, -1:], warped[:, -1]) * mask)
    if flow is not None:
        parts.append(flow_nearness(pixels, flow) * mask)
    return torch.cat([*parts, mask], 1)


def _zncc(grey: Tensor, warped: Tensor) -> Tensor:
    """Correlation (B, 1, D, h, w) in [-1, 1] of the window around each pixel of grey (B, 1, h, w) with that of warped (B, D, h, w)."""
    own, own_scale = _window_statistics(grey)
    mean, scale = _window_statistics(warped)
    covariance = box_mean(grey * warped, WINDOW) - own * mean
    return (covariance * own_scale * scale)[:, None]


def _window_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = box_mean(x, WINDOW)
    return mean, ((box_mean(x * x, WINDOW) - mean * mean).clamp(min=0) + _NOISE ** 2).rsqrt()
