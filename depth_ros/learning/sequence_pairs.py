"""Pairs of a recorded sequence: frames a gap apart, sensor depth as truth where there is any, the motion from reference poses, all in units of the baseline."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from depth_ros import files, settings
from depth_ros.frames import CameraFrame
from depth_ros.learning.pairs import FlowFunction, PairStore, fill, record_type
from depth_ros.learning.recipe import configured
from depth_ros.learning.scenes import MAX_ANGLE, MAX_STEP, ScenePair, axis_motion, views_flow
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.shards import locked
from depth_ros.learning.trajectory import SequenceError, Trajectory, read_trajectory
from depth_ros.learning.tum import open_sequence
from depth_ros.settings import setting

_LOG = logging.getLogger(__name__)
_FORMAT = 1             # raise it whenever what is stored changes


@dataclass(frozen=True)
class SequenceData:
    """Which pairs of a sequence."""

    sequence: str = setting('', 'TUM folder, bag or `sample`')
    poses: str = setting('', 'TUM trajectory with the reference poses; empty: those of the sequence')
    gap: int = setting(10, 'frames from image 2 to the later image 1', 'frames', 1)
    first: int = setting(0, 'first frame that is used', '', 0)
    last: int = setting(-1, 'last frame that is used; -1: that of the sequence', '', -1)
    every: int = setting(1, 'step from pair to pair', 'frames', 1)
    least_baseline: float = setting(0.01, 'pairs with less translation are left out', 'm', 0.0)
    width: int = setting(128, 'width of the pairs', 'px', 32, 1920)
    height: int = setting(96, 'height of the pairs', 'px', 24, 1200)
    flow_width: int = setting(256, 'width that flow is computed at', 'px', 32, 1920)
    flow_height: int = setting(192, 'height that flow is computed at', 'px', 24, 1200)
    flow: str = setting('dis', 'name of the estimator that made the flow')
    strict: bool = setting(True, 'stop at an image that cannot be read or does not fit; else go on without it')


def sequence_splits(data: Mapping[str, Any]) -> dict[str, SequenceData]:
    """The pairs to train and to validate on of a recipe's data: `validation` holds what is different there; by default the frames that come after the last one.

    Raises ValueError for what it may not hold, and if no frames are left for the validation.
    """
    rest = {key: value for key, value in data.items() if key != 'validation'}
    train = configured(SequenceData, rest)
    if 'validation' not in data and train.last < 0:
        raise ValueError('data: expected a last frame, after which those to validate on come, or a sequence to validate on: validation: {sequence: ...}')
    other = data.get('validation', {'first': train.last + 1, 'last': -1})
    if not isinstance(other, dict):
        raise ValueError(f'data.validation: expected keys and values, got {other!r}')
    return {'train': train, 'validation': configured(SequenceData, {**rest, **other})}


def open_sequence_store(spec: SequenceData, flow_function: FlowFunction | None = None) -> PairStore:
    """The pairs of a sequence, from the user's cache if they are there.

    Raises SequenceError naming the file that cannot be used, or if no pair is left; ValueError if there is work but no flow function.
    """
    settings.check(spec)
    path = _store_file(spec)
    if not path.exists():
        if flow_function is None:
            raise ValueError(f'{path}: is missing, and no flow function was given to make it')
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, wait=True):
            if not path.exists():
                records = [_record(spec, pair, flow_function) for pair in sequence_pairs(spec)]
                if not records:
                    raise SequenceError(f'{spec.sequence}: no two frames {spec.gap} apart have images, poses, depth and enough motion between them')
                with files.whole(path) as partial:
                    np.save(partial, np.concatenate(records))
    return PairStore([path])


def sequence_pairs(spec: SequenceData) -> Iterator[ScenePair]:
    """The pairs, in the order of their frames; those beyond the limits of motion, or without pose or depth, are left out and counted in the log."""
    with open_sequence(spec.sequence) as sequence:
        poses = read_trajectory(spec.poses) if spec.poses else sequence.ground_truth
        if poses is None:
            raise SequenceError(f'{spec.sequence}: has no ground truth, and no reference poses were given')
        if spec.last >= len(sequence):
            raise SequenceError(f'{spec.sequence}: expected a last frame below {len(sequence)}, got {spec.last}')
        last = len(sequence) - 1 if spec.last < 0 else spec.last
        frames = _Frames(sequence, spec)
        indices = range(spec.first + spec.gap, last + 1, spec.every)
        left_out = 0
        for current in tqdm(indices, desc=f'pairs of {sequence.name}', unit='pair', disable=None):
            pair = _pair(frames, poses, current, spec)
            left_out += pair is None
            if pair is not None:
                yield pair
        if left_out:
            _LOG.warning('%s: %d of %d pairs were left out: no pose, no depth, an unusable image, or motion beyond the limits', spec.sequence, left_out, len(indices))


class _Frames:
    """The frames of a sequence at the size of flow, decoded once as the pairs walk along it."""

    def __init__(self, sequence: Sequence, spec: SequenceData) -> None:
        self.sequence, self._spec = sequence, spec
        self._kept: dict[int, CameraFrame | None] = {}

    def __getitem__(self, index: int) -> CameraFrame | None:
        """At full size; None if it cannot be used and the data are not strict."""
        for past in [i for i in self._kept if i < index - self._spec.gap]:
            del self._kept[past]
        if index not in self._kept:
            try:
                self._kept[index] = self.sequence[index]
            except SequenceError as error:
                if self._spec.strict:
                    raise
                _LOG.warning('going on without a frame: %s', error)
                self._kept[index] = None
        return self._kept[index]


def _pair(frames: _Frames, poses: Trajectory, current: int, spec: SequenceData) -> ScenePair | None:
    """The pair of a frame and the one a gap before, or None if it is left out."""
    reference = current - spec.gap
    T_world_2, T_world_1 = (poses.at(int(frames.sequence.colour_stamps[i])) for i in (reference, current))
    if T_world_1 is None or T_world_2 is None:
        return None
    T_2_1 = np.linalg.inv(T_world_2) @ T_world_1
    angles, step = axis_motion(T_2_1)
    if angles.max() > MAX_ANGLE or step.max() > MAX_STEP or np.linalg.norm(step) < max(spec.least_baseline, 1e-6):
        return None
    second, first = frames[reference], frames[current]      # in the order of the recording, as bags are read
    if first is None or second is None or first.depth is None or not first.depth_valid.any():
        return None
    return _view_pair(first, second, T_2_1, spec)


def _view_pair(first: CameraFrame, second: CameraFrame, T_2_1: np.ndarray, spec: SequenceData) -> ScenePair:
    """The pair of two frames; where frame 2 has no depth, nothing counts as hidden."""
    images = [f.resized(spec.flow_width, spec.flow_height).image for f in (first, second)]
    small, other = (f.resized(spec.width, spec.height) for f in (first, second))
    depth1, K, T = (torch.tensor(a, dtype=torch.float32) for a in (small.depth, small.K, T_2_1))
    depth2 = torch.full_like(depth1, torch.inf) if other.depth is None else torch.tensor(np.where(other.depth_valid, other.depth, np.inf), dtype=torch.float32)
    moved, visible = views_flow(depth1[None], depth2[None], T[None], K)
    return ScenePair(*images, small.depth, small.depth_valid, moved[0].numpy(), visible[0].numpy(), small.K.astype(np.float32), T_2_1)


def _record(spec: SequenceData, pair: ScenePair, flow_function: FlowFunction) -> np.ndarray:
    record = np.zeros(1, record_type(spec.height, spec.width))
    fill(record, pair, flow_function)
    return record


def _store_file(spec: SequenceData) -> Path:
    """Where the pairs are kept: by the settings, and by the state of the files that they come from."""
    changed = [_changed(Path(p).expanduser()) for p in (spec.sequence, spec.poses) if p]
    key = hashlib.sha256(json.dumps([_FORMAT, asdict(spec), changed], sort_keys=True).encode()).hexdigest()[:12]
    return files.user_cache() / f'pairs-{spec.width}x{spec.height}-of-sequences' / f'{Path(spec.sequence).stem}-{key}.npy'


def _changed(path: Path) -> list[list[int]]:
    """Size and time [ns] of a file, or of those in a folder's top, that tell whether it is still the same."""
    if not path.exists():
        return []
    members = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [[p.stat().st_size, p.stat().st_mtime_ns] for p in members]
