"""A 2D laser scan cut out of a depth image, for recordings that have none."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from depth_ros.frames import R_BODY_OPTICAL
from depth_ros.learning.sequences import Mount, Scan

FRAME_ID = 'scan_from_depth'
RANGE_LIMITS = 0.3, 10.0            # [m]
INCREMENT = math.radians(0.5)
# The laser looks along the optical axis with its beams in the plane y = 0.
MOUNT = Mount(FRAME_ID, np.hstack([np.zeros(3), Rotation.from_matrix(R_BODY_OPTICAL.T).as_quat()]))


def cut(depth: np.ndarray, K: np.ndarray, stamp: int, beams: int = 0, noise: float = 0.0) -> Scan:
    """The scan of a laser at the camera's centre, from depth (H, W) [m] with NaN and K (3, 3) [px]: z is sampled at the nearest pixel of each beam.

    `beams`: so many across the view, a single one straight ahead; 0: one each half degree. `noise`: standard deviation as a share of the range, drawn by the stamp.
    """
    left, right = math.atan2(K[0, 2], K[0, 0]), math.atan2(depth.shape[1] - 1 - K[0, 2], K[0, 0])
    increment = (left + right) / (beams - 1) if beams > 1 else INCREMENT
    first, count = (-right, int((left + right) / increment + 1e-9) + 1) if beams != 1 else (0.0, 1)
    angles = first + increment * np.arange(count)
    columns = np.rint(K[0, 2] - K[0, 0] * np.tan(angles)).astype(int).clip(0, depth.shape[1] - 1)
    row = int(np.clip(round(K[1, 2]), 0, depth.shape[0] - 1))
    ranges = (depth[row, columns] / np.cos(angles)).astype(np.float32)
    if noise > 0.0:
        ranges *= (1 + noise * np.random.default_rng(stamp).standard_normal(count)).astype(np.float32)
    return Scan(stamp, FRAME_ID, float(angles[0]), float(angles[-1]), increment, 0.0, 0.0, *RANGE_LIMITS, ranges)
