"""Synthetic pairs that an online learner goes back to between those of its own camera, so that it does not forget what it came with.

After A. Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995. A few pairs last long, for each is seen with new motions.
"""

from __future__ import annotations

import numpy as np
import torch

from depth_ros.engines.flow import FlowConfig, flow_function
from depth_ros.learning import augmentation, new_motion, prior_depth
from depth_ros.learning.pairs import PairBatch, PairData, open_store

PAIRS = 256             # that are rendered into the user's cache, once; the first ones of the training split
_CHECKED = 32           # of them at most are never learned from, but tell what was forgotten
_WITH_PRIOR = 0.75      # share of the pairs that a network which begins with it is shown with depth known beforehand
_NEW_MOTION = 0.75      # share of the pairs that get another motion each time


def rehearsal_pairs(width: int, count: int = PAIRS) -> PairBatch:
    """So many pairs of about that width [px]; the first call on a machine takes some ten seconds.

    Raises ValueError for fewer than two, OSError if they cannot be kept in the user's cache.
    """
    _check_count(count)
    spec = PairData(train=count)
    pairs = open_store(spec, 'train', flow_function(FlowConfig())).batch(np.arange(count))
    factor = max((f for f in (1, 2, 4, 8) if spec.width >= f * width), default=1)
    return augmentation.reduce(pairs, factor) if factor > 1 else pairs


def _check_count(count: int) -> None:
    if count < 2:
        raise ValueError(f'rehearse: expected at least 2 pairs, one to learn from and one to check by, or 0 for none; got {count}')


class Rehearsal:
    """Draws batches of synthetic pairs, and keeps some to judge by."""

    def __init__(self, pairs: PairBatch, seed: int = 0, prior: bool = False) -> None:
        """`prior`: for a network that begins with depth known beforehand. Raises ValueError for fewer than two pairs."""
        _check_count(len(pairs))
        checked = min(_CHECKED, len(pairs) // 2)
        self._generator, self._share = torch.Generator().manual_seed(seed), _WITH_PRIOR if prior else 0.0
        self.checks, self._pairs = self._known(pairs.pick(slice(0, checked))), pairs.pick(slice(checked, None))

    def draw(self, count: int) -> PairBatch:
        """Some pairs, most of them with a motion that they never had."""
        chosen = torch.randint(len(self._pairs), (count,), generator=self._generator)
        return self._known(new_motion.change(self._pairs.pick(chosen), [new_motion.draw(_NEW_MOTION, self._generator) for _ in range(count)]))

    def _known(self, pairs: PairBatch) -> PairBatch:
        return prior_depth.add(pairs, [prior_depth.draw(self._share, self._generator) for _ in range(len(pairs))]) if self._share else pairs
