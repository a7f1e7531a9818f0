"""Sets of messages, one from each input, that carry the same stamp or nearly the same."""
from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

from message_filters.simple_filter import SimpleFilter, stamp_of


class TimeSynchronizer(SimpleFilter):
    """Calls back with one message of each filter in `fs` as soon as all carry one stamp; each input holds `queue_size` messages."""

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.lock = threading.Lock()
        self.connectInput(fs)

    def connectInput(self, fs: Sequence[SimpleFilter]) -> None:
        """Take the messages of these filters, with empty queues."""
        self.queues: list[dict[int, Any]] = [{} for _ in fs]
        self.input_connections = [f.registerCallback(self.add, queue, index) for index, (f, queue) in enumerate(zip(fs, self.queues))]

    def add(self, msg: Any, my_queue: dict[int, Any], my_queue_index: int) -> None:
        """One message of the input `my_queue_index` came."""
        stamp = stamp_of(msg, False, 'message_filters')
        if stamp is None:
            return
        with self.lock:
            self._hold(my_queue, stamp.nanoseconds, msg)
            common = sorted(set.intersection(*map(set, self.queues)))
            complete = [[queue.pop(at) for queue in self.queues] for at in common]
        for messages in complete:    # outside the lock: a callback may take long, or feed this filter
            self.signalMessage(*messages)

    def _hold(self, queue: dict[int, Any], stamp: int, msg: Any) -> None:
        queue[stamp] = msg
        while len(queue) > self.queue_size:
            del queue[min(queue)]


class ApproximateTimeSynchronizer(TimeSynchronizer):
    """As TimeSynchronizer, but stamps may lie up to `slop` seconds apart. A new message takes the nearest partner in each other
    input at once, rather than waiting for a better one; a message is used once."""

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int, slop: float, allow_headerless: bool = False) -> None:
        self.slop_ns = round(slop * 1e9)
        self.allow_headerless = allow_headerless
        super().__init__(fs, queue_size)

    def add(self, msg: Any, my_queue: dict[int, Any], my_queue_index: int) -> None:
        """One message of the input `my_queue_index` came."""
        stamp = stamp_of(msg, self.allow_headerless, 'message_filters_approx')
        if stamp is None:
            return
        with self.lock:
            self._hold(my_queue, stamp.nanoseconds, msg)
            chosen = self._match(stamp.nanoseconds, my_queue_index)
            messages = None if chosen is None else [queue.pop(at) for queue, at in zip(self.queues, chosen)]
        if messages is not None:
            self.signalMessage(*messages)

    def _match(self, stamp: int, index: int) -> tuple[int, ...] | None:
        """Stamps (ns), one of each queue, that hold together within the slop, with the given one for queue `index`."""
        if stamp not in self.queues[index]:    # older than everything a full queue holds: already dropped
            return None
        near = [sorted((at for at in queue if abs(at - stamp) <= self.slop_ns), key=lambda at: abs(at - stamp)) for queue in self.queues]
        near[index] = [stamp]
        return next((choice for choice in itertools.product(*near) if max(choice) - min(choice) < self.slop_ns), None)
