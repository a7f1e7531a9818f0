"""The frames that a tracker remembers: a short run of recent ones, the keyframes it aligns with, and a bounded set to find its way back by."""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from depth_ros.engines import flow
from depth_ros.frames import CameraFrame, Scale

TEXTURE_WINDOW = 9  # px: about a DIS patch


@dataclass(frozen=True)
class DepthMap:
    """Depth of a frame at the frame's size, from a sensor or estimated."""

    depth: np.ndarray                   # (H, W) float32 [m], 0 where not valid
    valid: np.ndarray                   # (H, W) bool
    sigma: np.ndarray | None = None     # (H, W) float32 [m], standard deviation; None: a depth sensor, whose noise the tracker knows
    scale: Scale = Scale.METRIC


@dataclass(eq=False)
class View:
    """A frame with its pose and, once there is one, its depth."""

    frame: CameraFrame
    T_odom_cam: np.ndarray
    depth: DepthMap | None = None

    @property
    def stamp(self) -> int:
        """[ns]"""
        return self.frame.stamp

    @cached_property
    def grey(self) -> np.ndarray:
        """(H, W) uint8."""
        return flow.grey(self.frame.image)

    @cached_property
    def texture(self) -> np.ndarray:
        """(H, W) float32: root mean squared gradient [grey levels / px] around each pixel. Flow means nothing where there is none."""
        du, dv = (cv2.Sobel(self.grey, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        return np.sqrt(cv2.boxFilter(du * du + dv * dv, -1, (TEXTURE_WINDOW, TEXTURE_WINDOW)))

    @cached_property
    def thumbnail(self) -> np.ndarray:
        """Small blurred image (30, 40) float32 with mean 0 and norm 1 (0 if blank), to rank keyframes by likeness."""
        small = cv2.GaussianBlur(cv2.resize(self.grey, (40, 30), interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1.5)
        small -= small.mean()
        return small / max(float(np.linalg.norm(small)), 1e-3)


class Keyframes:
    """Bounded memory of views by stamp."""

    def __init__(self, max_recent: int = 45, max_keyframes: int = 30) -> None:
        self._max_recent, self._max_keyframes = max_recent, max_keyframes
        self._recent: OrderedDict[int, View] = OrderedDict()
        self._keys: OrderedDict[int, View] = OrderedDict()

    def __len__(self) -> int:
        """How many keyframes are held."""
        return len(self._keys)

    def clear(self) -> None:
        """Forget everything."""
        self._recent.clear()
        self._keys.clear()

    def remember(self, view: View) -> None:
        """Keep a view among the recent ones; the oldest of too many is dropped."""
        self._recent[view.stamp] = view
        while len(self._recent) > self._max_recent:
            self._recent.popitem(last=False)

    def promote(self, view: View) -> None:
        """Make a view the newest keyframe; of too many, the one that tells least beside its neighbours is dropped."""
        self._keys[view.stamp] = view
        self._keys.move_to_end(view.stamp)
        if len(self._keys) > self._max_keyframes:
            del self._keys[self._most_redundant()]

    def find(self, stamp: int) -> View | None:
        """The view of that stamp, if still remembered."""
        return self._recent.get(stamp) or self._keys.get(stamp)

    def is_key(self, stamp: int) -> bool:
        """Whether that frame is a keyframe."""
        return stamp in self._keys

    @property
    def views(self) -> list[View]:
        """All that are remembered, by stamp."""
        return [view for _, view in sorted({**self._keys, **self._recent}.items())]

    @property
    def last(self) -> View | None:
        """The most recent view."""
        return next(reversed(self._recent.values()), None)

    def newest(self, count: int) -> list[View]:
        """The keyframes that came last, newest first."""
        return list(self._keys.values())[::-1][:count]

    def likest(self, view: View, count: int) -> list[View]:
        """The keyframes that look most like a view, best first."""
        return sorted(self._keys.values(), key=lambda k: -float((k.thumbnail * view.thumbnail).sum()))[:count]

    def _most_redundant(self) -> int:
        """Stamp of the keyframe nearest to another one; the newest three are spared, for tracking stands on them."""
        views = list(self._keys.values())
        return min(views[:-3], key=lambda view: min(apart(view.T_odom_cam, other.T_odom_cam) for other in views if other is not view)).stamp


def apart(T_odom_a: np.ndarray, T_odom_b: np.ndarray) -> float:
    """How far two cameras differ in what they see: metres plus two metres (a room's depth) times the angle in radians."""
    T = np.linalg.inv(T_odom_a) @ T_odom_b
    angle = np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1))
    return float(np.linalg.norm(T[:3, 3]) + 2 * angle)
