"""Clips: a keyframe and other views within about a second of it, some before and some after, with depth and poses of all. What DeepV2D learns from.

A clip is stored in the order of time, and a batch of them begins with the keyframe, so that each of the middle views can be one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depth_ros.geometry import se3
from depth_ros.learning import shards, synthetic
from depth_ros.learning.camera_paths import CLIP, Start, clip_path, is_free
from depth_ros.learning.scenes import ViewData, drawn_camera, places, views_flow
from depth_ros.learning.sensor import exposed
from depth_ros.learning.shards import RecordStore, StoreData
from depth_ros.settings import setting

MIDDLE = CLIP // 2                      # the view that is the keyframe unless another is asked for
KEYFRAMES = range(1, CLIP - 1)          # the views that have others before and after them

_FORMAT = 1             # raise it whenever what is rendered or stored changes
_COARSE = 8             # what a clip is judged at is smaller by this
_BASELINES = 0.02, 0.2  # between keyframe and another view, as shares of the keyframe's median depth
_LEAST_SEEN = 0.5       # share of the keyframe that each of the others shows
_FARTHEST = 100.0       # [m] depth beyond is not known


@dataclass
class ClipBatch:
    """B clips of N views, H x W; view 0 is the keyframe."""

    images: Tensor          # (B, N, 3, H, W) float in [0, 1]
    depth: Tensor           # (B, N, H, W) [m]; 0 where not valid
    valid: Tensor           # (B, N, H, W) bool, where depth is known
    K: Tensor               # (B, 3, 3) [px], of all views
    T_cam_world: Tensor     # (B, N, 4, 4); the world is the keyframe's camera

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pick(self, indices: Tensor | Sequence[int] | slice) -> ClipBatch:
        """Some of the clips."""
        return self._map(lambda t: t[indices])

    def views(self, indices: Tensor | Sequence[int] | slice) -> ClipBatch:
        """Some of the views of every clip; the first of them has to be view 0."""
        return replace(self, **{name: getattr(self, name)[:, indices] for name in ('images', 'depth', 'valid', 'T_cam_world')})

    def __len__(self) -> int:
        return len(self.images)

    def _map(self, function: Callable[[Tensor], Tensor]) -> ClipBatch:
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class ClipData(StoreData, ViewData):
    """A store of clips from synthetic scenes. What is stored does not depend on how many are asked for, so a store can grow."""

    seed: int = setting(3, 'decides every scene', '', 0)
    width: int = setting(320, 'width of the views', 'px', 32, 1920)
    height: int = setting(240, 'height of the views', 'px', 24, 1200)
    focal_jitter: float = setting(0.15, 'largest relative change of the focal length from path to path', '', 0.0, 0.5)
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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self.kind['depth'].shape[1:]

    @staticmethod
    def is_kind(kind: np.dtype) -> bool:
        """Whether records of that type are clips."""
        views, height, width = kind['depth'].shape
        return kind == record_type(height, width, views)

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor, keyframes: Sequence[int] | None = None) -> ClipBatch:
        """The clips of these indices, in their order, each with its middle view as the keyframe or with that of `keyframes`. Raises IndexError beyond the end."""
        records = {name: torch.from_numpy(values) for name, values in self.records(indices).items()}
        depth = records['depth'].float()
        clips = ClipBatch(records['images'].movedim(-1, 2).float().div_(255.0), depth, depth > 0.0, records['K'], records['T_cam_world'])
        views = clips.images.shape[1]
        return with_keyframes(clips, [views // 2] * len(clips) if keyframes is None else keyframes)


def with_keyframes(clips: ClipBatch, keyframes: Sequence[int]) -> ClipBatch:
    """The clips with view keyframes[b] of each in front, the others after it as they were, and the world in its camera."""
    views = clips.images.shape[1]
    order = torch.tensor([[key, *(v for v in range(views) if v != key)] for key in keyframes], dtype=torch.int64).reshape(-1, views)
    rows = torch.arange(len(clips))[:, None]
    poses = clips.T_cam_world[rows, order]
    poses = poses @ se3.inverse(poses[:, :1])
    poses[:, 0] = torch.eye(4)
    return replace(clips, images=clips.images[rows, order], depth=clips.depth[rows, order], valid=clips.valid[rows, order], T_cam_world=poses)


def fill(record: np.ndarray, clip: Clip) -> None:
    """Write a clip into a record (1,); its world becomes the middle view's camera, so that 32-bit floats hold the poses well."""
    T = np.linalg.inv(clip.T_world_cam) @ clip.T_world_cam[len(clip.T_world_cam) // 2]
    record['images'], record['depth'], record['K'], record['T_cam_world'] = clip.images, np.where(clip.depth < _FARTHEST, clip.depth, 0.0), clip.K, T


def open_clips(spec: ClipData, split: str) -> ClipStore:
    """The clips of a split (train | validation | test), rendered now as far as they are not there; several processes may do so together."""
    paths = shards.built(spec, split, shards.folder(spec, 'clips', _FORMAT), 'clips', partial(_shard, spec, split))
    return ClipStore(paths, getattr(spec, split))


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
