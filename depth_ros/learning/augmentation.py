"""Augmentation of image pairs that keeps flow, depth, intrinsics and motion true to each other.

Global-Local is trained with pairs mirrored on the x axis and turned by 180 degrees, each with probability one half. Mirroring reflects the scene, too: a point
(x, y, z) becomes (-x, y, z), and so M T M with M = diag(-1, 1, 1, 1) is the motion between the mirrored cameras. Turning does so with y as well.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import sample
from depth_ros.learning.pairs import PairBatch

PROBABILITY = 0.5
_ROUNDING = 1e-3     # [px]
_ALL = 1 - 1e-4      # a mask interpolated to more than this was true all around


def draw_flips(generator: torch.Generator) -> tuple[bool, bool]:
    """Whether to reverse (columns, rows) of a pair, so that it is mirrored on the x axis and turned by 180 degrees with probability one half each."""
    mirrored, turned = (torch.rand(2, generator=generator) < PROBABILITY).tolist()
    return mirrored != turned, turned


def draw_zoom(magnify: float, spread: float, generator: torch.Generator) -> Tensor:
    """Factors (2,) on a pair's focal lengths, each drawn evenly within +-spread of the common factor."""
    return magnify * (1 + spread * (2 * torch.rand(2, generator=generator) - 1))


def draw_offset(spread: float, factors: Tensor, generator: torch.Generator) -> Tensor:
    """Place (2,) of a magnified window's centre, in widths and heights from the image's: principal points move evenly within +-spread of the middle's, if there is image."""
    room = torch.minimum(0.5 * spread / factors, 0.5 - 0.5 / factors)
    return room * (2 * torch.rand(2, generator=generator) - 1)


def flip(batch: PairBatch, x: Tensor, y: Tensor) -> PairBatch:
    """The pairs with columns reversed where x (B,) and rows where y (B,) bool hold, and all that belongs to it."""
    height, width = batch.image1.shape[-2:]
    sign = torch.stack([1.0 - 2.0 * x, 1.0 - 2.0 * y], 1).to(batch.K.dtype)          # (B, 2) of x and y
    reflection = torch.cat([sign, torch.ones_like(sign)], 1)                         # (B, 4): the diagonal of M
    last = sign.new_tensor([width - 1.0, height - 1.0])
    K = batch.K.clone()
    K[:, :2, 2] = torch.where(sign < 0, last - K[:, :2, 2], K[:, :2, 2])
    changed = {'K': K, 'T_2_1': reflection[:, :, None] * batch.T_2_1 * reflection[:, None, :]}
    for name, values in _images(batch).items():
        turned = flip_map(values, x, y)
        changed[name] = turned * sign[:, :, None, None] if _is_flow(name) else turned
    return dataclasses.replace(batch, **changed)


def flip_map(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images (B, C, H, W) of anything without a direction, with columns reversed where x (B,) and rows where y (B,) bool hold."""
    values = torch.where(x[:, None, None, None], values.flip(-1), values)
    return torch.where(y[:, None, None, None], values.flip(-2), values)


def zoom(batch: PairBatch, factors: Tensor, offsets: Tensor | None = None) -> PairBatch:
    """The pairs as cameras with focal lengths factors (B, 2) >= 1 times theirs in x and y would see them: a window, magnified.

    Its centre is the image's, or offsets (B, 2) widths and heights from there. Everything is interpolated linearly; a pixel is valid where all that it is made of was.
    """
    height, width = batch.image1.shape[-2:]
    centre = factors.new_tensor([(width - 1) / 2, (height - 1) / 2])
    offset = torch.zeros_like(factors) if offsets is None else offsets * 2 * centre
    if not (factors >= 1).all():
        raise ValueError(f'zoom: expected factors of at least 1, got {factors.min().item():.3f}: there is nothing outside the image')
    if not (offset.abs() <= centre * (1 - 1 / factors) + _ROUNDING).all():
        raise ValueError('zoom: expected windows inside the image, got offsets that reach beyond it')
    pixels = centre + offset[:, None, None, :] + (pinhole.pixel_grid(height, width, like=batch.image1) - centre) / factors[:, None, None, :]
    K = batch.K.clone()
    K[:, 0] *= factors[:, :1]
    K[:, 1] *= factors[:, 1:]
    K[:, :2, 2] += centre * (1 - factors) - factors * offset
    changed = {'K': K}
    for name, values in _images(batch).items():
        seen, _ = sample(values.to(batch.image1.dtype), pixels)
        changed[name] = seen > _ALL if values.dtype is torch.bool else seen * factors[:, :, None, None] if _is_flow(name) else seen
    return dataclasses.replace(batch, **changed)


def draw_motion_error(rotation: float, direction: float, generator: torch.Generator) -> Tensor:
    """(6,) an error of a pair's translation [baseline] and rotation [rad], normal with these deviations an axis."""
    return torch.randn(6, generator=generator) * torch.tensor([direction] * 3 + [rotation] * 3)


def disturb_motion(batch: PairBatch, errors: Tensor) -> PairBatch:
    """The pairs with motions as a tracker that errs by errors (B, 6) of translation [baseline] and rotation [rad] would give; the baseline stays 1."""
    T = se3.exp(torch.cat([torch.zeros_like(errors[:, :3]), errors[:, 3:]], 1)) @ batch.T_2_1
    T[:, :3, 3] = F.normalize(batch.T_2_1[:, :3, 3] + errors[:, :3], dim=1)
    return dataclasses.replace(batch, T_2_1=T)


def reduce(batch: PairBatch, factor: int) -> PairBatch:
    """The pairs at 1 / factor of their size, which has to be a multiple of it: every value is a mean, and valid where all it is made of was."""
    height, width = batch.image1.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f'reduce: expected a divisor of {width} and {height}, got {factor}')
    changed = {'K': resize_intrinsics(batch.K, 1 / factor, 1 / factor)}
    for name, values in _images(batch).items():
        mean = F.avg_pool2d(values.to(batch.image1.dtype), factor)
        changed[name] = mean > _ALL if values.dtype is torch.bool else mean / factor if _is_flow(name) else mean
    return dataclasses.replace(batch, **changed)


def _images(batch: PairBatch) -> dict[str, Tensor]:
    """The fields of the batch that are images (B, C, H, W)."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {name: values for name, values in fields.items() if isinstance(values, Tensor) and values.ndim == 4}


def _is_flow(name: str) -> bool:
    return name.endswith('flow')
