"""Which pixels of an image have their depth told to the network: a few hits, as a rangefinder would give, or all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DENSE = 0       # the count that means every valid pixel


def choose(valid: Tensor, count: int, generator: torch.Generator, reduced: int = 1) -> Tensor:
    """A mask (B, 1, H, W) of `count` pixels an image, drawn evenly from valid (B, 1, H, W) bool; all of an image's valid pixels if it has no more, or if DENSE.

    The generator is a CPU one, so that the choice is the same on every device. Where the image is `reduced` to that part of its size, the same draw chooses what
    covers the pixels of the full size, as far as it is valid.
    """
    if count < 0:
        raise ValueError(f'supervised pixels: expected 0 (dense) or more, got {count}')
    flat = valid.flatten(1)
    if count == DENSE or count >= flat.shape[1]:
        return valid
    images, _, height, width = valid.shape
    score = F.max_pool2d(torch.rand(images, 1, reduced * height, reduced * width, generator=generator), reduced).flatten(1).to(valid.device)
    chosen = torch.where(flat, score, -1.0).topk(count, dim=1).indices
    return (torch.zeros_like(flat).scatter(1, chosen, True) & flat).view_as(valid)
