"""Playing a recorded stream in time: a thread that reads ahead, and a thread that hands each item out when it is due."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Item = TypeVar('Item')

_AHEAD = 20         # items decoded in advance: a third of a second of colour and depth
_POLL = 0.1         # [s] within which a blocked reader notices the end
_WRAP = 33_000_000  # [ns] from the last item of one lap to the first of the next


class _End:
    """The reader has come to the end, by an error or without."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


class _Wrap:
    """The next item begins a new lap."""


class Playback(Generic[Item]):
    """Calls `emit` with the items of `read()`, pairs of (stamp [ns], item) in order, at `rate` times the recorded speed.

    It plays `passes` times, at least once; None: without end. `tick` is called with the playing time [ns] at least `tick_rate` times a second. After the last item `on_end` is called with the error that ended
    the stream early, or None. Pausing keeps the place; an item that is overdue is emitted at once, never skipped.
    """

    def __init__(self, read: Callable[[], Iterable[tuple[int, Item]]], emit: Callable[[int, Item], None], tick: Callable[[int], None],
                 on_end: Callable[[Exception | None], None], rate: float, passes: int | None, tick_rate: float) -> None:
        self._read, self._emit, self._tick, self._on_end = read, emit, tick, on_end
        self._passes, self._tick_period = passes, 1.0 / tick_rate
        self.rate = rate
        self.laps = 0
        self.overdue = 0.0      # [s] by which the last item came late
        self._queue: queue.Queue[tuple[int, Item] | _End | _Wrap] = queue.Queue(_AHEAD)
        self._closed, self._paused = threading.Event(), threading.Event()
        self._pending: tuple[int, Item] | _End | None = None
        self._time = -1         # [ns] last told to tick, in this lap
        self._reader = threading.Thread(target=self._read_ahead, name='reader', daemon=True)
        self._reader.start()
        self._player: threading.Thread | None = None

    def play(self) -> None:
        """Begin, or go on from where it was paused."""
        self._paused.clear()
        self._player = threading.Thread(target=self._run, name='player', daemon=True)
        self._player.start()

    def pause(self) -> None:
        """Stop after the item in hand."""
        self._paused.set()
        if self._player is not None and self._player is not threading.current_thread():
            self._player.join()
        self._player = None

    def wait_paused(self, timeout: float) -> bool:
        """Wait for a pause; False after the timeout [s]."""
        return self._paused.wait(timeout)

    def close(self) -> None:
        """End both threads."""
        self._closed.set()
        self.pause()
        self._reader.join()

    def _read_ahead(self) -> None:
        end = _End()
        try:
            for done in itertools.count(1):
                for item in self._read():
                    if not self._put(item):
                        return
                if self._passes is not None and done >= self._passes or not self._put(_Wrap()):
                    break
        except Exception as error:      # the player reports it, after what came before it
            end = _End(error)
        self._put(end)

    def _put(self, item: tuple[int, Item] | _End | _Wrap) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def _run(self) -> None:
        pace = _Pace()
        while not self._paused.is_set():
            try:
                item = self._pending or self._queue.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                self._pending = item    # paused while it is told, the end must be told again
                self._on_end(item.error)
                return
            if isinstance(item, _Wrap):
                self.laps += 1
                self._time = -1
                pace.restart(_WRAP)
                continue
            self._pending = item
            if not self._wait_until_due(pace, item[0]):
                return
            self._pending = None
            self._advance(item[0])
            self._emit(*item)

    def _advance(self, stamp: int) -> None:
        if stamp > self._time:
            self._time = stamp
            self._tick(stamp)

    def _wait_until_due(self, pace: _Pace, stamp: int) -> bool:
        """Wait for the item's time, ticking; False when paused before."""
        while True:
            left = pace.wait(stamp, self.rate)
            if left <= 0.0:
                self.overdue = -left
                return True
            if left > self._tick_period:
                self._advance(stamp - int(left * self.rate * 1e9))
            if self._paused.wait(min(left, self._tick_period)):
                return False


class _Pace:
    """Maps stamps to steady time from an anchor, which is set anew when the rate changes."""

    def __init__(self) -> None:
        self._anchor: tuple[float, int] | None = None
        self._rate = 0.0
        self._gap: tuple[float, int] | None = None      # steady time [s] of the wrap and the pause after it [ns]

    def restart(self, gap: int) -> None:
        """Anchor at the next stamp, `gap` [ns] from now."""
        self._anchor, self._gap = None, (time.monotonic(), gap)

    def wait(self, stamp: int, rate: float) -> float:
        """Time left until a stamp [ns] is due [s]; negative when overdue."""
        now = time.monotonic()
        if self._anchor is None:
            since, gap = self._gap or (now, 0)
            self._anchor, self._rate = (since + gap * 1e-9 / rate, stamp), rate
        elif rate != self._rate:
            at = self._anchor[1] + int((now - self._anchor[0]) * self._rate * 1e9)
            self._anchor, self._rate = (now, at), rate
        return self._anchor[0] + (stamp - self._anchor[1]) * 1e-9 / rate - now
