"""`evaluate online --live`: the same figures from the live graph, whose published depth is recorded and scored against the sensor depth of its stamp.

In one pass before, while the learner is paused, the same node runs beside it with the weights that learning begins with, and the metre from the same hits and odometry.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType

import numpy as np

from depth_ros.apps import runs
from depth_ros.apps.online_course import MOST_HITS, NOISE, score
from depth_ros.apps.online_report import Lines
from depth_ros.engines.deepv2d import DeepV2DConfig
from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.trajectory import Trajectory

_PROGRAM = 'depth_ros.ros.online_recording'     # a process of its own: nothing here knows ROS
_NUMBERS = {'updates': 'updates', 'rollbacks': 'rollbacks', 'batches': 'batches', 'observed': 'pairs'}
_ERRORS = {'withheld_before': 'withheld error before', 'withheld_after': 'withheld error after', 'away_before': 'error away from hits before',
           'away_after': 'error away from hits after'}


@dataclass(frozen=True)
class Replay:
    """What is replayed, and how."""

    sequence: str
    variant: str
    weights: str                    # '': the shipped ones
    hits: str                       # row | single
    hold_out_last: int              # images
    passes: int
    rate: float                     # 1.0: real time
    arguments: tuple[str, ...]      # more of the launch file, as NAME:=VALUE
    domain: int | None = None       # of ROS; None: one that nobody uses


@dataclass(frozen=True)
class Recorded:
    """What came of it."""

    depths: dict[str, list[dict[int, np.ndarray]]]      # of each line, in every pass, by stamp [ns]: (H, W) float16 [m], 0 where not valid
    weights: bytes                                      # the last ones handed out, be it the first ones; empty if none came
    told: dict[str, object]


def record(replay: Replay, learner: OnlineLearnerConfig, rehearse: int, out: Path) -> Recorded:
    """Replay a sequence through the live graph. Raises ValueError if it ends before the last pass."""
    out.mkdir(parents=True, exist_ok=True)
    changed = {f.name: getattr(learner, f.name) for f in fields(learner) if getattr(learner, f.name) != f.default}
    with tempfile.TemporaryDirectory(prefix='.live.', dir=out) as folder:
        path = Path(folder)
        parameters = {
            'player': {'scan_beams': MOST_HITS if replay.hits == 'row' else 1, 'scan_noise': NOISE, 'scan_rate': 100.0, 'scan_silent_last': replay.hold_out_last},
            'online_learning': {**changed, 'rehearse': rehearse, 'state_file': str(path.absolute() / 'state.safetensors')},
        }
        settings = {'bag': replay.sequence, 'passes': replay.passes, 'rate': replay.rate, 'variant': replay.variant, 'weights': replay.weights, 'parameters': parameters,
                    'arguments': replay.arguments, 'out': str(path.absolute()), 'domain': replay.domain}
        (path / 'settings.json').write_text(json.dumps(settings))
        with _interruptible():
            program = subprocess.Popen([sys.executable, '-m', _PROGRAM, str(path / 'settings.json')])
            try:
                status = program.wait()
            except BaseException:
                program.send_signal(signal.SIGINT)      # of a terminal it has had one already
                raise
            finally:
                program.wait()      # it ends the graph before itself
        if status:
            raise ValueError('the replay through the live graph did not come to its end; its own messages above say why')
        return read(path / 'recording.npz', replay.passes)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End inside as by Ctrl-C when told to end or when the terminal hangs up: whoever is killed leaves what it started running."""
    def leave(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read(path: Path, passes: int) -> Recorded:
    """What a replay left."""
    with np.load(path) as found:
        depths = {'learned': _by_pass(found, 'learned', passes), 'frozen_scaled': passes * _by_pass(found, 'frozen_scaled', 1)}
        return Recorded(depths, found['weights'].tobytes(), json.loads(str(found['told'])))


def _by_pass(found: np.lib.npyio.NpzFile, name: str, passes: int) -> list[dict[int, np.ndarray]]:
    numbers, stamps, depths = (found[f'{name}_{part}'] for part in ('pass', 'stamp', 'depth'))
    return [{int(s): d for n, s, d in zip(numbers, stamps, depths) if n == number} for number in range(passes)]


def lines_of(recorded: Recorded, sequence: Sequence, poses: Trajectory, named: str) -> Lines:
    """Abs-Rel of what was published and, with these poses (`named`: their file), of the tracker's depth from flow: every line over the same frames, None where it has none."""
    index_of = {int(stamp): index for index, stamp in enumerate(sequence.colour_stamps)}
    truths: dict[tuple[int, tuple[int, ...]], CameraFrame] = {}
    lines = {name: [{index_of[stamp]: _score(depth, sequence, index_of[stamp], truths) for stamp, depth in found.items() if stamp in index_of} for found in passes]
             for name, passes in recorded.depths.items()}
    frames = sorted({index for passes in lines.values() for scores in passes for index in scores})
    if not frames:
        raise ValueError('the live graph published no depth')
    tracked = {step.index: score(step.depth, step.frame) for step in runs.deepv2d(runs.Course(sequence, poses, named), DeepV2DConfig(depth='flow'))}
    lines['triangulated'] = [tracked] * len(lines['learned'])
    return {name: [{index: scores.get(index) for index in frames} for scores in passes] for name, passes in lines.items()}


def _score(depth: np.ndarray, sequence: Sequence, index: int, truths: dict[tuple[int, tuple[int, ...]], CameraFrame]) -> float | None:
    height, width = depth.shape
    if (index, depth.shape) not in truths:
        truths[index, depth.shape] = sequence[index].resized(width, height)
    truth, depth = truths[index, depth.shape], depth.astype(np.float32)
    if truth.depth is None or not truth.depth_valid.any():
        return None
    return score(DepthResult(truth, depth, depth > 0, np.ones_like(depth), Scale.METRIC), truth)


def figures_of(recorded: Recorded, replay: Replay) -> dict[str, object]:
    """What the learner and the graph told, under the names of the stand without ROS."""
    told = recorded.told['told']
    number = lambda name: float(told[name]) if told.get(name, 'unknown') not in ('unknown', '') else None
    counted = {name: int(told.get(key, 0)) for name, key in _NUMBERS.items()}
    published = [len(found) for found in recorded.depths['learned']]
    return {**counted, **{name: number(key) for name, key in _ERRORS.items()}, **{name: recorded.told[name] for name in ('states', 'refused_weights', 'learner_seconds', 'memory_mb')},
            'published_by_pass': published, 'load': recorded.told['load'], 'live': asdict(replay)}
