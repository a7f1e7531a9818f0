"""Image pairs with flow, depth and motion, as every depth network here learns from them: a batch of tensors, and a store of shards in the user's cache.

Image 1 is the one whose depth is wanted. Lengths are in units of the baseline (T_2_1's translation has norm 1), as no pair tells its own scale
(Global-Local: "depth is normalised so that the translation between the two views has norm 1").
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depth_ros import files, settings
from depth_ros.learning.materials import photograph_files
from depth_ros.learning.scenes import SPLITS, SceneData, ScenePair, scene_pairs
from depth_ros.settings import setting

FlowFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(rgb1, rgb2), (H, W, 3) uint8 each -> flow (H, W, 2) float32 [px] from 1 to 2."""

_LOG = logging.getLogger(__name__)
_FORMAT = 2             # raise it whenever what is rendered or stored changes


@dataclass
class PairBatch:
    """B pairs, H x W."""

    image1: Tensor                      # (B, 3, H, W) float in [0, 1]
    image2: Tensor                      # (B, 3, H, W)
    flow: Tensor                        # (B, 2, H, W) [px], 1 -> 2, as an estimator saw it
    inverse_depth: Tensor               # (B, 1, H, W) [1/baseline] of image 1; 0 where not valid
    valid: Tensor                       # (B, 1, H, W) bool, where depth is known
    K: Tensor                           # (B, 3, 3) [px]
    T_2_1: Tensor                       # (B, 4, 4), takes points of camera 1 into camera 2; its translation has norm 1
    exact_flow: Tensor                  # (B, 2, H, W) [px], the projection of depth and motion; 0 where not valid
    visible: Tensor                     # (B, 1, H, W) bool, what image 2 shows as well: inside and not hidden

    def to(self, device: torch.device | str) -> PairBatch:
        """The same on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pick(self, indices: Tensor | Sequence[int] | slice) -> PairBatch:
        """Some of the pairs."""
        return self._map(lambda t: t[indices])

    def __len__(self) -> int:
        return len(self.image1)

    def _map(self, function: Callable[[Tensor], Tensor]) -> PairBatch:
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class PairData(SceneData):
    """A store of pairs from synthetic scenes. What is stored does not depend on how many are asked for, so a store can grow."""

    train: int = setting(12000, 'pairs to train on', 'pairs', 1)
    validation: int = setting(512, 'pairs of the validation split', 'pairs', 1)
    test: int = setting(512, 'pairs of the test split', 'pairs', 1)
    shard: int = setting(128, 'pairs a file', 'pairs', 1, 4096)
    flow: str = setting('dis', 'name of the estimator that made the flow')


def record_type(height: int, width: int) -> np.dtype:
    """What is stored of one pair of that size; about 17 bytes a pixel."""
    image, vectors, plane = ('u1', (height, width, 3)), ('<f2', (height, width, 2)), (height, width)
    return np.dtype([('image1', *image), ('image2', *image), ('flow', *vectors), ('exact_flow', *vectors), ('inverse_depth', '<f2', plane),
                     ('valid', '?', plane), ('visible', '?', plane), ('K', '<f4', (3, 3)), ('T_2_1', '<f4', (4, 4))])


class PairStore:
    """Pairs in memory-mapped files; nothing is read before it is asked for."""

    def __init__(self, shards: Sequence[Path], count: int | None = None) -> None:
        """The first `count` pairs (all by default) of the shards. Raises ValueError naming a file that cannot be read as one."""
        self._shards = [_mapped(path) for path in shards]
        self._ends = np.cumsum([len(s) for s in self._shards])
        there = int(self._ends[-1]) if len(self._ends) else 0
        if count is not None and count > there:
            raise ValueError(f'expected at least {count} pairs, the {len(self._shards)} files hold {there}')
        self._count = there if count is None else count

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self._shards[0].dtype['valid'].shape

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> PairBatch:
        """The pairs of these indices, in their order. Raises IndexError beyond the end."""
        records = self._records(np.asarray(indices, np.int64).reshape(-1))
        def planes(name: str) -> Tensor:
            return torch.from_numpy(records[name]).movedim(-1, 1)
        return PairBatch(*(planes(n).float().div_(255.0) for n in ('image1', 'image2')), planes('flow').float(),
                         torch.from_numpy(records['inverse_depth'])[:, None].float(), torch.from_numpy(records['valid'])[:, None],
                         torch.from_numpy(records['K']), torch.from_numpy(records['T_2_1']), planes('exact_flow').float(),
                         torch.from_numpy(records['visible'])[:, None])

    def _records(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f'expected indices from 0 to {len(self) - 1}, got {indices.min()} to {indices.max()}')
        which = np.searchsorted(self._ends, indices, side='right')
        first = self._ends - [len(s) for s in self._shards]
        kind = self._shards[0].dtype
        found = {name: np.empty((len(indices), *kind[name].shape), kind[name].base) for name in kind.names}
        for row, (shard, index) in enumerate(zip(which, indices)):
            record = self._shards[shard][index - first[shard]]
            for name, values in found.items():
                values[row] = record[name]
        return found


def _mapped(path: Path) -> np.ndarray:
    try:
        shard = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f'{path}: cannot be read as pairs: {error}') from error
    if shard.ndim != 1 or shard.dtype.names is None or shard.dtype != record_type(*shard.dtype['valid'].shape):
        raise ValueError(f'{path}: holds no pairs in the form that is expected here')
    return shard


def store_folder(spec: PairData) -> Path:
    """Where the pairs are kept: in the user's cache, by everything that decides them."""
    deciding: list = [_FORMAT, {k: v for k, v in asdict(spec).items() if k not in (*SPLITS, 'photographs')}]
    if spec.photographs:
        deciding.append([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in photograph_files(spec.photographs)])
    key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
    return files.user_cache() / f'pairs-{spec.width}x{spec.height}-{key}'


def open_store(spec: PairData, split: str, flow_function: FlowFunction | None = None) -> PairStore:
    """The pairs of a split (train | validation | test), rendered now as far as they are not there; several processes may do so together.

    Raises ValueError if some are missing and no flow function was given.
    """
    settings.check(spec)
    if split not in SPLITS:
        raise ValueError(f'expected a split of {", ".join(SPLITS)}, got {split!r}')
    count = getattr(spec, split)
    folder = store_folder(spec)
    shards = [folder / f'{split}-{number:05d}.npy' for number in range(-(-count // spec.shard))]
    missing = [number for number, path in enumerate(shards) if not path.exists()]
    if missing:
        if flow_function is None:
            raise ValueError(f'{folder}: {len(missing)} of the {len(shards)} files of the {split} split are missing, and no flow function was given to make them')
        folder.mkdir(parents=True, exist_ok=True)
        _LOG.info('rendering pairs into %s', folder)
        with files.whole(folder / 'spec.json') as partial:
            partial.write_text(json.dumps(asdict(spec), indent=1) + '\n')
        try:
            _make(spec, split, shards, missing, flow_function)
        except KeyboardInterrupt:
            kept = spec.shard * sum(path.exists() for path in shards)
            _LOG.warning('stopped while pairs were rendered: %d of %d of the %s split are kept in %s, and the same command goes on with them',
                         kept, spec.shard * len(shards), split, folder)
            raise
    return PairStore(shards, count)


def _make(spec: PairData, split: str, shards: Sequence[Path], missing: list[int], flow_function: FlowFunction) -> None:
    with tqdm(total=len(missing) * spec.shard, desc=f'{split} pairs', unit='pair', disable=None) as progress:
        # What another process is at is left to it, and only waited for at the end.
        for wait in (False, True):
            missing = [number for number in missing if not _made(spec, split, number, shards[number], flow_function, wait, progress)]


def _made(spec: PairData, split: str, number: int, path: Path, flow_function: FlowFunction, wait: bool, progress: tqdm) -> bool:
    """Make one shard unless another process is at it (or wait for that); whether it is there now."""
    with locked(path, wait) as mine:
        if path.exists():
            progress.update(spec.shard)
        elif mine:
            write_shard(path, spec, spec.shard, scene_pairs(spec, split, number), flow_function, progress.update)
    return path.exists()


def write_shard(path: Path, data: SceneData, count: int, source: Iterator[ScenePair], flow_function: FlowFunction, tell: Callable[[], object] = lambda: None) -> None:
    """Fill a file with the first so many pairs of a source, and tell after each."""
    shard = np.zeros(count, record_type(data.height, data.width))
    for row, pair in zip(range(count), source):
        fill(shard[row:row + 1], pair, flow_function)
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


def fill(record: np.ndarray, pair: ScenePair, flow_function: FlowFunction) -> None:
    """Write a pair into a record (1,): images and flow brought to its size, lengths to a baseline of 1."""
    height, width = record.dtype['valid'].shape
    baseline = np.linalg.norm(pair.T_2_1[:3, 3])
    flow = flow_function(pair.image1, pair.image2)
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    T = pair.T_2_1.copy()
    T[:3, 3] /= baseline
    record['image1'], record['image2'] = (cv2.resize(i, (width, height), interpolation=cv2.INTER_AREA) for i in (pair.image1, pair.image2))
    record['flow'] = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * scale
    record['exact_flow'], record['visible'], record['valid'] = pair.flow, pair.visible, pair.valid
    record['inverse_depth'] = np.where(pair.valid, baseline / np.where(pair.valid, pair.depth, 1.0), 0.0)
    record['K'], record['T_2_1'] = pair.K, T
