"""Find a lost camera's pose from the keyframes that look most like its image: SIFT matches with depth, then PnP with RANSAC.

P3P inside RANSAC is OpenCV's. Matches alone can still agree on a wrong pose: the tracker believes one only after aligning with dense flow started from it.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from depth_ros.engines.alignment import MIN_DEPTH
from depth_ros.engines.features import Features
from depth_ros.engines.keyframes import Keyframes, View

CANDIDATES = 3          # keyframes tried an image
MIN_INLIERS = 12        # fewer agreeing matches can be chance
MIN_SHARE = 0.25        # of the matches
REPROJECTION = 2.5      # px


@dataclass(frozen=True)
class Found:
    """A pose relative to a keyframe."""

    keyframe: View
    T_odom_cam: np.ndarray  # (4, 4)
    inliers: int


class Relocaliser:
    """Looks for images among keyframes."""

    def __init__(self) -> None:
        self._features = Features()

    def find(self, view: View, keyframes: Keyframes) -> Found | None:
        """The best supported pose among the likest keyframes, or None."""
        found = [self._against(view, keyframe) for keyframe in keyframes.likest(view, CANDIDATES)]
        return max((f for f in found if f is not None), key=lambda f: f.inliers, default=None)

    def _against(self, view: View, keyframe: View) -> Found | None:
        if keyframe.depth is None:
            return None
        pixels, key_pixels = self._features.matched(view, keyframe)
        if len(pixels) < MIN_INLIERS:
            return None
        points, present = _lift(keyframe, key_pixels)
        T_cam_key, inliers = _pnp(points[present], pixels[present], view.frame.K)
        if T_cam_key is None or inliers < max(MIN_INLIERS, MIN_SHARE * present.sum()):
            return None
        return Found(keyframe, keyframe.T_odom_cam @ np.linalg.inv(T_cam_key), inliers)


def _lift(view: View, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) [m] at pixels (N, 2) of a view, by its nearest depth, and the mask (N,) of those that have one."""
    column, row = np.round(pixels).astype(np.intp).T    # SIFT's pixels are centred as ours
    depth = view.depth.depth[row, column]
    rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(view.frame.K).T
    return depth[:, None] * rays, view.depth.valid[row, column] & (depth > MIN_DEPTH)


def _pnp(points: np.ndarray, pixels: np.ndarray, K: np.ndarray) -> tuple[np.ndarray | None, int]:
    """T_cam_key (4, 4) that sees points (N, 3) [m] at pixels (N, 2), and how many agree; None if RANSAC finds nothing."""
    if len(points) < MIN_INLIERS:
        return None, 0
    ok, rotation, translation, inliers = cv2.solvePnPRansac(points, pixels.astype(np.float64), K, None, iterationsCount=200,
                                                            reprojectionError=REPROJECTION, flags=cv2.SOLVEPNP_P3P)
    if not ok or inliers is None:
        return None, 0
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(rotation)[0], translation[:, 0]
    return (T, len(inliers)) if np.isfinite(T).all() else (None, 0)
