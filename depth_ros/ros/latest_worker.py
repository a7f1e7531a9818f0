"""A thread that always works on the newest items: freshness beats completeness."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar('Item')
_LATENCIES = 200    # kept for the percentiles


class LatestWorker(Generic[Item]):
    """Calls `work` in a thread of its own with the newest items put, in their order; an item that is overtaken before it was begun counts as dropped.

    An exception of `work` is handed to `on_error`, and the next item is worked on.
    """

    def __init__(self, name: str, work: Callable[[Item], None], on_error: Callable[[Exception], None], waiting: int = 1) -> None:
        """`waiting`: how many may wait. Two bear items that come in pairs, and cost the time of one more item where all come too fast."""
        self.name = name
        self.processed = 0
        self.dropped = 0
        self._work, self._on_error = work, on_error
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, Item]] = deque(maxlen=waiting)
        self._stopping = False
        self._abandoned = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work; no effect when running."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def halt(self) -> None:
        """Forget what waits and take no more, without waiting for the item in work."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()

    def stop(self, timeout: float = 3.0) -> bool:
        """Forget what waits and end after the one in work; False if that took longer than the timeout [s]: it is then abandoned, and its errors with it."""
        self.halt()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        self._abandoned = self._thread.is_alive()
        if not self._abandoned:
            self._thread = None
        return not self._abandoned

    @property
    def abandoned(self) -> bool:
        """Whether it is still at work though it was stopped."""
        return self._abandoned and self._thread.is_alive()

    def is_here(self) -> bool:
        """Whether the caller runs in its thread."""
        return threading.current_thread() is self._thread

    def put(self, item: Item) -> None:
        """Offer an item, in place of the oldest if too many still wait."""
        with self._changed:
            if self._stopping:
                return
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append((time.monotonic(), item))
            self._changed.notify_all()

    def latency(self, percentile: float) -> float:
        """Percentile in [0, 100] of the last times from put to done [s]; 0 before the first."""
        with self._changed:
            values = sorted(self._latencies)
        return values[min(len(values) - 1, int(len(values) * percentile / 100.0))] if values else 0.0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                since, item = self._waiting.popleft()
            try:
                self._work(item)
            except Exception as error:      # the thread must outlive a bad frame; the owner reports it
                if not self._abandoned:
                    self._on_error(error)
            del item                        # a frame must not live on while waiting for the next
            with self._changed:
                self._latencies.append(time.monotonic() - since)
                self.processed += 1
