"""Bringing messages of several topics together by their stamps, bounded in memory and unharmed by a clock that jumps back.

`message_filters` all but stops pairing after such a jump, and it cannot tell "not yet" from "never": these classes can, because on every topic
stamps only grow until the clock jumps.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar('Item')

JUMP_BACK = 1_000_000_000       # [ns] a stamp older than the last one by more than this means a new start, by less a late message
CAPACITY = 32                   # messages kept of a topic: a second of a camera


class Order(enum.Enum):
    """How a stamp relates to the last one."""

    NEWER = 'newer'
    LATE = 'late'       # a duplicate, or overtaken
    JUMP = 'jump'       # the clock went back, as at the wrap of a looping bag


class StampOrder:
    """Sorts the stamps of one topic into newer, late and jump."""

    def __init__(self) -> None:
        self.last: int | None = None

    def sort(self, stamp: int) -> Order:
        """The relation of a stamp [ns] to the newest so far, which it becomes unless it is late."""
        if self.last is not None and self.last - JUMP_BACK <= stamp <= self.last:
            return Order.LATE
        jumped = self.last is not None and stamp < self.last
        self.last = stamp
        return Order.JUMP if jumped else Order.NEWER

    def forget(self) -> None:
        """Take any stamp as newer next time."""
        self.last = None


class Pace:
    """Chooses from a stream what comes at most so often, as evenly by its stamps as it can; a clock that jumps, either way, begins afresh.

    The rate is by the time of arrival, for that is what costs. Of a recording that is replayed slowly more is taken than of one in real time.
    """

    _SLACK = 0.1        # share of the period by which an item may be early: stamps of a camera are not exact
    _LOOKS_BACK = 256   # items from which the speed of a replay is told,
    _AT_LEAST = 500_000_000         # [ns] over which they came,
    _REAL_TIME = 0.05   # and the difference from 1 that is none
    _PAUSE = 1_000_000_000          # [ns] between two arrivals, which tells nothing of the speed

    def __init__(self) -> None:
        self._next: int | None = None       # [ns] when the next one is due
        self._came: deque[tuple[int, int]] = deque(maxlen=self._LOOKS_BACK)     # stamps and arrivals [ns]
        self._speed = 1.0
        self.left_out = 0

    def is_due(self, stamp: int, arrival: int, rate: float) -> bool:
        """Whether to take the item of a stamp [ns], which came at an arrival [ns] of a steady clock, for at most `rate` [Hz]; 0 takes every one."""
        if rate <= 0.0:
            self._next = None
            return True
        period = round(1e9 / rate * self._speed_at(stamp, arrival))
        ahead = period if self._next is None else stamp - self._next
        if -2 * period <= ahead < -self._SLACK * period:        # farther ahead than that nothing is ever due, unless the clock jumped
            self.left_out += 1
            return False
        self._next = (self._next if abs(ahead) < period else stamp) + period
        return True

    def _speed_at(self, stamp: int, arrival: int) -> float:
        """How fast stamps go by, 1 in real time; as before while too little has come to tell."""
        if self._came and not (0 <= stamp - self._came[-1][0] <= JUMP_BACK and arrival - self._came[-1][1] <= self._PAUSE):
            self._came.clear()
        self._came.append((stamp, arrival))
        stamps, arrivals = (last - first for first, last in zip(self._came[0], self._came[-1]))
        if stamps > 0 and arrivals >= self._AT_LEAST:
            speed = stamps / arrivals
            self._speed = 1.0 if abs(speed - 1.0) < self._REAL_TIME else speed
        return self._speed


class StampBuffer(Generic[Item]):
    """The newest items by stamp [ns]; empties itself when the clock jumps back."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._stamps: list[int] = []
        self._items: dict[int, Item] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def __contains__(self, stamp: int) -> bool:
        return stamp in self._items

    @property
    def newest(self) -> int | None:
        """The newest stamp."""
        return self._stamps[-1] if self._stamps else None

    def put(self, stamp: int, item: Item) -> int:
        """Keep an item; the oldest makes room. How many had to."""
        if self._stamps and stamp < self._stamps[-1] - JUMP_BACK:
            self.clear()
        if stamp not in self._items:
            insort(self._stamps, stamp)
        self._items[stamp] = item
        if len(self._stamps) <= self._capacity:
            return 0
        del self._items[self._stamps.pop(0)]
        return 1

    def get(self, stamp: int) -> Item | None:
        """The item of exactly this stamp."""
        return self._items.get(stamp)

    def nearest(self, stamp: int, tolerance: int) -> Item | None:
        """The item whose stamp is nearest, no further than the tolerance [ns]."""
        at = bisect_left(self._stamps, stamp)
        near = min(self._stamps[max(at - 1, 0):at + 1], key=lambda s: abs(s - stamp), default=None)
        return self._items[near] if near is not None and abs(near - stamp) <= tolerance else None

    def stamps(self) -> list[int]:
        """All stamps, oldest first."""
        return list(self._stamps)

    def drop(self, stamp: int) -> None:
        """Forget the item of this stamp."""
        if self._items.pop(stamp, None) is not None:
            self._stamps.remove(stamp)

    def drop_until(self, stamp: int) -> int:
        """Forget this stamp and all older ones; how many that were."""
        count = bisect_left(self._stamps, stamp + 1)
        for old in self._stamps[:count]:
            del self._items[old]
        del self._stamps[:count]
        return count

    def clear(self) -> None:
        """Forget everything."""
        self._stamps.clear()
        self._items.clear()


class PartsBuffer:
    """Collects the parts of one thing, published on several topics under one stamp."""

    def __init__(self, names: tuple[str, ...], capacity: int = CAPACITY) -> None:
        self._names = names
        self._partial: StampBuffer[dict[str, Any]] = StampBuffer(capacity)
        self.incomplete = 0     # given up because a later one was complete first

    def put(self, name: str, stamp: int, part: Any) -> Mapping[str, Any] | None:
        """Add a part; all parts by name once the last one is there, else None."""
        parts = self._partial.get(stamp) or {}
        parts[name] = part
        self._partial.put(stamp, parts)
        if len(parts) < len(self._names):
            return None
        self.incomplete += self._partial.drop_until(stamp) - 1
        return parts

    def clear(self) -> None:
        """Forget everything."""
        self._partial.clear()


@dataclass(frozen=True)
class Matched:
    """Messages that belong to one image; None where there is none."""

    stamp: int
    image: Any
    depth: Any | None
    flow: Any | None


class FrameMatcher:
    """Completes each image with the depth nearest in time and the flow of the same stamp, in order of time.

    An image waits only for what can still come: once a later flow is there, its own was skipped, and so is the image, unless that flow starts from it:
    pairing began with it, and it goes on without flow. A flow that has been silent for `patience` [s] is not waited for.
    """

    def __init__(self, depth: bool, flow: bool, tolerance: int, patience: float) -> None:
        self.wants_depth, self._wants_flow = depth, flow
        self._tolerance, self._patience = tolerance, patience
        self._images: StampBuffer[Any] = StampBuffer()
        self._depths: StampBuffer[Any] = StampBuffer()
        self._flows: StampBuffer[Any] = StampBuffer()
        self._references: StampBuffer[None] = StampBuffer()     # stamps that flows start from
        self._flow_heard: float | None = None
        self._last_image: int | None = None
        self._jumped: set[int] = set()      # buffers, by id, whose stamps have jumped back before the images' did
        self._left: int | None = None       # stamp of the last image before the clock jumped back, until the second image after that
        self.unmatched = 0      # images given up for want of depth
        self.skipped = 0        # images that the flow did not look at

    def put_image(self, stamp: int, image: Any, now: float) -> list[Matched]:
        """Add an image; now is a steady time [s]. Returns what became complete."""
        if self._last_image is not None and stamp > self._last_image:
            self._left = None
        self._last_image = stamp
        self._give_up(self._images.put(stamp, image))
        return self._complete(now)

    def put_depth(self, stamp: int, depth: Any, now: float) -> list[Matched]:
        """Add a depth image."""
        if not self._put(self._depths, stamp, depth):
            return []
        return self._complete(now)

    def put_flow(self, stamp: int, flow: Any, now: float, reference: int | None = None) -> list[Matched]:
        """Add the flow of the image of the same stamp, to the image of the reference's."""
        if not self._put(self._flows, stamp, flow):
            return []
        self._flow_heard = now
        if reference is not None:
            self._references.put(reference, None)
        return self._complete(now)

    def flow_silent(self, now: float) -> bool:
        """Whether no flow came for a while, so that images do not wait for it."""
        return self._flow_heard is None or now - self._flow_heard > self._patience

    def rewind(self, stamp: int) -> None:
        """The clock jumped back to an image's stamp: forget what waits from before, and that flow came, for pairing begins anew, with an image that gets none.

        Depth may have jumped before the image did: what came since stays, or that first image would never be complete.
        """
        self._images.clear()
        for buffer in (self._depths, self._flows):
            if id(buffer) not in self._jumped:
                buffer.clear()
        self._references.clear()
        self._jumped.clear()
        self._flow_heard, self._left, self._last_image = None, self._last_image, stamp

    def _put(self, buffer: StampBuffer[Any], stamp: int, item: Any) -> bool:
        """Keep what belongs to an image, unless it was on its way when the clock jumped back."""
        if self._left is not None and abs(stamp - self._left) <= JUMP_BACK and stamp > self._last_image + JUMP_BACK:
            return False
        if buffer.newest is not None and stamp < buffer.newest - JUMP_BACK:
            self._jumped.add(id(buffer))
        buffer.put(stamp, item)
        return True

    def _give_up(self, count: int) -> None:
        if self.wants_depth:
            self.unmatched += count
        else:
            self.skipped += count

    def _complete(self, now: float) -> list[Matched]:
        done = []
        for stamp in self._images.stamps():
            flow = self._flows.get(stamp)
            if self._wants_flow and flow is None:
                later = (self._flows.newest or 0) > stamp
                if later and stamp not in self._references:
                    self.skipped += 1
                    self._images.drop(stamp)
                    continue
                if not later and not self.flow_silent(now):
                    continue
            depth = self._depths.nearest(stamp, self._tolerance)
            if self.wants_depth and depth is None:
                if (self._depths.newest or 0) > stamp + self._tolerance:
                    self.unmatched += 1
                    self._images.drop(stamp)
                continue
            done.append(Matched(stamp, self._images.get(stamp), depth, flow))
            self._images.drop(stamp)
        if done:
            # An older image would only arrive at the engine late.
            self._give_up(self._images.drop_until(done[-1].stamp))
            self._flows.drop_until(done[-1].stamp)
            self._depths.drop_until(done[-1].stamp - self._tolerance - 1)
        return done
