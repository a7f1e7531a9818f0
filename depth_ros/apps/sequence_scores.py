"""`evaluate depth`: score the depth of an engine on a recorded sequence; leave figures as JSON and plots. And what all evaluations on sequences have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from depth_ros import files
from depth_ros.apps import options, plots, report, runs, scoring
from depth_ros.apps.depth_scores import MATCHES, DepthScores
from depth_ros.engines.deepv2d import DeepV2DConfig
from depth_ros.engines.flow import FlowConfig
from depth_ros.engines.global_local import GlobalLocalEngineConfig
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.trajectory import Trajectory, read_trajectory
from depth_ros.learning.tum import open_sequence
from depth_ros.settings import settings_of

NOW_AND_THEN = 'sweep', 'learned'       # where depth comes from that is too dear for every frame
ENGINES = {'deepv2d': DeepV2DConfig, 'global_local': GlobalLocalEngineConfig}


def add_depth_options(task: argparse.ArgumentParser, words: list[str]) -> None:
    """What `evaluate depth` takes; the words of the command line choose the engine, whose parameters are options too."""
    engine = _engine_named(words)
    add_course_options(task, 'depth')
    task.set_defaults(score=_depth)
    task.add_argument('--engine', choices=tuple(ENGINES), default='deepv2d', help='the engine to score; its own parameters are shown with --engine ENGINE --help')
    _add_scoring_options(task)
    if engine == 'global_local':
        task.add_argument('--gap', type=int, default=10, help='frames from the reference image to the current one (default: %(default)s)')
        task.add_argument('--flow-preset', choices=settings_of(FlowConfig)['preset'].choices, default='depth', help='effort of the flow (default: %(default)s)')
    options.add(task, ENGINES[engine], f'parameters of {engine}')


def _engine_named(words: list[str]) -> str:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument('--engine', default='deepv2d')
    name = first.parse_known_args(words)[0].engine
    return name if name in ENGINES else 'deepv2d'


def add_course_options(task: argparse.ArgumentParser, name: str, several: bool = False) -> None:
    """What is run and how far; `several`: sequences, with a reference and poses for each."""
    many = {'nargs': '+', 'action': 'extend'} if several else {}
    each = ', for each sequence' if several else ''
    task.add_argument('--sequence', required=True, help='a TUM folder, a ROS 1 .bag, a rosbag2, or "sample"' + '; any number of them' * several, **many)
    task.add_argument('--reference', type=Path, help=f"reference trajectory, TUM text{each}, to score the tracked poses by; the sequence's ground truth if not given", **many)
    task.add_argument('--poses', type=Path, help=f'use these poses (TUM text{each}) instead of tracking', **many)
    task.add_argument('--out', type=Path, default=Path(f'evaluation/{name}'), help='folder for metrics.json and plots (default: %(default)s)')
    task.add_argument('--frames', type=int, help='stop after so many frames')
    task.add_argument('--hits', choices=('none', 'scan'), default='none',
                      help="scan: feed the sequence's scans as range hits, or scans cut from its depth if it has none (default: %(default)s)")


def _add_scoring_options(task: argparse.ArgumentParser) -> None:
    task.add_argument('--first', type=int, default=40, help='first frame to score (default: %(default)s)')
    task.add_argument('--last', type=int, default=None, help='last frame to score (default: the last of the sequence; all are tracked, unless --frames says how many)')
    task.add_argument('--every', type=int, default=10, help='score every so many frames (default: %(default)s)')
    task.add_argument('--align', choices=('auto', *MATCHES, 'metric'), default='auto',
                      help='before scoring, match each frame by the ratio of medians (median) or the median of ratios (median_ratio), or score metres as they come (metric); '
                           'auto: metric with a depth sensor or range hits, else median')


def _course(args: argparse.Namespace, sequence: Sequence) -> runs.Course:
    poses = read_trajectory(args.poses) if args.poses else None
    return runs.Course(sequence, poses, str(args.poses), args.frames, args.hits == 'scan')


def reference_of(sequence: Sequence, given: Path | None) -> Trajectory:
    """What tracked poses are scored by: a file, or else the sequence's ground truth. Raises ValueError if there is neither."""
    if given is not None:
        return read_trajectory(given)
    if sequence.ground_truth is None:
        raise ValueError(f'{sequence.name} has no ground truth: give --reference FILE')
    return sequence.ground_truth


def errors(score: scoring.TrackingScore) -> dict[str, object]:
    """The figures of a trajectory."""
    return {'rpe_1s_trans_rmse': score.rpe_1s_trans_rmse, 'rpe_1s_rot_rmse_deg': score.rpe_1s_rot_rmse, 'ate_rmse': score.ate_rmse,
            'alignment': score.alignment, 'poses': score.poses}


def _depth(args: argparse.Namespace) -> None:
    sequence = open_sequence(args.sequence)
    steps, align = _depth_run(args, sequence)
    run, scores = runs.Summary(), DepthScores(align)
    for step in _to_score(args, steps, run):
        if step.frame.depth is not None:
            scores.add(step.index, step.frame, step.depth)
    figures = {**scores.report(), **run.report()}
    if args.reference is not None and len(run.trajectory):
        figures |= errors(scoring.tracking(run.trajectory, read_trajectory(args.reference), run.scale))
    report.write(args.out, figures)
    with files.whole(args.out / 'depth.png') as partial:
        plots.depth(scores.examples(), partial)


def _depth_run(args: argparse.Namespace, sequence: Sequence) -> tuple[Iterator[runs.Step], str]:
    """The engine's steps, and how depth is matched before it is scored."""
    config, course = options.read(args, ENGINES[args.engine]), _course(args, sequence)
    if args.engine == 'deepv2d':
        if config.depth == 'auto':
            config = replace(config, depth='flow')      # the sensor's depth is what is scored against: against itself it would be perfect
        metric = config.depth == 'sensor' or course.hits
        return runs.deepv2d(course, config), {'auto': 'metric' if metric else 'median'}.get(args.align, args.align)
    if args.gap < 1:
        raise ValueError(f'gap: expected at least 1 frame, got {args.gap}')
    align = {'auto': 'metric' if course.hits else 'median'}.get(args.align, args.align)
    if align in MATCHES and not course.hits and config.scale == 'auto':
        config = replace(config, scale='none')      # the match tells it
    flow = FlowConfig(width=config.width, height=config.height, preset=args.flow_preset)
    return runs.global_local(course, config, args.gap, flow, lambda index: _is_wanted(args, index)), align


def _to_score(args: argparse.Namespace, steps: Iterator[runs.Step], run: runs.Summary) -> Iterator[runs.Step]:
    """The wanted steps; of an engine that gives depth now and then only, for each of them the first from there to the next wanted one that has depth, if any has."""
    now_and_then = args.engine == 'deepv2d' and args.depth in NOW_AND_THEN
    due: runs.Step | None = None
    for step in steps:
        run.add(step)
        if _is_wanted(args, step.index):
            if due is not None:
                yield due
            due = step
        if due is not None and (not now_and_then or step.depth is not None and (args.last is None or step.index <= args.last)):
            yield step
            due = None
    if due is not None:
        yield due


def _is_wanted(args: argparse.Namespace, index: int) -> bool:
    return index >= args.first and (index - args.first) % args.every == 0 and (args.last is None or index <= args.last)
