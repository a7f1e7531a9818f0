"""Metric depth of image pairs from their flow and an odometry: what an online learner is guided by away from the range hits."""

from __future__ import annotations

import numpy as np

from depth_ros.engines.depth_filter import DepthFilter, DepthFilterConfig, InverseDepth, Reference
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, ImagePair, Scale

_LONGEST = 1_000_000_000    # [ns] from one pair to the next over which depth is carried
_FARTHEST = 0.5             # [m] that the camera moves meanwhile


class FlowGuide:
    """The recursive filter of depth from flow (engines/depth_filter) on pairs that come now and then. It carries its estimate along where the motion since the last pair is known."""

    def __init__(self, config: DepthFilterConfig = DepthFilterConfig()) -> None:
        self.config = config
        self._filter = DepthFilter(config)
        self._flow = FlowEngine(FlowConfig(preset='depth'))
        self._previous: tuple[CameraFrame, np.ndarray] | None = None

    def reset(self) -> None:
        """Forget the last pair, as after a jump of the clock or of the odometry."""
        self._filter.reset()
        self._previous = None

    @single_threaded()
    def step(self, result: FlowResult, T_ref_cur: np.ndarray | None, T_odom_cam: np.ndarray | None = None) -> DepthResult | None:
        """Depth of a pair's current image, of motion T_ref_cur (4, 4) [m] and at pose T_odom_cam (4, 4) [m]; None where the motion is not known or tells nothing."""
        frame = result.pair.current
        carried = None if T_odom_cam is None else self._carried(frame, T_odom_cam)
        self._previous = None if T_odom_cam is None else (frame, T_odom_cam)
        if T_ref_cur is None or not np.isfinite(T_ref_cur).all():
            self.reset()
            return None
        estimate = self._filter.step(frame, [Reference(result, T_ref_cur)], carried)
        if estimate is None:
            return None
        confidence = (1 / (1 + (estimate.relative_sigma / self.config.filter_confident) ** 2)).astype(np.float32)
        return DepthResult(frame, estimate.depth, np.ones(estimate.depth.shape, bool), confidence, Scale.METRIC)

    def _carried(self, frame: CameraFrame, T_odom_cam: np.ndarray) -> InverseDepth | None:
        if self._previous is None:
            return None
        before, T_odom_before = self._previous
        T_before_cur = np.linalg.inv(T_odom_before) @ T_odom_cam
        if before.size != frame.size or not 0 < frame.stamp - before.stamp <= _LONGEST or np.linalg.norm(T_before_cur[:3, 3]) > _FARTHEST:
            return None
        return self._filter.carry(Reference(self._flow.step(ImagePair(frame, before)), T_before_cur), frame.K)
