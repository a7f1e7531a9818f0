"""Untrained Global-Local checkpoints for the tests: the pose-aware one starts at triangulation, so its depth means something before any training."""

from __future__ import annotations

from pathlib import Path

import torch

from depth_ros.models import checkpoint, registry

FILES = {'published': 'global_local.safetensors', 'pose_aware': 'global_local_pose_aware.safetensors'}


def network(variant: str, seed: int = 0, **config: bool) -> torch.nn.Module:
    """A network with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build('global_local', {'pose_aware': variant == 'pose_aware', **config}).eval()


def blob(variant: str, seed: int = 0, number: int = 1, **config: bool) -> bytes:
    """A network as it travels in a message."""
    return checkpoint.to_bytes('global_local', network(variant, seed, **config), {'number': number})


def write(folder: Path) -> Path:
    """Both variants under the names of the shipped files; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant, name in FILES.items():
        checkpoint.save(folder / name, 'global_local', network(variant), {'number': 0})
    return folder
