"""The one trainer: any network of the registry, by a recipe, resumable to bit-equal weights."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from depth_ros import files, settings
from depth_ros.learning import metrics, objectives, train_state
from depth_ros.learning.clips import ClipStore
from depth_ros.learning.optimisers import optimiser_for, set_rate
from depth_ros.learning.pairs import PairStore
from depth_ros.learning.ranks import Ranks
from depth_ros.learning.recipe import Recipe
from depth_ros.models import checkpoint, registry

_LOG = logging.getLogger(__name__)

_TIMED = 30         # steps that tell how long the others will take
_NO_SCORES = 'step', 'reduce'        # what a validation's entry in the history holds besides
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
STATE, BEST, HISTORY = 'last.safetensors', 'best.safetensors', 'history.json'


@dataclass(frozen=True)
class Data:
    """The splits that a training sees."""

    train: PairStore | ClipStore
    validation: PairStore | ClipStore


class Diverged(ValueError):
    """A loss or gradient is not finite. The files hold the last good state."""


class Trainer:
    """Trains the network of a recipe. `out` gets last.safetensors (the whole state), best.safetensors (a checkpoint to use), history.json and the curves.

    Goes on with the state in `out` if there is one, unless told otherwise.
    """

    def __init__(self, recipe: Recipe, data: Data, out: Path, ranks: Ranks = Ranks(), resume: bool = True) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self._data, self._out, self._ranks = recipe, data, Path(out), ranks
        self._objective = objectives.build(recipe)
        self._batches = self._objective.batches(data.train, recipe, ranks)
        self.model = registry.build(recipe.model, recipe.model_config)
        self._parts = _begin_with(self.model, recipe)
        self._objective.freeze_others(self.model)
        _channels_last(self.model.to(ranks.device))
        self._average = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema > 0.0 else None
        self._optimiser = optimiser_for(self.model, recipe)
        self.progress = train_state.Progress()
        state = self._out / STATE
        if resume and state.exists():
            self.progress = train_state.load(state, recipe, self.model, self._average, self._optimiser)
            _LOG.info('going on after step %d of %s', self.progress.step, state)
        self._learner = ranks.wrap(objectives.Learner(self.model, self._objective, ranks.share))
        half = recipe.precision == 'bf16' or (recipe.precision == 'auto' and ranks.device.type == 'cuda')
        self._precision = torch.autocast(ranks.device.type, torch.bfloat16, enabled=half)

    @property
    def result(self) -> nn.Module:
        """The network as it would be used: with averaged weights if the recipe asks for them."""
        return self.model if self._average is None else self._average

    def run(self, until: int | None = None) -> train_state.Progress:
        """Train to the recipe's end, or until a step. Raises Diverged; KeyboardInterrupt after a state was saved if SIGINT comes."""
        end, first, began = min(self.recipe.steps, until or self.recipe.steps), self.progress.step, time.monotonic()
        with ThreadPoolExecutor(1) as ahead, _signals() as stopped, self._curves() as curves, self._bar(end) as bar:
            drawn = ahead.submit(self._batches.of_step, self.progress.step)
            if self.recipe.start_from and self.progress.step == 0 and self._ranks.first:
                _LOG.info('before the first step: %s', _listed(self.validate()))
            while self.progress.step < end and not self._ranks.any(bool(stopped)):
                drawn = self._step(drawn, ahead, curves, bar)
                if self.progress.step == first + _TIMED < end and self._ranks.first:
                    _LOG.info('about %s to go', self._duration(end, (time.monotonic() - began) / _TIMED))
                if self._due(self.recipe.validate_every):
                    self._validate(curves)
                if self._due(self.recipe.checkpoint_every):
                    self._save()
            self._save()
        if stopped:
            _LOG.info('stopped after step %d; the state is in %s', self.progress.step, self._out / STATE)
            raise KeyboardInterrupt if stopped[0] == signal.SIGINT else SystemExit(128 + stopped[0])
        return self.progress

    def _duration(self, end: int, seconds: float) -> str:
        """How long the steps that are left take, by the time [s] of one at the size of now: it goes with the number of pixels."""
        left = seconds * sum((self._factor / self.recipe.reduce_at(step)) ** 2 for step in range(self.progress.step, end))
        return f'{left / 3600:.1f} h' if left >= 3600 else f'{left / 60:.0f} min'

    def validate(self) -> dict[str, float]:
        """Mean scores of the network over the recipe's share of the validation split, at the size that it has just been trained at."""
        network, factor = self.result, self._factor
        network.eval()
        count = min(self.recipe.validation_pairs or len(self._data.validation), len(self._data.validation))
        scores: list[dict[str, float]] = []
        with torch.inference_mode(), self._precision:
            for first in range(0, count, self.recipe.batch):
                pairs = self._batches.unseen(self._data.validation, self.recipe, first, factor)
                scores += self._objective.scores(network, pairs.to(self._ranks.device))
        network.train()
        return metrics.mean_metrics(scores[:count])

    def _step(self, drawn: Future[Any], ahead: ThreadPoolExecutor, curves: _Curves, bar: tqdm) -> Future[Any]:
        """Learn from one batch while the next one is drawn."""
        step, batch = self.progress.step, drawn.result()
        following = ahead.submit(self._batches.of_step, step + 1)
        terms, norm = self._learn(step, batch)
        self.progress.step = step + 1
        bar.update()
        if self._due(self.recipe.log_every) and self._ranks.first:
            bar.set_postfix(loss=f'{sum(terms.values()):.4f}', refresh=False)
            rate = bar.format_dict['rate']
            curves.add('train', {**terms, 'loss': sum(terms.values()), 'gradient': norm, 'rate': self.recipe.rate_at(step),
                                 **({'steps_per_second': rate} if rate else {})}, self.progress.step)
        return following

    def _learn(self, step: int, drawn: Any) -> tuple[dict[str, float], float]:
        """One step of the optimiser: the loss' terms and the gradient's norm. Raises Diverged, before anything has changed, if they are not finite."""
        torch.manual_seed(hash((self.recipe.seed, step, self._ranks.rank)) % 2 ** 63)      # what a network itself may draw, such as dropout
        drawn = drawn.to(self._ranks.device)
        self._optimiser.zero_grad(set_to_none=True)
        buffers = [value.clone() for value in self.model.buffers()]        # batch norm takes note of what it sees, whether it is finite or not
        with self._precision:
            terms = self._learner(drawn)
        sum(terms.values()).backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip or math.inf))
        values = dict(zip(terms, self._ranks.mean(torch.stack([t.detach() for t in terms.values()])).tolist()))
        if not math.isfinite(norm + sum(values.values())):
            for now, before in zip(self.model.buffers(), buffers):
                now.copy_(before)
            raise Diverged(self._divergence(step, drawn, values, norm))
        set_rate(self._optimiser, self.recipe.rate_at(step))
        self._optimiser.step()
        self._follow(step)
        return values, norm

    def _follow(self, step: int) -> None:
        """Move the averaged weights towards the new ones; faster at first, when there is little to average."""
        if self._average is None:
            return
        keep = min(self.recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(self._average.state_dict().values(), self.model.state_dict().values()):
                mean.lerp_(new, 1 - keep) if mean.is_floating_point() else mean.copy_(new)

    def _divergence(self, step: int, drawn: Any, terms: dict[str, float], norm: float) -> str:
        """What went wrong in a step, and with which pairs."""
        bad = self._not_finite(drawn)
        whose = f'samples {bad}' if bad else f'the gradient of samples {drawn.indices.tolist()}'
        found = ', '.join(f'{name} {value:g}' for name, value in {**terms, 'gradient': norm}.items())
        state = self._out / STATE
        return f'step {step}: not finite ({found}) because of {whose}; ' + (f'{state} holds the last good state' if state.exists() else 'nothing was saved yet')

    def _not_finite(self, drawn: Any) -> list[int]:
        """The pairs, by their index in the store, whose own loss is not finite."""
        bad, mode = [], self.model.training
        self.model.eval()       # batch norm cannot learn from a single value
        for place, index in enumerate(drawn.indices):
            with torch.no_grad(), self._precision:
                loss = sum(self._objective.terms(self.model, drawn.pick([place]), torch.ones_like).values())
            bad += [] if math.isfinite(float(loss)) else [int(index)]
        self.model.train(mode)
        return bad

    def _validate(self, curves: _Curves) -> None:
        if self._ranks.first:
            scores = {'step': self.progress.step, 'reduce': self._factor, **self.validate()}
            self.progress.history.append(scores)
            curves.add('validation', scores, self.progress.step)
            _LOG.info('step %d: %s', self.progress.step, _listed(scores))
            if self._best_yet(scores):
                self.progress.best = scores
                checkpoint.save(self._out / BEST, self.recipe.model, self.result, self.record(scores))

    @property
    def _factor(self) -> int:
        """What the size of the last step's pairs was divided by."""
        return self.recipe.reduce_at(max(self.progress.step - 1, 0))

    def _best_yet(self, scores: dict[str, float]) -> bool:
        key, best = self.recipe.best_by, self.progress.best
        if not math.isfinite(scores.get(key, math.nan)):
            return False
        # Scores at another size are not comparable; and the largest is the one that the network is meant for.
        return best is None or not math.isfinite(best[key]) or scores['reduce'] < best['reduce'] or scores[key] < best[key]

    def record(self, scores: dict[str, float]) -> dict[str, object]:
        """How the network came about, for its checkpoint."""
        given = self.recipe.start_parts
        recipe = asdict(self.recipe) | {'start_from': Path(self.recipe.start_from).name, 'start_parts': {part: Path(path).name for part, path in given.items()}}
        record = {'recipe': recipe, 'validation': scores, 'pairs': len(self._data.train), 'torch': torch.__version__}       # where files lay means nothing elsewhere
        return record | ({'parts': self._parts} if given else {})

    def _save(self) -> None:
        if self._ranks.first:
            train_state.save(self._out / STATE, self.recipe, self.progress, self.model, self._average, self._optimiser)
            with files.whole(self._out / HISTORY) as partial:
                partial.write_text(json.dumps(asdict(self.progress), indent=1) + '\n')

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.recipe.steps

    def _bar(self, end: int) -> tqdm:
        return tqdm(initial=self.progress.step, total=end, desc=self.recipe.model, unit='step', smoothing=0.05, disable=None if self._ranks.first else True)

    @contextlib.contextmanager
    def _curves(self) -> Iterator[_Curves]:
        curves = _Curves(self._out / 'tensorboard' if self._ranks.first else None, self.progress.step)
        try:
            yield curves
        finally:
            curves.close()


def _listed(scores: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.4f}' for name, value in scores.items() if name not in _NO_SCORES)


def _channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions, in two and in three dimensions, as those run fastest."""
    for weight in network.parameters():
        if weight.dim() in _LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=_LAYOUTS[weight.dim()])


def _begin_with(model: nn.Module, recipe: Recipe) -> dict[str, dict[str, object]]:
    """Give a network the weights of the recipe's checkpoints; of another network's, the part that it can take over. The records of those that gave a part."""
    if recipe.start_from:
        loaded = checkpoint.load(checkpoint.find(recipe.start_from))
        if loaded.name != recipe.model and hasattr(model, 'take'):
            model.take(loaded.model)
        elif loaded.name != recipe.model or loaded.model.config != model.config:
            raise ValueError(f'start_from: {recipe.start_from} holds {loaded.name} with {loaded.model.config}, not {recipe.model} with {model.config}')
        else:
            model.load_state_dict(loaded.model.state_dict())
    settings.refuse_unknown(recipe.start_parts, [name for name, _ in model.named_children()], 'start_parts: the network has no part')
    givers = {part: checkpoint.load(path, recipe.model) for part, path in recipe.start_parts.items()}
    within, _, module = recipe.start_new.partition('.')
    if recipe.start_new and not (within in givers and module and any(name.startswith(f'{recipe.start_new}.') for name in model.state_dict())):
        raise ValueError(f'start_new: expected a module with weights within a part of start_parts, {", ".join(givers) or "which has none"}, got {recipe.start_new!r}')
    for part, giver in givers.items():
        own, given = (of.get_submodule(part).state_dict() for of in (model, giver.model))
        checkpoint.fill(model.get_submodule(part), _renewed(given, own, module) if part == within else given, f'start_parts: {part} of {recipe.start_parts[part]}')
    return {part: _origin(giver.record, part) for part, giver in givers.items()}


def _origin(record: dict[str, Any], part: str) -> dict[str, Any]:
    """How a part of a network came about: if it learned nothing itself, where it was joined of others, as they did."""
    joined = part in record.get('parts', {}) and record['recipe']['rate'] == 0.0
    return record['parts'][part] if joined else record


def _renewed(given: dict[str, Tensor], own: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """Weights as they are given, but those of a module as a network has them."""
    return {name: value for name, value in given.items() if not name.startswith(f'{module}.')} | {name: value for name, value in own.items() if name.startswith(f'{module}.')}


class _Curves:
    """Scalars for TensorBoard; none without a folder."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter       # takes a second: not for those who only import the trainer
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, group: str, values: dict[str, float], step: int) -> None:
        """A point of each curve."""
        for name, value in values.items():
            if self._writer is not None and name not in _NO_SCORES:
                self._writer.add_scalar(f'{group}/{name}', value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that gets the number of a SIGINT or SIGTERM, which then waits for the end of a step; a second one does not wait."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came      # only the main thread may handle signals
        return

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
