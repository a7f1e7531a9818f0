"""Where cameras stand in a synthetic scene and how they move: in hands, looking about, and on wheels, which turn about the vertical."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from depth_ros.geometry import se3
from depth_ros.learning import synthetic
from depth_ros.learning.sequences import camera_matrix

PATHS, VIEWS = 3, 4                 # of a scene, and of a path
CLIP = 5                            # views of a clip
CLIP_STEPS = 0.02, 0.075            # between two of them, as a share of the median depth
BASELINES = 0.03, 0.5               # [m] of useful pairs
_CANDIDATES = 48                    # places that are looked from before the paths of a scene start
_LOOK = 24, 18                      # [px] of those looks
_NEAREST = 0.3                      # [m] that a camera comes to anything at first; later not nearer than 0.7 of it
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])      # axes of the camera in a body that looks along its x


@dataclass(frozen=True)
class Start:
    """Where a path begins and what is seen from there."""

    T_world_cam: np.ndarray     # (4, 4)
    depth: np.ndarray           # (n,) [m] of a coarse look
    wheels: bool                # or hands


def starts(scene: synthetic.Scene, rng: np.random.Generator) -> list[Start]:
    """A few places with enough air before the camera and something to see."""
    half = scene.half[0, 0].numpy()
    wheels = rng.random(_CANDIDATES) < 0.3
    T = np.stack([_somewhere(half, w, rng) for w in wheels])
    depth = _look(scene, T)
    spread = np.log(depth).std(1)
    # Views of a single wall are kept to a few: they say little about what depth does.
    fit = (depth.min(1) > _NEAREST) & _outside(scene, T) & ((spread > 0.2) | (rng.random(_CANDIDATES) < 0.15)) & (np.median(depth, 1) < 6.5)
    return [Start(T[i], depth[i], bool(wheels[i])) for i in np.flatnonzero(fit)[:PATHS]]


def _somewhere(half: np.ndarray, wheels: bool, rng: np.random.Generator) -> np.ndarray:
    """T_world_cam of a camera in hand or on a robot in a room of these half extents."""
    x, y = rng.uniform(-0.92, 0.92, 2) * half[:2]
    z = rng.uniform(0.2, 0.9) if wheels else rng.uniform(0.8, 1.9)
    pitch, roll = (rng.normal(3.0, 6.0), rng.normal(0.0, 1.0)) if wheels else (rng.normal(18.0, 15.0), rng.normal(0.0, 6.0))
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler('ZYX', [rng.uniform(-180.0, 180.0), pitch, roll], degrees=True).as_matrix() @ _OPTICAL
    T[:3, 3] = x, y, z
    return T


def _look(scene: synthetic.Scene, T: np.ndarray) -> np.ndarray:
    """Depth (N, n) [m] of a few rays of cameras T (N, 4, 4)."""
    width, height = _LOOK
    K = torch.tensor(camera_matrix(0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2), dtype=torch.float32)
    return synthetic.cast(scene, torch.tensor(T, dtype=torch.float32), synthetic.camera_rays(K, height, width)).distance.flatten(1).numpy()


def _outside(scene: synthetic.Scene, T: np.ndarray) -> np.ndarray:
    """Mask (N,) of cameras T (N, 4, 4) that are in no primitive but the room."""
    places = torch.tensor(T[:, :3, 3], dtype=torch.float32)
    local = se3.transform(se3.inverse(scene.T_world_self[0]), places[None])        # (primitives, N, 3)
    return ((local.abs() > scene.half[0, :, None] + 0.05).any(-1) | (torch.tensor(scene.kinds) == synthetic.ROOM)[:, None]).all(0).numpy()


def smooth_path(start: Start, rng: np.random.Generator) -> np.ndarray:
    """T_world_cam (VIEWS, 4, 4) of a smooth motion whose middle gap has a baseline that suits what is seen."""
    near = float(np.median(start.depth))
    share = math.exp(rng.normal(math.log(0.05), 0.6))                               # of the baseline in the depth
    return _walk(start, VIEWS, np.clip(share * near, 1.2 * BASELINES[0], 0.9 * BASELINES[1]) / 2.0, rng)


def clip_path(start: Start, rng: np.random.Generator) -> np.ndarray:
    """T_world_cam (CLIP, 4, 4) of a smooth motion of about a second, whose views lie a few percent of the usual depth apart."""
    share = np.clip(math.exp(rng.normal(math.log(0.04), 0.45)), *CLIP_STEPS)
    return _walk(start, CLIP, share * float(np.median(start.depth)), rng)


def _walk(start: Start, views: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """T_world_cam (views, 4, 4) of a smooth motion with steps [m] of about that length."""
    near = float(np.median(start.depth))
    if start.wheels:
        way = np.array([rng.normal(0.0, 0.35), 0.0, rng.choice([1.0, 1.0, 1.0, -1.0])])
        turn = np.array([0.02, 1.0, 0.02]) * rng.normal(size=3)
    else:
        way = rng.normal(size=3) * np.array([1.0, 0.8, rng.choice([0.3, 1.0, 2.0])])
        turn = rng.normal(size=3) * np.array([1.0, 1.0, 0.6])
    way *= step / np.linalg.norm(way)
    turn *= min(math.exp(rng.normal(math.log(1.0), 0.8)) * step / near / max(np.linalg.norm(turn), 1e-6), math.radians(12.0))
    if rng.random() < 0.3:      # as when something is looked at while one walks past it
        turn += np.array([-way[1], way[0], 0.0]) * -rng.uniform(0.5, 1.2) / near
    bend = rng.normal(size=3) * 0.15 * step
    poses = [start.T_world_cam]
    for i in range(1, views):
        T = np.eye(4)
        shake = 0.0 if start.wheels else 0.25
        T[:3, :3] = Rotation.from_rotvec(turn * (1.0 + shake * rng.normal(size=3))).as_matrix()
        T[:3, 3] = way + i * bend
        poses.append(poses[-1] @ T)
    return np.stack(poses)


def is_free(scene: synthetic.Scene, poses: np.ndarray) -> bool:
    """Whether cameras T_world_cam (N, 4, 4) are in no furniture and near to nothing that they see. Walls have one side: one may back out and see in."""
    return bool(_look(scene, poses).min() > 0.7 * _NEAREST and _outside(scene, poses).all())
