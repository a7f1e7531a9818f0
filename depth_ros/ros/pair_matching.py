"""Bringing flow bundles together with the range hits of their images, for a learner that wants both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import Image

from depth_ros.ros import codecs
from depth_ros.ros.sync import Pace, StampBuffer


@dataclass(frozen=True)
class Patience:
    """How long pairs wait, and how often one is wanted."""

    hits: float = 0.5           # [s] for range hits
    odometry: float = 0.5       # [s] for the odometry of the image
    offset: float = 0.1         # [s] between an image and hits of an earlier one that may stand in
    rate: float = 5.0           # [Hz] at which pairs are wanted at most,
    by_stamps: bool = False     # by their stamps, which are the same in any replay, and not as they arrive


@dataclass(frozen=True)
class Pair:
    """A bundle, and the newest hits that no pair before it had; `hits` None where the sensor is silent."""

    stamp: int
    parts: Mapping[str, Any]
    hits: Image | None


class PairMatcher:
    """Gives each pair out once, in order, when the hits of its image have come or can no longer come, and its pose too; pairs that have no hits of their own are skipped.

    Hits come for images that flow may have skipped under load: they then go to the next pair, to be moved there.
    """

    def __init__(self) -> None:
        self._pairs: StampBuffer[tuple[Mapping[str, Any], float]] = StampBuffer()
        self._hits: StampBuffer[Image] = StampBuffer()
        self.clear()

    def clear(self) -> None:
        """Forget everything, as after a jump of the clock."""
        self._pairs.clear()
        self._hits.clear()
        self._pace = Pace()
        self._last_hits = self._used = -1       # stamps [ns]
        self._hits_heard = self._odometry_heard = -1e9      # steady time [s]

    def put_pair(self, stamp: int, parts: Mapping[str, Any], now: float) -> None:
        """Add a bundle; now is a steady time [s]."""
        self._pairs.put(stamp, (parts, now))

    def put_hits(self, hits: Image, now: float) -> None:
        """Add the range hits of an image."""
        stamp = codecs.stamp_ns(hits.header.stamp)
        self._hits.put(stamp, hits)
        self._last_hits, self._hits_heard = stamp, now

    def heard_odometry(self, now: float) -> None:
        """Somebody tells poses: they are worth a wait."""
        self._odometry_heard = now

    def take(self, now: float, newest_pose: int | None, patience: Patience) -> list[Pair]:
        """The pairs that have nothing more to wait for, oldest first."""
        ready = []
        for stamp in self._pairs.stamps():
            parts, since = self._pairs.get(stamp)
            if not (self._has_hits(stamp, since, now, patience) and self._has_pose(stamp, since, now, newest_pose, patience)):
                break
            self._pairs.drop(stamp)
            pair = self._pair(stamp, parts, since, now, patience)
            if pair is not None:
                ready.append(pair)
        return ready

    def _has_hits(self, stamp: int, since: float, now: float, patience: Patience) -> bool:
        return stamp in self._hits or self._last_hits >= stamp or now - max(since, self._hits_heard) > patience.hits

    def _has_pose(self, stamp: int, since: float, now: float, newest: int | None, patience: Patience) -> bool:
        return (newest is not None and newest >= stamp) or now - max(since, self._odometry_heard) > patience.odometry

    def _pair(self, stamp: int, parts: Mapping[str, Any], since: float, now: float, patience: Patience) -> Pair | None:
        offset = int(patience.offset * 1e9)
        fresh = [s for s in self._hits.stamps() if max(self._used, stamp - offset - 1) < s <= stamp]
        if not fresh and now - self._hits_heard <= patience.hits:
            return None     # those of another image are on their way
        if not self._pace.is_due(stamp, stamp if patience.by_stamps else int(since * 1e9), patience.rate):
            return None
        if not fresh:
            return Pair(stamp, parts, None)
        self._used = fresh[-1]
        return Pair(stamp, parts, self._hits.get(self._used))
