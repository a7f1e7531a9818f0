"""What an online learner remembers as a file, so that it need not gather it afresh after a restart: compressed arrays, bounded, and nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depth_ros import files
from depth_ros.engines.replay_buffer import LEAST_STEP, Observation

FORMAT = 'depth_ros observations 2'
_PARTS = 'recent', 'reservoir', 'withheld recent', 'withheld reservoir'
# How each field is stored. Half floats tell metres to a twentieth of a percent, which is less than any range sensor's noise.
_STORED = {'stamp': np.int64, 'image1': np.uint8, 'image2': np.uint8, 'flow': np.float16, 'K': np.float32, 'T_2_1': np.float32, 'step_length': np.float64,
           'hits': np.float16, 'carried': np.float16, 'guide': np.float16, 'prior': np.float16, 'weight': np.float32}
_SHAPES = {'stamp': (), 'image1': ('h', 'w', 3), 'image2': ('h', 'w', 3), 'flow': ('h', 'w', 2), 'K': (3, 3), 'T_2_1': (4, 4), 'step_length': (),
           'hits': ('h', 'w'), 'carried': ('h', 'w'), 'guide': ('h', 'w'), 'prior': ('h', 'w', 2), 'weight': ()}
_FARTHEST = 60000.0     # [m] that half a float holds
_DAMAGED = (ValueError, KeyError, TypeError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)    # what a spoilt file may raise on the way


@dataclass(frozen=True)
class Kept:
    """Observations by part, oldest first, and how many ever came to learn from and to judge by."""

    recent: list[Observation]
    reservoir: list[Observation]
    withheld_recent: list[Observation]
    withheld_reservoir: list[Observation]
    seen: tuple[int, int] = (0, 0)

    @property
    def parts(self) -> list[list[Observation]]:
        """In the order of the file."""
        return [self.recent, self.reservoir, self.withheld_recent, self.withheld_reservoir]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def write(path: str | Path, kept: Kept, most: int) -> int:
    """Write at most so many, an even choice from all parts, whole or not at all; how many they are. Raises OSError."""
    share = min(1.0, most / max(1, len(kept)))
    parts = [_evenly(part, int(share * len(part))) for part in kept.parts]
    chosen = [one for part in parts for one in part]
    note = json.dumps({'format': FORMAT, 'parts': dict(zip(_PARTS, map(len, parts))), 'seen': kept.seen})
    planes = {name: np.array([_storable(getattr(one, name), kind) for one in chosen], kind) for name, kind in _STORED.items()}
    with files.whole(path, durable=True) as partial, partial.open('wb') as stream:
        np.savez_compressed(stream, note=np.array(note), **planes)
    return len(chosen)


def read(path: str | Path) -> Kept:
    """What was written. Raises ValueError, naming the file and the reason, for anything else; OSError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            note = json.loads(str(stored['note']))
            if note['format'] != FORMAT:
                raise ValueError(f'expected {FORMAT!r}, got {note["format"]!r}')
            planes = {name: stored[name] for name in _STORED}
            counts, seen = [int(note['parts'][name]) for name in _PARTS], tuple(map(int, note['seen']))
        _check(planes, counts, seen)
    except _DAMAGED as error:
        raise ValueError(f'{path}: no observations to go on with: {error}') from error
    everything = [_observation({name: plane[i] for name, plane in planes.items()}) for i in range(sum(counts))]
    ends = np.cumsum(counts)
    return Kept(*(everything[end - count:end] for end, count in zip(ends, counts)), seen=seen)


def _evenly(part: Sequence[Observation], count: int) -> list[Observation]:
    return [part[i] for i in np.linspace(0, len(part) - 1, count).round().astype(int)]


def _storable(value: object, kind: type) -> object:
    return np.clip(value, -_FARTHEST, _FARTHEST) if kind is np.float16 else value


def _check(planes: dict[str, np.ndarray], counts: list[int], seen: tuple[int, ...]) -> None:
    """Raise ValueError unless all planes have their kind and shape, and values that can be learned from."""
    count, (height, width) = sum(counts), planes['image1'].shape[1:3] if sum(counts) else (0, 0)
    if min(counts) < 0 or len(seen) != 2 or min(seen) < 0:
        raise ValueError(f'expected counts, got {counts} and {seen}')
    for name, plane in planes.items():
        wanted = (count, *({'h': height, 'w': width}.get(side, side) for side in _SHAPES[name]))
        if plane.dtype != _STORED[name] or (count and plane.shape != wanted):
            raise ValueError(f'{name}: expected {np.dtype(_STORED[name])} of shape {wanted}, got {plane.dtype} of {plane.shape}')
        if not np.isfinite(plane).all():
            raise ValueError(f'{name}: values that are not finite')
    if (planes['step_length'] < LEAST_STEP).any() or any((planes[name] < 0).any() for name in ('hits', 'carried', 'guide', 'prior', 'weight')):
        raise ValueError('lengths, depth or weights below what they can be')


def _observation(stored: dict[str, np.ndarray]) -> Observation:
    planes = {name: stored[name].astype(np.float32) for name in ('hits', 'carried', 'guide')}
    return Observation(**{**stored, **planes, 'stamp': int(stored['stamp']), 'step_length': float(stored['step_length']), 'weight': float(stored['weight'])})
