"""Pairs of views in random synthetic scenes: where the cameras are, how they move, what their sensors do to the images. Fixed seeds for each split.

The motions keep the limits of Global-Local's training set (at most 14 degrees of rotation and 1 m of translation an axis) and resemble what hands and wheels
do: rotation moves pixels a fraction of what translation does up to several times as far, some motions keep an object in view, and wheels turn about the vertical.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import se3
from depth_ros.geometry.pinhole import pixel_grid, unproject
from depth_ros.geometry.warp import induced_flow, sample
from depth_ros.learning import synthetic
from depth_ros.learning.camera_paths import BASELINES, PATHS, VIEWS, Start, is_free, smooth_path, starts
from depth_ros.learning.furnishing import furnished_room, shapes_room
from depth_ros.learning.materials import Textures, random_palette
from depth_ros.learning.sensor import exposed
from depth_ros.learning.sequences import camera_matrix
from depth_ros.settings import setting

SPLITS = {'train': range(0, 2 ** 30), 'validation': range(2 ** 30, 2 ** 30 + 2 ** 29), 'test': range(2 ** 30 + 2 ** 29, 2 ** 31)}
"""The numbers of the scenes of each split; they never meet, whatever the seed."""

_SCENES_A_SHARD = 4096              # more than any shard needs
_SHARDS_A_PALETTE, _PALETTE = 4, 24
_PAIRS_A_PATH = 5
MAX_ANGLE, MAX_STEP = math.radians(14.0), 1.0     # an axis
_LEAST_PARALLAX, _MOST_PARALLAX = 0.01, 0.35        # mean flow by translation, as a share of the focal length
_MOST_FLOW = 0.14                   # mean of it, as a share of the width
_LEAST_SEEN = 0.45                  # share of image 1 that image 2 shows
_HIDDEN = 0.02                      # relative depth behind what is seen from which a point counts as hidden


@dataclass(frozen=True)
class ViewData:
    """What views of synthetic scenes look like."""

    seed: int = setting(1, 'decides every scene', '', 0)
    width: int = setting(128, 'width of the views', 'px', 32, 1920)
    height: int = setting(96, 'height of the views', 'px', 24, 1200)
    focal: float = setting(525.0 / 640.0, 'focal length as a share of the width', '', 0.3, 3.0)
    focal_jitter: float = setting(0.0, 'largest relative change of the focal length from path to path', '', 0.0, 0.5)
    shapes: float = setting(0.25, 'share of scenes that are shapes in the air, not furnished rooms', '', 0.0, 1.0)
    photographs: str = setting('', 'folder of photographs that some surfaces show; empty: none')
    strict: bool = setting(True, 'stop at a photograph that cannot be read; else go on with the next one')
    mirror: float = setting(0.0, 'how well glossy surfaces mirror the scene: the share of their gloss that they mirror head on', '', 0.0, 1.0)
    sensor: float = setting(1.0, "strength of the camera's faults: exposure, noise, blur", '', 0.0, 3.0)


@dataclass(frozen=True)
class SceneData(ViewData):
    """What the pairs look like."""

    flow_width: int = setting(256, 'width that images are rendered and flow is computed at', 'px', 32, 1920)
    flow_height: int = setting(192, 'height that images are rendered and flow is computed at', 'px', 24, 1200)


@dataclass(frozen=True)
class ScenePair:
    """Two views: images at the size that flow is computed at, the rest at the pair's size (H, W)."""

    image1: np.ndarray      # (h, w, 3) uint8 RGB
    image2: np.ndarray      # (h, w, 3) uint8 RGB
    depth: np.ndarray       # (H, W) float32 [m] of image 1
    valid: np.ndarray       # (H, W) bool, where depth is known
    flow: np.ndarray        # (H, W, 2) float32 [px], exact, 1 -> 2; 0 where not valid
    visible: np.ndarray     # (H, W) bool, inside image 2 and not hidden there
    K: np.ndarray           # (3, 3) [px] at the pair's size
    T_2_1: np.ndarray       # (4, 4) [m]


def scene_number(split: str, shard: int, index: int) -> int:
    """The number of the index-th scene of a shard. Raises ValueError beyond the split's range."""
    numbers = SPLITS[split]
    number = shard * _SCENES_A_SHARD + index
    if not (0 <= index < _SCENES_A_SHARD and 0 <= number < len(numbers)):
        raise ValueError(f'expected a scene within the {len(numbers)} of the {split} split, got {index} of shard {shard}')
    return numbers[number]


def scene_pairs(data: SceneData, split: str, shard: int, device: torch.device | str = 'cpu', together: int = 1) -> Iterator[ScenePair]:
    """The pairs of a shard, scene after scene, without an end to speak of; they depend on nothing but data, split and shard.

    On a GPU, rendering some paths `together` uses it better (and orders the pairs otherwise); results agree up to rounding.
    """
    for group in plans(data, split, shard, together):
        yield from _pairs_of_plans(data, group, device)


def places(data: ViewData, split: str, shard: int) -> Iterator[tuple[synthetic.Scene, Start, np.random.Generator]]:
    """The places in a shard's scenes at which a path may start, with what everything of that scene is drawn from."""
    textures = shard_palette(data, split, shard)
    for index in range(_SCENES_A_SHARD):
        visit = _Visit.of(data, textures, scene_number(split, shard, index))
        yield from ((visit.scene, start, visit.rng) for start in visit.starts)


def plans(data: SceneData, split: str, shard: int, together: int = 1) -> Iterator[list[Plan]]:
    """The paths of a shard's scenes, those that may be rendered together in one list."""
    textures = shard_palette(data, split, shard)
    for first in range(0, _SCENES_A_SHARD, together):
        visits = [_Visit.of(data, textures, scene_number(split, shard, index)) for index in range(first, min(first + together, _SCENES_A_SHARD))]
        for path in range(PATHS):
            group = [_plan(data, v.scene, v.starts[path], v.rng) for v in visits if path < len(v.starts)]
            yield [p for p in group if p is not None and p.order]


def shard_palette(data: ViewData, split: str, shard: int) -> Textures:
    """The surfaces of a shard's scenes, which some shards share."""
    return _palette(data.seed, scene_number(split, shard - shard % _SHARDS_A_PALETTE, 0), data.photographs, data.mirror, data.strict)


@functools.lru_cache(maxsize=2)
def _palette(seed: int, number: int, photographs: str, mirror: float, strict: bool) -> Textures:
    return random_palette(int(np.random.default_rng([seed, number, 1]).integers(2 ** 62)), _PALETTE, photographs, mirror, strict)


@dataclass(frozen=True)
class _Visit:
    """A scene, the paths that start in it, and the generator that everything of it is drawn from."""

    scene: synthetic.Scene
    starts: list[Start]
    rng: np.random.Generator

    @staticmethod
    def of(data: ViewData, textures: Textures, number: int) -> _Visit:
        rng = np.random.default_rng([data.seed, number])
        make = shapes_room if rng.random() < data.shapes else furnished_room
        scene = make(rng, textures)
        return _Visit(scene, starts(scene, rng), rng)


@dataclass(frozen=True)
class Plan:
    """A path that is worth rendering."""

    scene: synthetic.Scene
    poses: np.ndarray           # (VIEWS, 4, 4) T_world_cam
    K_flow: torch.Tensor        # (3, 3) at the size of flow
    K: torch.Tensor             # (3, 3) at the size of the pairs
    order: list[tuple[int, int]]    # of the pairs of views that come into question
    rng: np.random.Generator


def _plan(data: SceneData, scene: synthetic.Scene, start: Start, rng: np.random.Generator) -> Plan | None:
    """A path from there, unless it runs into something."""
    poses = smooth_path(start, rng)
    if not is_free(scene, poses):
        return None
    K_flow, K = _cameras(data, rng)
    order = list(itertools.permutations(range(VIEWS), 2))
    rng.shuffle(order)
    return Plan(scene, poses, K_flow, K, [(i, j) for i, j in order if _moderate(np.linalg.inv(poses[j]) @ poses[i])], rng)


def _pairs_of_plans(data: SceneData, plans: list[Plan], device: torch.device | str) -> Iterator[ScenePair]:
    """Render paths and pair the views of each in both directions, as far as they make useful pairs."""
    if not plans:
        return
    scene = plans[0].scene
    if len(plans) > 1:
        scene = synthetic.together([p.scene for p in plans]).of_cameras(torch.arange(len(plans)).repeat_interleave(VIEWS))
    scene = replace(scene, textures=_on_device(scene.textures, str(device))).to(device)
    T = torch.tensor(np.concatenate([p.poses for p in plans]), dtype=torch.float32, device=device)
    K_flow, K = (torch.stack([getattr(p, name) for p in plans]).repeat_interleave(VIEWS if len(plans) > 1 else 1, dim=0).to(device) for name in ('K_flow', 'K'))
    depth = synthetic.cast(scene, T, synthetic.camera_rays(K, data.height, data.width), K).distance
    found = [_chosen(data, plan, depth[row * VIEWS:(row + 1) * VIEWS], plan.K.to(device)) for row, plan in enumerate(plans)]
    if not any(found):
        return
    images = synthetic.render(scene, T, K_flow, data.flow_height, data.flow_width, fine=False).image.cpu().numpy()
    depth = depth.cpu().numpy()
    for row, (plan, pairs) in enumerate(zip(plans, found)):
        if pairs:
            views = slice(row * VIEWS, (row + 1) * VIEWS)
            seen, distance = exposed(images[views], data.sensor, plan.rng), depth[views]
            for (i, j), moved, visible in pairs:
                T_j_i = np.linalg.inv(plan.poses[j]) @ plan.poses[i]
                yield ScenePair(seen[i], seen[j], distance[i], np.isfinite(distance[i]), moved, visible, plan.K.numpy(), T_j_i)


@functools.lru_cache(maxsize=2)
def _on_device(textures: Textures, device: str) -> Textures:
    return textures.to(device)


def _chosen(data: SceneData, plan: Plan, depth: torch.Tensor, K: torch.Tensor) -> list[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """The first useful ones of a path's pairs of views, with exact flow (H, W, 2) and what is visible (H, W); depth (VIEWS, H, W)."""
    first, second = (depth[list(views)] for views in zip(*plan.order))
    T = torch.tensor(np.stack([np.linalg.inv(plan.poses[j]) @ plan.poses[i] for i, j in plan.order]), dtype=torch.float32, device=depth.device)
    moved, visible = views_flow(first, second, T, K)
    still = T.clone()
    still[:, :3, :3] = torch.eye(3, device=depth.device)
    parallax = induced_flow(first, K, still)[0].norm(dim=-1).mean((1, 2)) / K[0, 0]     # of translation alone
    fit = (visible.float().mean((1, 2)) > _LEAST_SEEN) & (moved.norm(dim=-1).mean((1, 2)) < _MOST_FLOW * data.width)
    fit &= (parallax > _LEAST_PARALLAX) & (parallax < _MOST_PARALLAX)
    which = fit.nonzero()[:_PAIRS_A_PATH, 0]
    return [(plan.order[n], m, v) for n, m, v in zip(which.tolist(), moved[which].cpu().numpy(), visible[which].cpu().numpy())]


def _cameras(data: SceneData, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K (3, 3) at the size of flow and at that of the pair."""
    width, height = data.flow_width, data.flow_height
    K = drawn_camera(data, width, height, rng)
    return torch.tensor(K, dtype=torch.float32), torch.tensor(resize_intrinsics(K, data.width / width, data.height / height), dtype=torch.float32)


def drawn_camera(data: ViewData, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """K (3, 3) [px] of a camera with images of width x height that shows square pixels at the size of the data."""
    focal = data.focal * width * (1.0 + rng.uniform(-1.0, 1.0) * data.focal_jitter)
    return camera_matrix(focal, focal * height / width * data.width / data.height, (width - 1) / 2, (height - 1) / 2)


def _moderate(T_2_1: np.ndarray) -> bool:
    """Whether a motion is within the limits."""
    angles, step = axis_motion(T_2_1)
    return bool(angles.max() <= MAX_ANGLE and step.max() <= MAX_STEP and BASELINES[0] <= np.linalg.norm(step) <= BASELINES[1])


def axis_motion(T_2_1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3,) [rad] and translation (3,) [m] about and along each axis, without signs."""
    return np.abs(Rotation.from_matrix(T_2_1[:3, :3]).as_rotvec()), np.abs(T_2_1[:3, 3])


def views_flow(depth1: torch.Tensor, depth2: torch.Tensor, T_2_1: torch.Tensor, K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact flow (B, H, W, 2) [px] 1 -> 2 of depth (B, H, W) of both views, and the mask (B, H, W) of pixels that view 2 shows too: inside, not behind its depth."""
    moved, in_front = induced_flow(depth1, K, T_2_1)
    inverse, inside = sample(1.0 / depth2[:, None], moved + pixel_grid(*depth1.shape[1:], like=depth1))     # inverse depth is linear on a plane
    expected = se3.transform(T_2_1, unproject(depth1, K))[..., 2]
    return moved, in_front & inside & (expected * inverse[:, 0] < 1.0 + _HIDDEN)
