"""Textured image pairs of known flow, and files of weights as others publish them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.models import pwc_weights
from depth_ros.models.pwc_net import PwcNet


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random image (1, 3, H, W) in [0, 1] with coarse and fine structure."""
    g = torch.Generator().manual_seed(seed)
    parts = [F.interpolate(torch.rand(1, 3, height // s, width // s, generator=g), (height, width), mode='bicubic', align_corners=False) for s in (4, 8, 16)]
    return (sum(parts) / len(parts)).clamp(0, 1)


def shifted_pairs(height: int, width: int, shifts: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images 1 and 2 (B, 3, H, W) and the flow (B, 2, H, W) [px] from 1 to 2; each shift is (u, v) of up to 16 px."""
    first, second = [], []
    for seed, (u, v) in enumerate(shifts):
        image = texture(height + 32, width + 32, seed)
        first.append(image[..., 16:16 + height, 16:16 + width])
        second.append(image[..., 16 - v:16 - v + height, 16 - u:16 - u + width])
    flow = torch.tensor(shifts, dtype=torch.float32)[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat(first), torch.cat(second), flow


def author_file(path: Path, model: PwcNet, wrapped: bool = True) -> Path:
    """The network as the authors store theirs: their names, BGR, a layer too many, within a dictionary if `wrapped`."""
    tensors = published(model, pwc_weights.author_names())
    tensors |= {'deconv2.weight': torch.zeros(2, 2, 4, 4), 'deconv2.bias': torch.zeros(2)}
    torch.save({'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in tensors.items()}} if wrapped else tensors, path)
    return path


def published(model: PwcNet, names: dict[str, str]) -> dict[str, Tensor]:
    """Its tensors under published names, for images as BGR."""
    tensors = {}
    for key, value in model.state_dict().items():
        layer, kind = key.rsplit('.', 1)
        tensors[f'{names[layer]}.{kind}'] = value.flip(1) if key == 'pyramid.0.0.0.weight' else value.clone()
    return tensors
