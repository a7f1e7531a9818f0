"""Depth maps of an engine against those of a sensor, frame by frame, and a few of them to look at."""

from __future__ import annotations

import numpy as np

from depth_ros.apps import plots
from depth_ros.frames import CameraFrame, DepthResult
from depth_ros.learning import metrics

CONFIDENT = 0.5                 # a DepthResult calls a pixel confident from here on
SCORED_RANGE = (1 / 3, 8.0)     # [m] predictions are clipped to it before scoring
EXAMPLES = 4                    # frames shown in the depth plot
MATCHES = {'median': metrics.median_scale, 'median_ratio': metrics.median_ratio}


class Spread:
    """Of any number of things, a few that lie evenly; never more than twice as many are kept."""

    def __init__(self, count: int) -> None:
        self._count, self._stride, self._seen = count, 1, 0
        self._kept: list[plots.DepthExample] = []

    def wants(self) -> bool:
        """Whether the next thing should be kept: call it once for each, and `add` if so."""
        self._seen += 1
        return (self._seen - 1) % self._stride == 0

    def add(self, thing: plots.DepthExample) -> None:
        """Keep one."""
        self._kept.append(thing)
        if len(self._kept) > 2 * self._count:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def chosen(self) -> list[plots.DepthExample]:
        """As many as were asked for, or all if there were fewer."""
        picked = np.linspace(0, len(self._kept) - 1, min(self._count, len(self._kept))).round().astype(int)
        return [self._kept[i] for i in picked]


class DepthScores:
    """Collects the scores of frames; `align` is one of MATCHES, or `metric`."""

    def __init__(self, align: str) -> None:
        self.align = align
        self._scores: list[dict[str, float]] = []
        self._confident: list[dict[str, float]] = []
        self._coverage: list[float] = []
        self._share: list[float] = []
        self._unscored = 0
        self._examples = Spread(EXAMPLES)

    def add(self, index: int, frame: CameraFrame, result: DepthResult | None) -> None:
        """Score a frame that has sensor depth, against it at the result's size."""
        truth = None if result is None else frame.resized(result.depth.shape[1], result.depth.shape[0])
        valid = None if result is None else truth.depth_valid & result.valid
        if result is None or not valid.any():
            self._unscored += 1
            return
        factor = MATCHES[self.align](result.depth, truth.depth, valid) if self.align in MATCHES else 1.0
        predicted = np.clip(result.depth * factor, *SCORED_RANGE)
        sure = valid & (result.confidence >= CONFIDENT)
        self._scores.append(metrics.depth_metrics(predicted, truth.depth, valid))
        if sure.any():
            self._confident.append(metrics.depth_metrics(predicted, truth.depth, sure))
        self._coverage.append(valid.sum() / truth.depth_valid.sum())
        self._share.append(sure.sum() / truth.depth_valid.sum())
        if self._examples.wants():
            self._examples.add(plots.DepthExample(f'frame {index}', truth.image, np.where(result.valid, predicted, np.nan),
                                                  np.where(truth.depth_valid, truth.depth, np.nan), result.confidence))

    def report(self) -> dict[str, object]:
        """Means over frames. Raises ValueError if none was scored."""
        if not self._scores:
            raise ValueError(f'nothing to score: {self._unscored} of the chosen frames had no depth from the engine, the others none from the sensor')
        return {**metrics.mean_metrics(self._scores), 'scale': self.align, 'coverage': float(np.mean(self._coverage)), 'frames_scored': len(self._scores),
                'frames_without_depth': self._unscored, **{f'confident_{k}': v for k, v in metrics.mean_metrics(self._confident).items()},
                'confident_share': float(np.mean(self._share))}

    def examples(self) -> list[plots.DepthExample]:
        """A few frames to look at."""
        return self._examples.chosen()
