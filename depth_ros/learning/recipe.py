"""A recipe: everything that decides what a training gives, in one YAML file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from depth_ros import settings
from depth_ros.models import registry
from depth_ros.settings import setting

Config = TypeVar('Config')

# What may change between two sittings of one training, because it does not change what is learned.
_OF_THE_SITTING = {'device', 'threads', 'checkpoint_every', 'log_every', 'validate_every'}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `model_config` and `data` are the fields of the network's and of the store's own configuration."""

    model: str = setting('global_local', 'name of the network')
    size: str = setting('', 'named size of the network, where it has some, that model_config changes; empty: none')
    model_config: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    endless: bool = setting(False, 'render new pairs as long as the training lasts, each seen once; `data` may say by how many processes or on what (learning/synthetic_pairs.py)')
    objective: str = setting('inverse_depth', 'what the loss compares: inverse depth with range, or something that a network of another kind gives')
    supervised_pixels: int = setting(1, 'pixels of an image whose depth the loss is told, the same at every visit; 0: all', low=0)
    l1_of: str = setting('inverse_depth', 'what is compared at them: inverse depth, the log of depth, or depth itself', choices=('inverse_depth', 'log_depth', 'depth'))
    l1_weight: float = setting(5.0, 'of that difference', low=0.0)
    smooth_weight: float = setting(2.0, 'of edge-aware smoothness', low=0.0)
    flow_weight: float = setting(0.0, "of the difference between a motion network's own flow and the true one, and of how likely that is by its confidence (DeepV2D; 0 as published)", low=0.0)
    flip: bool = setting(True, 'mirror and turn half of the pairs; of the clips, mirror half')
    magnify: float = setting(1.0, 'factor on all focal lengths: a window around the centre of each image', low=1.0, high=4.0)
    new_motion: float = setting(0.0, 'share of pairs that get another motion, flow and second image to fit their depth', low=0.0, high=1.0)
    zoom: float = setting(0.0, "spread of a pair's focal lengths around that; magnify * (1 - zoom) has to be at least 1", low=0.0, high=0.5)
    shift: float = setting(0.0, "spread of a pair's principal point around the image's middle, as a share of half its size, as far as magnify leaves room", low=0.0, high=1.0)
    rotation_error: float = setting(0.0, "deviation of an error of the pair's rotation, an axis, as a tracker would make", 'deg', low=0.0, high=5.0)
    direction_error: float = setting(0.0, "deviation of an error of the pair's translation, an axis, as a share of the baseline", low=0.0, high=1.0)
    prior: float = setting(0.0, 'share of the pairs of which a filter knows depth beforehand, for networks that begin with it', low=0.0, high=1.0)
    pose_error: float = setting(0.0, "deviation of an error of a clip's poses, an axis: of translation [m] where the keyframe's median depth is 2 m, and of rotation [rad]", low=0.0, high=0.2)
    still_start: float = setting(0.5, 'share of the clips whose motion is looked for from no motion at all, not from one with that error', low=0.0, high=1.0)
    stretch: float = setting(1.0, 'largest factor, up or down, on all lengths of a clip', low=1.0, high=4.0)
    colour: float = setting(0.0, "strength of the changes of brightness, gamma and colour from view to view of a clip", low=0.0, high=3.0)
    fewest_views: int = setting(4, 'a step shows at least so many of the views around the keyframe of its clips', low=1)
    predicted_from: float = setting(1.0, 'share of the steps after which motion is found with predicted depth in half of them, not with the true one', low=0.0, high=1.0)
    iterations: int = setting(3, 'times that the motion network looks at a clip; gradients do not pass from one to the next', low=1)
    measured_flow: bool = setting(False, 'measure the flow of clips, for networks that are made to see it')
    form: str = setting('keyframe', 'how poses are solved: each against the keyframe, or all in one system', choices=('keyframe', 'global'))
    reduce: int = setting(1, 'begin on pairs of 1 / reduce of the size that the data has', low=1, high=8)
    grow_at: float = setting(1.0, 'share of the steps after which the size doubles, and again the same share of what is left, until it is full; 1: never', low=0.0, high=1.0)
    reduce_to: int = setting(1, 'grow no further than to 1 / reduce_to of the size that the data has', low=1, high=8)
    steps: int = setting(94000, 'length of the training', low=1)
    batch: int = setting(16, 'pairs, or clips, a step, of all processes together', low=1)
    seed: int = setting(0, 'decides the first weights, the order of pairs and every other draw', low=0)
    optimiser: str = setting('adam', 'what takes the steps', choices=('adam', 'rmsprop'))
    rate: float = setting(1e-4, "the optimiser's highest learning rate", low=0.0)
    rate_shares: dict = field(default_factory=dict)     # of it for parts of the network, by their names; 1 for what is not named
    schedule: str = setting('constant', 'how the rate goes on after the warm-up; step: final_rate in the last fifth', choices=('constant', 'cosine', 'step'))
    warm_up: int = setting(0, 'steps in which the rate rises from 0', low=0)
    final_rate: float = setting(0.01, 'share of the rate that the schedule ends at', low=0.0, high=1.0)
    clip: float = setting(0.0, 'largest norm of the gradient; 0: any', low=0.0)
    ema: float = setting(0.0, 'decay a step of the averaged weights, which are then the ones validated and kept; 0: none', low=0.0, high=0.99999)
    start_from: str = setting('', 'checkpoint whose weights to begin with, a file or the name of one that is shipped: of the same network, or of one that this one takes a part of')
    start_parts: dict = field(default_factory=dict)     # and checkpoints for parts of the network, by their names, over those
    start_new: str = setting('', 'a module of such a part, by its dotted name, that begins with new weights whatever the checkpoint holds')
    validate_every: int = setting(1000, 'steps between two validations', low=1)
    validation_pairs: int = setting(256, 'pairs, or clips, of the validation split to score; 0: all', low=0)
    best_by: str = setting('abs_rel', 'the score whose lowest value makes the best checkpoint')
    checkpoint_every: int = setting(1000, 'steps between two saved states', low=1)
    log_every: int = setting(50, 'steps between two points of the curves', low=1)
    device: str = setting('auto', 'where to compute; auto: an accelerator if there is one', choices=('auto', 'cpu', 'cuda'))
    precision: str = setting('auto', 'auto: bf16 on an accelerator, else fp32', choices=('auto', 'fp32', 'bf16'))
    threads: int = setting(1, 'of torch, on the CPU: one is best beside other work', low=1)

    def __post_init__(self) -> None:
        if self.magnify * (1 - self.zoom) < 1.0:
            raise ValueError(f'magnify: expected at least {1 / (1 - self.zoom):.4g} with zoom {self.zoom}, as there is nothing outside the images, got {self.magnify}')

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        if self.schedule == 'cosine':
            return self.rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))
        return self.rate * (self.final_rate if self.schedule == 'step' and progress >= 0.8 else 1.0)

    def reduce_at(self, step: int) -> int:
        """What the size of the pairs is divided by at a step."""
        factor, first = self.reduce, 0.0
        while factor > self.reduce_to and step >= first + self.grow_at * (self.steps - first):
            first += self.grow_at * (self.steps - first)
            factor = max((factor + 1) // 2, self.reduce_to)
        return factor

    @property
    def last_reduce(self) -> int:
        """What the size of the pairs is divided by in the last step, which is the size that a network is scored at."""
        return self.reduce_at(self.steps - 1)

    @property
    def _is_prolongable(self) -> bool:
        """Whether what a step is does not go by how many there are."""
        return self.schedule == 'constant' and self.predicted_from == 1.0 and self.last_reduce == self.reduce

    def differences(self, other: Recipe) -> list[str]:
        """`key: ours instead of theirs` for each key that makes a training with the other recipe another training."""
        free = _OF_THE_SITTING | ({'steps'} if self._is_prolongable and other._is_prolongable else set())
        ours, theirs = (asdict(one) | {'data': {key: value for key, value in one.data.items() if key != 'strict'}} for one in (self, other))      # nor does what becomes of bad files
        pairs = ((name, ours[name], theirs[name]) for name in ours)
        return [f'{name}: {ours!r} instead of {theirs!r}' for name, ours, theirs in pairs if ours != theirs and name not in free]


def read(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a YAML file; `changes` by key, `model_config.x` for one inside, win over it. Raises ValueError, naming the file, for what it may not hold."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f'{path}: not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected keys and values, got {type(values).__name__}')
    for key, value in (changes or {}).items():
        outer, _, inner = key.partition('.')
        if inner and isinstance(values.setdefault(outer, {}), dict):
            values[outer][inner] = value
        else:
            values[key] = value
    try:
        made = configured(Recipe, values)
        # Written out, so that a state tells what it was trained with whatever becomes of the name.
        return dataclasses.replace(made, model_config=registry.named_size(made.model, made.size) | made.model_config) if made.size else made
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def configured(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration with these values. Raises ValueError for an unknown key, listing the known ones, and for a value of a wrong type or out of range."""
    known = {f.name: f for f in dataclasses.fields(config)}
    settings.refuse_unknown(values, known)
    for key, value in values.items():
        if known[key].default_factory is dict and not isinstance(value, dict):
            raise ValueError(f'{key}: expected keys and values, got {value!r}')
    made = config(**values)
    settings.check(made)
    return made
