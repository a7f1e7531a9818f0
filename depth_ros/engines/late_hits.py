"""Range hits that come late: they are compared with the depth of the image they were measured in, not with that of the newest.

A laser's hits travel through its driver, TF and the projection before they arrive; at 1 rad/s a camera turns meanwhile by tens of pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from depth_ros.engines.range_projection import project_points, resize_hits, unproject_hits
from depth_ros.frames import CameraFrame
from depth_ros.learning.trajectory import Trajectory

_FRAMES = 32            # remembered: a second of a camera
_WAITING = 8            # hits that wait for their image
_AHEAD = 1_000_000_000  # [ns] by which hits may be newer than the newest image; more is another run of the clock


Estimate = TypeVar('Estimate')
"""What its owner knows of an image's depth."""


class _Seen(NamedTuple):
    frame: CameraFrame
    T_odom_cam: np.ndarray
    estimate: object


class LateHits(Generic[Estimate]):
    """Remembers the depth of a second of images and brings hits to the one that was taken nearest in time, at most `offset` [s] away.

    Hits of an image that was not tracked are moved into that one: its motion is interpolated between images at most `max_gap` [s] apart.
    """

    def __init__(self, offset: float, max_gap: float) -> None:
        self._offset, self._max_gap = int(1e9 * offset), int(1e9 * max_gap)
        self._seen: deque[_Seen] = deque(maxlen=_FRAMES)
        self._waiting: deque[tuple[int, np.ndarray]] = deque(maxlen=_WAITING)

    def clear(self) -> None:
        """Forget images and hits, as after a jump of the clock or of the odometry."""
        self._seen.clear()
        self._waiting.clear()

    def put(self, stamp: int, hits: np.ndarray) -> None:
        """Take in hits (h, w) [m], 0 where none, as the camera saw them at a stamp [ns]."""
        self._waiting.append((stamp, hits))

    def remember(self, frame: CameraFrame, T_odom_cam: np.ndarray, estimate: Estimate) -> None:
        """Keep a frame's pose (4, 4) and its depth, both in the odometry's unit."""
        self._seen.append(_Seen(frame, T_odom_cam, estimate))

    def compared(self, factor: float | None) -> Iterator[tuple[Estimate, np.ndarray]]:
        """Hits (H, W) float32 [m], 0 where none, each once its image is known, beside that image's depth.

        `factor` [m per unit], where it is known, tells how far the camera went meanwhile.
        """
        newest = self._seen[-1].frame.stamp if self._seen else -1
        for stamp, hits in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            if stamp <= newest:
                found = self._compare(stamp, hits, factor)
                if found is not None:
                    yield found
            elif stamp - newest <= _AHEAD:
                self._waiting.append((stamp, hits))

    def _compare(self, stamp: int, hits: np.ndarray, factor: float | None) -> tuple[Estimate, np.ndarray] | None:
        nearest = min(self._seen, key=lambda seen: abs(seen.frame.stamp - stamp))
        small = resize_hits(hits, nearest.frame.size)
        if nearest.frame.stamp != stamp:
            T_cam_then = self._motion(nearest, stamp, factor)
            if T_cam_then is None:
                return None
            points = unproject_hits(small, nearest.frame.K) @ T_cam_then[:3, :3].T + T_cam_then[:3, 3]
            small = project_points(points, nearest.frame.K, nearest.frame.size)[0]
        return nearest.estimate, small

    def _motion(self, near: _Seen, stamp: int, factor: float | None) -> np.ndarray | None:
        """T (4, 4) [m] from the camera at a stamp into a frame near it; its turn alone while no factor tells metres. None if it is not known."""
        if abs(near.frame.stamp - stamp) > self._offset:
            return None
        path = Trajectory(np.array([seen.frame.stamp for seen in self._seen]), np.stack([seen.T_odom_cam for seen in self._seen]))
        T_odom_then = path.at(stamp, self._max_gap)
        if T_odom_then is None:
            return None
        T = np.linalg.inv(near.T_odom_cam) @ T_odom_then
        T[:3, 3] *= factor or 0.0
        return T
