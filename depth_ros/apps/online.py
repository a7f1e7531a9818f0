"""`evaluate online`: let a network learn along a sequence from a few range hits, and score each prediction before its frame is learned from.

Depth is scored in metres against the depth sensor, without any alignment. The last frames of every pass give no hits, so their error is that of places that
were never measured. Beside the learning network stand: the frozen one with its scale from the same hits, and with that of the poses' steps; the tracker's
depth from flow with the same poses; and, with --dense, the network that learns from the whole depth image in place of the hits.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from depth_ros import files
from depth_ros.apps import online_curve, options, runs
from depth_ros.apps.depth_scores import SCORED_RANGE
from depth_ros.engines.deepv2d import DeepV2DConfig
from depth_ros.engines.depth_networks import NAME, VARIANTS, Offer, shipped
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig, resized
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, ImagePair
from depth_ros.learning import metrics
from depth_ros.learning.trajectory import read_trajectory
from depth_ros.learning.tum import open_sequence
from depth_ros.models import checkpoint

MOST_HITS = 64          # of a scan
FLOW_WIDTH = 256        # [px] that flow is computed at, at least
NOISE = 0.01            # of a range, relative, one standard deviation
OUTLIERS = 0.3          # share of the hits that a fault takes
FAULT_RANGES = 0.3, 10.0        # [m] that outliers are drawn from
TENFOLD = 5_000_000_000     # [ns] from the first hit for which ranges are ten times too long
TILT = np.radians(10.0)
_REPORTED = ('updates', 'rollbacks', 'batches', 'observed', 'withheld_before', 'withheld_after', 'away_before', 'away_after')
FAULTS = ('none', 'outliers', 'nan', 'tenfold', 'tilt')


@dataclass(frozen=True)
class Moment:
    """One frame of the sequence, and what a robot knows of it."""

    index: int
    result: FlowResult              # with the frame a gap before, at the network's size
    T_ref_cur: np.ndarray           # (4, 4) [m]
    T_world_cur: np.ndarray         # (4, 4) [m]
    hits: np.ndarray | None         # (h, w) [m] at the camera's size, 0 where none; None for a held-out frame
    tracked: DepthResult | None     # the tracker's depth from flow, at its own size
    tracked_error: float | None     # its score

    @property
    def truth(self) -> CameraFrame:
        """With sensor depth, at the network's size."""
        return self.result.pair.current


def register(tasks: argparse._SubParsersAction) -> None:
    """Add the subcommand to those of `evaluate`."""
    task = tasks.add_parser('online', help='a network that learns from range hits along a sequence', description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    task.set_defaults(score=_online)
    task.add_argument('--sequence', required=True, help='a TUM folder, a ROS 1 .bag, a rosbag2, or "sample", with sensor depth')
    task.add_argument('--poses', type=Path, help="poses in metres, TUM text; the sequence's ground truth if not given")
    task.add_argument('--hits', choices=('row', 'single'), default='row',
                      help=f'range hits cut from the depth image: {MOST_HITS} of its middle row, or its middle (default: %(default)s)')
    task.add_argument('--variant', choices=VARIANTS, default='pose_aware', help='the network (default: %(default)s)')
    task.add_argument('--weights', type=Path, help='checkpoint that learning begins with; the shipped one if not given')
    task.add_argument('--passes', type=int, default=1, help='times that the sequence is driven through (default: %(default)s)')
    task.add_argument('--hold-out-last', type=int, default=60, help='frames at the end that give no hits in any pass (default: %(default)s)')
    task.add_argument('--gap', type=int, default=10, help='frames from the reference image to the current one (default: %(default)s)')
    task.add_argument('--every', type=int, default=1, help='use every so many frames (default: %(default)s)')
    task.add_argument('--batches', type=int, default=1, help='batches to learn from a frame (default: %(default)s)')
    task.add_argument('--size', default='256x192', help='of the images that the network sees, WxH (default: %(default)s)')
    task.add_argument('--fault', choices=FAULTS, default='none',
                      help='spoil the hits: a third random or NaN, ten times too long for five seconds, or measured 10 degrees away (default: %(default)s)')
    task.add_argument('--dense', action='store_true', help='also learn from the whole depth image (takes twice as long)')
    task.add_argument('--out', type=Path, default=Path('evaluation/online'), help='folder for metrics.json, the curve and the learned weights (default: %(default)s)')
    options.add(task, OnlineLearnerConfig, 'parameters of the learner')


@single_threaded()
def _online(args: argparse.Namespace) -> None:
    config, size = options.read(args, OnlineLearnerConfig), _size(args.size)
    for name, least in (('passes', 1), ('hold_out_last', 0), ('gap', 1), ('every', 1), ('batches', 0)):
        if getattr(args, name) < least:
            raise ValueError(f'--{name.replace("_", "-")}: expected at least {least}, got {getattr(args, name)}')
    weights = args.weights or shipped(args.variant)
    start = checkpoint.load(weights, NAME)
    # In torch: to export every update would take longer than to run without a graph.
    engine = GlobalLocalEngineConfig(variant=args.variant, weights=str(weights), width=size[0], height=size[1], backend='torch')
    frozen = {name: GlobalLocalEngine(replace(engine, scale=scale)) for name, scale in (('frozen_scaled', 'hits'), ('frozen', 'odometry'))}
    moments = _moments(args, size)
    lines = {name: [_frozen(one, moments)] * args.passes for name, one in frozen.items()}
    lines['triangulated'] = [{m.index: m.tracked_error for m in moments}] * args.passes
    learned = _learn(start, config, engine, moments, args)
    lines['learned'] = learned.scores
    if args.dense:
        lines['dense'] = _learn(start, replace(config, carry_seconds=0.0), engine, [_with_all_depth(m) for m in moments], args).scores
    report = {**summary(lines, [m.index for m in moments if m.hits is None]), **_figures(learned), 'variant': args.variant, 'hits': args.hits, 'fault': args.fault}
    _write(args.out, report, lines, learned.learner)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f'--size: expected WIDTHxHEIGHT such as 256x192, got {text!r}')
    return int(width), int(height)


def _moments(args: argparse.Namespace, size: tuple[int, int]) -> list[Moment]:
    """The frames that have a reference, depth and poses, with the flow and the tracker's depth; some 2 MB each."""
    sequence = open_sequence(args.sequence)
    poses = read_trajectory(args.poses) if args.poses else sequence.ground_truth
    if poses is None:
        raise ValueError(f'{args.sequence} has no ground truth: give --poses FILE')
    finer = -(-FLOW_WIDTH // size[0])
    flow, frames, moments = FlowEngine(FlowConfig(width=finer * size[0], height=finer * size[1], preset='depth')), {}, []
    for step in runs.deepv2d(runs.Course(sequence, poses, str(args.poses)), DeepV2DConfig(depth='flow')):
        pose = poses.at(int(sequence.colour_stamps[step.index]))
        frames = {i: known for i, known in frames.items() if i >= step.index - args.gap} | {step.index: (step.frame.resized(finer * size[0], finer * size[1]), pose)}
        if step.index - args.gap not in frames or step.index % args.every or step.frame.depth is None or not step.frame.depth_valid.any():
            continue
        reference, T_world_ref = frames[step.index - args.gap]
        held_out = step.index >= len(sequence) - args.hold_out_last
        first = moments[0].truth.stamp if moments else step.frame.stamp
        hits = None if held_out else cut_hits(step.frame, args.hits, args.fault, np.random.default_rng([args.seed, step.index]), first)
        result = resized(flow.step(ImagePair(frames[step.index][0], reference)), size)
        moments.append(Moment(step.index, result, np.linalg.inv(T_world_ref) @ pose, pose, hits, step.depth, score(step.depth, step.frame)))
    if not moments:
        raise ValueError(f'{args.sequence}: no frame has depth, a pose and another frame {args.gap} before it')
    return moments


def cut_hits(frame: CameraFrame, kind: str, fault: str, random: np.random.Generator, first: int) -> np.ndarray:
    """Range hits (H, W) [m] of a sensor at the camera: the middle row of the depth image or its middle, with noise and a fault; they began at `first` [ns]."""
    row, hits = int(round(frame.K[1, 2])), np.zeros(frame.depth.shape, np.float32)
    if kind == 'row':
        columns = np.linspace(0, frame.size[0] - 1, MOST_HITS).round().astype(int)
    else:
        columns = np.array([int(round(frame.K[0, 2]))])
    columns = columns[frame.depth_valid[row, columns]]
    depth = frame.depth[row, columns] * (1 + NOISE * random.standard_normal(len(columns)))
    spoilt = random.random(len(columns)) < OUTLIERS
    if fault == 'outliers':
        depth = np.where(spoilt, random.uniform(*FAULT_RANGES, len(columns)), depth)
    elif fault == 'nan':
        depth = np.where(spoilt, np.nan, depth)
    elif fault == 'tenfold' and frame.stamp - first < TENFOLD:
        depth = 10 * depth
    elif fault == 'tilt':
        row = min(row + int(frame.K[1, 1] * np.tan(TILT)), frame.size[1] - 1)
    hits[row, columns] = depth
    return hits


def _with_all_depth(moment: Moment) -> Moment:
    truth = moment.truth
    return moment if moment.hits is None else replace(moment, hits=np.where(truth.depth_valid, truth.depth, 0.0))


def score(result: DepthResult | None, truth: CameraFrame) -> float | None:
    """Abs-Rel in metres, as predicted, over all pixels that the sensor knows; one without a prediction counts as far away. None without a result."""
    if result is None:
        return None
    truth = truth.resized(*result.frame.size)
    predicted = np.clip(np.where(result.valid, result.depth, SCORED_RANGE[1]), *SCORED_RANGE)
    return metrics.depth_metrics(predicted, truth.depth, truth.depth_valid)['abs_rel']


def _frozen(engine: GlobalLocalEngine, moments: list[Moment]) -> dict[int, float | None]:
    scores = {}
    for moment in moments:
        step = float(np.linalg.norm(moment.T_ref_cur[:3, 3]))
        scores[moment.index] = score(engine.step(moment.result, moment.T_ref_cur, moment.hits, step).depth, moment.truth)
    return scores


@dataclass(frozen=True)
class Learned:
    """What came of learning along the sequence."""

    learner: OnlineLearner
    scores: list[dict[int, float | None]]       # Abs-Rel of every frame in every pass, predicted before it was learned from
    states: dict[str, int]                      # frames after which the learner was in each state
    refused: list[str]                          # reasons why the engine did not take weights


def _learn(start: checkpoint.Loaded, config: OnlineLearnerConfig, engine_config: GlobalLocalEngineConfig, moments: list[Moment], args: argparse.Namespace) -> Learned:
    engine = GlobalLocalEngine(replace(engine_config, scale='odometry'))
    offers: list[Offer] = []
    learner, states, passes = OnlineLearner(start, config, lambda blob: offers.append(engine.offer(blob))), Counter(), []
    for _ in range(args.passes):
        scores = {}
        for moment in moments:
            step = float(np.linalg.norm(moment.T_ref_cur[:3, 3]))
            scores[moment.index] = score(engine.step(moment.result, moment.T_ref_cur, None, step).depth, moment.truth)
            learner.observe(moment.result, moment.T_ref_cur, moment.hits, moment.T_world_cur, moment.tracked)
            states[learner.learn(args.batches).value] += 1
        passes.append(scores)
    return Learned(learner, passes, dict(states), [offer.reason for offer in offers if not offer.accepted])


def _figures(learned: Learned) -> dict[str, object]:
    progress = asdict(learned.learner.progress)
    return {**{name: progress[name] for name in _REPORTED}, 'states': learned.states, 'refused_weights': len(learned.refused)}


def summary(lines: dict[str, list[dict[int, float | None]]], held_out: list[int]) -> dict[str, object]:
    """Means over the frames that all lines have a score of: of the last pass over the held-out ones (over all, if none are held out), and over all in every pass."""
    scored = [index for index in lines['learned'][0] if all(scores[index] is not None for passes in lines.values() for scores in passes)]
    chosen = [index for index in scored if index in held_out] or scored
    if not scored:
        raise ValueError('no frame has depth from every network: did the hits tell no scale?')
    report: dict[str, object] = {f'abs_rel_{name}': float(np.mean([passes[-1][i] for i in chosen])) for name, passes in lines.items()}
    report |= {f'abs_rel_{name}_all': float(np.mean([passes[-1][i] for i in scored])) for name, passes in lines.items()}
    report['abs_rel_learned_by_pass'] = [float(np.mean([scores[i] for i in scored])) for scores in lines['learned']]
    return {**report, 'learned_to_frozen': report['abs_rel_learned'] / report['abs_rel_frozen_scaled'],
            'learned_to_frozen_all': report['abs_rel_learned_all'] / report['abs_rel_frozen_scaled_all'], 'frames_scored': len(scored),
            'held_out': [i for i in scored if i in held_out]}


def _write(out: Path, report: dict[str, object], lines: dict[str, list[dict[int, float | None]]], learner: OnlineLearner) -> None:
    with files.whole(out / 'metrics.json') as partial:
        partial.write_text(json.dumps(report, indent=2) + '\n')
    with files.whole(out / 'online.png') as partial:
        online_curve.draw(lines, report['held_out'], partial)
    learner.save(out / 'learned.safetensors')
    width = max(map(len, report))
    for name, value in report.items():
        print(f'{name:<{width}}  {value:.4f}' if isinstance(value, float) else f'{name:<{width}}  {value}')
    print(f'written to {out}')
