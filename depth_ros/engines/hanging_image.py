"""Whether a camera hangs: it delivers one picture again and again while its odometry or the range hits tell that it moves. No living sensor repeats its noise."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from depth_ros.frames import ImagePair

_SAME = 0.05            # [grey levels] mean difference of two images, even small ones, that is below the noise of any sensor
_MOVED = 0.01           # [m], [rad] by which poses differ that are not of one place
_RANGES_CHANGED = 0.1   # median change of the log of the hits' ranges
_COMMON_HITS = 5        # that tell of a change
_FORGET = 10_000_000_000    # [ns] after which no pair has an image of the time when it hung

HANGS = 'the camera moves but its image stays the same: does it hang?'
RANGES_TELL = 'the range hits change but the image stays the same: does the camera hang?'
HUNG = 'the earlier image of the pair is from when the camera hung'


class Seen(NamedTuple):
    """An image when it came first."""

    image: np.ndarray               # (H, W, 3) uint8
    stamp: int                      # [ns]
    T_odom_cam: np.ndarray | None   # (4, 4) [m]
    hits: np.ndarray | None         # (h, w) [m], 0 where none

    def is_of(self, image: np.ndarray) -> bool:
        """Whether another image is this one."""
        return same_image(self.image, image)


class HangingImage:
    """Looks at every pair of one camera, in order. `hung` is the image that it hangs at, or hung at a short while ago, as it was when it came first."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.hung: Seen | None = None
        self._seen: Seen | None = None
        self._newest = self._until = -1     # stamps [ns] of the last image, and of the last one that was `hung`

    def step(self, pair: ImagePair, T_odom_cam: np.ndarray | None = None, T_ref_cur: np.ndarray | None = None, hits: np.ndarray | None = None) -> str:
        """Why a pair says nothing of depth; '' if it may. Poses and motions (4, 4) [m] and hits (h, w) [m] of the current image are of use as far as they are known."""
        current, reference = pair.current, pair.reference
        if current.stamp < self._newest:
            self.reset()
        self._newest = current.stamp
        if self.hung is not None and current.stamp - self._until > _FORGET:
            self.hung = None
        reason = self._repeats(Seen(current.image, current.stamp, T_odom_cam, hits))
        if reason:
            self.hung, self._until = self._seen, current.stamp
            return reason
        if self.hung is not None and self.hung.stamp < reference.stamp and self.hung.is_of(reference.image):
            return HUNG
        if T_ref_cur is not None and _differ(T_ref_cur, np.eye(4)) and same_image(current.image, reference.image):
            return HANGS
        return ''

    def _repeats(self, new: Seen) -> str:
        """Why an image is not what the camera sees now, be it that it was seen before and the camera has moved since."""
        first = self._seen
        if first is None or not first.is_of(new.image):
            self._seen = new
            return ''
        if first.stamp == new.stamp:
            return ''       # looked at twice
        # What was not known at first counts from when it came to be known.
        self._seen = first._replace(**{name: getattr(new, name) for name in ('T_odom_cam', 'hits') if getattr(first, name) is None})
        if first.T_odom_cam is not None and new.T_odom_cam is not None and _differ(first.T_odom_cam, new.T_odom_cam):
            return HANGS
        return RANGES_TELL if first.hits is not None and new.hits is not None and _ranges_differ(first.hits, new.hits) else ''


def same_image(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two images (H, W, 3) uint8 are one, to less than any sensor's noise."""
    return a.shape == b.shape and cv2.norm(a, b, cv2.NORM_L1) < _SAME * a.size


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether poses (4, 4) [m] are of two places."""
    return not np.allclose(a, b, rtol=0.0, atol=_MOVED)


def _ranges_differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether hits (h, w) [m] tell that the sensor moved; a few wild ones do not."""
    if a.shape != b.shape:
        return False
    both = (a > 0) & (b > 0)
    return np.count_nonzero(both) >= _COMMON_HITS and float(np.median(np.abs(np.log(a[both] / b[both])))) > _RANGES_CHANGED
