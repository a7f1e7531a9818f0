"""The batch of each step of a training: a function of the seed and the step alone, so that a training that was broken off goes on as if it had not been."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from depth_ros.learning import augmentation, new_motion, prior_depth, supervision
from depth_ros.learning.pairs import PairBatch, PairStore
from depth_ros.learning.ranks import Ranks
from depth_ros.learning.recipe import Recipe

_AT_ONCE = 64           # pairs reduced at a time
_KEPT = 1_500_000_000   # [bytes] of reduced pairs that are kept in memory
_OF_THE_PAIR = 1        # ends the seed of what is drawn for a pair and not for a step
_PIXELS, _CAMERA = 0, 1     # what that is


@dataclass(frozen=True)
class Drawn:
    """What one process learns from in one step."""

    indices: np.ndarray     # (b,) of the store
    pairs: PairBatch        # b pairs, augmented
    supervised: Tensor      # (b, 1, H, W) bool: the pixels whose depth is told

    def to(self, device: torch.device | str) -> Drawn:
        """The same on another device."""
        return Drawn(self.indices, self.pairs.to(device), self.supervised.to(device))

    def pick(self, places: list[int]) -> Drawn:
        """Some of them."""
        return Drawn(self.indices[places], self.pairs.pick(places), self.supervised[places])


class Batches:
    """Draws the batches of a recipe from a store, each pair once an epoch, or once at all if there is no end of them."""

    def __init__(self, store: PairStore, recipe: Recipe, ranks: Ranks = Ranks()) -> None:
        if len(store) == 0:
            raise ValueError('the training split is empty')
        self._store, self._recipe, self._part = store, recipe, ranks.part(recipe.batch)
        self._reduced: tuple[int, PairBatch] | None = None      # the whole store at 1 / factor of its size

    def joint_indices(self, step: int) -> np.ndarray:
        """Indices (batch,) into the store of a step's pairs, of all processes."""
        batch, size = self._recipe.batch, len(self._store)
        places = np.arange(step * batch, (step + 1) * batch)
        if self._recipe.endless:
            return places       # each pair is shown once
        return np.array([_order(self._recipe.seed, int(epoch), size)[place] for epoch, place in zip(places // size, places % size)])

    def drawn_for(self, step: int) -> tuple[np.ndarray, list[torch.Generator]]:
        """Indices (b,) of this process's part of a step's batch, and what everything else is drawn from for each."""
        return self.joint_indices(step)[self._part], [generator(self._recipe.seed, step, place) for place in range(self._recipe.batch)[self._part]]

    def of_step(self, step: int) -> Drawn:
        """This process's part of a step's batch."""
        recipe = self._recipe
        indices, generators = self.drawn_for(step)
        factor = recipe.reduce_at(step)
        pairs = self._pairs(indices, factor)
        supervised = self._supervised(pairs, indices, factor)
        if recipe.new_motion > 0.0:
            pairs = new_motion.change(pairs, [new_motion.draw(recipe.new_motion, g) for g in generators])
            supervised = supervised & pairs.valid
        if recipe.flip:
            flips = torch.tensor([augmentation.draw_flips(g) for g in generators]).T
            pairs, supervised = augmentation.flip(pairs, *flips), augmentation.flip_map(supervised, *flips)
        if recipe.rotation_error > 0.0 or recipe.direction_error > 0.0:
            errors = [augmentation.draw_motion_error(math.radians(recipe.rotation_error), recipe.direction_error, g) for g in generators]
            pairs = augmentation.disturb_motion(pairs, torch.stack(errors))
        if recipe.prior > 0.0:
            pairs = prior_depth.add(pairs, [prior_depth.draw(recipe.prior, g) for g in generators])
        return Drawn(indices, pairs, supervised)

    @staticmethod
    def unseen(store: PairStore, recipe: Recipe, first: int, factor: int) -> PairBatch:
        """At most a batch of a store that is not trained on, from index `first` on, with the intrinsics and at 1 / factor of the size that the recipe trains with.

        Whatever the recipe's seed, they are the same.
        """
        indices = np.arange(first, min(first + recipe.batch, len(store)))
        generators = [generator(0, int(index), 0) for index in indices]
        pairs = _fitted(store.batch(indices), recipe, factor, generators)
        return prior_depth.add(pairs, [prior_depth.draw(1.0, g) for g in generators]) if recipe.prior > 0.0 else pairs

    def _supervised(self, pairs: PairBatch, indices: np.ndarray, factor: int) -> Tensor:
        """The pixels (b, 1, H, W) of pairs at 1 / factor of their size whose depth is told: a pair's own, whenever it is visited, as if no more had been measured."""
        generators = [generator(self._recipe.seed, int(index), _PIXELS, _OF_THE_PAIR) for index in indices]
        return torch.cat([supervision.choose(valid[None], self._recipe.supervised_pixels, g, factor) for valid, g in zip(pairs.valid, generators)])

    def _pairs(self, indices: np.ndarray, factor: int) -> PairBatch:
        """Pairs of the store with intrinsics of their own, the same at every visit, at 1 / factor of their size."""
        if factor == 1 or self._recipe.endless or _bytes(self._store, factor) > _KEPT:
            return self._made(indices, factor)
        if self._reduced is None or self._reduced[0] != factor:
            # Small enough to be kept, and reading them anew would take as long as learning from them.
            parts = [self._made(np.arange(first, min(first + _AT_ONCE, len(self._store))), factor) for first in range(0, len(self._store), _AT_ONCE)]
            self._reduced = factor, PairBatch.joined(parts)
        return self._reduced[1].pick(torch.from_numpy(indices))

    def _made(self, indices: np.ndarray, factor: int) -> PairBatch:
        generators = [generator(self._recipe.seed, int(index), _CAMERA, _OF_THE_PAIR) for index in indices]
        return _fitted(self._store.batch(indices), self._recipe, factor, generators)


def _bytes(store: PairStore, factor: int) -> int:
    """Size of all pairs of a store as tensors, at 1 / factor of theirs."""
    return len(store) * store.batch(np.arange(1)).nbytes // factor ** 2


def _fitted(pairs: PairBatch, recipe: Recipe, factor: int, generators: list[torch.Generator]) -> PairBatch:
    """Pairs with the recipe's intrinsics, at 1 / factor of their size."""
    if recipe.magnify > 1.0:
        factors = torch.stack([augmentation.draw_zoom(recipe.magnify, recipe.zoom, g) for g in generators])
        offsets = torch.stack([augmentation.draw_offset(recipe.shift, *drawn) for drawn in zip(factors, generators)]) if recipe.shift > 0.0 else None
        pairs = augmentation.zoom(pairs, factors, offsets)
    return augmentation.reduce(pairs, factor) if factor > 1 else pairs


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order (size,) in which an epoch visits the store."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def generator(*seed: int) -> torch.Generator:
    """The source of the draws for a place of a step, or for a pair; its own, so that it does not matter which process draws."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
