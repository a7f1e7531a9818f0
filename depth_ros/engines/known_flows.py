"""Optical flow between frames, worked out once for each pair whoever asks, and the form in which DeepV2D's motion module sees it."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from depth_ros.engines.flow import FlowEngine
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, pixel_grid
from depth_ros.models.deepv2d_motion import MeasuredFlow, measured_flow

_AGREEING, _PASSABLE = 0.5, 0.2     # shares of pixels whose flow comes back: fewer are looked at again, and views with as many may lie between
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
        there = self._kept.get(_key(current, reference))
        if there is not None:
            return there
        back = self._kept.get(_key(reference, current))
        found = reverse(back) if back is not None else self._flow.step(ImagePair(current, reference))
        if back is None:
            self.offer([found])
        return found

    def by_detours(self, key: CameraFrame, views: Sequence[CameraFrame]) -> None:
        """Look again at views whose flow from the keyframe agrees with its way back too seldom: beginning with the flow by way of another view, which is nearer to both.

        What finds more agreement is kept. Views of a video that have turned far from each other are met over those between them.
        """
        share = {view.stamp: self.between(key, view).valid.mean() for view in views}
        for view in sorted((v for v in views if share[v.stamp] < _AGREEING), key=lambda v: -share[v.stamp]):
            by_way = sorted((v for v in views if v is not view and share[v.stamp] >= _PASSABLE), key=lambda v: -share[v.stamp])[:_DETOURS]
            for middle in by_way:
                there, on = self.between(key, middle), self.between(middle, view)
                start = _chained(there.flow, on.flow), _chained(on.backward, there.backward)
                found = self._flow.step(ImagePair(key, view), start)
                if found.valid.mean() > share[view.stamp]:
                    share[view.stamp] = found.valid.mean()
                    self.offer([found])

    def measured(self, frames: Sequence[CameraFrame], edges: Iterable[tuple[int, int]]) -> MeasuredFlow:
        """The flow of edges between frames, from one to the other, as the motion module's maps see it (1, E, h, w)."""
        found = [self.between(frames[i], frames[j]) for i, j in edges]
        return measured_flow(*(torch.stack([torch.from_numpy(getattr(f, name)) for f in found])[None] for name in ('flow', 'error')))


def reverse(result: FlowResult) -> FlowResult:
    """The flow of the pair seen from its reference."""
    return FlowResult(ImagePair(result.pair.reference, result.pair.current), result.backward, result.flow, result.consistency)


def _chained(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The flow (H, W, 2) of one after the other."""
    ends = cv2.add(first, pixel_grid(first.shape[1], first.shape[0]))
    return cv2.add(first, cv2.remap(second, ends, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _key(current: CameraFrame, reference: CameraFrame) -> tuple[int, int, tuple[int, int]]:
    return current.stamp, reference.stamp, current.size
