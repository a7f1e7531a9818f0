"""Range hits that outlive their image: points in the odometry's frame, seen again by later images.

The hits of a laser lie on one row of the image that it was measured with. As the camera moves, those of the last seconds come to lie on many rows.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from depth_ros.engines.range_projection import project_points, unproject_hits

_HIDING = 3         # [px] at the smallest size; see project_points
_WIDTH = 256        # at which it is meant


class HitMemory:
    """The hits of the last `seconds`; at most `limit` images' hits are kept."""

    def __init__(self, seconds: float, limit: int = 300) -> None:
        self._kept: deque[tuple[int, np.ndarray]] = deque(maxlen=limit)
        self._nanoseconds = int(1e9 * seconds)

    def clear(self) -> None:
        """Forget them, as after a jump of the clock or of the odometry."""
        self._kept.clear()

    def add(self, stamp: int, hits: np.ndarray, K: np.ndarray, T_odom_cam: np.ndarray) -> None:
        """Keep an image's hits (H, W) [m], 0 where none, with K (3, 3) [px] and the pose (4, 4) [m] at its stamp [ns]."""
        if self._kept and stamp <= self._kept[-1][0]:
            self.clear()
        self._kept.append((stamp, unproject_hits(hits, K) @ T_odom_cam[:3, :3].T + T_odom_cam[:3, 3]))

    def seen(self, stamp: int, K: np.ndarray, size: tuple[int, int], T_odom_cam: np.ndarray) -> np.ndarray:
        """The hits (H, W) float32 [m] of earlier images as the camera sees them now, 0 where none; what nearer ones beside them hide is left out."""
        points = [points for then, points in self._kept if 0 < stamp - then <= self._nanoseconds]
        if not points:
            return np.zeros(size[::-1], np.float32)
        T_cam_odom = np.linalg.inv(T_odom_cam)
        now = np.concatenate(points) @ T_cam_odom[:3, :3].T + T_cam_odom[:3, 3]
        return project_points(now, K, size, max(1, round(_HIDING * size[0] / _WIDTH)))[0]
