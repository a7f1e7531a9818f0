"""Image pairs with flow, depth and motion, as every depth network here learns from them: a batch of tensors, and a store of shards in the user's cache.

Image 1 is the one whose depth is wanted. Lengths are in units of the baseline (T_2_1's translation has norm 1), as no pair tells its own scale
(Global-Local: "depth is normalised so that the translation between the two views has norm 1").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_ros.learning import shards
from depth_ros.learning.scenes import SceneData, ScenePair, scene_pairs
from depth_ros.learning.shards import RecordStore, StoreData, TensorBatch
from depth_ros.settings import setting

FlowFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(rgb1, rgb2), (H, W, 3) uint8 each -> flow (H, W, 2) float32 [px] from 1 to 2."""

_FORMAT = 2             # raise it whenever what is rendered or stored changes


@dataclass
class PairBatch(TensorBatch):
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
    prior: Tensor | None = None         # (B, 2, H, W), inverse depth [1/baseline] that was known of image 1 beforehand, 0 where none was, and its confidence in [0, 1]


@dataclass(frozen=True)
class PairData(StoreData, SceneData):
    """A store of pairs from synthetic scenes. What is stored does not depend on how many are asked for, so a store can grow."""

    flow: str = setting('dis', 'name of the estimator that made the flow')


def record_type(height: int, width: int) -> np.dtype:
    """What is stored of one pair of that size; about 17 bytes a pixel."""
    image, vectors, plane = ('u1', (height, width, 3)), ('<f2', (height, width, 2)), (height, width)
    return np.dtype([('image1', *image), ('image2', *image), ('flow', *vectors), ('exact_flow', *vectors), ('inverse_depth', '<f2', plane),
                     ('valid', '?', plane), ('visible', '?', plane), ('K', '<f4', (3, 3)), ('T_2_1', '<f4', (4, 4))])


class PairStore(RecordStore):
    """Pairs in memory-mapped files; nothing is read before it is asked for."""

    what = 'pairs'

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self.kind['valid'].shape

    @staticmethod
    def is_kind(kind: np.dtype) -> bool:
        """Whether records of that type are pairs."""
        return kind == record_type(*kind['valid'].shape)

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> PairBatch:
        """The pairs of these indices, in their order. Raises IndexError beyond the end."""
        records = self.records(indices)
        def planes(name: str) -> Tensor:
            return torch.from_numpy(records[name]).movedim(-1, 1)
        return PairBatch(*(planes(n).float().div_(255.0) for n in ('image1', 'image2')), planes('flow').float(),
                         torch.from_numpy(records['inverse_depth'])[:, None].float(), torch.from_numpy(records['valid'])[:, None],
                         torch.from_numpy(records['K']), torch.from_numpy(records['T_2_1']), planes('exact_flow').float(),
                         torch.from_numpy(records['visible'])[:, None])


def store_folder(spec: PairData) -> Path:
    """Where the pairs are kept: in the user's cache, by everything that decides them."""
    return shards.folder(spec, 'pairs', _FORMAT)


def open_store(spec: PairData, split: str, flow_function: FlowFunction | None = None) -> PairStore:
    """The pairs of a split (train | validation | test), rendered now as far as they are not there; several processes may do so together.

    Raises ValueError if some are missing and no flow function was given.
    """
    make = None if flow_function is None else partial(_shard, spec, split, flow_function)
    paths = shards.built(spec, split, store_folder(spec), 'pairs', make, 'no flow function was given to make them')
    return PairStore(paths, getattr(spec, split))


def _shard(spec: PairData, split: str, flow_function: FlowFunction, number: int, path: Path, tell: Callable[[], object]) -> None:
    write_shard(path, spec, spec.shard, scene_pairs(spec, split, number), flow_function, tell)


def write_shard(path: Path, data: SceneData, count: int, source: Iterator[ScenePair], flow_function: FlowFunction, tell: Callable[[], object] = lambda: None) -> None:
    """Fill a file with the first so many pairs of a source, and tell after each."""
    shards.write(path, record_type(data.height, data.width), count, source, partial(fill, flow_function=flow_function), tell)


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
