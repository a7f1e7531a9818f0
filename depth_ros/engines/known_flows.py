"""Optical flow between frames, worked out once for each pair whoever asks, and the form in which DeepV2D's motion module sees it."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import View
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, pixel_grid
from depth_ros.models.deepv2d_motion import MeasuredFlow, measured_flow

TEXTURED = 0.5                      # [grey levels/px] gradient of what can be followed
_AGREEING, _PASSABLE = 0.5, 0.2     # shares of pixels whose flow comes back: fewer are looked at again, and views with as many may lie between
_CLEARLY = 0.05                     # more than before has to come back of a detour, whose beginning agrees with itself by its making
_DETOURS = 3                        # views by way of which another is looked at


class KnownFlows:
    """The flows of the last pairs, by stamps and size."""

    def __init__(self, flow: FlowEngine, limit: int) -> None:
        """`limit`: pairs that are kept."""
        self._flow, self._limit = flow, limit
        self._kept: OrderedDict[tuple[int, int, tuple[int, int]], FlowResult] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, as after a jump of the clock."""
        self._kept.clear()

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
        """The flow from one frame to each of the others, by way of another one where the two have turned too far apart for flow.

        A detour is where the flow of the pair then begins, and is kept only if clearly more of it comes back. It depends on which views there are, so it is not remembered.
        """
        found = [self.between(key, view) for view in views]
        share = [agreeing(flow).mean() for flow in found]
        for i in sorted((i for i in range(len(views)) if share[i] < _AGREEING), key=lambda i: -share[i]):
            middles = sorted((j for j in range(len(views)) if j != i and share[j] >= _PASSABLE), key=lambda j: -share[j])[:_DETOURS]
            for middle in middles:
                there, on = found[middle], self.between(views[middle], views[i])
                tried = self._flow.step(ImagePair(key, views[i]), (_chained(there.flow, on.flow), _chained(on.backward, there.backward)))
                if (agreed := agreeing(tried).mean()) > share[i] + _CLEARLY:
                    found[i], share[i] = tried, agreed
        return found


def agreeing(result: FlowResult) -> np.ndarray:
    """(H, W) bool, pixels whose flow comes back and has texture at both ends: flow into a blank image is consistent, and means nothing."""
    current, reference = (View(frame, np.eye(4)).texture for frame in (result.pair.current, result.pair.reference))
    ends = cv2.add(result.flow, pixel_grid(*result.pair.current.size))
    return result.valid & (current > TEXTURED) & (cv2.remap(reference, ends, None, cv2.INTER_NEAREST) > TEXTURED)


def along(flows: Sequence[FlowResult]) -> MeasuredFlow:
    """Flows, one an edge, as the motion module's maps see them (1, E, h, w)."""
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
