"""What a study of `evaluate` leaves: a table on the terminal, in Markdown and JSON, and a plot."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402 - the backend must be chosen first
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from depth_ros import files  # noqa: E402

TITLES = {'abs_inv': 'Abs-Inv', 'abs_rel': 'Abs-Rel', 'sq_rel': 'Sq-Rel', 'rmse': 'RMSE [m]', 'rmse_log': 'RMSE log', 'sc_inv': 'S-RMSE', 'delta_1_25': 'δ < 1.25', 'delta_1_25_2': 'δ < 1.25²',
          'delta_1_25_3': 'δ < 1.25³', 'rotation': 'rotation [deg]', 'direction': 'translation direction [deg]', 'translation_cm': 'translation [cm]',
          'rpe_1s_trans_rmse': 'RPE [m/s]', 'rpe_1s_rot_rmse_deg': 'RPE [deg/s]', 'ate_rmse': 'ATE [m]', 'lost': 'lost frames', 'focal_error': 'focal length off [%]',
          'within_5_percent': 'within 5 %', 'solved': 'solved',
          'longer_abs_rel': 'Abs-Rel, ten times the steps', 'longer_sc_inv': 'S-RMSE, ten times the steps'}

DIGITS = {'lost': 1, 'focal_error': 2}      # after the point, where four are too many
ACROSS = 5     # scores beside each other in a plot
HEADROOM = 0.06         # above the highest point of a curve, as a share
ODD = 2.5      # times the median: what is beyond is cut off in a plot


@dataclass
class Table:
    """Scores by row; each score is the mean over seeds, and each seed's are kept. Curves, if there are any, are drawn instead of bars."""

    name: str
    title: str
    note: str
    rows: dict[str, list[dict[str, float]]] = field(default_factory=dict)       # label -> scores of each seed
    curves: dict[str, list[str]] = field(default_factory=dict)                  # label -> its rows in order
    abscissa: dict[str, float] = field(default_factory=dict)                    # of each row of a curve
    abscissa_title: str = ''
    is_logarithmic: bool = False                                                # of the abscissa

    @property
    def columns(self) -> list[str]:
        """Names of the scores."""
        return [name for name in TITLES if name in next(iter(self.rows.values()))[0]]

    def mean(self, row: str, column: str) -> float:
        """The score of a row over its seeds."""
        return float(np.mean([scores[column] for scores in self.rows[row]]))

    def cells(self) -> list[list[str]]:
        """The table as text, with its header."""
        body = []
        for row, seeds in self.rows.items():
            spread = {c: float(np.std([scores[c] for scores in seeds])) for c in self.columns}
            body.append([row, *(f'{self.mean(row, c):.{DIGITS.get(c, 4)}f}' + (f' ± {spread[c]:.4f}' if len(seeds) > 1 else '') for c in self.columns)])
        return [['', *(TITLES[c] for c in self.columns)], *body]

    def terminal(self) -> str:
        """Aligned columns."""
        cells = self.cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ['  '.join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(line, widths))) for line in cells]
        return '\n'.join([self.title, *lines])

    def markdown(self) -> str:
        """A section with the table."""
        header, *body = (f'| {" | ".join(line)} |' for line in self.cells())
        return '\n'.join([f'## {self.title}', '', self.note, '', header, '|' + '---|' * (1 + len(self.columns)), *body, ''])

    def save(self, out: Path) -> None:
        """NAME.json, NAME.md and NAME.png in the folder."""
        report = {'title': self.title, 'note': self.note, 'seeds': self.rows, 'mean': {row: {c: self.mean(row, c) for c in self.columns} for row in self.rows}}
        for suffix, text in (('json', json.dumps(report, indent=1) + '\n'), ('md', self.markdown())):
            with files.whole(out / f'{self.name}.{suffix}') as partial:
                partial.write_text(text)
        with files.whole(out / f'{self.name}.png') as partial:
            self._plot(partial)

    def _plot(self, target: Path) -> None:
        across = min(len(self.columns), ACROSS)
        down = -(-len(self.columns) // across)
        figure, axes = plt.subplots(down, across, figsize=(5 * across, down * (4.5 if self.curves else 1.5 + 0.35 * len(self.rows))), constrained_layout=True, squeeze=False)
        for axis in axes.flat[len(self.columns):]:
            axis.set_axis_off()
        for axis, column in zip(axes.flat, self.columns):
            if self.curves:
                self._draw_curves(axis, column)
            else:
                self._draw_bars(axis, column)
            axis.set_title(TITLES[column])
            axis.grid(alpha=0.3)
        figure.suptitle(self.title)
        figure.savefig(target, dpi=110)
        plt.close(figure)

    def _draw_bars(self, axis: plt.Axes, column: str) -> None:
        values = [self.mean(row, column) for row in self.rows]
        bars = axis.barh(list(self.rows), values)
        axis.bar_label(bars, [f'{value:.3g}' for value in values], padding=3, fontsize='small')
        most, usual = 1.2 * max(values), ODD * float(np.median(values))
        limit = (min(most, usual) if usual else most) or 1.0        # one that is far off would hide what the others differ by
        axis.set_xlim(0, limit)
        for bar, value in zip(bars, values):
            if value > 0.99 * limit:
                axis.text(0.98 * limit, bar.get_y() + bar.get_height() / 2, f'{value:.3g} →', ha='right', va='center', fontsize='small', color='white')
        axis.invert_yaxis()

    def _draw_curves(self, axis: plt.Axes, column: str) -> None:
        for label, rows in self.curves.items():
            axis.plot([self.abscissa[row] for row in rows], [self.mean(row, column) for row in rows], 'o-', label=label)
        axis.set(xscale='log' if self.is_logarithmic else 'linear', xlabel=self.abscissa_title)
        axis.set_ylim(0, (1 + HEADROOM) * axis.dataLim.ymax or 1.0)      # matplotlib's own margin is next to nothing where values hardly differ
        if not self.is_logarithmic and all(float(x).is_integer() for x in self.abscissa.values()):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
