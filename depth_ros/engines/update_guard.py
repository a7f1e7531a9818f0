"""Whether changed weights may be used: judged on observations that were never learned from, on their hits and away from them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from depth_ros.engines.online_loss import NEAREST, log_error, rehearsed_error
from depth_ros.engines.replay_buffer import Observation, lengths, pair_batch, stacked
from depth_ros.learning.losses import masked_mean
from depth_ros.learning.pairs import PairBatch
from depth_ros.models.depth_model import DepthModel

_WORST = 0.7            # bound of the error of a log: beyond a factor of two a point is wrong, and how wrong says little
_KEPT = 1000            # observations whose errors are kept at most, give or take those of one check
_AT_ONCE = 4            # observations that are looked at in one go
_NOISE = 0.002          # differences of errors that mean nothing
_GAIN = 1e-4            # of the error that is worth new weights
_OF_FLOW = 0.06         # mean error of the log of depth from flow where it is sure, on a real camera: to be nearer to it is no better, as those are that begin with it
_ANYWHERE = 0.03        # more than that over the whole image: there, too, who begins with depth from flow may not stray far
_AT_LEAST = 2           # observations that tell of harm
_SURE = 2.0             # standard errors by which a rise is none of chance


class Verdict(enum.Enum):
    """What becomes of changed weights."""

    BETTER = 'better'       # they are good, and are handed out
    TOLERATED = 'tolerated'     # learning goes on from them, but nobody gets them
    WORSE = 'worse'         # they are dropped


@dataclass(frozen=True)
class Errors:
    """Mean errors of the log of depth, cut at a factor of two, of each observation; None where there is nothing to compare with."""

    at_hits: tuple[float | None, ...]       # that were never learned from
    at_guide: tuple[float | None, ...]      # where flow and motion tell depth with confidence, anywhere in the image
    rehearsed: float | None     # of all synthetic pairs

    @property
    def withheld(self) -> float | None:
        """Mean at hits."""
        return _mean(self.at_hits)

    @property
    def away(self) -> float | None:
        """Mean away from them."""
        return _mean(self.at_guide)

    @property
    def total(self) -> float:
        """Sum of both, which are of the robot's own surroundings."""
        return (self.withheld or 0.0) + (self.away or 0.0)


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: Verdict
    reason: str


class Checked:
    """A network whose weights stay as they are, and its errors on observations; each observation is looked at once."""

    def __init__(self, network: DepthModel) -> None:
        self.network = network.eval()
        self._known: dict[tuple[int, bool], tuple[float | None, float | None]] = {}
        self._rehearsed: float | None = None

    def errors(self, checks: Sequence[Observation], rehearsal: PairBatch | None = None) -> Errors:
        """On observations that are never learned from, so that all their hits are withheld ones, and on the same synthetic pairs every time."""
        if len(self._known) > _KEPT:
            self._known = {_key(o): self._known[_key(o)] for o in checks if _key(o) in self._known}
        unknown = [o for o in checks if _key(o) not in self._known]
        for first in range(0, len(unknown), _AT_ONCE):
            some = unknown[first:first + _AT_ONCE]
            self._known |= zip(map(_key, some), self._look(some))
        if rehearsal is not None and self._rehearsed is None:
            with torch.no_grad():
                self._rehearsed = _mean(_each(*rehearsed_error(self.network, rehearsal)))
        hits, guide = zip(*(self._known[_key(o)] for o in checks)) if checks else ((), ())
        return Errors(hits, guide, self._rehearsed)

    @torch.no_grad()
    def _look(self, some: Sequence[Observation]) -> list[tuple[float | None, float | None]]:
        pairs = pair_batch(some)
        z = self.network(*self.network.inputs(pairs))
        hits, guide = (_each(log_error(z, observed, lengths(some)), observed > 0) for observed in (stacked(some, 'hits'), stacked(some, 'guide')))
        if getattr(self.network.config, 'prior', False):
            begun = pairs.prior[:, :1]
            strayed = _each(torch.where(begun > 0, z.clamp(min=NEAREST).log() - begun.clamp(min=NEAREST).log(), 0.0), begun > 0)
            guide = [None if sure is None else max(sure, _OF_FLOW, anywhere - _ANYWHERE) for sure, anywhere in zip(guide, strayed)]
        return list(zip(hits, guide))


def _key(one: Observation) -> tuple[int, bool]:
    """What tells observations apart: one image may be looked at with its hits and without."""
    return one.serial, bool(one.hits.any())


def _each(error: Tensor, known: Tensor) -> list[float | None]:
    """Mean bounded size of the error in each sample, None where nothing is known."""
    bounded = torch.nan_to_num(error.abs(), nan=_WORST).clamp(max=_WORST)
    return [masked_mean(e, k).item() if k.any() else None for e, k in zip(bounded, known)]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _is_chance(new: Sequence[float | None], old: Sequence[float | None]) -> bool:
    """Whether the errors of the same observations rise by no more than twice the standard error of the rise, as those of a few single hits soon do; not told by one alone."""
    differences = np.array([after - before for after, before in zip(new, old) if after is not None and before is not None])
    return len(differences) > 1 and differences.mean() <= _SURE * differences.std(ddof=1) / np.sqrt(len(differences))


def judge(new: Errors, good: Errors, frozen: Errors, tolerance: float, forgetting: float) -> Judgement:
    """Compare changed weights with the last good ones and with those that learning began with, all on the same observations.

    `tolerance`: share by which an error may exceed that of the good and of the frozen weights before the change is dropped, or not handed out if that may be chance.
    `forgetting`: the same on synthetic pairs.
    """
    doubt = None
    for where, of in (('at withheld hits', attrgetter('at_hits')), ('away from the hits', attrgetter('at_guide'))):
        for than, other in (('before', good), ('the frozen network\'s', frozen)):
            error, old = _mean(of(new)), _mean(of(other))
            if error is None or error <= (1 + tolerance) * old + _NOISE:
                continue
            reason = f'the error {where} rose to {error:.4f}, more than {tolerance:.0%} above {than} {old:.4f}'
            if not _is_chance(of(new), of(other)):
                return Judgement(Verdict.WORSE, reason)
            doubt = Judgement(Verdict.TOLERATED, f'{reason}, which may be chance')
    if new.rehearsed is not None and new.rehearsed > (1 + forgetting) * frozen.rehearsed:
        return Judgement(Verdict.WORSE, f'the error on synthetic pairs rose to {new.rehearsed:.4f} from the {frozen.rehearsed:.4f} of the frozen network')
    if doubt is not None:
        return doubt
    if not new.total <= min(good.total, frozen.total) - _GAIN:
        return Judgement(Verdict.TOLERATED, f'the error of {new.total:.4f} is not below the {min(good.total, frozen.total):.4f} that is offered')
    return Judgement(Verdict.BETTER, f'the error fell to {new.total:.4f} from {good.total:.4f}')


def does_harm(learned: Checked, frozen: Checked, newest: Sequence[Observation], count: int, share: float) -> str:
    """Why weights that others have should go: on the last `count` of the newest observations their error exceeds that of the frozen ones by more than `share`, or on the last two
    by twice that, as where a robot turns to a place unlike those that it learned from. '' if they may stay."""
    for last, allowed in ((count, share), (_AT_LEAST, 2 * share)):
        some = newest[-last:]
        if len(some) < last:
            continue
        new, old = learned.errors(some).total, frozen.errors(some).total
        if new > (1 + allowed) * old + _NOISE:
            return f'on the newest {last} pairs the learned error is {new:.4f}, that of the frozen network {old:.4f}'
    return ''


def helps(learned: Checked, frozen: Checked, newest: Sequence[Observation], count: int, share: float) -> bool:
    """Whether weights that had to go may come back: it takes twice as many observations, on which they are better by `share`, or as near to depth from flow as that tells anything.

    To leave late costs more than to come back late.
    """
    some = newest[-2 * count:]
    if len(some) < 2 * count or sum(bool(one.guide.any()) for one in some) < count:
        return False
    return learned.errors(some).total < max((1 - share) * frozen.errors(some).total, _OF_FLOW + _NOISE)
