"""`evaluate tracking|depth`: score an engine on a recorded sequence, offline, and leave metrics.json, plots and the trajectory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from depth_ros import files
from depth_ros.apps import options, plots, scoring
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.frames import CameraFrame, DepthResult, Scale, TrackResult, TrackStatus
from depth_ros.learning import metrics
from depth_ros.learning.trajectory import Trajectory, read_trajectory, write_trajectory
from depth_ros.learning.tum import open_sequence

CONFIDENT = 0.5         # a DepthResult calls a pixel confident from here on
SCORED_RANGE = (1 / 3, 8.0)  # [m] predictions are clipped to it before scoring
EXAMPLES = 4            # frames shown in the depth plot
MATCHES = {'median': metrics.median_scale, 'median_ratio': metrics.median_ratio}


@dataclass
class Run:
    """What an engine gave over a sequence."""

    tracks: list[TrackResult] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    @property
    def scale(self) -> Scale:
        """FREE if any pose was, for one free pose spoils the metric trajectory."""
        return Scale.FREE if any(t.scale is Scale.FREE for t in self.tracks) else Scale.METRIC

    @property
    def trajectory(self) -> Trajectory:
        """The poses that were tracked; frames before initialisation and lost ones have none."""
        good = [t for t in self.tracks if t.status is TrackStatus.OK]
        return Trajectory(np.array([t.stamp for t in good], dtype=np.int64), np.array([t.T_odom_cam for t in good]).reshape(-1, 4, 4))

    def summary(self) -> dict[str, float | int]:
        """The figures that every evaluation reports."""
        states = [t.status for t in self.tracks]
        return {'frames': len(self.tracks), 'lost': states.count(TrackStatus.LOST), 'initialising': states.count(TrackStatus.INITIALISING),
                'ms_per_frame_median': float(np.median(self.milliseconds)), 'ms_per_frame_p95': float(np.percentile(self.milliseconds, 95))}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `ros2 run depth_ros evaluate`."""
    return options.run(_main, argv)


def _main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    config = options.read(args, DeepV2DConfig)
    args.score(args, config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='evaluate', description=__doc__)
    tasks = parser.add_subparsers(required=True, metavar='tracking|depth')
    for name, score, text in (('tracking', _tracking, 'camera poses against a reference trajectory'),
                              ('depth', _depth, 'dense depth against the depth sensor')):
        task = tasks.add_parser(name, help=text, description=f'Score {text}.')
        task.set_defaults(score=score)
        task.add_argument('--sequence', required=True, help='a TUM folder, a ROS 1 .bag, a rosbag2, or "sample"')
        task.add_argument('--reference', type=Path, help="reference trajectory, TUM text; the sequence's ground truth if not given")
        task.add_argument('--poses', type=Path, help='use these poses (TUM text) instead of tracking')
        task.add_argument('--out', type=Path, default=Path(f'evaluation/{name}'), help='folder for metrics.json and plots (default: %(default)s)')
        task.add_argument('--engine', choices=('deepv2d',), default='deepv2d', help='the engine to score')
        task.add_argument('--frames', type=int, help='stop after so many frames')
        if name == 'depth':
            task.add_argument('--first', type=int, default=40, help='first frame to score (default: %(default)s)')
            task.add_argument('--last', type=int, default=None, help='last frame to score')
            task.add_argument('--every', type=int, default=10, help='score every so many frames (default: %(default)s)')
            task.add_argument('--align', choices=('auto', *MATCHES, 'metric'), default='auto',
                              help='before scoring, match each frame by the ratio of medians (median) or the median of ratios (median_ratio), or score metres as they come (metric); '
                                   'auto: metric with a depth sensor, else median')
        options.add(task, DeepV2DConfig, 'engine parameters')
    return parser


def _run(args: argparse.Namespace, config: DeepV2DConfig, run: Run) -> Iterator[tuple[int, CameraFrame, DepthResult | None]]:
    """Step the engine through the sequence; yields index, the frame as recorded and its depth."""
    sequence = open_sequence(args.sequence)
    poses = read_trajectory(args.poses) if args.poses else None
    engine = DeepV2DEngine(config)
    frames = len(sequence) if args.frames is None else min(args.frames, len(sequence))
    for index in tqdm(range(frames), desc=Path(args.sequence).name, unit='frame', disable=None):
        frame = sequence[index]
        seen = frame if config.depth in ('auto', 'sensor') else replace(frame, depth=None, depth_valid=None)
        pose = poses.at(frame.stamp) if poses is not None else None
        if poses is not None and pose is None:
            continue    # a reference may begin later than the images
        started = time.perf_counter()
        result = engine.step(seen, T_odom_cam=pose)
        run.milliseconds.append(1e3 * (time.perf_counter() - started))
        run.tracks.append(result.track)
        yield index, frame, result.depth
    if not run.tracks:
        raise ValueError(f'{args.sequence}: no frame has a pose in {args.poses}: do both use the same clock?')


def _reference(args: argparse.Namespace) -> Trajectory:
    if args.reference is not None:
        return read_trajectory(args.reference)
    reference = open_sequence(args.sequence).ground_truth
    if reference is None:
        raise ValueError(f'{args.sequence} has no ground truth: give --reference FILE')
    return reference


def _tracking(args: argparse.Namespace, config: DeepV2DConfig) -> None:
    reference, run = _reference(args), Run()
    for _ in _run(args, config, run):
        pass
    score = scoring.tracking(run.trajectory, reference, run.scale)
    report = {'rpe_1s_trans_rmse': score.rpe_1s_trans_rmse, 'rpe_1s_rot_rmse_deg': score.rpe_1s_rot_rmse, 'ate_rmse': score.ate_rmse,
              'alignment': score.alignment, 'poses': score.poses, **run.summary()}
    _write(args.out, report)
    with files.whole(args.out / 'trajectory.txt') as partial:
        write_trajectory(partial, run.trajectory)
    with files.whole(args.out / 'trajectory.png') as partial:
        plots.trajectory(score, partial)


def _depth(args: argparse.Namespace, config: DeepV2DConfig) -> None:
    run = Run()
    scores: list[dict[str, float]] = []
    confident: list[dict[str, float]] = []
    coverage, share, examples, unscored = [], [], [], 0
    align = {'auto': 'metric' if config.depth in ('auto', 'sensor') else 'median'}.get(args.align, args.align)
    for index, frame, result in _run(args, config, run):
        wanted = index >= args.first and (index - args.first) % args.every == 0 and (args.last is None or index <= args.last)
        if not wanted or frame.depth is None:
            continue
        if result is None:
            unscored += 1
            continue
        truth = frame.resized(result.depth.shape[1], result.depth.shape[0])
        valid = truth.depth_valid & result.valid
        if not valid.any():
            unscored += 1
            continue
        factor = MATCHES[align](result.depth, truth.depth, valid) if align in MATCHES else 1.0
        predicted = np.clip(result.depth * factor, *SCORED_RANGE)
        sure = valid & (result.confidence >= CONFIDENT)
        scores.append(metrics.depth_metrics(predicted, truth.depth, valid))
        if sure.any():
            confident.append(metrics.depth_metrics(predicted, truth.depth, sure))
        coverage.append(valid.sum() / truth.depth_valid.sum())
        share.append(sure.sum() / truth.depth_valid.sum())
        examples.append(plots.DepthExample(f'frame {index}', truth.image, np.where(result.valid, predicted, np.nan),
                                           np.where(truth.depth_valid, truth.depth, np.nan), result.confidence))
    if not scores:
        raise ValueError(f'{args.sequence}: nothing to score: {unscored} of the chosen frames had no depth from the engine, the others none from the sensor')
    report = {**metrics.mean_metrics(scores), 'scale': align, 'coverage': float(np.mean(coverage)), 'frames_scored': len(scores), 'frames_without_depth': unscored,
              **{f'confident_{k}': v for k, v in metrics.mean_metrics(confident).items()}, 'confident_share': float(np.mean(share)), **run.summary()}
    _write(args.out, report)
    shown = np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples))).round().astype(int)
    with files.whole(args.out / 'depth.png') as partial:
        plots.depth([examples[i] for i in shown], partial)


def _write(out: Path, report: dict[str, object]) -> None:
    """metrics.json, and the same as a table on the terminal."""
    with files.whole(out / 'metrics.json') as partial:
        partial.write_text(json.dumps(report, indent=2) + '\n')
    width = max(map(len, report))
    for name, value in report.items():
        print(f'{name:<{width}}  {value:.4f}' if isinstance(value, float) else f'{name:<{width}}  {value}')
    print(f'written to {out}')


if __name__ == '__main__':
    sys.exit(main())
