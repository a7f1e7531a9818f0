"""The metric scale of a moving camera, from sparse hits of a laser or rangefinder."""
from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from depth_ros import settings
from depth_ros.settings import setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricScaleConfig:
    """How hits become one factor."""

    scale_min_hits: int = setting(20, 'hits on confident depth, gathered over frames where one has fewer, that tell the scale', '', 1, 100000)
    scale_max_spread: float = setting(0.3, 'median deviation of the logarithm of the hits\' ratios, above which the hits tell nothing', '', 0.01, 2.0)
    scale_smoothing: float = setting(0.1, 'share by which one frame moves the scale, once many have told it; the first ones have equal shares', '', 0.001, 1.0)
    scale_gate: float = setting(0.3, 'difference of the logarithm above which a frame contradicts the scale', '', 0.01, 2.0)
    scale_patience: int = setting(15, 'frames in a row that must contradict the scale before it starts anew; no more than have told it', '', 1, 10000)


class MetricScale:
    """The factor [m per unit of the odometry]; None until frames have told it."""

    def __init__(self, config: MetricScaleConfig = MetricScaleConfig()) -> None:
        settings.check(config)
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the factor."""
        self.factor: float | None = None
        self.restarts = 0           # how often lengths were found to have been wrong
        self._told = 0              # frames that the factor stands on
        self._contradictions = 0
        self._gathered = np.zeros(0)

    def update(self, depth: np.ndarray, trusted: np.ndarray, hits: np.ndarray) -> bool:
        """Take in one frame's depth (H, W) [units] where trusted and its hits (H, W) [m], 0 where none; whether it told anything."""
        both = trusted & (depth > 0) & (hits > 0)
        # A laser fills one frame; a single rangefinder takes some, in which the scale hardly drifts.
        self._gathered = np.append(self._gathered, np.log(hits[both].astype(np.float64)) - np.log(depth[both].astype(np.float64)))
        if self._gathered.size < self.config.scale_min_hits:
            return False
        ratios, self._gathered = self._gathered, np.zeros(0)
        middle = float(np.median(ratios))
        if np.median(np.abs(ratios - middle)) > self.config.scale_max_spread:
            return False
        if self.factor is None:
            self._begin(middle)
            return True
        return self._blend(middle)

    def _begin(self, log_ratio: float) -> None:
        self.factor, self._told, self._contradictions = float(np.exp(log_ratio)), 1, 0

    def _blend(self, log_ratio: float) -> bool:
        step = log_ratio - np.log(self.factor)
        if abs(step) <= self.config.scale_gate:
            self._contradictions = 0
            self._told += 1
            self.factor *= float(np.exp(max(self.config.scale_smoothing, 1 / self._told) * step))
            return True
        self._contradictions += 1
        if self._contradictions <= min(self.config.scale_patience, self._told):
            return False
        log.warning('the scale starts anew: %d frames in a row contradict it', self._contradictions)
        self._begin(log_ratio)
        self.restarts += 1
        return True


class ScaledPath:
    """Poses in metres out of poses in the odometry's unit: every step is scaled by the factor of its time, so that a better factor makes no jump."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The next pose stands as it comes."""
        self._before: np.ndarray | None = None
        self._position = np.zeros(3)

    def pose(self, T_odom_cam: np.ndarray, factor: float) -> np.ndarray:
        """T_odom_cam (4, 4) with its position continued from the last one by the scaled step."""
        position = T_odom_cam[:3, 3]
        self._position = position.copy() if self._before is None else self._position + factor * (position - self._before)
        self._before = position.copy()
        scaled = T_odom_cam.copy()
        scaled[:3, 3] = self._position
        return scaled
