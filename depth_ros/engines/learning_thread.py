"""The thread that learns while others observe: woken by what comes, in the background, within a share of a core."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import torch

from depth_ros.engines.cpu_budget import CpuBudget
from depth_ros.engines.threads import give_way, take_what_is_left

log = logging.getLogger(__name__)

NAME = 'online_learner'
_FADES = 0.9            # share of what earlier turns tell that is left after each new one


class LearningThread:
    """Calls `work` once for each turn that is granted. What it spends, and what others spend in the name of its budget, is followed by a pause."""

    def __init__(self, work: Callable[[], object], failed: Callable[[Exception], object], budget: CpuBudget, niceness: int, only_idle: bool) -> None:
        """`failed` is told what `work` raises, and the thread goes on."""
        self._work, self._failed, self._budget, self._niceness, self._only_idle = work, failed, budget, niceness, only_idle
        self._there = threading.Condition()
        self._turns, self._held = 0, False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.has_died = False       # it ended though nobody told it to
        self._worked, self._spent = 0.0, 0.0    # [s] that the last turns took, and of processor time

    @property
    def got(self) -> float:
        """Of a core, in the last turns while it worked: all of one, unless others took it."""
        return self._spent / self._worked if self._worked else 1.0

    @property
    def is_here(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    def grant(self, turns: int, most: int) -> None:
        """Let it work so many times more, but owe it at most so many turns."""
        with self._there:
            self._turns = min(self._turns + turns, most)
            self._there.notify()

    def hold(self, held: bool) -> None:
        """Let it rest, or go on."""
        with self._there:
            self._held = held
            self._there.notify()

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None:
            self._stopping.clear()
            self.has_died = False
            self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
            self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End after the turn that it is at; False if that took longer than the timeout [s]."""
        self._stopping.set()
        with self._there:
            self._there.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        self.has_died = False
        return True

    def _run(self) -> None:
        try:
            self._take_turns()
        except BaseException:
            log.exception('the thread that learns has ended')
            raise
        finally:
            self.has_died = not self._stopping.is_set()

    def _take_turns(self) -> None:
        give_way(self._niceness)
        if self._only_idle:
            take_what_is_left()
        torch.set_num_threads(1)
        while self._granted():
            started, used = time.monotonic(), time.thread_time()
            try:
                with self._budget.spending():
                    self._work()
            except Exception as error:      # such as no memory left: told, and tried again
                log.exception('a batch failed')
                self._tell(error)
            self._worked = _FADES * self._worked + time.monotonic() - started
            self._spent = _FADES * self._spent + time.thread_time() - used
            self._stopping.wait(self._budget.pause())

    def _tell(self, error: Exception) -> None:
        try:
            self._failed(error)
        except Exception:       # such as still no memory left: the next turn may find some
            log.exception('a failed batch could not be told')

    def _granted(self) -> bool:
        """Wait for a turn and take it; False once it is to end."""
        with self._there:
            self._there.wait_for(lambda: self._stopping.is_set() or (self._turns > 0 and not self._held))
            self._turns = max(0, self._turns - 1)
        return not self._stopping.is_set()
