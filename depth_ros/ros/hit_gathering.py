"""Bringing the hits of several range sensors together, one set for each image."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from sensor_msgs.msg import CameraInfo

_FORGET = 1.0   # [s] of silence after which a sensor is not waited for


@dataclass
class Gathered:
    """What range sensors hit in one image."""

    info: CameraInfo                                            # of the image
    since: float                                                # steady time [s] of the first hits
    points: list[np.ndarray] = field(default_factory=list)      # (N, 3) [m] in the optical frame
    spreads: list[np.ndarray] = field(default_factory=list)     # (N,) [rad], half the angle of each one's cone


class HitGathering:
    """An image's hits are complete once every sensor that speaks has been looked at for it or for a later one; at most `patience` [s] after the first.

    Each image comes out once, in order of time: for consumers a second message of the same stamp would be a duplicate. With one sensor nothing waits.
    Safe across threads. `epoch` counts the jumps of the clock: what is put for an earlier one is ignored.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.epoch = 0
        self.late = 0       # hits that came when their image was out
        self._waiting: dict[int, Gathered] = {}
        self._settled: dict[str, tuple[int, float]] = {}    # by sensor: stamp [ns] of its last image, steady time [s]
        self._out = -1                                      # stamp [ns] of the last image that came out
        self._lock = threading.Lock()

    def put(self, epoch: int, sensor: str, stamp: int, info: CameraInfo, points: np.ndarray, spread: float, now: float) -> None:
        """Add a sensor's hits (N, 3) [m] in the image of a stamp [ns]; now is a steady time [s]."""
        with self._lock:
            if epoch != self.epoch:
                return
            self._settled[sensor] = stamp, now
            if stamp <= self._out:
                self.late += 1
                return
            gathered = self._waiting.setdefault(stamp, Gathered(info, now))
            gathered.points.append(points)
            gathered.spreads.append(np.full(len(points), spread))

    def skip(self, epoch: int, sensor: str, stamp: int, now: float) -> None:
        """A sensor has nothing usable for this image."""
        with self._lock:
            if epoch == self.epoch:
                self._settled[sensor] = stamp, now

    def take(self, now: float) -> list[Gathered]:
        """What is complete or has waited long enough, oldest first."""
        with self._lock:
            spoken = [stamp for stamp, heard in self._settled.values() if now - heard < _FORGET]
            settled = min(spoken, default=max(self._waiting, default=-1))
            due = [stamp for stamp, gathered in self._waiting.items() if stamp <= settled or now - gathered.since >= self.patience]
            if not due:
                return []
            self._out = max(due)
            return [self._waiting.pop(stamp) for stamp in sorted(self._waiting) if stamp <= self._out]

    def clear(self) -> None:
        """The clock jumped: forget what waits."""
        with self._lock:
            self.epoch += 1
            self._waiting.clear()
            self._settled.clear()
            self._out = -1
