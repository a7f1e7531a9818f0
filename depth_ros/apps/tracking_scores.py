"""`evaluate tracking`: camera poses of one recorded sequence or of many against their references, as the tables of the TUM RGB-D benchmark have them.

J. Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems", IROS 2012: translational and rotational error over one second, absolute error of the aligned
trajectory. Z. Teed, J. Deng, "DeepV2D", ICLR 2020, table 6 has a line for each sequence and their mean.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from depth_ros import files
from depth_ros.apps import options, plots, report, runs, scoring, sequence_scores
from depth_ros.apps.study_report import Table
from depth_ros.engines.deepv2d import DeepV2DConfig
from depth_ros.learning.trajectory import Trajectory, read_trajectory, write_trajectory
from depth_ros.learning.tum import open_sequence

ERRORS = 'rpe_1s_trans_rmse', 'rpe_1s_rot_rmse_deg', 'ate_rmse'     # whose mean over sequences is told
COUNTS = 'poses', 'frames', 'lost', 'initialising'                  # whose sum is told
TABLE = 'tracking'                                                  # .json, .md and .png


def add_options(task: argparse.ArgumentParser) -> None:
    """What `evaluate tracking` takes."""
    sequence_scores.add_course_options(task, 'tracking', several=True)
    task.set_defaults(score=_tracking)
    task.add_argument('--engine', choices=('deepv2d',), default='deepv2d', help='the engine to score')
    options.add(task, DeepV2DConfig, 'engine parameters')


@dataclass
class Job:
    """One sequence, and what came of it."""

    name: str
    course: runs.Course
    reference: Trajectory
    run: runs.Summary = field(default_factory=runs.Summary)
    score: scoring.TrackingScore | None = None
    reason: str = ''            # why there is no score

    def work(self, config: DeepV2DConfig) -> None:
        """Track the sequence and score it. Raises ValueError, as scoring.tracking does, if that cannot be done."""
        for step in runs.deepv2d(self.course, config):
            self.run.add(step)
        self.score = scoring.tracking(self.run.trajectory, self.reference, self.run.scale)

    def figures(self) -> dict[str, object]:
        """Everything that is told of it."""
        return {**(sequence_scores.errors(self.score) if self.score else {'not_scored': self.reason}), **self.run.report()}

    def save(self, folder: Path) -> None:
        """The trajectory, as TUM text and as a plot."""
        with files.whole(folder / 'trajectory.txt') as partial:
            write_trajectory(partial, self.run.trajectory)
        with files.whole(folder / 'trajectory.png') as partial:
            plots.trajectory(self.score, partial)


def _tracking(args: argparse.Namespace) -> None:
    config, jobs = options.read(args, DeepV2DConfig), _jobs(args)
    if len(jobs) == 1:
        jobs[0].work(config)
        report.write(args.out, jobs[0].figures())
        jobs[0].save(args.out)
        return
    for job in jobs:
        try:
            job.work(config)
        except ValueError as error:     # the others are worth their scores; the table says so
            job.reason = str(error)
        else:
            job.save(args.out / job.name)
    if not any(job.score for job in jobs):
        raise ValueError('no sequence could be scored: ' + _reasons(jobs))
    table = _table(jobs)
    table.save(args.out)
    print(table.terminal() + ('\n' + table.note if table.note else '') + '\n')
    report.write(args.out, _totals(jobs), {'sequences': {job.name: job.figures() for job in jobs}})


def _jobs(args: argparse.Namespace) -> list[Job]:
    """Every sequence with its reference, opened before the first is run. Raises ValueError or OSError for what cannot be used."""
    count = len(args.sequence)
    places = zip(args.sequence, _one_each('--reference', args.reference, count), _one_each('--poses', args.poses, count))
    found = []
    for place, reference, poses in places:
        sequence = open_sequence(place)
        truth = sequence_scores.reference_of(sequence, reference)
        given = read_trajectory(poses) if poses else None
        found.append((place, runs.Course(sequence, given, str(poses), args.frames, args.hits == 'scan'), truth))
    names = _names([Path(course.sequence.name).name for _, course, _ in found])
    return [Job(name, course, truth) for name, (_, course, truth) in zip(names, found)]


def _one_each(option: str, given: Several[Path] | None, count: int) -> list[Path | None]:
    if not given:
        return [None] * count
    if len(given) != count:
        raise ValueError(f'{option}: expected one file for each of the {count} sequences, or none at all, got {len(given)}')
    return list(given)


def _names(wanted: list[str]) -> list[str]:
    """The names, numbered where several are alike: they are folders."""
    many, seen = Counter(wanted), Counter()
    names = []
    for name in wanted:
        seen[name] += 1
        names.append(f'{name}_{seen[name]}' if many[name] > 1 else name)
    return names


def _table(jobs: list[Job]) -> Table:
    """A line for each sequence that was scored, and the mean."""
    table = Table(TABLE, f'Tracking, {len(jobs)} sequences', _reasons(jobs))
    for job in jobs:
        if job.score:
            figures = job.figures()
            table.rows[job.name] = [{name: float(figures[name]) for name in (*ERRORS, 'lost')}]
    table.rows['mean'] = [{name: float(np.mean([table.mean(row, name) for row in table.rows])) for name in (*ERRORS, 'lost')}]
    return table


def _totals(jobs: list[Job]) -> dict[str, object]:
    """The figures of a single sequence over all of them: the mean of errors, the sum of counts, times over all frames."""
    each = [job.figures() for job in jobs]
    milliseconds = np.concatenate([job.run.milliseconds for job in jobs])
    return {**{name: float(np.mean([one[name] for one in each if name in one])) for name in ERRORS},
            'alignment': ', '.join(sorted({str(one['alignment']) for one in each if 'alignment' in one})),
            **{name: sum(int(one.get(name, 0)) for one in each) for name in COUNTS}, **runs.times(milliseconds),
            'sequences_scored': sum(job.score is not None for job in jobs)}


def _reasons(jobs: list[Job]) -> str:
    return '; '.join(f'{job.name} is not scored: {job.reason}' for job in jobs if job.reason)
