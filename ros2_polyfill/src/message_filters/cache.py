"""A ring of the last messages, to be queried by time."""
from __future__ import annotations

from typing import Any

from rclpy.time import Time

from message_filters.simple_filter import SimpleFilter, stamp_of


class Cache(SimpleFilter):
    """Keeps the last `cache_size` messages of filter f in the order they came, and passes each on."""

    def __init__(self, f: SimpleFilter, cache_size: int = 1, allow_headerless: bool = False) -> None:
        super().__init__()
        self.cache_size, self.allow_headerless = cache_size, allow_headerless
        self.cache_msgs: list[Any] = []
        self.cache_times: list[Time] = []
        self.connectInput(f)

    def connectInput(self, f: SimpleFilter) -> None:
        """Take the messages of filter f."""
        self.incoming_connection = f.registerCallback(self.add)

    def add(self, msg: Any) -> None:
        """Store one message, dropping the first that came when the ring is full."""
        stamp = stamp_of(msg, self.allow_headerless, 'message_filters_cache')
        if stamp is None:
            return
        self.cache_times.append(stamp)
        self.cache_msgs.append(msg)
        if len(self.cache_msgs) > self.cache_size:
            del self.cache_msgs[0], self.cache_times[0]
        self.signalMessage(msg)

    def getInterval(self, from_stamp: Time, to_stamp: Time) -> list[Any]:
        """Messages stamped from `from_stamp` to `to_stamp`, both included."""
        assert from_stamp <= to_stamp, 'the interval ends before it begins'
        return [msg for msg, stamp in zip(self.cache_msgs, self.cache_times) if from_stamp <= stamp <= to_stamp]

    def getElemAfterTime(self, stamp: Time) -> Any | None:
        """The oldest message at or after the stamp."""
        return next((msg for msg, held in zip(self.cache_msgs, self.cache_times) if held >= stamp), None)

    def getElemBeforeTime(self, stamp: Time) -> Any | None:
        """The newest message at or before the stamp."""
        return next((msg for msg, held in zip(reversed(self.cache_msgs), reversed(self.cache_times)) if held <= stamp), None)

    def getLastestTime(self) -> Time | None:
        """The stamp that came last (the misspelt name is the real one)."""
        return self.cache_times[-1] if self.cache_times else None

    def getOldestTime(self) -> Time | None:
        """The stamp that came first of those still held."""
        return self.cache_times[0] if self.cache_times else None

    def getLast(self) -> Any | None:
        """The message that came last."""
        latest = self.getLastestTime()
        return None if latest is None else self.getElemAfterTime(latest)
