"""A depth network that goes on learning while the robot drives, from the few hits of a laser or rangefinder.

It learns on a copy, from image pairs whose motion is known in metres: predicted depth in units of the baseline, times the length of the step, is compared with the hits of
the image, with hits of the last seconds that have come to lie elsewhere in it, and, with less weight, with confident depth from flow. What it says is of any network here
that takes pairs (models/layers.Pairs). Weights are drawn back to those that learning began with (X. Li, Y. Grandvalet, F. Davoine, "Explicit inductive bias for transfer
learning with convolutional networks", ICML 2018), and are handed out only when the error on what was withheld from learning has fallen.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros import files, settings
from depth_ros.engines import online_weights
from depth_ros.engines.global_local import network_pair
from depth_ros.engines.hit_memory import HitMemory
from depth_ros.engines.observation_gate import ObservationGate, weight_of
from depth_ros.engines.online_loss import observed_loss, rehearsed_error, robust
from depth_ros.engines.online_settings import OnlineLearnerConfig, Progress, State
from depth_ros.engines.range_projection import resize_hits
from depth_ros.engines.rehearsal import Rehearsal
from depth_ros.engines.replay_buffer import Observation, ReplayBuffer, observation
from depth_ros.engines.threads import give_way
from depth_ros.engines.update_guard import Checked, Errors, Verdict, is_worse, judge
from depth_ros.frames import DepthResult, FlowResult
from depth_ros.learning.pairs import PairBatch
from depth_ros.models import checkpoint

log = logging.getLogger(__name__)

_LEAST_SHARE = 1 / 16       # of the configured rate, below which rolling back does not bring it
_RECOVERY = 1.3             # by which the rate recovers with every good round
_RUNAWAY = 4.0              # times the usual loss, at which a round is broken off


class OnlineLearner:
    """Takes observations, learns from them and hands out weights. Everything public may be called from any thread; `state` and `reason` say how it is going."""

    def __init__(self, start: checkpoint.Loaded, config: OnlineLearnerConfig = OnlineLearnerConfig(), offer: Callable[[bytes], object] | None = None,
                 rehearsal: PairBatch | None = None) -> None:
        """`start`: the shipped network. `offer` is given new weights as bytes of a checkpoint. `rehearsal`: synthetic pairs, most to learn from and some to check by (rehearsal.py)."""
        settings.check(config)
        self.config, self._start, self._offer = config, start, offer
        self._rehearsal = None if rehearsal is None else Rehearsal(rehearsal, config.seed)
        self._frozen = Checked(copy.deepcopy(start.model))
        # Taken in this order. Who hands out holds only the first: files and publishers are slow.
        self._handing_out, self._learning, self._observing, self._there = threading.RLock(), threading.RLock(), threading.Lock(), threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._paused = False
        self.reset()

    def reset(self) -> None:
        """Begin anew with the shipped weights and nothing remembered."""
        with self._handing_out, self._learning, self._observing:
            config, self._new = self.config, None
            checks = max(1, round(config.withheld_share * config.recent)), round(config.withheld_share * config.reservoir)
            self._buffer, self._withheld = ReplayBuffer(config.recent, config.reservoir, config.seed), ReplayBuffer(*checks, config.seed)
            self._memory = HitMemory(config.carry_seconds)
            self._entry = ObservationGate()
            self._size: tuple[int, int] | None = None
            self._gate, self._missing, self._why_back = State.MOTION, 'no image pair has come yet', ''
            self._fresh = self._moving = 0
            self._watched: deque[Observation] = deque(maxlen=config.watched)
            self._unlooked, self._not_taken = False, ''
            self.progress = Progress(rate=config.rate)
            self._take(copy.deepcopy(self._start.model))

    def _take(self, good: nn.Module) -> None:
        """Learn on from these weights."""
        self._good = Checked(good)
        self._begin_at_good()
        self._batch_size = self.config.batch

    def _begin_at_good(self) -> None:
        self._model = copy.deepcopy(self._good.network).train()
        self._averaged = copy.deepcopy(self._good.network)
        self._optimiser = torch.optim.Adam(self._model.parameters(), lr=self.progress.rate, betas=(0.9, 0.99))
        self._losses: list[float] = []      # of the batches since the last check
        self._without_gain, self._was_rolled_back = 0, self.progress.serves_frozen

    @property
    def state(self) -> State:
        """What it is doing; `reason` says why."""
        if self._paused:
            return State.PAUSED
        if self._gate is not State.LEARNING:
            return self._gate
        return State.ROLLED_BACK if self._was_rolled_back else State.LEARNING

    @property
    def reason(self) -> str:
        """Why it does not learn, or was rolled back; '' while it learns."""
        if self._gate is not State.LEARNING:
            return self._missing
        return self._why_back if self._was_rolled_back else ''

    @property
    def concern(self) -> str:
        """What is odd though it learns: weights that could not be handed out, or many hits that are wild; '' if nothing is."""
        return self._not_taken or self._entry.concern

    @property
    def buffered(self) -> dict[str, int]:
        """Observations that are remembered, by part."""
        (recent, reservoir), withheld = self._buffer.parts, len(self._withheld)
        return {'recent': recent, 'reservoir': reservoir, 'withheld': withheld}

    def observe(self, result: FlowResult, T_2_1: np.ndarray | None, hits: np.ndarray | None, T_odom_cam: np.ndarray | None = None,
                guide: DepthResult | None = None) -> bool:
        """Take in a pair at the network's size; whether it was taken, else `state` and `reason` say what is missing.

        T_2_1 (4, 4) [m] is its motion, None if not known; hits (h, w) [m] at any size, 0 or NaN where none. With the pose T_odom_cam (4, 4) [m] the hits go on to teach
        later images. `guide`: metric depth of image 1 from flow, at any size.
        """
        with self._observing:
            gate, reason = State.MOTION, self._entry.missing(result, T_2_1, T_odom_cam, self.config)
            if not reason:
                gate, reason = self._admit(result, T_2_1, hits, T_odom_cam, guide)
            self._gate, self._missing = gate, reason
        if gate is State.LEARNING or self._unlooked:
            with self._there:
                self._fresh = min(self._fresh + self.config.eagerness, self.config.recent)
                self._there.notify()
        return gate is State.LEARNING

    def _admit(self, result: FlowResult, T_2_1: np.ndarray, hits: np.ndarray | None, T_odom_cam: np.ndarray | None, guide: DepthResult | None) -> tuple[State, str]:
        """Remember a pair that moves, unless its hits are not believed. One without hits tells of depth from flow and of earlier hits, from which is learned when there are hits again."""
        frame = result.pair.current
        self._fit(frame.size)
        small = np.zeros(frame.size[::-1], np.float32) if hits is None else resize_hits(hits, frame.size)
        count = int((small > 0).sum())
        self._watch(result, T_2_1, small, guide)
        few = count < self.config.min_hits
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

    def _watch(self, result: FlowResult, T_2_1: np.ndarray, hits: np.ndarray, guide: DepthResult | None) -> None:
        """Keep some of the pairs that move, with hits or without, to see what learning does to places that are new."""
        self._moving += 1
        if guide is not None and self._moving % self.config.watch_every == 0:
            self._watched.append(observation(result, T_2_1, np.zeros_like(hits), guide=guide))
            self._unlooked = True

    def _look_around(self) -> None:
        """Hand out the frozen weights while they do better on the newest pairs than the learned ones, which go on learning, or while the hits are not trusted."""
        with self._observing:
            newest, self._unlooked, distrusts = list(self._watched), False, self._entry.distrusts
        if self.progress.updates == 0 or (len(newest) < self.config.watched and not distrusts):
            return
        learned, frozen = (network.errors(newest) for network in (self._good, self._frozen))
        if not self.progress.serves_frozen and (distrusts or is_worse(learned, frozen, self.config.harm)):
            self.progress.serves_frozen = self._was_rolled_back = True
            self.progress.rollbacks += 1
            self._why_back = 'what the hits taught is not trusted' if distrusts else (
                f'on the newest pairs the learned error is {learned.total:.4f}, that of the frozen network {frozen.total:.4f}')
            self._why_back += ': the frozen one is back'
            log.info('rolled back: %s', self._why_back)
            self._hand_out()
        elif self.progress.serves_frozen and not distrusts and learned.total < frozen.total:
            self.progress.serves_frozen = self._was_rolled_back = False
            self._hand_out()

    def _hand_out(self) -> None:
        """Have what is best now given away, under a new number, as soon as the learning is done."""
        self.progress.number += 1
        self._new = self.weights()

    def _deliver(self) -> None:
        with self._handing_out:
            blob, offer, self._new = self._new, self._offer, None
            if blob is None or offer is None:
                return
            self._not_taken = ''
            try:
                offer(blob)
            except Exception as error:      # of whoever takes them: what was learned is good all the same
                self._not_taken = f'weights could not be handed out: {type(error).__name__}: {error}'
                log.exception('weights could not be handed out')

    @property
    def _served(self) -> nn.Module:
        """What others are to have: the last good network, or the frozen one while that does better or hits are not trusted."""
        return (self._frozen if self.progress.serves_frozen else self._good).network

    def _fit(self, size: tuple[int, int]) -> None:
        """Forget pairs of another size (width, height) [px]: no batch can hold both."""
        if self._size not in (None, size):
            log.warning('images of %d x %d pixels come in place of %d x %d: what is remembered begins anew', *size, *self._size)
            self._buffer.clear()
            self._withheld.clear()
            self._memory.clear()
        self._size = size

    def _withholds(self) -> bool:
        """Whether the next observation is one to judge by: whole runs are, as neighbours in time are all but the same."""
        run = self.progress.observed // self.config.withheld_run
        every = max(2, round(1 / self.config.withheld_share))
        return run % every == every - 1 or (run % every == 1 and len(self._withheld) < self._enough)

    def learn(self, batches: int) -> State:
        """Learn from so many batches now, checking the weights after every round of them, or from none if the state is not one to learn in."""
        if self._unlooked and not self._paused:
            with self._learning:
                self._look_around()
            self._deliver()
        for _ in range(batches):
            if not self._ready():
                break
            with self._learning:
                self._step()
            self._deliver()
        return self.state

    def _ready(self) -> bool:
        return not self._paused and self._gate is State.LEARNING and len(self._buffer) > 0 and len(self._withheld) >= self._enough

    @property
    def _enough(self) -> int:
        """Withheld observations that may judge: a whole run where that can be, as a single one says little."""
        return min(self.config.withheld_run, self.config.checks, self._withheld.capacity)

    def _step(self) -> None:
        started = time.perf_counter()
        with self._observing:
            some = self._buffer.draw(self._batch_size)
        self._optimiser.zero_grad()
        loss = self._loss(some)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self.config.clip)
        value = loss.item()
        if not (np.isfinite(value) and torch.isfinite(norm)):
            self._roll_back(f'the loss {value} or its gradient is not finite')
            return
        if len(self._losses) >= 2 and value > _RUNAWAY * float(np.median(self._losses)):
            self._roll_back(f'the loss rose to {value:.4f} within a round')
            return
        self._optimiser.step()
        online_weights.draw_back(self._model, self._frozen.network, self.config.anchor)
        online_weights.follow(self._averaged, self._model, self.config.averaged)
        self._losses.append(value)
        self.progress.batches += 1
        self._keep_time(time.perf_counter() - started, len(some))
        if len(self._losses) >= self.config.round:
            self._check()

    def _loss(self, some: list[Observation]) -> Tensor:
        loss = observed_loss(self._model, some, self.config)
        if self._rehearsal is not None and self.config.rehearsal_weight > 0:
            error, known = rehearsed_error(self._model, self._rehearsal.draw(len(some)))
            loss = loss + self.config.rehearsal_weight * robust(error, known.float())
        return loss

    def _keep_time(self, seconds: float, count: int) -> None:
        """Make the thread's batches as large as the time allows. Those of a caller stay as wished: the same observations are to give him the same weights on any machine."""
        if threading.current_thread() is not self._thread:
            return
        self._batch_size = int(np.clip(self.config.max_batch_seconds * count / max(seconds, 1e-9), 1, self.config.batch))

    def _check(self) -> None:
        with self._observing:
            checks = self._withheld.spread(self.config.checks)
        unlearned = None if self._rehearsal is None else self._rehearsal.checks
        new = Checked(copy.deepcopy(self._averaged))
        errors, good, frozen = (network.errors(checks, unlearned) for network in (new, self._good, self._frozen))
        judgement = judge(errors, good, frozen, self.config.tolerance, self.config.forgetting)
        self._losses = []
        self._note(frozen, errors if judgement.verdict is Verdict.BETTER else good)
        if judgement.verdict is Verdict.BETTER:
            self._accept(new)
            return
        self._without_gain += 1
        if judgement.verdict is Verdict.WORSE or self._without_gain >= self.config.patience:
            self._roll_back(judgement.reason)

    def _note(self, frozen: Errors, good: Errors) -> None:
        progress = self.progress
        progress.withheld_before, progress.away_before = frozen.withheld, frozen.away
        progress.withheld_after, progress.away_after = good.withheld, good.away

    def _accept(self, new: Checked) -> None:
        progress = self.progress
        self._good, self._without_gain = new, 0
        progress.updates += 1
        self._set_rate(min(self.config.rate, _RECOVERY * progress.rate))
        if not self.progress.serves_frozen:
            self._was_rolled_back = False
            self._hand_out()

    def _roll_back(self, reason: str) -> None:
        """Bring back the last good weights, bit for bit, and learn more slowly."""
        progress = self.progress
        progress.rollbacks += 1
        progress.rate = max(_LEAST_SHARE * self.config.rate, progress.rate / 2)
        self._begin_at_good()
        self._was_rolled_back, self._why_back = True, f'{reason}; back at weights {progress.number} with a rate of {progress.rate:.1e}'
        log.info('rolled back: %s', self._why_back)

    def _set_rate(self, rate: float) -> None:
        self.progress.rate = rate
        for group in self._optimiser.param_groups:
            group['lr'] = rate

    def weights(self) -> bytes:
        """The weights that are handed out as a checkpoint, with their number and the learner's figures in the record."""
        with self._learning:
            return self._blob(self._served)

    def _blob(self, network: nn.Module) -> bytes:
        figures = {**asdict(self.progress), 'buffer': self.buffered}
        return checkpoint.to_bytes(self._start.name, network, {**self._start.record, 'number': self.progress.number, 'online': figures})

    def save(self, path: str | Path) -> None:
        """Write the last good weights and the figures, whole or not at all; a checkpoint like any other, though while `progress.serves_frozen` not one to use."""
        with self._learning:
            blob = self._blob(self._good.network)
        with files.whole(path, durable=True) as partial:        # which takes its time, and learning goes on
            partial.write_bytes(blob)

    def restore(self, path: str | Path) -> None:
        """Go on from what save wrote; what is remembered begins anew. Raises ValueError, naming the file, for another network's, and then changes nothing."""
        saved = checkpoint.load(path, self._start.name)
        if saved.model.config != self._start.model.config:
            raise ValueError(f'{path}: expected a network of {self._start.model.config}, got {saved.model.config}')
        figures = {k: v for k, v in saved.record.get('online', {}).items() if k in asdict(Progress())}
        if not figures:
            raise ValueError(f'{path}: holds no figures of an online learner')
        with self._learning, self._observing:
            self.progress = Progress(**{**figures, 'rate': min(figures.get('rate', self.config.rate), self.config.rate)})
            self._take(saved.model)
            self._why_back = 'what was learned before the restart did harm: the frozen network is back'

    def depths(self, result: FlowResult, T_2_1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth (H, W) [m] of a pair's current image by the network that learning began with and by the one that is handed out; T_2_1 (4, 4) [m] is its motion."""
        length = np.float32(np.linalg.norm(T_2_1[:3, 3]))
        pair = network_pair(result, T_2_1)
        with torch.no_grad():
            before, after = (length / network(*network.inputs(pair))[0, 0].numpy() for network in (self._frozen.network, self._served))
        return before, after

    def change(self, config: OnlineLearnerConfig) -> None:
        """Go on with other settings; sizes of what is remembered, and the seed, take effect with the next reset."""
        settings.check(config)
        if config.rate != self.config.rate:
            self._set_rate(config.rate)
        self.config = config

    def forget_places(self) -> None:
        """The odometry jumped: hits of earlier images no longer lie where its poses say."""
        with self._observing:
            self._memory.clear()

    def miss(self, reason: str) -> None:
        """Nothing comes to observe: wait for motion, and say why."""
        with self._observing:
            self._gate, self._missing = State.MOTION, reason

    def offer_to(self, offer: Callable[[bytes], object] | None) -> None:
        """Give new weights to this from now on."""
        self._offer = offer

    def pause(self, paused: bool = True) -> None:
        """Learn nothing until told otherwise; observations are still taken in."""
        self._paused = paused
        with self._there:
            self._there.notify()

    def start(self) -> None:
        """Learn in a thread of its own from now on, as observations come, within the CPU budget."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._work, name='online_learner', daemon=True)
            self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread, after the batch that it is at; False if that took longer than the timeout [s]."""
        self._stopping.set()
        with self._there:
            self._there.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _work(self) -> None:
        give_way(self.config.niceness)
        torch.set_num_threads(1)
        while not self._stopping.is_set():
            with self._there:
                self._there.wait_for(lambda: self._stopping.is_set() or (self._fresh > 0 and not self._paused))
                self._fresh = max(0, self._fresh - 1)
            before = time.thread_time()
            try:
                self.learn(0 if self._stopping.is_set() else 1)
            except Exception as error:      # such as no memory left: told as state and reason, and tried again
                log.exception('a batch failed')
                with self._learning:
                    self._roll_back(f'a batch failed: {type(error).__name__}: {error}')
            used = time.thread_time() - before
            self._stopping.wait(used * (1 / self.config.share - 1))
