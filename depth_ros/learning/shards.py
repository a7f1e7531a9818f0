"""Stores of records of one kind, such as pairs or clips of views: files of so many each in the user's cache, made once, whoever needs them, and memory-mapped."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depth_ros import files, settings
from depth_ros.learning.materials import photograph_files
from depth_ros.learning.scenes import SPLITS, ViewData
from depth_ros.settings import setting

Item = TypeVar('Item')
Batch = TypeVar('Batch', bound='TensorBatch')
Make = Callable[[int, Path, Callable[[], object]], None]
"""(number of a shard, its file, what to call after each record): writes the file."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreData:
    """How many records of each split a store has, and how they are filed."""

    train: int = setting(12000, 'number to train on', '', 1)
    validation: int = setting(512, 'number in the validation split', '', 1)
    test: int = setting(512, 'number in the test split', '', 1)
    shard: int = setting(128, 'number a file', '', 1, 4096)


class TensorBatch:
    """What batches of records, dataclasses whose fields are tensors (B, ...) or None, have in common."""

    def to(self: Batch, device: torch.device | str) -> Batch:
        """The same on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pick(self: Batch, indices: Tensor | Sequence[int] | slice) -> Batch:
        """Some of the records."""
        return self._map(lambda t: t[indices])

    @classmethod
    def joined(cls: type[Batch], parts: Sequence[Batch]) -> Batch:
        """The records of all parts, in their order; what the first does not have, none has."""
        return parts[0] if len(parts) == 1 else cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._present})

    @property
    def nbytes(self) -> int:
        """Size in memory [bytes]."""
        return sum(value.nbytes for value in self._present.values())

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def _map(self: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: function(value) for name, value in self._present.items()})

    @property
    def _present(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


class RecordStore:
    """Records in memory-mapped files; nothing is read before it is asked for."""

    what = 'records'        # in the plural, for errors

    def __init__(self, shards: Sequence[Path], count: int | None = None) -> None:
        """The first `count` records (all by default) of the shards. Raises ValueError naming a file that cannot be read as one."""
        self._shards = [self._mapped(path) for path in shards]
        self._ends = np.cumsum([len(s) for s in self._shards])
        there = int(self._ends[-1]) if len(self._ends) else 0
        if count is not None and count > there:
            raise ValueError(f'expected at least {count} {self.what}, the {len(self._shards)} files hold {there}')
        self._count = there if count is None else count

    def __len__(self) -> int:
        return self._count

    @property
    def kind(self) -> np.dtype:
        """The type of a record."""
        return self._shards[0].dtype

    @staticmethod
    def is_kind(kind: np.dtype) -> bool:
        """Whether records of that type belong into such a store; a KeyError also says no."""
        return True

    def records(self, indices: Sequence[int] | np.ndarray | Tensor) -> dict[str, np.ndarray]:
        """The fields of the records of these indices, in their order. Raises IndexError beyond the end."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f'expected indices from 0 to {len(self) - 1}, got {indices.min()} to {indices.max()}')
        which = np.searchsorted(self._ends, indices, side='right')
        first = self._ends - [len(s) for s in self._shards]
        found = {name: np.empty((len(indices), *self.kind[name].shape), self.kind[name].base) for name in self.kind.names}
        for row, (shard, index) in enumerate(zip(which, indices)):
            record = self._shards[shard][index - first[shard]]
            for name, values in found.items():
                values[row] = record[name]
        return found

    @classmethod
    def _mapped(cls, path: Path) -> np.ndarray:
        try:
            shard = np.load(path, mmap_mode='r', allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f'{path}: cannot be read as {cls.what}: {error}') from error
        fits = False
        if shard.ndim == 1 and shard.dtype.names is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                fits = cls.is_kind(shard.dtype)
        if not fits:
            raise ValueError(f'{path}: holds no {cls.what} in the form that is expected here')
        return shard


def folder(spec: ViewData, what: str, version: int) -> Path:
    """Where records of synthetic scenes are kept: in the user's cache, by everything that decides them."""
    without = (*SPLITS, 'photographs', 'strict', *(() if spec.mirror else ('mirror',)))       # what was rendered before there were mirrors is found again
    deciding: list = [version, {k: v for k, v in asdict(spec).items() if k not in without}]
    if spec.photographs:
        deciding += [] if spec.strict else ['lenient']      # what was made without some files is not what a strict store holds
        deciding.append([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in photograph_files(spec.photographs)])
    key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
    return files.user_cache() / f'{what}-{spec.width}x{spec.height}-{key}'


def built(spec: StoreData, split: str, place: Path, what: str, make: Make | None, lacking: str = '') -> list[Path]:
    """The files in `place` that hold a split (train | validation | test), made now as far as they are not there; several processes may do so together.

    Raises ValueError for settings out of range, and, telling what is `lacking`, if some are missing and there is nothing to make them.
    """
    settings.check(spec)
    if split not in SPLITS:
        raise ValueError(f'expected a split of {", ".join(SPLITS)}, got {split!r}')
    shards = [place / f'{split}-{number:05d}.npy' for number in range(-(-getattr(spec, split) // spec.shard))]
    missing = [number for number, path in enumerate(shards) if not path.exists()]
    if not missing:
        return shards
    if make is None:
        raise ValueError(f'{place}: {len(missing)} of the {len(shards)} files of the {split} split are missing, and {lacking}')
    place.mkdir(parents=True, exist_ok=True)
    _LOG.info('rendering %s into %s', what, place)
    with files.whole(place / 'spec.json') as partial:
        partial.write_text(json.dumps(asdict(spec), indent=1) + '\n')
    try:
        with tqdm(total=len(missing) * spec.shard, desc=f'{split} {what}', unit=what.removesuffix('s'), disable=None) as progress:
            # What another process is at is left to it, and only waited for at the end.
            for wait in (False, True):
                missing = [number for number in missing if not _made(shards[number], number, spec.shard, make, wait, progress)]
    except KeyboardInterrupt:
        kept = spec.shard * sum(path.exists() for path in shards)
        _LOG.warning('stopped while %s were rendered: %d of %d of the %s split are kept in %s, and the same command goes on with them',
                     what, kept, spec.shard * len(shards), split, place)
        raise
    return shards


def _made(path: Path, number: int, count: int, make: Make, wait: bool, progress: tqdm) -> bool:
    """Make one shard unless another process is at it (or wait for that); whether it is there now."""
    with locked(path, wait) as mine:
        if path.exists():
            progress.update(count)
        elif mine:
            make(number, path, progress.update)
    return path.exists()


def write(path: Path, kind: np.dtype, count: int, source: Iterable[Item], fill: Callable[[np.ndarray, Item], None], tell: Callable[[], object] = lambda: None) -> None:
    """Fill a file with the first so many items of a source, each put into a record (1,) by `fill`, and tell after each."""
    shard = np.zeros(count, kind)
    for row, item in zip(range(count), source):
        fill(shard[row:row + 1], item)
        tell()
    with files.whole(path) as partial:
        np.save(partial, shard)


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Whether the lock beside a file was got."""
    lock = path.with_name(f'.{path.name}.lock')
    with lock.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
        lock.unlink(missing_ok=True)
