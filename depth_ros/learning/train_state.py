"""What a training needs to go on bit for bit as if it had not been broken off: weights, optimiser, averaged weights, step and scores, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depth_ros import files
from depth_ros.learning.recipe import Recipe, configured

_FORMAT = 'depth_ros training state 1'
_PARTS = 'model', 'average', 'optimiser'


@dataclass
class Progress:
    """How far a training has come. Everything here is JSON."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)     # of each validation: step, reduce (see Recipe) and scores
    best: dict[str, float] | None = None                              # the one of the best checkpoint


def save(path: Path, recipe: Recipe, progress: Progress, model: nn.Module, average: nn.Module | None, optimiser: torch.optim.Optimizer) -> None:
    """Write the state whole or not at all."""
    tensors = {f'model/{name}': value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f'average/{name}': value for name, value in average.state_dict().items()}
    for index, values in optimiser.state_dict()['state'].items():
        tensors |= {f'optimiser/{index}/{name}': value for name, value in values.items()}
    metadata = {'format': _FORMAT, 'recipe': json.dumps(asdict(recipe)), 'progress': json.dumps(asdict(progress))}
    with files.whole(path) as partial:
        save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, partial, metadata)


def recipe_of(path: Path) -> Recipe:
    """The recipe that a state belongs to."""
    return configured(Recipe, json.loads(_metadata(path)['recipe']))


def load(path: Path, recipe: Recipe, model: nn.Module, average: nn.Module | None, optimiser: torch.optim.Optimizer) -> Progress:
    """Put a state back into the freshly made parts. Raises ValueError, naming the file, if it cannot be read or belongs to another recipe."""
    differences = recipe.differences(recipe_of(path))
    if differences:
        raise ValueError(f'{path} is the state of another recipe: this one has {"; ".join(differences)}. Choose another folder, or train afresh')
    parts = _tensors(path)
    try:
        model.load_state_dict(parts['model'])
        if average is not None:
            average.load_state_dict(parts['average'])
    except RuntimeError as error:
        raise ValueError(f'{path}: not the state of this network: {error}') from error
    _restore(optimiser, parts['optimiser'])
    return Progress(**json.loads(_metadata(path)['progress']))


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [weight for group in optimiser.param_groups for weight in group['params']]
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition('/')
        like = weights[int(index)]
        # A fused step walks through memory: what belongs to a weight has to lie in the weight's order, channels last perhaps.
        state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
    optimiser.load_state_dict({'state': state, 'param_groups': optimiser.state_dict()['param_groups']})


def _metadata(path: Path) -> dict[str, str]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if metadata.get('format') != _FORMAT:
        raise ValueError(f'{path}: expected a {_FORMAT!r}, got {metadata.get("format")!r}')
    return metadata


def _tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    with _opened(path) as file:
        for key in file.keys():
            part, _, name = key.partition('/')
            parts[part][name] = file.get_tensor(key)
    return parts


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, 'pt')
    except SafetensorError as error:
        raise ValueError(f'{path}: not a training state: {error}') from error
