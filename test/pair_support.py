"""Pairs that are exact by construction, for tests of what learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning import scenes
from depth_ros.learning.pairs import PairBatch


@contextmanager
def few_surfaces() -> Iterator[pytest.MonkeyPatch]:
    """Scenes are made of few surfaces inside, for painting many takes longer than rendering a few small images; what else is patched with what it gives ends too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, '_PALETTE', 4)
        scenes._palette.cache_clear()
        yield patch
    scenes._palette.cache_clear()


def wavy_pairs(count: int, height: int = 24, width: int = 32, seed: int = 0) -> PairBatch:
    """Pairs of a wavy surface with their exact flow, every camera and motion another; a corner has no known depth."""
    random = torch.Generator().manual_seed(seed)
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing='ij')
    phase, pitch = 6 * torch.rand(2, count, 1, 1, generator=random)
    z = 0.3 + 0.1 * torch.sin(0.12 * u + phase) * torch.cos(0.1 * v + pitch)
    K = torch.eye(3).repeat(count, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = width * (0.8 + 0.4 * torch.rand(count, generator=random))
    K[:, 0, 2], K[:, 1, 2] = width * (0.4 + 0.2 * torch.rand(count, generator=random)), height * (0.4 + 0.2 * torch.rand(count, generator=random))
    xi = torch.cat([torch.randn(count, 3, generator=random), 0.05 * torch.randn(count, 3, generator=random)], 1)
    T = se3.exp(xi)
    T[:, :3, 3] /= T[:, :3, 3].norm(dim=1, keepdim=True)
    flow, seen = induced_flow(1 / z, K, T)
    flow, valid = flow.movedim(-1, 1), seen[:, None].clone()
    valid[:, :, :3, :3] = False
    images = torch.rand(2, count, 3, height, width, generator=random)
    return PairBatch(*images, flow, torch.where(valid, z[:, None], 0.0), valid, K, T, torch.where(valid, flow, 0.0), valid)


def parts(pairs: PairBatch) -> dict[str, torch.Tensor]:
    """What a batch has, by name."""
    return {name: value for name, value in vars(pairs).items() if value is not None}


def identical(a: PairBatch, b: PairBatch) -> bool:
    """Whether two batches have the same, to the bit."""
    return parts(a).keys() == parts(b).keys() and all(torch.equal(value, parts(b)[name]) for name, value in parts(a).items())


class MemoryStore:
    """A PairStore of pairs that are in memory already."""

    def __init__(self, pairs: PairBatch) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.pairs.image1.shape[-2:])

    def batch(self, indices) -> PairBatch:
        return self.pairs.pick(torch.as_tensor(np.asarray(indices)))
