"""A share of one CPU core, kept by pausing: what was spent is counted in processor time, so that a busy machine, which makes everything take longer, costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CREDIT = 0.5           # [s] of processor time that an idle stretch earns at most: what came in meanwhile may be worked off a little faster
_DEBT = 10.0            # [s] that is owed at most: whoever makes the share larger need not wait for what is long ago


class CpuBudget:
    """Counts the processor time of whichever threads spend in its name, and tells one of them how long to pause. Safe across threads."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time) -> None:
        """`share` of a core; `clock` [s] tells time, `spent` [s] the processor time of the calling thread."""
        self._clock, self._thread_time = clock, spent
        self._lock = threading.Lock()
        self._since, self._balance, self._share = clock(), 0.0, share
        self.total = 0.0        # [s] that was ever spent

    @property
    def share(self) -> float:
        """Of a core, that may be spent."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        with self._lock:
            self._earn()
            self._share = share

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What the calling thread does inside counts, failed or not."""
        before = self._thread_time()
        try:
            yield
        finally:
            self.charge(self._thread_time() - before)

    def charge(self, seconds: float) -> None:
        """Count processor time [s] that was spent."""
        with self._lock:
            self._earn()
            self._balance = max(-_DEBT, self._balance - seconds)
            self.total += seconds

    def pause(self) -> float:
        """How long [s] nothing more may be spent, for as much as was spent to have been earned."""
        with self._lock:
            self._earn()
            return max(0.0, -self._balance / self._share)

    def _earn(self) -> None:
        now = self._clock()
        self._balance = min(_CREDIT, self._balance + self._share * max(0.0, now - self._since))
        self._since = now
