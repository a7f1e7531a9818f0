"""A depth network that goes on learning while the robot drives, from the few hits of a laser or rangefinder.

It learns on a copy, from image pairs whose motion is known in metres: predicted depth in units of the baseline, times the length of the step, is compared with the hits of
the image, with hits of the last seconds that have come to lie elsewhere in it, and, with less weight, with confident depth from flow. What it says is of any network of
depth (models/depth_model.DepthModel). Weights are drawn back to those that learning began with (X. Li, Y. Grandvalet, F. Davoine, "Explicit inductive bias for transfer
learning with convolutional networks", ICML 2018), and are handed out only when the error on what was withheld from learning has fallen.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros import files, settings
from depth_ros.engines import lineage, observation_file, online_weights
from depth_ros.engines.cpu_budget import CpuBudget
from depth_ros.engines.global_local import network_pair
from depth_ros.engines.learning_thread import LearningThread
from depth_ros.engines.online_intake import Intake
from depth_ros.engines.online_loss import observed_loss, rehearsed_error, robust
from depth_ros.engines.online_settings import OnlineLearnerConfig, Progress, State
from depth_ros.engines.rehearsal import Rehearsal
from depth_ros.engines.replay_buffer import Observation
from depth_ros.engines.served_weights import ServedWeights
from depth_ros.engines.update_guard import Checked, Errors, Verdict, judge
from depth_ros.frames import DepthResult, FlowResult
from depth_ros.learning.pairs import PairBatch
from depth_ros.models import checkpoint
from depth_ros.models.depth_model import DepthModel

log = logging.getLogger(__name__)

_LEAST_SHARE = 1 / 16       # of the configured rate, below which rolling back does not bring it
_RECOVERY = 1.3             # by which the rate recovers with every good round
_RUNAWAY = 4.0              # times the usual loss, at which a round is broken off
_STARVED = 0.2              # of the share, below which learning hardly gets on
_TAKING_IN = 0.5            # of the share, that taking pairs in may have: on a slow machine the rest must be left to learn


class OnlineLearner:
    """Takes observations, learns from them and hands out weights. Everything public may be called from any thread; `state` and `reason` say how it is going."""

    def __init__(self, start: checkpoint.Loaded, config: OnlineLearnerConfig = OnlineLearnerConfig(), offer: Callable[[bytes], object] | None = None,
                 rehearsal: PairBatch | None = None) -> None:
        """`start`: the shipped network. `offer` is given new weights as bytes of a checkpoint. `rehearsal`: synthetic pairs, most to learn from and some to check by (rehearsal.py)."""
        settings.check(config)
        self.config, self._start, self._offer = config, start, offer
        self._rehearsal = None if rehearsal is None else Rehearsal(rehearsal, config.seed, getattr(start.model.config, 'prior', False))
        self._frozen = Checked(copy.deepcopy(start.model))
        self._fingerprint = lineage.fingerprint(start.model)
        # Taken in this order. Who hands out holds only the first: files and publishers are slow.
        self._handing_out, self._learning = threading.RLock(), threading.RLock()
        self.budget = CpuBudget(config.share)       # charged by whoever does the learner's work, in whatever thread
        self._intake_budget = CpuBudget(_TAKING_IN * config.share)
        self._thread = LearningThread(partial(self.learn, 1), self._fail, self.budget, config.niceness, config.only_idle)
        self._paused = False
        self.reset()

    def reset(self) -> None:
        """Begin anew with the shipped weights and nothing remembered."""
        with self._handing_out, self._learning:
            self._new, self._not_taken, self._why_back = None, '', ''
            self.progress, self._lineage = Progress(rate=self.config.rate), lineage.begun(self._fingerprint)
            self._intake = Intake(self.config, self.progress)
            self._take(copy.deepcopy(self._start.model))

    def _take(self, good: DepthModel) -> None:
        """Learn on from these weights."""
        self._good = Checked(good)
        self._served = ServedWeights(self._frozen, self._good, self.config, self.progress)
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
        if self._thread.has_died:
            return State.DEAD
        if self._paused:
            return State.PAUSED
        if self._intake.gate is not State.LEARNING:
            return self._intake.gate
        return State.ROLLED_BACK if self._was_rolled_back else State.LEARNING

    @property
    def reason(self) -> str:
        """Why it does not learn, or was rolled back; '' while it learns."""
        if self._thread.has_died:
            return 'the thread that learns has ended unasked: deactivate and activate the node'
        if self._intake.gate is not State.LEARNING:
            return self._intake.missing
        return self._why_back if self._was_rolled_back else ''

    @property
    def setback(self) -> str:
        """Why weights were rolled back last, or the frozen ones serve; '' if they never were."""
        return self._why_back

    @property
    def concern(self) -> str:
        """What is odd though it learns: weights that could not be handed out, many hits that are wild, cores that others fill; '' if nothing is."""
        return self._not_taken or self._intake.concern or self._want

    @property
    def _want(self) -> str:
        if self._thread.got >= _STARVED * self.config.share:
            return ''
        return (f'the cores are full, learning gets less than {_STARVED * self.config.share:g} of one: replay slower (rate), let it compete (only_idle: false), let flow look at fewer images '
                '(max_share), or learn on another machine')

    @property
    def buffered(self) -> dict[str, int]:
        """Observations that are remembered, by part."""
        return self._intake.buffered

    @property
    def hangs(self) -> bool:
        """Whether the last pair had an image of a camera that hung: depth that was carried along from it is worth nothing."""
        return self._intake.hangs

    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """What the calling thread does inside to take a pair in counts as the learner's."""
        with self.budget.spending(), self._intake_budget.spending():
            yield

    @property
    def has_enough(self) -> bool:
        """Whether taking pairs in has had its part of the processor time for now: another one would be taken in at the cost of learning."""
        return self._intake_budget.pause() > 0

    def observe(self, result: FlowResult, T_2_1: np.ndarray | None, hits: np.ndarray | None, T_odom_cam: np.ndarray | None = None,
                guide: DepthResult | None = None) -> bool:
        """Take in a pair at the network's size; whether it was taken, else `state` and `reason` say what is missing.

        T_2_1 (4, 4) [m] is its motion, None if not known; hits (h, w) [m] at any size, 0 or NaN where none. With the pose T_odom_cam (4, 4) [m] the hits go on to teach
        later images. `guide`: metric depth of image 1 from flow, at any size, which teaches where it is sure, and which networks may begin with.
        """
        with self.taking_in():
            taken = self._intake.take(result, T_2_1, hits, T_odom_cam, guide)
        if taken or self._intake.unlooked:
            self._thread.grant(self.config.eagerness, self.config.recent)
        return taken

    def _look_around(self) -> None:
        """Hand out the frozen weights while they do better on the newest pairs than the learned ones, which go on learning, or while the hits are not trusted."""
        newest, distrusts = self._intake.glance()
        if self.progress.updates == 0:
            return
        is_new = self._served.ripen()
        why = self._served.leave(newest, distrusts)
        if why:
            self._was_rolled_back, self._why_back = True, f'{why}: the frozen one is back'
            self.progress.rollbacks += 1
            log.info('rolled back: %s', self._why_back)
        elif self._served.come_back(newest, distrusts):
            self._was_rolled_back = False
        elif not is_new:
            return
        self._hand_out()

    def _hand_out(self) -> None:
        """Have what is best now given away, under a new number, as soon as the learning is done."""
        progress = self.progress
        progress.number += 1
        log.info('weights %d: %s; error at withheld hits %s, at first %s; away from hits %s, at first %s', progress.number,
                 'the frozen ones' if progress.serves_frozen else f'{progress.trusted:.0%} of what was learned from {progress.batches} batches',
                 *map(_shown, (progress.withheld_after, progress.withheld_before, progress.away_after, progress.away_before)))
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

    def learn(self, batches: int) -> State:
        """Learn from so many batches now, checking the weights after every round of them, or from none if the state is not one to learn in."""
        if self._intake.unlooked and not self._paused:
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
        return not self._paused and self._intake.gate is State.LEARNING and self._intake.is_enough

    def _step(self) -> None:
        started = time.thread_time()
        some = self._intake.draw(self._batch_size)
        if not some:        # forgotten since the last look
            return
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
        self._keep_time(time.thread_time() - started, len(some))
        if len(self._losses) >= self.config.round:
            self._check()

    def _loss(self, some: list[Observation]) -> Tensor:
        loss = observed_loss(self._model, some, self.config)
        if self._rehearsal is not None and self.config.rehearsal_weight > 0:
            error, known = rehearsed_error(self._model, self._rehearsal.draw(len(some)))
            loss = loss + self.config.rehearsal_weight * robust(error, known.float())
        return loss

    def _keep_time(self, seconds: float, count: int) -> None:
        """Make the thread's batches as large as the processor time allows. Those of a caller stay as wished: the same observations are to give him the same weights on any machine."""
        if not self._thread.is_here:
            return
        self._batch_size = int(np.clip(self.config.max_batch_seconds * count / max(seconds, 1e-9), 1, self.config.batch))

    def _check(self) -> None:
        checks = self._intake.checks(self.config.checks)
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
        does_harm = judgement.verdict is Verdict.WORSE
        if does_harm or self._without_gain >= self.config.patience:
            self._roll_back(judgement.reason, is_idle=not does_harm)

    def _note(self, frozen: Errors, good: Errors) -> None:
        progress = self.progress
        progress.withheld_before, progress.away_before = frozen.withheld, frozen.away
        progress.withheld_after, progress.away_after = good.withheld, good.away

    def _accept(self, new: Checked) -> None:
        progress = self.progress
        self._good, self._without_gain = new, 0
        self._served.take(new)
        progress.updates += 1
        self._set_rate(min(self.config.rate, _RECOVERY * progress.rate))
        if not self.progress.serves_frozen:
            self._was_rolled_back = False
            self._hand_out()

    def _roll_back(self, reason: str, is_idle: bool = False) -> None:
        """Bring back the last good weights, bit for bit, and learn more slowly; as fast as at first, if the slowest rate has been idle: no gain would bring it back."""
        progress, slowest = self.progress, _LEAST_SHARE * self.config.rate
        progress.rollbacks += 1
        progress.rate = self.config.rate if is_idle and progress.rate <= slowest else max(slowest, progress.rate / 2)
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
            return self._blob(self._served.network)

    def _blob(self, network: DepthModel) -> bytes:
        figures = {**asdict(self.progress), 'buffer': self.buffered}
        return checkpoint.to_bytes(self._start.name, network, self._lineage.noted({**self._start.record, 'online': figures}, self.progress.number))

    def export(self, path: str | Path) -> int:
        """Write what is handed out, whole or not at all: a checkpoint like any other; its number. Raises ValueError while those are the first weights."""
        with self._learning:
            progress, reason = self.progress, self.reason
            if not progress.number:
                raise ValueError('; '.join(filter(None, (f'nothing has been learned yet, from {progress.observed} pairs since learning began', f'now: {reason or self.state.value}', self.concern))))
            if progress.serves_frozen:
                raise ValueError(f'nothing worth keeping: {reason or "the frozen weights are handed out"}')
            blob = self._blob(self._served.network)
        _write(path, blob)
        return progress.number

    def save(self, path: str | Path) -> None:
        """Write the last good weights and the figures, from which restore goes on, whole or not at all; whatever is handed out instead of them."""
        with self._learning:
            blob = self._blob(self._good.network)
        _write(path, blob)      # which takes its time, and learning goes on

    def restore(self, path: str | Path) -> None:
        """Go on from the weights and figures that save wrote. Raises ValueError, naming the file, for what was learned from other weights, and then changes nothing."""
        saved = checkpoint.load(path, self._start.name)
        if saved.model.config != self._start.model.config:
            raise ValueError(f'{path}: expected a network of {self._start.model.config}, got {saved.model.config}')
        figures = {k: v for k, v in saved.record.get('online', {}).items() if k in asdict(Progress())}
        if not figures:
            raise ValueError(f'{path}: holds no figures of an online learner')
        descent = lineage.noted_in(saved.record) or self._lineage
        if descent.start != self._fingerprint:
            raise ValueError(f'{path}: it was learned from other weights ({descent.start}) than those given ({self._fingerprint})')
        with self._learning:
            self._lineage = lineage.resumed(descent)
            figures.setdefault('trusted', min(1.0, figures.get('observed', 0) / self.config.trusted_after))
            self.progress = self._intake.progress = Progress(**{**figures, 'rate': min(figures.get('rate', self.config.rate), self.config.rate)})
            self._take(saved.model)
            self._why_back = 'what was learned before the restart did harm: the frozen network is back'

    def save_observations(self, path: str | Path, most: int) -> int:
        """Write at most so many of what is remembered, whole or not at all; how many they are. Raises OSError."""
        return observation_file.write(path, self._intake.kept(), most)

    def restore_observations(self, path: str | Path) -> int:
        """Remember what was written, how many; raises ValueError, naming the file, for one that cannot be used, and OSError, and then changes nothing."""
        kept = observation_file.read(path)
        self._intake.refill(kept)
        return len(kept)

    def depths(self, result: FlowResult, T_2_1: np.ndarray, guide: DepthResult | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Depth (H, W) [m] of a pair's current image by the network that learning began with and by the one that is handed out; T_2_1 (4, 4) [m] is its motion.

        `guide`: metric depth of that image from flow, at any size.
        """
        length = np.float32(np.linalg.norm(T_2_1[:3, 3]))
        pair = network_pair(result, T_2_1, guide)
        with torch.no_grad():
            before, after = (length / network(*network.inputs(pair))[0, 0].numpy() for network in (self._frozen.network, self._served.network))
        return before, after

    def change(self, config: OnlineLearnerConfig) -> None:
        """Go on with other settings, from the next batch on; sizes of what is remembered, and the seed, take effect with the next reset."""
        settings.check(config)
        with self._learning:
            if config.rate != self.config.rate:
                self._set_rate(config.rate)
            if config.batch != self.config.batch:
                self._batch_size = config.batch
            self.config = self._intake.config = self._served.config = config
            self.budget.share, self._intake_budget.share = config.share, _TAKING_IN * config.share

    def forget_places(self) -> None:
        """The odometry jumped: hits of earlier images no longer lie where its poses say."""
        self._intake.forget_places()

    def miss(self, reason: str) -> None:
        """Nothing comes to observe: wait for motion, and say why."""
        self._intake.miss(reason)

    def offer_to(self, offer: Callable[[bytes], object] | None) -> None:
        """Give new weights to this from now on."""
        self._offer = offer

    def pause(self, paused: bool = True) -> None:
        """Learn nothing until told otherwise; observations are still taken in."""
        self._paused = paused
        self._thread.hold(paused)

    def start(self) -> None:
        """Learn in a thread of its own from now on, as observations come, within the CPU budget."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread, after the batch that it is at; False if that took longer than the timeout [s]."""
        return self._thread.stop(timeout)

    def _fail(self, error: Exception) -> None:
        with self._learning:
            self._roll_back(f'a batch failed: {type(error).__name__}: {error}')


def _write(path: str | Path, blob: bytes) -> None:
    with files.whole(path, durable=True) as partial:
        partial.write_bytes(blob)


def _shown(error: float | None) -> str:
    return 'unknown' if error is None else f'{error:.4f}'
