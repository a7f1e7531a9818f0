"""The poses of a long drive in bounded memory: all of the recent ones, fewer of the old."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

_RECENT = 0.5       # share of the capacity that is never thinned


class Trail:
    """Poses T_odom_cam (4, 4) by stamp [ns], at most `capacity`: when full, every second one of the older half goes. Safe across threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._poses: deque[tuple[int, np.ndarray]] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._poses)

    def add(self, stamp: int, T_odom_cam: np.ndarray) -> None:
        """Append a pose."""
        with self._lock:
            self._poses.append((stamp, T_odom_cam))
            if len(self._poses) > self._capacity:
                poses = list(self._poses)
                old = len(poses) - int(_RECENT * self._capacity)
                self._poses = deque(poses[:old:2] + poses[old:])

    def poses(self, limit: int | None = None) -> list[tuple[int, np.ndarray]]:
        """The poses in order; with a limit, that many at most, evenly spread and with the last one."""
        with self._lock:
            poses = list(self._poses)
        if limit is None or len(poses) <= limit:
            return poses
        return [poses[i] for i in np.linspace(0, len(poses) - 1, limit).round().astype(int)]

    def clear(self) -> None:
        """Forget every pose."""
        with self._lock:
            self._poses.clear()
