"""Clips: a keyframe and other views within about a second of it, some before and some after, with depth and poses of all. What DeepV2D learns from.

A clip is stored in the order of time; a batch of clips begins with their keyframes, which the middle view is unless another is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depth_ros.geometry import se3
from depth_ros.geometry.warp import forward_backward_error
from depth_ros.learning import shards, synthetic
from depth_ros.learning.camera_paths import CLIP, Start, clip_path, is_free
from depth_ros.learning.scenes import ViewData, drawn_camera, places, views_flow
from depth_ros.learning.sensor import exposed
from depth_ros.learning.shards import RecordStore, StoreData, TensorBatch
from depth_ros.settings import setting

BothFlows = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Two images (H, W, 3) uint8 RGB -> flow (H, W, 2) float32 [px] from the first to the second, and back."""

KEYFRAMES = range(1, CLIP - 1)          # the views that have others before and after them

_FORMAT = 1             # raise it whenever what is rendered or stored changes
_COARSE = 8             # what a clip is judged at is smaller by this
_BASELINES = 0.02, 0.2  # between keyframe and another view, as shares of the keyframe's median depth
_LEAST_SEEN = 0.5       # share of the keyframe that each of the others shows
_FARTHEST = 100.0       # [m] depth beyond is not known


@dataclass
class ClipBatch(TensorBatch):
    """B clips of N views, H x W; view 0 is the keyframe."""

    images: Tensor          # (B, N, 3, H, W) float in [0, 1]
    depth: Tensor           # (B, N, H, W) [m]; 0 where not valid
    valid: Tensor           # (B, N, H, W) bool, where depth is known
    K: Tensor               # (B, 3, 3) [px], of all views
    T_cam_world: Tensor     # (B, N, 4, 4); the world is the keyframe's camera
    flow: Tensor | None = None          # (B, E, H, W, 2) [px] as measured, on some edges
    flow_error: Tensor | None = None    # (B, E, H, W) [px] its inconsistency, inf where it leaves the image

    def views(self, indices: Tensor | Sequence[int] | slice) -> ClipBatch:
        """Some of the views of every clip, without flow; the first of them has to be view 0."""
        return replace(self, flow=None, flow_error=None, **{name: getattr(self, name)[:, indices] for name in ('images', 'depth', 'valid', 'T_cam_world')})


@dataclass(frozen=True)
class ClipData(StoreData, ViewData):
    """A store of clips from synthetic scenes. What is stored does not depend on how many are asked for, so a store can grow."""

    seed: int = setting(3, 'decides every scene', '', 0)
    width: int = setting(320, 'width of the views', 'px', 32, 1920)
    height: int = setting(240, 'height of the views', 'px', 24, 1200)
    focal_jitter: float = setting(0.15, 'largest relative change of the focal length from path to path', '', 0.0, 0.5)
    mirror: float = setting(0.5, 'how well glossy surfaces mirror the scene: the share of their gloss that they mirror head on', '', 0.0, 1.0)
    train: int = setting(2400, 'clips to train on', '', 1)
    validation: int = setting(96, 'clips of the validation split', '', 1)
    test: int = setting(96, 'clips of the test split', '', 1)
    shard: int = setting(32, 'clips a file', '', 1, 4096)


@dataclass(frozen=True)
class Clip:
    """N views in the order of time."""

    images: np.ndarray          # (N, H, W, 3) uint8 RGB
    depth: np.ndarray           # (N, H, W) float32 [m]; 0 where not known
    K: np.ndarray               # (3, 3) [px]
    T_world_cam: np.ndarray     # (N, 4, 4)


def record_type(height: int, width: int, views: int = CLIP) -> np.dtype:
    """What is stored of one clip; 5 bytes a pixel and view."""
    return np.dtype([('images', 'u1', (views, height, width, 3)), ('depth', '<f2', (views, height, width)), ('K', '<f4', (3, 3)), ('T_cam_world', '<f4', (views, 4, 4))])


class ClipStore(RecordStore):
    """Clips in memory-mapped files; nothing is read before it is asked for."""

    what = 'clips'

    def __init__(self, shards: Sequence[Path], count: int | None = None, flow: BothFlows | None = None) -> None:
        """`flow`: what measures it, for trainings that ask for it."""
        super().__init__(shards, count)
        self.flow = flow

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self.kind['depth'].shape[1:]

    @property
    def views(self) -> int:
        """Of each clip."""
        return self.kind['T_cam_world'].shape[0]

    @staticmethod
    def is_kind(kind: np.dtype) -> bool:
        """Whether records of that type are clips."""
        views, height, width = kind['depth'].shape
        return kind == record_type(height, width, views)

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor, order: Sequence[Sequence[int]] | None = None) -> ClipBatch:
        """The clips of these indices, in their order, each with the views order[b] (M of them), by time, the first of which is the keyframe.

        By default that is the middle one, and all others follow in the order of time. Raises IndexError beyond the end.
        """
        records = {name: torch.from_numpy(values) for name, values in self.records(indices).items()}
        return _batch(records['images'], records['depth'], records['K'], records['T_cam_world'], order)


def clip_batch(clips: Sequence[Clip], order: Sequence[Sequence[int]] | None = None) -> ClipBatch:
    """Clips of one size and number of views as a batch, with keyframes as in ClipStore.batch."""
    record = np.zeros(len(clips), record_type(*clips[0].depth.shape[1:], len(clips[0].depth)))
    for row, clip in enumerate(clips):
        fill(record[row:row + 1], clip)
    return _batch(*(torch.from_numpy(record[name]) for name in ('images', 'depth', 'K', 'T_cam_world')), order)


def _batch(images: Tensor, depth: Tensor, K: Tensor, T_cam_world: Tensor, order: Sequence[Sequence[int]] | None) -> ClipBatch:
    count, views = depth.shape[:2]
    which = torch.tensor([middle_first(views)] * count if order is None else order, dtype=torch.int64)
    rows = torch.arange(count)[:, None]
    poses = T_cam_world[rows, which]
    poses = poses @ se3.inverse(poses[:, :1])
    poses[:, 0] = torch.eye(4)
    chosen = depth[rows, which].float()
    return ClipBatch(images[rows, which].movedim(-1, 2).float().div_(255.0), chosen, chosen > 0.0, K, poses)


def middle_first(views: int) -> list[int]:
    """The middle one of so many views, and the others in their order."""
    return [views // 2, *(view for view in range(views) if view != views // 2)]


def fill(record: np.ndarray, clip: Clip) -> None:
    """Write a clip into a record (1,); its world becomes the middle view's camera, so that 32-bit floats hold the poses well."""
    T = np.linalg.inv(clip.T_world_cam) @ clip.T_world_cam[len(clip.T_world_cam) // 2]
    record['images'], record['depth'], record['K'], record['T_cam_world'] = clip.images, np.where(clip.depth < _FARTHEST, clip.depth, 0.0), clip.K, T


def with_flow(clips: ClipBatch, flow: BothFlows | None, edges: tuple[Tensor, Tensor]) -> ClipBatch:
    """The clips with the flow of the edges, frames i and j (E,) each, measured on their images as they are. Raises ValueError if there is nothing to measure it with."""
    if flow is None:
        raise ValueError('expected clips with something to measure flow with, got some without')
    images = (255.0 * clips.images).round().byte().movedim(2, -1).contiguous().cpu().numpy()
    found = [[flow(views[i], views[j]) for i, j in zip(*(e.tolist() for e in edges), strict=True)] for views in images]
    ahead, back = torch.tensor(np.array(found)).unbind(2)      # copies: what rounds alike wherever numpy's memory begins
    error, inside = forward_backward_error(ahead, back)
    return replace(clips, flow=ahead.to(clips.K), flow_error=torch.where(inside, error, torch.inf).to(clips.K))


def open_clips(spec: ClipData, split: str, flow: BothFlows | None = None) -> ClipStore:
    """The clips of a split (train | validation | test), rendered now as far as they are not there; several processes may do so together."""
    paths = shards.built(spec, split, shards.folder(spec, 'clips', _FORMAT), 'clips', partial(_shard, spec, split))
    return ClipStore(paths, getattr(spec, split), flow)


def _shard(spec: ClipData, split: str, number: int, path: Path, tell: Callable[[], object]) -> None:
    shards.write(path, record_type(spec.height, spec.width), spec.shard, scene_clips(spec, split, number), fill, tell)


def scene_clips(data: ViewData, split: str, shard: int) -> Iterator[Clip]:
    """The clips of a shard, scene after scene, without an end to speak of; they depend on nothing but data, split and shard."""
    for scene, start, rng in places(data, split, shard):
        clip = _clip(data, scene, start, rng)
        if clip is not None:
            yield clip


def _clip(data: ViewData, scene: synthetic.Scene, start: Start, rng: np.random.Generator) -> Clip | None:
    """A clip from there, unless the camera runs into something, sees too little of the same, or goes too far or not far enough."""
    poses = clip_path(start, rng)
    if not is_free(scene, poses):
        return None
    K = drawn_camera(data, data.width, data.height, rng)
    if not _is_useful(data, scene, poses, K):
        return None
    image, depth = synthetic.render(scene, torch.tensor(poses, dtype=torch.float32), torch.tensor(K, dtype=torch.float32), data.height, data.width, fine=False)
    distance = depth.numpy()
    return Clip(exposed(image.numpy(), data.sensor, rng), np.where(np.isfinite(distance), distance, np.float32(0.0)), K, poses)


def _is_useful(data: ViewData, scene: synthetic.Scene, poses: np.ndarray, K: np.ndarray) -> bool:
    """Whether views (N, 4, 4) T_world_cam have baselines within the limits to the middle one, and show enough of what it shows."""
    height, width = data.height // _COARSE, data.width // _COARSE
    small = torch.tensor(np.diag([width / data.width, height / data.height, 1.0]) @ K, dtype=torch.float32)
    T_world_cam = torch.tensor(poses, dtype=torch.float32)
    depth = synthetic.cast(scene, T_world_cam, synthetic.camera_rays(small, height, width), small).distance
    middle = len(poses) // 2
    others = [view for view in range(len(poses)) if view != middle]
    T_view_key = se3.inverse(T_world_cam[others]) @ T_world_cam[middle]
    baselines = T_view_key[:, :3, 3].norm(dim=1) / depth[middle].median()
    if not ((baselines >= _BASELINES[0]) & (baselines <= _BASELINES[1])).all():
        return False
    visible = views_flow(depth[middle].expand(len(others), -1, -1), depth[others], T_view_key, small)[1]
    return bool((visible.float().mean((1, 2)) > _LEAST_SEEN).all())
