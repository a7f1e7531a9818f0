"""How the networks of a comparison got better as they learned, and where that leads if it goes on in the same way."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from depth_ros.apps.study_report import TITLES, Table
from depth_ros.learning.trainer import HISTORY

LONGER = 10             # times the steps that a course is drawn out to
_SCORES = 'abs_rel', 'sc_inv'
_FROM = 0.2             # share of the steps after which a course counts as settled
_ROOM = 1.4             # times the median of the last scores: what begins beyond is cut off
_LEAST = 4              # validations that a power of the steps is fitted to


@dataclass
class Courses(Table):
    """The last validation of each network and what its course extrapolates to; the plot shows the courses."""

    courses: dict[str, list[dict[str, float]]] = field(default_factory=dict)        # label -> validations

    def add(self, label: str, history: list[dict[str, float]]) -> None:
        """A network that was validated."""
        self.courses[label] = history
        self.rows[label] = [{name: history[-1][name] for name in _SCORES} | {f'longer_{name}': drawn_out(history, name) for name in _SCORES}]

    def _plot(self, target: Path) -> None:
        figure, axes = plt.subplots(1, len(_SCORES), figsize=(6 * len(_SCORES), 4.5), constrained_layout=True)
        for axis, name in zip(axes, _SCORES):
            for label, history in self.courses.items():
                steps = [entry['step'] for entry in history]
                line, = axis.plot(steps, [entry[name] for entry in history], '.-', label=label)
                axis.plot([steps[-1], LONGER * steps[-1]], [history[-1][name], drawn_out(history, name)], ':', color=line.get_color())
            typical = float(np.median([history[-1][name] for history in self.courses.values()]))
            axis.set(xscale='log', xlabel='step', title=f'{TITLES[name]}, validation split', ylim=(0, _ROOM * typical))
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize='small')
        figure.suptitle(self.title)
        figure.savefig(target, format='png', dpi=110)
        plt.close(figure)


def drawn_out(history: list[dict[str, float]], name: str) -> float:
    """The score after LONGER times the steps, if it goes on as the power of the number of steps that fits its course at the last size; as it is where that is too short."""
    last, size = history[-1]['step'], history[-1].get('reduce')
    points = [(math.log(entry['step']), math.log(entry[name])) for entry in history if entry['step'] >= _FROM * last and entry.get('reduce') == size and entry[name] > 0.0]
    if len(points) < _LEAST:
        return history[-1][name]
    slope, offset = np.polyfit(*zip(*points), 1)
    return math.exp(offset + slope * math.log(LONGER * last))


def histories(runs: Path) -> dict[str, list[dict[str, float]]]:
    """The validations of each run below a folder that scores depth, by name."""
    found = {path.parent.name: json.loads(path.read_text())['history'] for path in sorted(runs.glob(f'*/{HISTORY}'))}
    return {name: history for name, history in found.items() if history and all(score in history[-1] for score in _SCORES)}
