"""Pairs without an end, rendered while a training goes on: on a GPU or on spare cores, by processes of their own, a few rounds ahead.

A round is a shard of fresh scenes, shuffled; a pair is a function of the seed and its index alone, so that a training that was broken off goes on
as if it had not been. Several processes of one training each render all rounds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import torch

from depth_ros import settings
from depth_ros.learning.pairs import FlowFunction, PairBatch, PairData, PairStore, write_shard
from depth_ros.learning.scenes import SPLITS, scene_pairs
from depth_ros.settings import setting


@dataclass(frozen=True)
class EndlessData(PairData):
    """Pairs to train on that are made as they are needed, whatever `train` says; the other splits are stores."""

    round: int = setting(256, 'pairs that are rendered and shuffled at a time', 'pairs', 1, 65536)
    device: str = setting('cpu', 'what renders: cpu, or a GPU such as cuda')
    together: int = setting(1, 'paths that are rendered at once; some tens suit a GPU', '', 1, 256)
    workers: int = setting(1, 'processes that render; 0: a thread of this one', '', 0, 64)
    ahead: int = setting(2, 'rounds that wait rendered', '', 1, 64)


class SyntheticPairs(contextlib.AbstractContextManager):
    """A store of pairs that nobody has seen before. Leave the context (or close) to end the processes and remove what they wrote."""

    def __init__(self, data: EndlessData, make_flow: Callable[[], FlowFunction], count: int, split: str = 'train') -> None:
        """make_flow: called once in each process, so it must be importable there; what it returns makes the flow. Raises ValueError for settings out of range."""
        settings.check(data)
        if split not in SPLITS:
            raise ValueError(f'expected a split of {", ".join(SPLITS)}, got {split!r}')
        self._count = count
        self._data, self._split = data, split
        self._folder = tempfile.TemporaryDirectory(prefix='depth_ros-pairs-')
        self._pool: Executor
        if data.workers:    # spawned: a forked process can neither use CUDA nor rely on the state of torch's threads
            self._pool = ProcessPoolExecutor(data.workers, multiprocessing.get_context('spawn'), _start, (data, split, make_flow))
        else:
            self._pool = ThreadPoolExecutor(1, 'pairs', _keep, (data, split, make_flow))
        self._rounds: dict[int, Future[None]] = {}
        self._open: tuple[int, PairStore] | None = None

    def __len__(self) -> int:
        """How many are wanted; there are always more."""
        return self._count

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self._data.height, self._data.width

    def batch(self, indices: Sequence[int] | np.ndarray) -> PairBatch:
        """The pairs of these indices, in rising order of their rounds. Any may be asked for; on from the last ones is fast."""
        numbers, places = np.divmod(np.asarray(indices, np.int64), self._data.round)
        parts = [self._of_round(int(number), places[numbers == number]) for number in np.unique(numbers)]
        return PairBatch.joined(parts)

    def _of_round(self, number: int, places: np.ndarray) -> PairBatch:
        if self._open is None or self._open[0] != number:
            self._open = number, self._rendered(number)
        order = np.random.default_rng([self._data.seed, number, 2]).permutation(self._data.round)
        return self._open[1].batch(order[places])

    def close(self) -> None:
        """End the processes; what is being rendered is thrown away."""
        self._open = None
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _rendered(self, number: int) -> PairStore:
        """A round, rendered now if it was not ahead of time; the next ones are asked for."""
        wanted = range(number, number + self._data.ahead + 1)
        for old in [n for n in self._rounds if n not in wanted]:
            self._rounds.pop(old).cancel()
            self._path(old).unlink(missing_ok=True)
        for n in wanted:
            if n not in self._rounds:
                self._rounds[n] = self._pool.submit(_render, n, str(self._path(n)))
        self._rounds[number].result()
        return PairStore([self._path(number)])

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f'{number:08d}.npy'


_own = threading.local()        # what a thread or process that renders works with


def _keep(data: EndlessData, split: str, make_flow: Callable[[], FlowFunction]) -> None:
    _own.work = data, split, make_flow()


def _start(data: EndlessData, split: str, make_flow: Callable[[], FlowFunction]) -> None:
    """Prepare a process: one thread, and a lower priority than what it renders for."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.nice(5)
    _keep(data, split, make_flow)


def _render(number: int, path: str) -> None:
    data, split, flow_function = _own.work
    write_shard(Path(path), data, data.round, scene_pairs(data, split, number, data.device, data.together), flow_function)
