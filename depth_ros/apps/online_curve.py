"""The curve that `evaluate online` leaves: error over time, through all passes, of the learning network and of what it is compared with."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402 - the backend must be chosen first
import numpy as np  # noqa: E402

_LABELS = {'learned': 'learning from hits', 'frozen_scaled': 'frozen, scale from hits', 'frozen': 'frozen, scale from poses', 'triangulated': 'tracker\'s depth from flow', 'dense': 'learning from dense depth'}
_SMOOTHED = 0.05        # share of a pass over which a line is averaged


def draw(lines: dict[str, list[dict[int, float | None]]], held_out: list[int], target: Path, named: dict[str, str] | None = None) -> None:
    """Abs-Rel of each line {frame: error} in every pass; frames that give no hits are shaded. `named`: labels of lines that are called otherwise than usual."""
    labels = {**_LABELS, **(named or {})}
    frames = list(lines['learned'][0])
    stretch = frames[-1] - frames[0] + (frames[1] - frames[0] if len(frames) > 1 else 1)
    figure, axes = plt.subplots(figsize=(12, 5), constrained_layout=True)
    for name, passes in lines.items():
        x = np.concatenate([np.array(frames) + number * stretch for number in range(len(passes))])
        y = np.array([np.nan if scores[i] is None else scores[i] for scores in passes for i in frames])
        colour = axes.plot(x, y, lw=0.6, alpha=0.35)[0].get_color()
        axes.plot(x, _smooth(y, max(1, round(_SMOOTHED * len(frames)))), color=colour, lw=2, label=f'{labels.get(name, name)}: {np.nanmean(y):.3f}')
    for number in range(len(lines['learned'])):
        if held_out:
            axes.axvspan(held_out[0] + number * stretch, held_out[-1] + number * stretch, color='0.85', label='no hits' if number == 0 else None)
    axes.set(xlabel='frame, through all passes', ylabel='Abs-Rel in metres, not aligned', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(title='mean over all passes', loc='upper left', bbox_to_anchor=(1.0, 1.0))
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values that there are."""
    starts = np.maximum(np.arange(len(values)) + 1 - window, 0)
    return np.array([np.nanmean(values[s:e + 1]) if np.isfinite(values[s:e + 1]).any() else np.nan for e, s in enumerate(starts)])
