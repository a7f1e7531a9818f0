"""Plots that `evaluate` leaves beside its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402 - the backend must be chosen first
import numpy as np  # noqa: E402

from depth_ros.apps.scoring import TrackingScore  # noqa: E402


@dataclass(frozen=True)
class DepthExample:
    """One scored frame to look at; invalid depth is NaN."""

    title: str
    image: np.ndarray           # (H, W, 3) uint8 RGB
    predicted: np.ndarray       # (H, W) [m]
    truth: np.ndarray           # (H, W) [m]
    confidence: np.ndarray      # (H, W) in [0, 1]


def trajectory(score: TrackingScore, target: Path) -> None:
    """The aligned trajectory over the reference from above and from the side, and its error over time."""
    figure, (above, side, error) = plt.subplots(1, 3, figsize=(15, 4.5), constrained_layout=True)
    # The two axes of largest extent make the readable "map" view, whatever the reference's convention for up is.
    wide, middle, narrow = np.argsort(-np.ptp(score.reference, axis=0))
    for axes, (x, y) in ((above, (wide, middle)), (side, (wide, narrow))):
        axes.plot(score.reference[:, x], score.reference[:, y], 'k--', lw=1, label='reference')
        axes.plot(score.aligned[:, x], score.aligned[:, y], lw=1.5, label=f'depth_ros ({score.alignment})')
        axes.set(xlabel=f'{"xyz"[x]} [m]', ylabel=f'{"xyz"[y]} [m]', aspect='equal', adjustable='datalim')      # a level path would be a line without a height
        axes.grid(alpha=0.3)
    above.legend()
    error.plot(score.stamps - score.stamps[0], score.ate * 1e3)
    error.set(xlabel='time [s]', ylabel='position error [mm]', ylim=(0, None),
              title=f'ATE {score.ate_rmse * 1e3:.1f} mm, RPE {score.rpe_1s_trans_rmse * 1e3:.1f} mm/s')
    error.grid(alpha=0.3)
    _save(figure, target)


def depth(examples: list[DepthExample], target: Path) -> None:
    """Colour, predicted depth, sensor depth, relative error and confidence, a row a frame."""
    columns = ('image', 'predicted depth [m]', 'reference depth [m]', 'relative error', 'confidence')
    figure, axes = plt.subplots(len(examples), len(columns), figsize=(3.2 * len(columns), 2.5 * len(examples)),
                                constrained_layout=True, squeeze=False)
    for row, example in zip(axes, examples):
        known = example.truth[np.isfinite(example.truth)]
        near, far = np.percentile(known, [1, 99]) if known.size else (0.0, 1.0)
        error = np.abs(example.predicted - example.truth) / example.truth
        row[0].imshow(example.image)
        for axis, values, options in ((row[1], example.predicted, {'vmin': near, 'vmax': far, 'cmap': 'turbo'}),
                                      (row[2], example.truth, {'vmin': near, 'vmax': far, 'cmap': 'turbo'}),
                                      (row[3], error, {'vmin': 0.0, 'vmax': 0.5, 'cmap': 'magma'}),
                                      (row[4], example.confidence, {'vmin': 0.0, 'vmax': 1.0, 'cmap': 'viridis'})):
            figure.colorbar(axis.imshow(values, **options), ax=axis, shrink=0.8)
        row[0].set_ylabel(example.title)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[0], columns):
        axis.set_title(name)
    _save(figure, target)


def _save(figure: plt.Figure, target: Path) -> None:
    figure.savefig(target, dpi=110)
    plt.close(figure)
