"""Global-Local live while a learner beside it hands it new weights: its rate, and the pairs that get no depth when weights are exchanged.

    ./rosenv python benchmarks/online_learning.py [--bag FOLDER] [--loops 3 | --minutes 60] [--rate 0.5] [--variant pose_aware] [--out FOLDER]

A swap is what happens within two seconds of new weights on their topic. `lost_at_swap` is, for each, how many pairs of two seconds global_local did not take up;
`lost_otherwise` tells the same of stretches as long in which nothing was exchanged, for a busy machine drops pairs at any time. `taken_up_hz` is the rate at which it works,
`rate_hz` that of its depth, which it has none of while the camera moves too little.
course.csv and course.png tell the memory of each node and the learner's errors over time: with --minutes, whether anything grows or drifts.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from live import NODES, Listener, play, tell
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import UInt8MultiArray

from depth_ros import files
from depth_ros.ros import codecs
from depth_ros.ros.managed_node import LATCHED_QOS, SENSOR_QOS

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402 - the backend must be chosen first

WINDOW = 2.0        # [s] after new weights
EVERY = 10.0        # [s] between two rows of the course
ERRORS = 'withheld error before', 'withheld error after', 'error away from hits before', 'error away from hits after'
COUNTS = 'updates', 'rollbacks', 'buffer size'


class Worked(NamedTuple):
    """What global_local did in a while."""

    seconds: float
    pairs: int          # that flow gave
    taken_up: int       # of these; too little parallax leaves some without depth
    overtaken: int      # by newer ones while they waited

    @property
    def lost(self) -> int:
        """Pairs that were not taken up, in two seconds."""
        return round((self.pairs - self.taken_up) * WINDOW / self.seconds)


class LearningListener(Listener):
    """Notes pairs and weights as well, and the learner's last figures."""

    def __init__(self) -> None:
        super().__init__(Image, '/global_local/depth/image')
        self.pairs: list[tuple[int, float]] = []
        self.weights: list[float] = []
        self.figures: dict[str, str] = {}
        self.worked: dict[str, list[tuple[float, int, int]]] = {}       # of each node: time, what it had taken up and had passed over by then
        self.create_subscription(CameraInfo, '/flow/camera_info', lambda m: self.pairs.append((codecs.stamp_ns(m.header.stamp), time.monotonic())), SENSOR_QOS)
        self.create_subscription(UInt8MultiArray, '/online_learning/weights', lambda _: self.weights.append(time.monotonic()), LATCHED_QOS, raw=True)
        self.create_subscription(DiagnosticArray, '/online_learning/metrics', lambda m: self.figures.update(_values(m)), 10)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._note_work, 10)

    def _note_work(self, message: DiagnosticArray) -> None:
        name, values = message.status[0].name, _values(message)
        if 'processed' in values:
            self.worked.setdefault(name, []).append((time.monotonic(), int(values['processed']), int(values['dropped'])))

    def at_work(self, name: str) -> dict[str, float]:
        """How many a second of what it works on a node took up, and how many newer ones overtook."""
        (begin, *before), (end, *after) = (told := self.told_by(name))[0], told[-1]
        return {what: round((b - a) / max(end - begin, 1.0), 2) for what, a, b in zip(('taken_up_hz', 'overtaken_hz'), before, after)}

    def told_by(self, name: str) -> list[tuple[float, int, int]]:
        """What a node told of its work while there were pairs: before the first image and after the last it has none."""
        return [w for w in self.worked[name] if self.pairs[0][1] <= w[0] <= self.pairs[-1][1]] or self.worked[name]

    def worked_between(self, begin: float, end: float) -> Worked | None:
        """What global_local did in that time, of which it tells every second; None where it did not tell."""
        told = self.worked['global_local']
        told = [w for w in told if w[0] <= begin][-1:] + [w for w in told if begin < w[0] < end] + [w for w in told if w[0] >= end][:1]
        if len(told) < 2 or told[0][0] > begin or told[-1][0] < end:
            return None
        (first, *before), (last, *after) = told[0], told[-1]
        taken_up, overtaken = (b - a for a, b in zip(before, after))
        return Worked(last - first, sum(first <= when < last for _, when in self.pairs), taken_up, overtaken)


def _values(message: DiagnosticArray) -> dict[str, str]:
    return {v.key: v.value for v in message.status[0].values}


class Course:
    """Writes what nodes and learner are at, a row every so often, so that a run that is cut short has told what it saw."""

    def __init__(self, listener: LearningListener, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener, self._path, self._began, self._due = listener, path, time.monotonic(), 0.0
        self._file = path.open('w', newline='')
        self._rows = csv.writer(self._file)
        self._rows.writerow(['seconds', 'laps', 'load', 'depth images', *(f'{name} [MB]' for name in NODES), 'state', *COUNTS, *ERRORS])

    def look(self, memory: dict[str, float]) -> None:
        """Add a row if it is time."""
        now, figures = time.monotonic() - self._began, self._listener.figures
        if now < self._due:
            return
        self._due = now + EVERY
        self._rows.writerow([f'{now:.1f}', self._listener.laps, os.getloadavg()[0], len(self._listener.results), *(round(memory.get(name, 0.0), 1) for name in NODES),
                             *(figures.get(name, '') for name in ('state', *COUNTS, *ERRORS))])
        self._file.flush()

    def close(self) -> dict[str, object]:
        """Draw it; how much memory each node held at most after a sixth and in the last sixth of the time, and the mean withheld error then."""
        self._file.close()
        with self._path.open() as source:
            rows = list(csv.DictReader(source))
        draw(rows, self._path.with_suffix('.png'))
        sixth = max(len(rows) // 6, 1)
        early, late = rows[sixth:2 * sixth] or rows, rows[-sixth:]
        return {when: {**{name: max(_number(row, f'{name} [MB]') for row in part) for name in NODES}, **{name: float(np.nanmean([_number(row, name) for row in part])) for name in ERRORS}}
                for when, part in (('second_sixth', early), ('last_sixth', late)) if len(rows) >= 6}


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        return float('nan')


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """Memory, errors and counts over time."""
    figure, panels = plt.subplots(3, 1, figsize=(10, 9), sharex=True, constrained_layout=True)
    minutes = [_number(row, 'seconds') / 60 for row in rows]
    columns = [f'{name} [MB]' for name in NODES], ERRORS, COUNTS
    for panel, names, label in zip(panels, columns, ('memory of its own [MB]', 'error of the log of depth', 'count')):
        for name in names:
            panel.plot(minutes, [_number(row, name) for row in rows], label=name.removesuffix(' [MB]'))
        panel.set(ylabel=label, ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
    panels[-1].set_xlabel('time [min]')
    with files.whole(target) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get('DEPTH_ROS_DATA', Path(__file__).resolve().parents[2] / 'shared/data'))
    parser.add_argument('--bag', default=str(data / 'kitchen'), help='what to replay')
    parser.add_argument('--loops', type=int, default=3, help='wraps to wait for')
    parser.add_argument('--minutes', type=float, default=0.0, help='play for so long instead')
    parser.add_argument('--rate', type=float, default=0.5, help='speed of the replay')
    parser.add_argument('--variant', default='pose_aware')
    parser.add_argument('--out', type=Path, default=Path('evaluation/online_learning_live'))
    args = parser.parse_args()
    rclpy.init()
    listener = LearningListener()
    course = Course(listener, args.out / 'course.csv')
    figures = play(listener, 'online_learning.launch.py', args.bag, 0 if args.minutes else args.loops, f'variant:={args.variant}', f'rate:={args.rate}', 'resume:=false',
                   minutes=args.minutes, look=course.look)
    begin, end = listener.results[0][1], listener.results[-1][1]
    swaps = [t for t in listener.weights if begin <= t <= end - WINDOW]
    others = [t for t in np.arange(begin, end - WINDOW, WINDOW) if all(abs(t - s) > WINDOW for s in swaps)]
    at_swap, otherwise = ([worked.lost for t in times if (worked := listener.worked_between(t, t + WINDOW))] for times in (swaps, others))
    told = listener.told_by('global_local')
    whole = listener.worked_between(told[0][0], told[-1][0])
    figures |= {'pairs_hz': whole.pairs / whole.seconds, 'taken_up_hz': whole.taken_up / whole.seconds, 'overtaken_hz': whole.overtaken / whole.seconds, 'swaps': len(swaps),
                'at_work': {name: listener.at_work(name) for name in listener.worked},
                'lost_at_swap': at_swap, **{f'lost_{name}_{what}': float(f(lost)) for name, lost in (('at_swap', at_swap), ('otherwise', otherwise)) if lost
                                            for what, f in (('median', np.median), ('mean', np.mean), ('most', np.max))},
                'learner': listener.figures, **course.close()}
    tell(figures, args.out)


if __name__ == '__main__':
    main()
