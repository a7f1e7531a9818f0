"""Optical flow between frames, worked out once for each pair whoever asks, and the form in which DeepV2D's networks see it."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from depth_ros.engines.features import Features
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import View
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, pixel_grid
from depth_ros.models.deepv2d_motion import MeasuredFlow, measured_flow

TEXTURED = 0.5                      # [grey levels/px] gradient of what can be followed
_AGREEING, _PASSABLE = 0.7, 0.2     # shares of pixels whose flow comes back: fewer are looked at again, and views with as many may lie between
_CLEARLY = 0.02                     # more than before has to come back of flow that was told where to begin, which agrees with itself by its making
_DETOURS = 3                        # views by way of which another is looked at
_VIEWS = 16                         # whose features are remembered
_FEWEST, _BENT = 8, 6.0             # matches that agree in one homography, to so many pixels
_LONGEST = 2.0                      # image widths, of flow that a homography makes
_SINGULAR = 1e9                     # condition of a homography from which it has no way back

Start = tuple[np.ndarray, np.ndarray]
"""Flow and backward flow (H, W, 2) [px] to begin with."""


class KnownFlows:
    """The flows of the last pairs, by stamps and size."""

    def __init__(self, flow: FlowEngine, limit: int) -> None:
        """`limit`: pairs that are kept."""
        self._flow, self._limit = flow, limit
        self._kept: OrderedDict[tuple[int, int, tuple[int, int]], FlowResult] = OrderedDict()
        self._features, self._views = Features(), OrderedDict[tuple[int, tuple[int, int]], View]()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, as after a jump of the clock."""
        self._kept.clear()
        self._views.clear()

    def make_room(self, pairs: int) -> None:
        """Keep at least so many pairs from now on, so that none of a piece of work is forgotten in the midst of it."""
        self._limit = max(self._limit, pairs)

    def offer(self, flows: Iterable[FlowResult]) -> None:
        """Flows that somebody has worked out already, such as `Tracker.flows`."""
        for result in flows:
            key = _key(result.pair.current, result.pair.reference)
            self._kept.pop(_key(result.pair.reference, result.pair.current), None)
            self._kept[key] = result
            self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def between(self, current: CameraFrame, reference: CameraFrame) -> FlowResult:
        """The flow from one frame to the other and back."""
        for first, second in ((current, reference), (reference, current)):
            key = _key(first, second)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key] if first is current else reverse(self._kept[key])
        found = self._flow.step(ImagePair(current, reference))
        self.offer([found])
        return found

    def to_views(self, key: CameraFrame, views: Sequence[CameraFrame]) -> list[FlowResult]:
        """The flow from one frame to each of the others, also where the two have turned too far apart for flow to find its way from nothing.

        Where little of it comes back it begins anew: at the homography that most matches of sparse features agree in, for a turning camera makes one, at the flow by way of another
        view, or at the flow to that view. It is kept if clearly more comes back. As it depends on which views there are, it is not remembered.
        """
        found = [self._by_features(_Looked.at(self.between(key, view))) for view in views]
        for i in sorted((i for i in range(len(views)) if found[i].share < _AGREEING), key=lambda i: -found[i].share):
            middles = sorted((j for j in range(len(views)) if j != i and found[j].share >= _PASSABLE), key=lambda j: -found[j].share)[:_DETOURS]
            for middle in middles:
                there, on = found[middle].flow, self._by_features(_Looked.at(self.between(views[middle], views[i]))).flow
                for start in ((_chained(there.flow, on.flow), _chained(on.backward, there.backward)), (there.flow, there.backward)):
                    found[i] = self._again(found[i], start)
        return [looked.flow for looked in found]

    def _by_features(self, looked: _Looked) -> _Looked:
        """What little comes back of, looked at again from where sparse features are."""
        if looked.share >= _AGREEING:
            return looked
        start = _homography(looked.flow.pair.current.size, *self._features.matched(*(self._view(frame) for frame in (looked.flow.pair.current, looked.flow.pair.reference))))
        return looked if start is None else self._again(looked, start)

    def _again(self, looked: _Looked, start: Start) -> _Looked:
        other = _Looked.at(self._flow.step(looked.flow.pair, start))
        return other if other.share > looked.share + _CLEARLY else looked

    def _view(self, frame: CameraFrame) -> View:
        """The same one for the same frame, as long as it is remembered."""
        key = frame.stamp, frame.size
        self._views[key] = self._views.pop(key, None) or View(frame, np.eye(4))
        while len(self._views) > _VIEWS:
            self._views.popitem(last=False)
        return self._views[key]


class _Looked(NamedTuple):
    """Flow, and the share of its pixels that agree."""

    flow: FlowResult
    share: float

    @classmethod
    def at(cls, flow: FlowResult) -> _Looked:
        return cls(flow, float(agreeing(flow).mean()))


def _homography(size: tuple[int, int], pixels: np.ndarray, others: np.ndarray) -> Start | None:
    """The flow of an image of size (width, height) and back that most matches (N, 2) agree in; None if it is few."""
    if len(pixels) < _FEWEST:
        return None
    H, agree = cv2.findHomography(pixels, others, cv2.RANSAC, _BENT)
    if H is None or agree.sum() < _FEWEST or not np.isfinite(H).all() or not np.linalg.cond(H) < _SINGULAR:
        return None
    grid, longest = pixel_grid(*size), _LONGEST * size[0]
    return tuple(np.clip(cv2.perspectiveTransform(grid, way) - grid, -longest, longest) for way in (H, np.linalg.inv(H)))


def agreeing(result: FlowResult) -> np.ndarray:
    """(H, W) bool, pixels whose flow comes back and has texture at both ends: flow into a blank image is consistent, and means nothing."""
    current, reference = (View(frame, np.eye(4)).texture for frame in (result.pair.current, result.pair.reference))
    ends = cv2.add(result.flow, pixel_grid(*result.pair.current.size))
    return result.valid & (current > TEXTURED) & (cv2.remap(reference, ends, None, cv2.INTER_NEAREST) > TEXTURED)


def along(flows: Sequence[FlowResult]) -> MeasuredFlow:
    """Flows, one an edge, as the networks' maps see them (1, E, h, w)."""
    return measured_flow(*(torch.stack([torch.from_numpy(getattr(f, name)) for f in flows])[None] for name in ('flow', 'error')))


def reverse(result: FlowResult) -> FlowResult:
    """The flow of the pair seen from its reference."""
    return FlowResult(ImagePair(result.pair.reference, result.pair.current), result.backward, result.flow, result.consistency)


def _chained(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The flow (H, W, 2) of one after the other."""
    ends = cv2.add(first, pixel_grid(first.shape[1], first.shape[0]))
    return cv2.add(first, cv2.remap(second, ends, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _key(current: CameraFrame, reference: CameraFrame) -> tuple[int, int, tuple[int, int]]:
    return current.stamp, reference.stamp, current.size
