"""What an online learner takes in and remembers of what a robot saw, and why it does not take the rest."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from depth_ros.engines.hanging_image import HangingImage
from depth_ros.engines.hit_memory import HitMemory
from depth_ros.engines.observation_file import Kept
from depth_ros.engines.observation_gate import ObservationGate, weight_of
from depth_ros.engines.online_settings import OnlineLearnerConfig, Progress, State
from depth_ros.engines.range_projection import resize_hits
from depth_ros.engines.replay_buffer import Observation, ReplayBuffer, observation
from depth_ros.frames import DepthResult, FlowResult

log = logging.getLogger(__name__)


class Glance(NamedTuple):
    """What the newest pairs tell of the weights that others have."""

    newest: list[Observation]       # without their hits
    distrusts: bool                 # whether hits have missed for a while


class Intake:
    """Observations to learn from and to judge by, as far as they are believed. Safe across threads."""

    def __init__(self, config: OnlineLearnerConfig, progress: Progress) -> None:
        """`progress`: figures that it counts on."""
        checks = max(1, round(config.withheld_share * config.recent)), round(config.withheld_share * config.reservoir)
        self.config, self.progress = config, progress
        self.gate, self.missing = State.MOTION, 'no image pair has come yet'
        self.unlooked = False               # whether pairs came since the last glance
        self.hangs = False                  # whether the last pair had an image of a camera that hung: what is carried along from it is worth nothing
        self._buffer, self._withheld = ReplayBuffer(config.recent, config.reservoir, config.seed), ReplayBuffer(*checks, config.seed)
        self._memory = HitMemory(config.carry_seconds)
        self._entry, self._still = ObservationGate(), HangingImage()
        self._hung = -1         # stamp [ns] of the image that was forgotten last
        self._size: tuple[int, int] | None = None
        self._moving = 0
        self._watched: deque[Observation] = deque(maxlen=2 * config.watched)
        self._lock = threading.Lock()

    def take(self, result: FlowResult, T_2_1: np.ndarray | None, hits: np.ndarray | None, T_odom_cam: np.ndarray | None, guide: DepthResult | None) -> bool:
        """See OnlineLearner.observe; whether the pair is one to learn from now, else `gate` and `missing` say why not."""
        with self._lock:
            hanging = self._still.step(result.pair, T_odom_cam, T_2_1, hits)
            self.hangs = bool(hanging)
            self._drop_hung()
            gate, reason = State.MOTION, self._entry.missing(result, T_2_1, hanging, self.config)
            if not reason:
                gate, reason = self._admit(result, T_2_1, hits, T_odom_cam, guide)
            self.gate, self.missing = gate, reason
            return gate is State.LEARNING

    def _drop_hung(self) -> None:
        """Forget what was taken in before it was noticed that the camera hung."""
        hung = self._still.hung
        if hung is None or hung.stamp == self._hung:
            return
        self._hung = hung.stamp
        shows = lambda one: one.stamp >= hung.stamp and (hung.is_of(one.image1) or hung.is_of(one.image2))
        dropped = self._buffer.discard(shows) + self._withheld.discard(shows)
        self._watched = deque([one for one in self._watched if not shows(one)], maxlen=self._watched.maxlen)
        log.warning('the camera hangs: %d observations of its last image, taken in before that was noticed, are forgotten', dropped)

    def _admit(self, result: FlowResult, T_2_1: np.ndarray, hits: np.ndarray | None, T_odom_cam: np.ndarray | None, guide: DepthResult | None) -> tuple[State, str]:
        """Remember a pair that moves, unless its hits are not believed. One without hits tells of depth from flow and of earlier hits, from which is learned when there are hits again."""
        frame = result.pair.current
        self._fit(frame.size)
        small = np.zeros(frame.size[::-1], np.float32) if hits is None else resize_hits(hits, frame.size)
        count = int((small > 0).sum())
        self._watch(result, T_2_1, small, guide)
        few = count < self.config.min_hits
        if few:
            self._entry.pass_over()
        if few and not self.config.without_hits:
            return State.HITS, self._few(count)
        withheld = self._withholds()
        trail = T_odom_cam is not None and not withheld and self.config.carry_seconds > 0
        carried = self._memory.seen(frame.stamp, frame.K, frame.size, T_odom_cam) if trail else None
        new = observation(result, T_2_1, np.zeros_like(small) if few else small, carried, guide)
        reason = '' if few else self._entry.contradiction(new, self.config)
        if reason or not (new.hits.any() or new.carried.any() or new.guide.any()):
            return State.HITS, reason or self._few(count)
        if trail and not few:
            self._memory.add(frame.stamp, small, frame.K, T_odom_cam)
        (self._withheld if withheld else self._buffer).add(replace(new, weight=weight_of(new, self.config)))
        self.progress.observed += 1
        self.progress.hits += 0 if few else count
        self.progress.withheld += 0 if few else count * withheld
        return (State.HITS, self._few(count)) if few else (State.LEARNING, '')

    def _few(self, count: int) -> str:
        return f'{count} range hits are in view, less than min_hits {self.config.min_hits}'

    def _fit(self, size: tuple[int, int]) -> None:
        """Forget pairs of another size (width, height) [px]: no batch can hold both."""
        if self._size not in (None, size):
            log.warning('images of %d x %d pixels come in place of %d x %d: what is remembered begins anew', *size, *self._size)
            self._buffer.clear()
            self._withheld.clear()
            self._memory.clear()
        self._size = size

    def _watch(self, result: FlowResult, T_2_1: np.ndarray, hits: np.ndarray, guide: DepthResult | None) -> None:
        """Keep some of the pairs that move, with hits or without, to see what learning does to places that are new."""
        self._moving += 1
        if guide is not None and self._moving % self.config.watch_every == 0:
            self._watched.append(observation(result, T_2_1, np.zeros_like(hits), guide=guide))
            self.unlooked = True

    def _withholds(self) -> bool:
        """Whether the next observation is one to judge by: whole runs are, as neighbours in time are all but the same."""
        run = self.progress.observed // self.config.withheld_run
        every = max(2, round(1 / self.config.withheld_share))
        return run % every == every - 1 or (run % every == 1 and len(self._withheld) < self._needed)

    def miss(self, reason: str) -> None:
        """Nothing comes: wait for motion, and say why."""
        with self._lock:
            self.gate, self.missing = State.MOTION, reason

    def forget_places(self) -> None:
        """Hits of earlier images no longer lie where their poses say."""
        with self._lock:
            self._memory.clear()

    def glance(self) -> Glance:
        """The newest pairs, which then count as looked at."""
        with self._lock:
            self.unlooked = False
            return Glance(list(self._watched), self._entry.distrusts)

    def draw(self, count: int) -> list[Observation]:
        """Some observations to learn from, none if there are none."""
        with self._lock:
            return self._buffer.draw(count) if len(self._buffer) else []

    def checks(self, count: int) -> list[Observation]:
        """At most so many observations to judge by, the same for the same content."""
        with self._lock:
            return self._withheld.spread(count)

    def kept(self) -> Kept:
        """All that is remembered."""
        with self._lock:
            return Kept(*self._buffer.contents, *self._withheld.contents, seen=(self._buffer.seen, self._withheld.seen))

    def refill(self, kept: Kept) -> None:
        """Go on from what was remembered once, in place of what is."""
        with self._lock:
            self._buffer.refill(kept.recent, kept.reservoir, kept.seen[0])
            self._withheld.refill(kept.withheld_recent, kept.withheld_reservoir, kept.seen[1])
            first = next((one for part in kept.parts for one in part), None)
            self._size = None if first is None else first.image1.shape[1::-1]

    @property
    def buffered(self) -> dict[str, int]:
        """Observations that are remembered, by part."""
        (recent, reservoir), withheld = self._buffer.parts, len(self._withheld)
        return {'recent': recent, 'reservoir': reservoir, 'withheld': withheld}

    @property
    def concern(self) -> str:
        """What is odd about the hits though they are learned from; '' if nothing is."""
        return self._entry.concern

    @property
    def is_enough(self) -> bool:
        """Whether there is something to learn from, and enough to judge by."""
        return len(self._buffer) > 0 and len(self._withheld) >= self._needed

    @property
    def _needed(self) -> int:
        """Withheld observations that may judge: a whole run where that can be, as a single one says little."""
        return min(self.config.withheld_run, self.config.checks, self._withheld.capacity)
