"""The networks that an engine runs: loaded from checkpoints, exported, and renewed in flight by weights that somebody offers."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros.engines import lineage
from depth_ros.engines.inference import ExportedModel, InferenceConfig
from depth_ros.learning.scenes import SceneData
from depth_ros.models import checkpoint

log = logging.getLogger(__name__)

NAME = 'global_local'
SHIPPED = {'published': 'global_local.safetensors', 'pose_aware': 'global_local_pose_aware.safetensors'}
VARIANTS = tuple(SHIPPED)


class NetworkPair(NamedTuple):
    """One pair as networks look at it (models.layers.Pairs)."""

    image1: Tensor      # (1, 3, H, W) in [0, 1]
    image2: Tensor      # (1, 3, H, W)
    flow: Tensor        # (1, 2, H, W) [px]
    K: Tensor           # (1, 3, 3) [px]
    T_2_1: Tensor       # (1, 4, 4), translation of norm 1
    prior: Tensor | None = None     # (1, 2, H, W), inverse depth [1/baseline] and confidence


@dataclass(frozen=True)
class Offer:
    """What became of offered weights."""

    accepted: bool
    reason: str             # why they were refused, or which number they have


@dataclass(frozen=True)
class _Running:
    """One network at work."""

    exported: ExportedModel
    model: nn.Module
    record: dict[str, Any]


class _OfPair(nn.Module):
    """The network from a pair to both things that it has to say. What prepares the pair is part of the graph, which does it in about half of torch's time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def inputs(self, pair: NetworkPair) -> tuple[Tensor, ...]:
        """What the graph takes of a pair: a graph has no inputs that it does not use."""
        config = self.model.config
        return tuple(pair) if config.prior else tuple(pair[:5]) if config.pose_aware else tuple(pair[:3])

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse depth (1, 1, H, W) [1/baseline] and global parameters (1, 6)."""
        inputs = self.model.inputs(NetworkPair(*parts, *(None,) * (len(NetworkPair._fields) - len(parts))))
        return self.model(*inputs), self.model.global_parameters(*inputs[:3])


class Networks:
    """The chosen variant and, beside the pose-aware one, the published one to stand in for it. Safe to be offered weights while it runs."""

    def __init__(self, variant: str, weights: str, size: tuple[int, int], config: InferenceConfig) -> None:
        """`weights`: checkpoint of the variant, '' for the shipped one; size (height, width) [px]. Raises ValueError or OSError naming a file that cannot be used."""
        self._chosen, self._size, self._config = variant, size, config
        self._lock = threading.Lock()       # offers and rollbacks, one at a time; running needs none, for a swap is one assignment
        self._running = {variant: self._load(variant, Path(weights).expanduser() if weights else shipped(variant))}
        if variant == 'pose_aware' and shipped('published').exists():
            self._running['published'] = self._load('published', shipped('published'))
        self._origins = {name: lineage.origins(running.model, running.record) for name, running in self._running.items()}
        self._before: dict[str, _Running] = {}
        self._last: dict[str, tuple[Tensor, ...]] = {}      # inputs that offered weights are tried on

    @property
    def variants(self) -> tuple[str, ...]:
        """Those that can run."""
        return tuple(self._running)

    def record(self, variant: str) -> dict[str, Any]:
        """How the weights at work were trained."""
        return self._running[variant].record

    def focal(self, variant: str) -> float | None:
        """Focal length [image widths] of what the weights at work learned from, where their record tells it."""
        return trained_focal(self._running[variant].record)

    def takes_prior(self, variant: str) -> bool:
        """Whether a network begins with depth that is known beforehand."""
        return self._running[variant].model.config.prior

    def backend(self, variant: str) -> str:
        """What runs a network: onnxruntime | torch."""
        return self._running[variant].exported.backend

    def graph(self, variant: str) -> bytes:
        """A network as ONNX, whose inputs are the first ones of a pair; empty where torch runs it."""
        return self._running[variant].exported.graph

    def run(self, variant: str, pair: NetworkPair) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth (H, W) float32 [1/baseline] and global parameters (6,) of one pair."""
        running = self._running[variant]
        inputs = running.exported.module.inputs(pair)
        self._last[variant] = inputs
        z, parameters = running.exported(*inputs)
        return z[0, 0].numpy(), parameters[0].numpy()

    def offer(self, blob: bytes) -> Offer:
        """Put the weights of a checkpoint, as bytes, in the place of those at work, if they fit and give sense; never raises. Takes a moment: not for the live thread."""
        with self._lock:
            try:
                variant, new = self._candidate(blob)
                reason = str(new.record.get('number', 'weights without a number'))
            except Exception as error:      # whatever others send must not end who listens
                return Offer(False, str(error) or type(error).__name__)
            self._before[variant] = self._running[variant]
            self._running = {**self._running, variant: new}
        return Offer(True, reason)

    def rollback(self, variant: str = '') -> bool:
        """Bring back the weights before the last accepted offer, of the chosen variant if none is named; False if there are none."""
        variant = variant or self._chosen
        with self._lock:
            before = self._before.pop(variant, None)
            if before is not None:
                self._running = {**self._running, variant: before}
        return before is not None

    def _candidate(self, blob: bytes) -> tuple[str, _Running]:
        loaded = checkpoint.from_bytes(blob, NAME)
        variant = variant_of(loaded.model)
        if variant not in self._running:
            raise ValueError(f'expected weights of {" or ".join(self._running)}, got {variant}')
        running = self._running[variant]
        if loaded.model.config != running.model.config:
            raise ValueError(f'expected a network of {running.model.config}, got {loaded.model.config}')
        refusal = lineage.refusal(loaded.record, running.record, self._origins[variant])
        if refusal:
            raise ValueError(refusal)
        exported = running.exported.renewed(_OfPair(loaded.model))
        for values in exported(*self._last.get(variant, exported.example)):
            if not torch.isfinite(values).all():
                raise ValueError('on the last image pair the network gives values that are not finite')
        return variant, _Running(exported, loaded.model, loaded.record)

    def _load(self, variant: str, path: Path) -> _Running:
        loaded = checkpoint.load(path, NAME)
        found = variant_of(loaded.model)
        if found != variant:
            raise ValueError(f'{path}: expected weights of the {variant} variant, got {found}')
        try:
            whole = _OfPair(loaded.model)
            exported = ExportedModel(whole, whole.inputs(example(self._size)), self._config)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        log.info('%s: %s on %s, which deviates from torch by %.1e at most', path.name, variant, exported.backend, exported.difference)
        return _Running(exported, loaded.model, loaded.record)


def trained_focal(record: dict[str, Any]) -> float | None:
    """Focal length [image widths] of the pairs of a training record; None where it names no recipe, or one for a recorded sequence, whose calibration it does not hold."""
    recipe = record.get('recipe')
    data = recipe.get('data') if isinstance(recipe, dict) else None
    if not isinstance(data, dict) or 'sequence' in data:
        return None
    focal, magnify = data.get('focal', SceneData.focal), recipe.get('magnify', 1.0)
    return focal * magnify if isinstance(focal, (int, float)) and isinstance(magnify, (int, float)) else None


def shipped(variant: str) -> Path:
    """The checkpoint of a variant that comes with the package."""
    return checkpoint.SHIPPED / SHIPPED[variant]


def variant_of(model: nn.Module) -> str:
    """Which variant a model is."""
    return 'pose_aware' if model.config.pose_aware else 'published'


def example(size: tuple[int, int]) -> NetworkPair:
    """A pair of the size (height, width) [px]: noise that moves sideways, nearer at the bottom; of its left half depth is known beforehand."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 3, height, width, generator=generator)
    flow = torch.zeros(1, 2, height, width)
    flow[0, 0] = -torch.linspace(0.02, 0.1, height)[:, None] * width
    K = torch.tensor([[[width, 0.0, (width - 1) / 2], [0.0, width, (height - 1) / 2], [0.0, 0.0, 1.0]]])
    T_2_1 = torch.eye(4)[None].clone()
    T_2_1[0, 0, 3] = -1.0
    prior = torch.stack([torch.full((height, width), 0.05), torch.rand(height, width, generator=generator)])[None] * (torch.arange(width) < width // 2)
    return NetworkPair(images[0], images[1], flow, K, T_2_1, prior)
