"""Trains and scores the networks of a comparison on the same pairs in the same order, each once: what is finished is taken from the folder."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from depth_ros import files
from depth_ros.learning import augmentation, metrics, objectives
from depth_ros.learning.batches import Batches
from depth_ros.learning.classical import DatasetMean
from depth_ros.learning.objectives import depth_scores
from depth_ros.learning.pairs import PairBatch, PairStore
from depth_ros.learning.ranks import Ranks
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.shards import locked
from depth_ros.learning.trainer import Data, Trainer

_LOG = logging.getLogger(__name__)
_MEAN_OVER = 512        # pairs

Scores = dict[str, float]
Predict = Callable[[PairBatch], Tensor]
"""Pairs -> inverse depth (B, 1, H, W) [1/baseline]."""


@dataclass(frozen=True)
class Trained:
    """A network after its training."""

    name: str           # of its folder
    network: nn.Module
    recipe: Recipe


class Bench:
    """The pairs, the recipe that all networks share, which of them take part, and the folder with what is finished."""

    def __init__(self, data: Data, test: PairStore, common: Recipe, seeds: int, out: Path, ranks: Ranks = Ranks(), networks: Collection[str] = (),
                 densities: Collection[int] = ()) -> None:
        """networks: names of those that take part besides Global-Local; all if none are named. densities: supervised pixels to sweep over; all if there are none."""
        self._data, self._test, self.common, self.seeds, self._out, self._ranks, self._networks = data, test, common, range(seeds), out, ranks, networks
        self.densities = densities

    def chosen(self, titles: dict[str, str]) -> dict[str, str]:
        """Those networks (name: title) that take part."""
        return {name: title for name, title in titles.items() if not self._networks or name in self._networks}

    @property
    def runs(self) -> Path:
        """The folder with a folder of each training."""
        return self._out / 'runs'

    @cached_property
    def dataset_mean(self) -> DatasetMean:
        """Of (some hundred of) the pairs that are trained on."""
        store, factor = self._data.train, self.common.last_reduce
        some = torch.linspace(0, len(store) - 1, min(_MEAN_OVER, len(store))).long().split(self.common.batch)
        return DatasetMean.of(augmentation.reduce(store.batch(indices), factor) for indices in some)

    @property
    def pixels(self) -> int:
        """Of an image, at the size of the comparison."""
        height, width = self._test.size
        return height * width // self.common.last_reduce ** 2

    def train(self, name: str, seed: int, **changes: object) -> Trained:
        """The network of the common recipe with some keys changed, after all of its steps. The common model_config is that of the common network alone."""
        shared = self.common.model_config if changes.get('model', self.common.model) == self.common.model else {}
        recipe = replace(self.common, seed=seed, **changes | {'model_config': shared | changes.get('model_config', {})})
        folder = self.runs / f'{name}-{seed}'
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True) if self._ranks.first else contextlib.nullcontext():       # two commands with one --out share the studies
            trainer = Trainer(recipe, self._data, folder, self._ranks)
            if trainer.progress.step < recipe.steps:
                _LOG.info('training %s', folder.name)
                trainer.run()
        return Trained(folder.name, trainer.result.eval(), recipe)

    def checkpoint(self, name: str, seed: int) -> str:
        """The file with a finished network of that name."""
        return str(self.runs / f'{name}-{seed}' / 'best.safetensors')

    def score(self, trained: Trained) -> Scores:
        """A network on the test split, with the intrinsics that it was trained with."""
        objective = objectives.build(trained.recipe)
        return self._kept(trained.name, trained.recipe, lambda pairs: objective.scores(trained.network, pairs))

    def score_prediction(self, name: str, predict: Predict, recipe: Recipe | None = None) -> Scores:
        """Depth that comes from somewhere else, on the test split."""
        return self._kept(name, recipe or self.common, lambda pairs: depth_scores(predict(pairs), pairs))

    def flow_error(self, share: float) -> float:
        """Mean distance [px] of the flow from the exact one on the test split, where both images show the point."""
        pairs = [with_flow_error(batch, share) for batch in self._batches(self.common)]
        errors = [(p.flow - p.exact_flow).norm(dim=1)[p.visible[:, 0]] for p in pairs]
        return float(torch.cat(errors).mean())

    def _kept(self, name: str, recipe: Recipe, score: Callable[[PairBatch], list[Scores]]) -> Scores:
        """The mean scores, computed unless the folder holds them for as many steps and pairs."""
        path = self._out / 'scores' / f'{name}.json'
        key = {'steps': recipe.steps, 'reduce': recipe.last_reduce, 'pairs': len(self._test)}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept['of'] == key:
                return kept['scores']
        with torch.inference_mode():
            scores = metrics.mean_metrics(one for pairs in self._batches(recipe) for one in score(pairs.to(self._ranks.device)))
        with files.whole(path) as partial:
            partial.write_text(json.dumps({'of': key, 'scores': scores}, indent=1) + '\n')
        return scores

    def _batches(self, recipe: Recipe) -> list[PairBatch]:
        return [Batches.unseen(self._test, recipe, first, recipe.last_reduce) for first in range(0, len(self._test), recipe.batch)]


def with_flow_error(pairs: PairBatch, share: float) -> PairBatch:
    """The pairs with the exact flow (0), the estimator's (1), or what lies between or beyond on the way from one to the other."""
    return replace(pairs, flow=torch.lerp(pairs.exact_flow, pairs.flow, share))
