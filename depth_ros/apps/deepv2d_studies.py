"""`evaluate deepv2d`: DeepV2D's networks on unseen synthetic clips of five views, or on clips of a recorded sequence, with the tables and curves of its paper.

Nothing is known of a clip but its images and calibration. Lengths are free, so depth is scored after a match of medians, and translations after that of one factor a
clip. A clip or a view that some way finds nothing for counts for its share of solved ones and for nothing else, as in the paper's table of pose sources.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from depth_ros import files
from depth_ros.apps import clip_runs, options, plots, report
from depth_ros.apps.clip_runs import Found, Runner, Trial
from depth_ros.apps.depth_scores import EXAMPLES, Spread
from depth_ros.apps.study_report import Table
from depth_ros.engines import learned_depth, tracker
from depth_ros.engines.alternation import AlternationConfig
from depth_ros.learning import metrics, pose_metrics, ranks
from depth_ros.learning.clips import ClipData, open_clips
from depth_ros.learning.sequence_clips import SequenceClipData
from depth_ros.settings import setting

OFF = 0.2               # of the focal length, that the uncalibrated form begins with
NEAR = 5.0              # [%] of the focal length that counts as found
DEPTH = ('abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'sc_inv', 'delta_1_25', 'delta_1_25_2', 'delta_1_25_3')
POSE = pose_metrics.NAMES
_DURATION = """
how long it takes: on one CPU core with the live network some 20 s a clip for all studies together; the test split is first rendered if it is not in the user's cache, some 2 clips a second.
"""


@dataclass(frozen=True)
class StudyConfig(AlternationConfig):
    """The alternation as it is studied."""

    rounds: int = setting(8, 'rounds of motion and depth, as in the paper', '', 1, 50)
    initial_poses: str = setting('flow', 'where poses begin: at the keyframe, where the pose network puts them, or where measured flow does', choices=('identity', 'network', 'flow'))


@dataclass
class Bench:
    """What the studies share: the networks, and what they made of the clip that is looked at."""

    runner: Runner
    rounds: list[Found] = field(default_factory=list)
    flow: Found = field(default_factory=Found)      # of the tracker, for some of the views

    def take(self, trial: Trial, with_flow: bool) -> None:
        """Run a clip."""
        self.rounds = self.runner.rounds(trial)
        self.flow = clip_runs.tracked(trial) if with_flow else Found()

    @property
    def best(self) -> Found:
        """What there is after all rounds; nothing if a round gave nothing."""
        return self.rounds[-1] if len(self.rounds) == self.runner.config.rounds else Found()


Row = tuple[str, dict[str, float]]
"""A line's label and the scores of one clip in it; no scores where nothing was found."""


def _only(scores: dict[str, float], names: tuple[str, ...]) -> dict[str, float]:
    return {name: scores[name] for name in names if name in scores}


def _depth_of(found: Found, trial: Trial) -> dict[str, float]:
    return _only(found.scores(trial), DEPTH)


def _pose_of(found: Found, trial: Trial) -> dict[str, float]:
    return _only(found.scores(trial), POSE)


def depth(bench: Bench, trial: Trial) -> Iterator[Row]:
    """Depth after all rounds, beside that of the plane sweep at the very same poses."""
    yield 'DeepV2D, own poses', _depth_of(bench.best, trial)
    yield 'plane sweep, the same poses', _depth_of(_swept(bench.best, trial), trial)
    yield 'one constant', _depth_of(Found(np.ones_like(trial.depth)), trial)


def pose(bench: Bench, trial: Trial) -> Iterator[Row]:
    """Poses after all rounds, beside those of the tracker on flow, also over the views alone that both have poses of."""
    tracked, chosen = trial.of_views(bench.flow.views), list(bench.flow.views)
    share = {'solved': len(chosen) / len(trial.T_view_key)}
    yield 'DeepV2D', _pose_of(bench.best, trial)
    yield 'flow tracker', _pose_of(bench.flow, tracked) | share if chosen else {}
    both = bool(chosen) and bench.best.T_view_key is not None
    yield 'the same views: DeepV2D', _pose_of(Found(T_view_key=bench.best.T_view_key[chosen]), tracked) | share if both else {}
    yield 'the same views: flow tracker', _pose_of(bench.flow, tracked) | share if both else {}
    yield 'no motion', _pose_of(Found(T_view_key=clip_runs.unmoved(trial.frames[1:])), trial)


def rounds(bench: Bench, trial: Trial) -> Iterator[Row]:
    """Depth and poses after each round (figure 5 of the paper)."""
    for number in range(1, bench.runner.config.rounds + 1):
        found = bench.rounds[number - 1] if number <= len(bench.rounds) else Found()
        yield f'{number}', _only(found.scores(trial), (*DEPTH, *POSE))


def views(bench: Bench, trial: Trial) -> Iterator[Row]:
    """Depth and poses from two frames to all."""
    for count in range(1, len(trial.frames)):
        some = trial.of_views(range(count))
        found = bench.rounds if count == len(trial.T_view_key) else bench.runner.rounds(some)
        done = len(found) == bench.runner.config.rounds
        yield f'{1 + count}', _only(found[-1].scores(some), (*DEPTH, *POSE)) if done else {}


def pose_source(bench: Bench, trial: Trial) -> Iterator[Row]:
    """Depth by poses that stay as they are given, whoever gave them (table 7 of the paper), by the network and by the plane sweep."""
    tracked = trial.of_views(bench.flow.views)      # a view that is lost has no place in the volume
    poses = {'identity': (trial, clip_runs.unmoved(trial.frames[1:])), 'flow': (tracked, bench.flow.T_view_key), 'learned': (trial, bench.best.T_view_key),
             'reference': (trial, trial.T_view_key)}
    found = {source: (some, bench.runner.at_poses(some, T) if T is not None else Found()) for source, (some, T) in poses.items()}
    for source, (some, depth) in found.items():
        yield f'DeepV2D, {source}', _depth_of(depth, some)
    for source, (some, depth) in found.items():
        yield f'plane sweep, {source}', _depth_of(_swept(depth, some), some)


def uncalibrated(bench: Bench, trial: Trial) -> Iterator[Row]:
    """A focal length that begins too long or too short, clip by clip in turn: kept, or solved for along with the poses."""
    wrong = trial.at_focal(1.0 + OFF if trial.number % 2 == 0 else 1.0 - OFF)
    config = bench.runner.config
    for label, some, solved in (('calibrated', trial, False), (f'{100 * OFF:.0f} % off', wrong, False), (f'{100 * OFF:.0f} % off, solved for', wrong, True)):
        found = bench.rounds if some is trial and not config.uncalibrated else bench.runner.rounds(some, uncalibrated=solved)
        if len(found) < config.rounds:
            yield label, {}
            continue
        error = 100.0 * abs(found[-1].focal / trial.frames[0].K[0, 0] - 1.0)
        scores = {'focal_error': error, 'within_5_percent': float(error <= NEAR), **_only(found[-1].scores(some), ('abs_rel', 'delta_1_25', *POSE))}
        yield label, scores
        if solved and found[-1].focal_deviation is not None:
            yield f'of these, told to {NEAR:.0f} %', scores if 100.0 * found[-1].focal_deviation <= NEAR else {}


def _swept(found: Found, trial: Trial) -> Found:
    """The plane sweep's depth at what was found, its planes about the depth that was found there."""
    return Found() if found.depth is None else clip_runs.swept(trial, found.T_view_key, float(np.median(found.depth[found.depth > 0])))


@dataclass(frozen=True)
class Study:
    """One table."""

    rows: Callable[[Bench, Trial], Iterator[Row]]
    title: str
    note: str
    needs_flow: bool = False
    curve: str = ''         # what is along the axis, where the rows are points of a curve


STUDIES = {
    'depth': Study(depth, 'Depth', 'After a match of medians.'),
    'pose': Study(pose, 'Poses', 'The tracker begins with two views and then sees all of them twice; "solved" is the share of views that it has poses of.', needs_flow=True),
    'rounds': Study(rounds, 'Accuracy against rounds', 'All views; each round is one of motion and one of depth.', curve='rounds'),
    'views': Study(views, 'Accuracy against frames', 'The keyframe and the others, drawn in any order.', curve='frames'),
    'pose_source': Study(pose_source, 'Pose sources', 'Depth at given poses; by those of the flow tracker from the views alone that it has poses of.', needs_flow=True),
    'uncalibrated': Study(uncalibrated, 'Unknown focal length', f'Begun {100 * OFF:.0f} % too long or too short. The last row is of those clips whose flow, by its own account, '
                          f'tells it with a standard deviation of no more than {NEAR:.0f} %; "solved" is their share.'),
}


def add_options(task: argparse.ArgumentParser) -> None:
    """What `evaluate deepv2d` takes."""
    task.description, task.epilog, task.formatter_class = __doc__, _DURATION, argparse.RawDescriptionHelpFormatter
    task.add_argument('--weights', default='', help='checkpoint of a deepv2d network (default: the one that comes with the package)')
    task.add_argument('--clips', type=int, default=32, help='how many of the test split, or of the sequence (default: %(default)s)')
    task.add_argument('--reduce', type=int, default=1, help='synthetic clips at 1 / reduce of the size that they are rendered at (default: %(default)s)')
    task.add_argument('--mirror', type=float, default=ClipData.mirror, help='how well glossy surfaces of synthetic clips mirror the scene, from 0 to 1 (default: %(default)s)')
    task.add_argument('--studies', nargs='+', choices=tuple(STUDIES), default=list(STUDIES), help='which ones (default: all)')
    task.add_argument('--out', type=Path, default=Path('evaluation/deepv2d'), help='folder for metrics.json, tables and plots (default: %(default)s)')
    task.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where the networks run (default: %(default)s)')
    options.add(task, SequenceClipData, 'clips of a recorded sequence, if one is given; their size is that of synthetic clips, too')
    options.add(task, StudyConfig, 'parameters of the alternation')
    task.set_defaults(score=_score)


def _score(args: argparse.Namespace) -> None:
    for name in ('clips', 'reduce'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name}: expected at least 1, got {getattr(args, name)}')
    config, spec, network = options.read(args, StudyConfig), options.read(args, SequenceClipData), learned_depth.load(args.weights)
    with ranks.joined(args.device) as joined, _quiet(tracker.__name__):      # what it loses is told in the tables
        bench = Bench(Runner(network.to(joined.device), config, joined.device))
        rows, examples = _run(bench, tqdm(_trials(args, spec), total=args.clips, desc='clips', unit='clip', disable=None), args.studies)
    if not any(rows.values()):
        raise ValueError(f'{spec.sequence}: has no keyframe with {spec.views} suitable frames before it')
    tables = {name: _table(name, labelled) for name, labelled in rows.items()}
    for name, table in tables.items():
        if table.rows:
            table.save(args.out)
        print((table.terminal() if table.rows else table.title) + f'\n{table.note}\n')
    if examples:
        with files.whole(args.out / 'examples.png') as partial:
            plots.depth(examples, partial)
    told = {'weights': Path(args.weights or learned_depth.SHIPPED).name, 'clips': len(next(iter(next(iter(rows.values())).values()))), 'of': spec.sequence or 'synthetic scenes',
            **({} if spec.sequence else {'mirror': args.mirror}), 'width': spec.width // args.reduce, 'height': spec.height // args.reduce, 'rounds': config.rounds, 'form': config.form}
    report.write(args.out, told | _headline(tables), {'studies': {name: {row: table.rows[row][0] for row in table.rows} for name, table in tables.items()}})


def _trials(args: argparse.Namespace, spec: SequenceClipData) -> Iterator[Trial]:
    """The clips of a sequence if one is given, else those of the test split, of the same size."""
    if spec.sequence:
        if args.reduce != 1:
            raise ValueError('--reduce: for synthetic clips; those of a sequence come at --width and --height')
        if args.mirror != ClipData.mirror:
            raise ValueError('--mirror: for synthetic clips; a sequence shows what the camera saw')
        return clip_runs.recorded(spec, args.clips)
    return clip_runs.synthetic(open_clips(ClipData(width=spec.width, height=spec.height, mirror=args.mirror, test=args.clips), 'test'), args.clips, args.reduce)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger tell nothing but errors inside."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _run(bench: Bench, trials: Iterator[Trial], studies: list[str]) -> tuple[dict[str, dict[str, list[dict[str, float]]]], list[plots.DepthExample]]:
    """Scores of each clip by study and row, and a few clips to look at."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in studies}
    examples = Spread(EXAMPLES)
    for trial in trials:
        bench.take(trial, any(STUDIES[name].needs_flow for name in studies))
        for name in studies:
            for label, scores in STUDIES[name].rows(bench, trial):
                rows[name].setdefault(label, []).append(scores)
        if bench.best.depth is not None and examples.wants():
            examples.add(_example(bench.best, trial))
    return rows, examples.chosen()


def _example(found: Found, trial: Trial) -> plots.DepthExample:
    known = trial.depth > 0
    factor = metrics.median_scale(found.depth, trial.depth, known & (found.depth > 0))
    return plots.DepthExample(f'clip {trial.number}', trial.frames[0].image, np.where(found.depth > 0, factor * found.depth, np.nan), np.where(known, trial.depth, np.nan), found.confidence)


def _table(name: str, rows: dict[str, list[dict[str, float]]]) -> Table:
    """Means over the clips that each row has scores of; rows without any are left out, and named."""
    study = STUDIES[name]
    none = [label for label, scores in rows.items() if not any(scores)]
    note = study.note + (f' Nothing was found for: {", ".join(none)}.' if none else '')
    table = Table(name, study.title, note, abscissa_title=study.curve)
    for label, scores in rows.items():
        if label in none:
            continue
        table.rows[label] = [{**metrics.mean_metrics(one for one in scores if one), 'solved': float(np.mean([one.get('solved', 1.0) if one else 0.0 for one in scores]))}]
        if study.curve:
            table.curves.setdefault('DeepV2D', []).append(label)
            table.abscissa[label] = float(label)
    return table


def _headline(tables: dict[str, Table]) -> dict[str, float]:
    """The figures that matter most, flat: those of a row, under its prefix."""
    wanted = {'depth': {'DeepV2D, own poses': '', 'plane sweep, the same poses': 'sweep_'},
              'pose': {'DeepV2D': '', 'flow tracker': 'flow_', 'the same views: DeepV2D': 'both_', 'the same views: flow tracker': 'both_flow_'},
              'uncalibrated': {f'{100 * OFF:.0f} % off, solved for': 'uncalibrated_'}}
    figures = {prefix + name: value for study, labels in wanted.items() if study in tables for label, prefix in labels.items()
               for name, value in tables[study].rows.get(label, [{}])[0].items()}
    if 'sweep_abs_rel' in figures:
        figures['abs_rel_to_sweep'] = figures['abs_rel'] / figures['sweep_abs_rel']
    if f'both_{POSE[0]}' in figures:
        figures |= {f'{name}_to_flow': figures[f'both_{name}'] / figures[f'both_flow_{name}'] for name in POSE}
    return figures
