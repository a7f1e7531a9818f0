"""Find a lost camera's pose from the keyframes that look most like its image: ORB matches with depth, then PnP with RANSAC.

ORB: E. Rublee et al., ICCV 2011; P3P inside RANSAC, both as in OpenCV.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from depth_ros.engines.alignment import MIN_DEPTH
from depth_ros.engines.keyframes import Keyframes, View

FEATURES = 1000
CANDIDATES = 3          # keyframes tried an image
RATIO = 0.8             # nearest to second nearest descriptor (Lowe)
MIN_INLIERS = 20        # fewer agreeing matches can be chance
MIN_SHARE = 0.25        # of the matches
REPROJECTION = 2.5      # px


@dataclass(frozen=True)
class Found:
    """A pose relative to a keyframe."""

    keyframe: View
    T_odom_cam: np.ndarray  # (4, 4)
    inliers: int


class Relocaliser:
    """Stateless but for its detector and matcher."""

    def __init__(self) -> None:
        self._detector = cv2.ORB.create(FEATURES)
        self._matcher = cv2.BFMatcher(cv2.NORM_HAMMING)

    def find(self, view: View, keyframes: Keyframes) -> Found | None:
        """The best supported pose among the likest keyframes, or None."""
        points, descriptors = self._detector.detectAndCompute(view.grey, None)
        if descriptors is None or len(points) < MIN_INLIERS:
            return None
        pixels = cv2.KeyPoint.convert(points)
        found = [self._against(view, pixels, descriptors, keyframe) for keyframe in keyframes.likest(view, CANDIDATES)]
        return max((f for f in found if f is not None), key=lambda f: f.inliers, default=None)

    def _against(self, view: View, pixels: np.ndarray, descriptors: np.ndarray, keyframe: View) -> Found | None:
        if keyframe.depth is None:
            return None
        key_points, key_descriptors = self._detector.detectAndCompute(keyframe.grey, None)
        if key_descriptors is None or len(key_points) < MIN_INLIERS:
            return None
        pairs = [p for p in self._matcher.knnMatch(descriptors, key_descriptors, k=2) if len(p) == 2]
        good = [first for first, second in pairs if first.distance < RATIO * second.distance]
        if not good:
            return None
        seen = pixels[[m.queryIdx for m in good]]
        points, present = _lift(keyframe, cv2.KeyPoint.convert(key_points)[[m.trainIdx for m in good]])
        T_cam_key, inliers = _pnp(points[present], seen[present], view.frame.K)
        if T_cam_key is None or inliers < max(MIN_INLIERS, MIN_SHARE * len(good)):
            return None
        return Found(keyframe, keyframe.T_odom_cam @ np.linalg.inv(T_cam_key), inliers)


def _lift(view: View, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) [m] at pixels (N, 2) of a view, by its nearest depth, and the mask (N,) of those that have one."""
    column, row = np.round(pixels).astype(np.intp).T
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
