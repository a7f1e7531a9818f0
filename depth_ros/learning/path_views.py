"""Views along a path of a synthetic scene with what other sensors on the same camera would see: a stereo partner to its right, a 2D laser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from depth_ros.learning import synthetic
from depth_ros.learning.scenes import Plan, SceneData, plans
from depth_ros.learning.sensor import exposed


@dataclass(frozen=True)
class Laser:
    """A 2D laser on the camera."""

    T_cam_laser: np.ndarray     # (4, 4), x forward, z up
    angles: np.ndarray          # (beams,) [rad]


@dataclass(frozen=True)
class PathViews:
    """V views, all at the size (H, W) that flow is computed at."""

    images: np.ndarray              # (V, H, W, 3) uint8 RGB
    depth: np.ndarray               # (V, H, W) float32 [m]
    K: np.ndarray                   # (3, 3) [px]
    T_world_cam: np.ndarray         # (V, 4, 4)
    partners: np.ndarray | None     # (V, H, W, 3) uint8 RGB, of the stereo partner, a baseline to the right
    disparity: np.ndarray | None    # (V, H, W) float32 [px] = fx * baseline / depth: what is at u in an image is at u - disparity in its partner
    seen: np.ndarray | None         # (V, H, W) bool, what the partner shows, too
    ranges: np.ndarray | None       # (V, beams) float32 [m] of the laser; inf where nothing is met


def path_views(data: SceneData, split: str, shard: int, baseline: float = 0.0, laser: Laser | None = None,
               device: torch.device | str = 'cpu') -> Iterator[PathViews]:
    """The paths of a shard, with a stereo partner where a baseline [m] is given, and a laser's ranges where there is one."""
    if not baseline >= 0.0:
        raise ValueError(f'expected a baseline of at least 0 m, got {baseline}')
    return (_views(data, plan, baseline, laser, device) for group in plans(data, split, shard) for plan in group)


def _views(data: SceneData, plan: Plan, baseline: float, laser: Laser | None, device: torch.device | str) -> PathViews:
    scene, K = plan.scene.to(device), plan.K_flow.to(device)
    poses = plan.poses
    T = torch.tensor(poses, dtype=torch.float32, device=device)
    beside = poses.copy()
    beside[:, :3, 3] += baseline * poses[:, :3, 0]
    T_beside = torch.tensor(beside, dtype=torch.float32, device=device)
    cameras = torch.cat([T, T_beside]) if baseline else T
    image, depth = synthetic.render(scene, cameras, K, data.flow_height, data.flow_width, fine=False)
    images = exposed(image.cpu().numpy(), data.sensor, plan.rng)
    count = len(poses)
    disparity = seen = ranges = None
    if baseline:
        moved, visible = synthetic.flow(scene, depth[:count], T, T_beside, K)
        disparity, seen = -moved[..., 0].cpu().numpy(), visible.cpu().numpy()
    if laser is not None:
        T_laser = torch.tensor(poses @ laser.T_cam_laser, dtype=torch.float32, device=device)
        ranges = synthetic.scan(scene, T_laser, torch.tensor(laser.angles, dtype=torch.float32, device=device)).cpu().numpy()
    return PathViews(images[:count], depth[:count].cpu().numpy(), K.cpu().numpy(), poses, images[count:] if baseline else None, disparity, seen, ranges)
