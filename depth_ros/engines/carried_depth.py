"""Depth of an earlier image as the camera would see it now, for the while in which it moves too little to see depth by."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch

from depth_ros.frames import CameraFrame, FlowResult, pixel_grid
from depth_ros.geometry.reprojection import fill_holes, reproject_depth
from depth_ros.geometry.warp import induced_flow

_REACH = 4              # [px] by which depth grows into what comes into view
_OTHER = 3.0            # [px] from the flow that is expected, beyond which something else moves there
_LEAST_SEEN = 0.75      # share of the image whose depth must be known


class Carried(NamedTuple):
    """An image's depth that was measured from elsewhere."""

    depth: np.ndarray       # (H, W) float32 [unit of the odometry], 0 where the earlier image did not see
    confidence: np.ndarray  # (H, W) float32, as it was there


class _Seen(NamedTuple):
    frame: CameraFrame
    T_odom_cam: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray


class CarriedDepth:
    """Remembers the depth of the last image that had any of its own, and moves that, not what was moved before: however long the camera rests, edges stay where they are."""

    def __init__(self) -> None:
        self._last: _Seen | None = None

    def clear(self) -> None:
        """Forget it, as after a jump of the clock or of the odometry."""
        self._last = None

    def remember(self, frame: CameraFrame, T_odom_cam: np.ndarray, depth: np.ndarray, confidence: np.ndarray) -> None:
        """Keep a frame's pose (4, 4) and its depth (H, W), both in the odometry's unit, and the confidence (H, W) in that."""
        self._last = _Seen(frame, T_odom_cam, depth, confidence)

    def at(self, result: FlowResult, T_ref_cur: np.ndarray, T_odom_cam: np.ndarray, longest: float) -> Carried | None:
        """Depth of a pair's current image at a pose (4, 4), at most `longest` [s] after the one that is remembered; None where there is none or too little of it is in view.

        Where the flow to the reference is not what this depth makes of the motion T_ref_cur (4, 4) something else is there now, such as a passer-by, of which nothing is known.
        """
        last, frame = self._last, result.pair.current
        if last is None or last.frame.size != frame.size or not np.allclose(last.frame.K, frame.K) or not 0 <= frame.stamp - last.frame.stamp <= longest * 1e9:
            return None
        T_last_cur = np.linalg.inv(last.T_odom_cam) @ T_odom_cam
        before, K, T, T_back, T_ref = (torch.from_numpy(np.asarray(a, np.float32)) for a in (last.depth, frame.K, T_last_cur, np.linalg.inv(T_last_cur), T_ref_cur))
        depth = fill_holes(reproject_depth(before[None], K, T_back), _REACH)[0]
        flow, known = (a.numpy() for a in induced_flow(depth, K, T))
        if known.mean() < _LEAST_SEEN:
            return None
        known = known & ~_is_other(result, induced_flow(depth, K, T_ref)[0].numpy())
        confidence = cv2.remap(last.confidence, flow + pixel_grid(*frame.size), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return Carried(*(np.where(known, a, np.float32(0.0)) for a in (depth.numpy(), confidence)))


def _is_other(result: FlowResult, expected: np.ndarray) -> np.ndarray:
    """Where the image (H, W) shows something else than flow (H, W, 2) [px] that is expected; what has left the view of the reference tells nothing."""
    moved = cv2.magnitude(*cv2.split(cv2.subtract(result.flow, expected))) > _OTHER
    return cv2.dilate((moved & np.isfinite(result.error)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
