"""What an online learner remembers: observations of image pairs with range hits, the newest ones and an even sample of all older ones."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from depth_ros.engines.flow_guide import prior_of
from depth_ros.engines.images import image_tensor
from depth_ros.frames import CameraFrame, DepthResult, FlowResult
from depth_ros.learning.pairs import PairBatch

LEAST_STEP = 1e-3       # [m] a shorter step has no direction, and no depth can be told in units of it


@dataclass(frozen=True)
class Observation:
    """An image pair, what was measured of its depth, and how far the camera moved. Depth is 0 where nothing is known, and finite everywhere."""

    stamp: int                      # [ns] of image 1
    image1: np.ndarray              # (H, W, 3) uint8 RGB, the image whose depth is learned
    image2: np.ndarray              # (H, W, 3) uint8 RGB
    flow: np.ndarray                # (H, W, 2) float16 [px], 1 -> 2
    K: np.ndarray                   # (3, 3) float32 [px]
    T_2_1: np.ndarray               # (4, 4) float32, its translation of norm 1
    step_length: float              # [m] of that translation
    hits: np.ndarray                # (H, W) float32 [m], range hits of this very image
    carried: np.ndarray             # (H, W) float32 [m], hits of earlier images, as this one sees them
    guide: np.ndarray               # (H, W) float32 [m], depth from flow, where it is confident
    prior: np.ndarray               # (H, W, 2) float16, all of that depth as networks may begin with it (models/layers.Pairs): inverse [1/step_length], and its confidence
    weight: float = 1.0             # of this observation in the loss
    serial: int = field(default_factory=itertools.count().__next__)     # tells it apart where stamps come again, as in a recording played in a loop


def observation(result: FlowResult, T_2_1: np.ndarray, hits: np.ndarray, carried: np.ndarray | None = None, guide: DepthResult | None = None,
                confident: float = 0.5) -> Observation:
    """What a pair's flow, its motion (4, 4) [m] and hits (H, W) [m] of the same size tell; whatever is not a finite positive depth counts as unknown.

    Of the guide, depth from flow, what has at least the confidence `confident` may teach; networks begin with all of it. Raises ValueError for sizes that differ or a motion of no length.
    """
    first, second = result.pair.current, result.pair.reference
    length = float(np.linalg.norm(T_2_1[:3, 3]))
    if not (np.isfinite(T_2_1).all() and length >= LEAST_STEP):
        raise ValueError(f'expected a finite motion of at least {LEAST_STEP} m, got one of {length} m')
    planes = {'hits': hits, 'carried': np.zeros_like(hits) if carried is None else carried}
    for name, plane in planes.items():
        if plane.shape != result.flow.shape[:2]:
            raise ValueError(f'{name}: expected the size {result.flow.shape[:2]} of the flow, got {plane.shape}')
    T = np.array(T_2_1, np.float32)
    T[:3, 3] /= length
    flow = np.nan_to_num(result.flow, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float16)
    return Observation(first.stamp, first.image, second.image, flow, first.K.astype(np.float32), T, length, *map(measured, planes.values()),
                       _confident_depth(guide, first, confident), prior_of(guide, length, first.size).astype(np.float16))


def measured(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) float32 [m] with 0 in place of everything that is no measurement: NaN, infinite, negative."""
    good = np.isfinite(depth) & (depth > 0)
    return np.where(good, depth, 0.0).astype(np.float32)


def _confident_depth(guide: DepthResult | None, frame: CameraFrame, confident: float) -> np.ndarray:
    if guide is None:
        return np.zeros(frame.size[::-1], np.float32)
    kept = np.where(guide.valid & (guide.confidence >= confident), guide.depth, 0.0)
    at_depth_size = CameraFrame(frame.stamp, '', guide.frame.image, guide.frame.K, measured(kept), kept > 0)
    return measured(at_depth_size.resized(*frame.size).depth)


class ReplayBuffer:
    """At most `recent` of the newest observations, and `reservoir` others of which every one that ever left the first part is as likely as any.

    The sample is J. Vitter's "Random sampling with a reservoir", 1985, algorithm R.
    """

    def __init__(self, recent: int, reservoir: int, seed: int = 0) -> None:
        if recent < 1 or reservoir < 0:
            raise ValueError(f'expected at least 1 recent observation and no negative reservoir, got {recent} and {reservoir}')
        self._recent: deque[Observation] = deque()
        self._reservoir: list[Observation] = []
        self._sizes = recent, reservoir
        self._random = random.Random(seed)
        self.seen = 0               # observations that ever came
        self._passed_on = 0         # those that left the recent part

    def __len__(self) -> int:
        return len(self._recent) + len(self._reservoir)

    def add(self, new: Observation) -> None:
        """Take in the newest observation."""
        self.seen += 1
        self._recent.append(new)
        if len(self._recent) > self._sizes[0]:
            self._pass_on(self._recent.popleft())

    def _pass_on(self, old: Observation) -> None:
        self._passed_on += 1
        if len(self._reservoir) < self._sizes[1]:
            self._reservoir.append(old)
            return
        place = self._random.randrange(self._passed_on)
        if place < self._sizes[1]:
            self._reservoir[place] = old

    def draw(self, count: int) -> list[Observation]:
        """Some observations, each drawn by itself: half of them from the recent part while there are older ones too. Raises ValueError if it is empty."""
        if not len(self):
            raise ValueError('the buffer is empty')
        from_recent = count if not self._reservoir else (count + 1) // 2
        return self._random.choices(self._recent, k=from_recent) + (self._random.choices(self._reservoir, k=count - from_recent) if self._reservoir else [])

    def spread(self, count: int) -> list[Observation]:
        """At most so many different ones, evenly over both parts, always the same for the same content."""
        everything = [*self._reservoir, *self._recent]
        return [everything[i] for i in np.linspace(0, len(everything) - 1, min(count, len(everything))).round().astype(int)]

    def discard(self, unwanted: Callable[[Observation], bool]) -> int:
        """Forget those; how many they were."""
        before = len(self)
        self._recent = deque(one for one in self._recent if not unwanted(one))
        self._reservoir = [one for one in self._reservoir if not unwanted(one)]
        return before - len(self)

    def clear(self) -> None:
        """Forget all of them."""
        self._recent.clear()
        self._reservoir.clear()
        self.seen = self._passed_on = 0

    @property
    def contents(self) -> tuple[list[Observation], list[Observation]]:
        """The recent part and the reservoir, oldest first."""
        return list(self._recent), list(self._reservoir)

    def refill(self, recent: Sequence[Observation], reservoir: Sequence[Observation], seen: int) -> None:
        """Go on from these, as far as there is room, in place of what is there; `seen`: observations that ever came."""
        self._recent = deque(recent[-self._sizes[0]:])
        self._reservoir = list(reservoir[:self._sizes[1]])
        self.seen = max(seen, len(self))
        self._passed_on = self.seen - len(self._recent)

    @property
    def capacity(self) -> int:
        """How many it holds at most."""
        return sum(self._sizes)

    @property
    def parts(self) -> tuple[int, int]:
        """How many are in the recent part and in the reservoir."""
        return len(self._recent), len(self._reservoir)


def pair_batch(observations: Sequence[Observation]) -> PairBatch:
    """The pairs of observations of one size; their inverse depth [1/baseline] is that of the hits."""
    hits = stacked(observations, 'hits')
    valid = hits > 0
    images = [image_tensor(np.stack([getattr(o, name) for o in observations])) for name in ('image1', 'image2')]
    flow, prior = (torch.from_numpy(np.stack([getattr(o, name) for o in observations])).permute(0, 3, 1, 2).float() for name in ('flow', 'prior'))
    K, T = (torch.from_numpy(np.stack([getattr(o, name) for o in observations])) for name in ('K', 'T_2_1'))
    inverse_depth = torch.where(valid, lengths(observations) / torch.where(valid, hits, 1.0), 0.0)
    return PairBatch(*images, flow, inverse_depth, valid, K, T, torch.zeros_like(flow), torch.zeros_like(valid), prior)


def stacked(observations: Sequence[Observation], plane: str) -> Tensor:
    """One of the planes hits | carried | guide as (B, 1, H, W) [m]."""
    return torch.from_numpy(np.stack([getattr(o, plane) for o in observations]))[:, None]


def lengths(observations: Sequence[Observation]) -> Tensor:
    """(B, 1, 1, 1) [m]: what turns depth in baselines into metres."""
    return torch.tensor([o.step_length for o in observations]).view(-1, 1, 1, 1)
