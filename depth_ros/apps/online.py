"""`evaluate online`: let a network learn along a sequence from a few range hits, and score each prediction before its frame is learned from.

Depth is scored in metres against the depth sensor, without any alignment. The last frames of every pass give no hits, so their error is that of places that
were never measured. Beside the learning network stand: the frozen one with its scale from the same hits, and with that of the poses' steps; the tracker's
depth from flow with the same poses; and the network that learns from the whole depth image in place of the hits (--no-dense leaves it out, for half the time).

With --live all of it happens in the live graph, as the launch file starts it: the sequence is played, its camera tracked on the way, hits are cut by the player, and what
the nodes publish is recorded and scored. The frozen network is then a second node, in a pass before learning, scaled as the learning one is; the network that learns from
whole depth images comes afterwards and without the graph, where --dense asks for it. What is seen in a second depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from depth_ros import files
from depth_ros.apps import online_curve, online_live, options, report
from depth_ros.apps.online_course import FAULTS, MOST_HITS, CourseConfig, Moment, moments, score
from depth_ros.apps.online_report import Lines, figures_of, summary
from depth_ros.engines.depth_networks import NAME, VARIANTS, Offer, shipped
from depth_ros.engines.flow import flow_function
from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.engines.rehearsal import PAIRS, rehearsal_pairs
from depth_ros.engines.threads import single_threaded
from depth_ros.learning import metrics, prior_depth
from depth_ros.learning.objectives import depth_scores
from depth_ros.learning.pairs import PairBatch, PairData, open_store
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.trajectory import Trajectory, read_trajectory
from depth_ros.learning.tum import is_sample, open_sequence
from depth_ros.models import checkpoint

_AT_ONCE = 16           # synthetic pairs


def add_options(task: argparse.ArgumentParser) -> None:
    """What `evaluate online` takes."""
    task.description, task.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    task.set_defaults(score=_online)
    task.add_argument('--sequence', required=True, help='a TUM folder, a ROS 1 .bag, a rosbag2, or a built-in one: "sample", and as sample:hall and sample:store the '
                      'same way through other rooms; with sensor depth')
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
    task.add_argument('--size', default='256x192', help='of the images that the network is scored at, WxH (default: %(default)s)')
    task.add_argument('--learn-size', default='64x48', help='of those that it learns from, WxH (default: %(default)s)')
    task.add_argument('--fault', choices=FAULTS, default='none',
                      help='spoil the hits: a third random or NaN, ten times too long for five seconds, or measured 10 degrees away; or let the image freeze for '
                           'five seconds (default: %(default)s)')
    task.add_argument('--dense', action=argparse.BooleanOptionalAction, default=None, help='also learn from the whole depth image, to compare with (default: yes, with --live no)')
    task.add_argument('--rehearse', type=int, default=PAIRS, help='synthetic pairs that the learner goes back to, 0: none (default: %(default)s)')
    task.add_argument('--synthetic', type=int, default=128, help='held-out synthetic pairs that tell what it forgets, 0: none (default: %(default)s)')
    task.add_argument('--out', type=Path, default=Path('evaluation/online'), help='folder for metrics.json, the curve and the learned weights (default: %(default)s)')
    live = task.add_argument_group('through the live graph')
    live.add_argument('--live', action='store_true', help='replay the sequence through online_learning.launch.py; --gap, --every, --batches, --size and --learn-size then hold for --dense alone')
    live.add_argument('--replay-rate', type=float, default=0.5, help='speed of the replay, 1.0 being real time (default: %(default)s)')
    live.add_argument('--launch', action='append', default=[], metavar='NAME:=VALUE', help='another argument of the launch file, such as depth_topic:=none')
    live.add_argument('--domain', type=int, metavar='ID', help='ROS_DOMAIN_ID of the graph (default: one that nobody on this machine uses, whatever the environment says)')
    options.add(task, OnlineLearnerConfig, 'parameters of the learner')


def _online(args: argparse.Namespace) -> None:
    for name, least in (('passes', 1), ('hold_out_last', 0), ('gap', 1), ('every', 1), ('batches', 0), ('rehearse', 0), ('synthetic', 0)):
        if getattr(args, name) < least:
            raise ValueError(f'--{name.replace("_", "-")}: expected at least {least}, got {getattr(args, name)}')
    args.dense = not args.live if args.dense is None else args.dense
    (_live if args.live else _offline)(args, options.read(args, OnlineLearnerConfig))


@single_threaded()
def _live(args: argparse.Namespace, config: OnlineLearnerConfig) -> None:
    if args.fault != 'none':
        raise ValueError('--live: no --fault can be had through the live graph')
    _sizes(args)
    if args.domain is not None and not 0 <= args.domain <= 232:
        raise ValueError(f'--domain: expected 0 to 232, got {args.domain}')
    start = checkpoint.load(args.weights or shipped(args.variant), NAME)
    with open_sequence(args.sequence) as sequence:
        if sequence.scans:
            raise ValueError(f'--live: {args.sequence} has scans of its own, so none would be cut from its depth')
        poses = _poses(args, sequence)
        bag = args.sequence if is_sample(args.sequence) else str(Path(args.sequence).expanduser().absolute())
        replay = online_live.Replay(bag, args.variant, str(args.weights.expanduser().absolute()) if args.weights else '', args.hits, args.hold_out_last, args.passes, args.replay_rate,
                                    tuple(args.launch), args.domain)
        recorded = online_live.record(replay, config, args.rehearse, args.out)
        lines = online_live.lines_of(recorded, sequence, poses, str(args.poses))
        held_out = [index for index in lines['learned'][0] if index >= len(sequence) - args.hold_out_last]
    weights = recorded.weights or checkpoint.to_bytes(NAME, start.model, start.record)
    figures = {**summary(lines, held_out), **online_live.figures_of(recorded, replay), **_forgetting(start, weights, args.synthetic),
               'variant': args.variant, 'hits': args.hits, 'fault': args.fault}
    _write(args.out, figures, lines, weights)
    if args.dense:      # after what cannot be had again was written: this may take more memory than there is
        lines['dense'] = [{index: scores.get(index) for index in lines['learned'][0]} for scores in _from_all_depth(_stand(args), start, config, args)]
        _write(args.out, {**figures, **summary(lines, held_out)}, lines, weights)


@single_threaded()
def _offline(args: argparse.Namespace, config: OnlineLearnerConfig) -> None:
    stand = _stand(args)
    start = checkpoint.load(stand.engine.weights, NAME)
    frozen = {name: GlobalLocalEngine(replace(stand.engine, scale=scale)) for name, scale in (('frozen_scaled', 'hits'), ('frozen', 'odometry'))}
    lines = {name: [_frozen(one, stand.course)] * args.passes for name, one in frozen.items()}
    lines['triangulated'] = [{m.index: m.tracked_error for m in stand.course}] * args.passes
    learned = _learn(OnlineLearner(start, config, rehearsal=stand.rehearsal), stand, args)
    lines['learned'] = learned.scores
    if args.dense:
        lines['dense'] = _from_all_depth(stand, start, config, args)
    figures = {**summary(lines, [m.index for m in stand.course if m.hits is None]), **figures_of(learned.learner.progress), 'states': learned.states,
               'refused_weights': len(learned.refused), 'learner_seconds': learned.seconds, 'memory_mb': learned.memory, **_forgetting(start, learned.learner.weights(), args.synthetic),
               'variant': args.variant, 'hits': args.hits, 'fault': args.fault}
    _write(args.out, figures, lines, learned.learner.weights())


@dataclass(frozen=True)
class _Stand:
    """What learning without the graph takes."""

    engine: GlobalLocalEngineConfig
    course: list[Moment]
    rehearsal: PairBatch | None


def _stand(args: argparse.Namespace) -> _Stand:
    size, learn_size = _sizes(args)
    # In torch: to export every update would take longer than to run without a graph.
    engine = GlobalLocalEngineConfig(variant=args.variant, weights=str(args.weights or shipped(args.variant)), width=size[0], height=size[1], backend='torch')
    return _Stand(engine, _course(args, size, learn_size), rehearsal_pairs(learn_size[0], args.rehearse) if args.rehearse else None)


def _from_all_depth(stand: _Stand, start: checkpoint.Loaded, config: OnlineLearnerConfig, args: argparse.Namespace) -> list[dict[int, float | None]]:
    """Abs-Rel of every frame in every pass, of the network that learns from whole depth images where there are hits."""
    learner = OnlineLearner(start, replace(config, carry_seconds=0.0, guide_weight=0.0), rehearsal=stand.rehearsal)
    return _learn(learner, replace(stand, course=[_with_all_depth(m) for m in stand.course]), args).scores


def _sizes(args: argparse.Namespace) -> tuple[tuple[int, int], tuple[int, int]]:
    return _size(args.size, '--size'), _size(args.learn_size, '--learn-size')


def _size(text: str, option: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f'{option}: expected WIDTHxHEIGHT such as 256x192, got {text!r}')
    return int(width), int(height)


def _course(args: argparse.Namespace, size: tuple[int, int], learn_size: tuple[int, int]) -> list[Moment]:
    sequence = open_sequence(args.sequence)
    config = CourseConfig(args.gap, args.every, args.hold_out_last, args.hits, args.fault, args.seed)
    return moments(sequence, _poses(args, sequence), str(args.poses), config, size, learn_size)


def _poses(args: argparse.Namespace, sequence: Sequence) -> Trajectory:
    poses = read_trajectory(args.poses) if args.poses else sequence.ground_truth
    if poses is None:
        raise ValueError(f'{args.sequence} has no ground truth: give --poses FILE')
    return poses


def _with_all_depth(moment: Moment) -> Moment:
    truth = moment.lesson.pair.current
    return moment if moment.hits is None else replace(moment, hits=np.where(truth.depth_valid, truth.depth, 0.0))


def _frozen(engine: GlobalLocalEngine, course: list[Moment]) -> dict[int, float | None]:
    return {m.index: score(engine.step(m.result, m.T_ref_cur, m.hits, m.step, m.T_world_cur).depth, m.truth) for m in course}


@dataclass(frozen=True)
class Learned:
    """What came of learning along the sequence."""

    learner: OnlineLearner
    scores: list[dict[int, float | None]]       # Abs-Rel of every frame in every pass, predicted before it was learned from
    states: dict[str, int]                      # frames after which the learner was in each state
    refused: list[str]                          # reasons why the engine did not take weights
    seconds: float                              # of processor time that the learner took
    memory: list[int]                           # [MB] that the process held at the most, by the end of each pass


def _learn(learner: OnlineLearner, stand: _Stand, args: argparse.Namespace) -> Learned:
    engine = GlobalLocalEngine(replace(stand.engine, scale='odometry'))
    offers: list[Offer] = []
    learner.offer_to(lambda blob: offers.append(engine.offer(blob)))
    states, passes, seconds, memory = Counter(), [], 0.0, []
    for _ in range(args.passes):
        scores = {}
        for moment in stand.course:
            scores[moment.index] = score(engine.step(moment.result, moment.T_ref_cur, None, moment.step, moment.T_world_cur).depth, moment.truth)
            before = time.thread_time()
            learner.observe(moment.lesson, moment.T_ref_cur, moment.hits, moment.T_world_cur, engine.known or moment.tracked)
            states[learner.learn(args.batches).value] += 1
            seconds += time.thread_time() - before
        passes.append(scores)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return Learned(learner, passes, dict(states), [offer.reason for offer in offers if not offer.accepted], seconds, memory)


def _forgetting(start: checkpoint.Loaded, weights: bytes, count: int) -> dict[str, float]:
    """How the error on held-out synthetic pairs grew, as a ratio, and that error before and after."""
    if not count:
        return {}
    pairs = open_store(PairData(test=count), 'test', flow_function()).batch(np.arange(count))
    random = torch.Generator().manual_seed(0)
    pairs = prior_depth.add(pairs, [prior_depth.draw(1.0, random) for _ in range(count)])     # for a network that begins with it
    before, after = (_synthetic_scores(model, pairs) for model in (start.model, checkpoint.from_bytes(weights, NAME).model))
    return {'forgetting': after['abs_rel'] / before['abs_rel'], **{f'synthetic_{name}_{when}': scores[name] for when, scores in (('before', before), ('after', after))
                                                                  for name in ('abs_rel', 'sc_inv')}}


@torch.no_grad()
def _synthetic_scores(model: torch.nn.Module, pairs: PairBatch) -> dict[str, float]:
    model.eval()
    parts = [pairs.pick(slice(first, first + _AT_ONCE)) for first in range(0, len(pairs), _AT_ONCE)]
    return metrics.mean_metrics([scores for part in parts for scores in depth_scores(model(*model.inputs(part)), part)])


def _write(out: Path, figures: dict[str, object], lines: Lines, weights: bytes) -> None:
    with files.whole(out / 'online.png') as partial:
        online_curve.draw(lines, figures['held_out'], partial, {'frozen_scaled': 'frozen, scaled as the learning one'} if 'live' in figures else {})
    with files.whole(out / 'learned.safetensors') as partial:
        partial.write_bytes(weights)
    report.write(out, figures)
