"""Find a lost camera's pose from the keyframes that look most like its image: SIFT matches with depth, then PnP with RANSAC.

SIFT: D. Lowe, IJCV 2004; P3P inside RANSAC, both as in OpenCV. On hand-held indoor pairs SIFT finds half as many again as ORB and errs less; its
20 ms matter only while lost. Matches alone can still agree on a wrong pose: the tracker believes one only after aligning with dense flow started from it.
"""
from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import cv2
import numpy as np

from depth_ros.engines.alignment import MIN_DEPTH
from depth_ros.engines.keyframes import Keyframes, View

FEATURES = 600
CONTRAST = 0.02         # half of SIFT's default: small indoor images have few strong corners
CANDIDATES = 3          # keyframes tried an image
RATIO = 0.8             # nearest to second nearest descriptor (Lowe)
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
    """Keeps the features of keyframes for as long as those are remembered."""

    def __init__(self) -> None:
        self._detector = cv2.SIFT.create(FEATURES, contrastThreshold=CONTRAST)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2)
        self._features: WeakKeyDictionary[View, tuple[np.ndarray, np.ndarray | None]] = WeakKeyDictionary()

    def find(self, view: View, keyframes: Keyframes) -> Found | None:
        """The best supported pose among the likest keyframes, or None."""
        found = [self._against(view, keyframe) for keyframe in keyframes.likest(view, CANDIDATES)]
        return max((f for f in found if f is not None), key=lambda f: f.inliers, default=None)

    def _of(self, view: View) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (N, 2) and descriptors (N, 128) of a view's features."""
        if view not in self._features:
            points, descriptors = self._detector.detectAndCompute(view.grey, None)
            self._features[view] = cv2.KeyPoint.convert(points), descriptors
        return self._features[view]

    def _against(self, view: View, keyframe: View) -> Found | None:
        (pixels, descriptors), (key_pixels, key_descriptors) = self._of(view), self._of(keyframe)
        if keyframe.depth is None or min(len(pixels), len(key_pixels)) < MIN_INLIERS:
            return None
        pairs = [p for p in self._matcher.knnMatch(descriptors, key_descriptors, k=2) if len(p) == 2]
        good = [first for first, second in pairs if first.distance < RATIO * second.distance]
        if len(good) < MIN_INLIERS:
            return None
        points, present = _lift(keyframe, key_pixels[[m.trainIdx for m in good]])
        T_cam_key, inliers = _pnp(points[present], pixels[[m.queryIdx for m in good]][present], view.frame.K)
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
