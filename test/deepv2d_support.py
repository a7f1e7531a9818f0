"""A room with exact views, and networks that say of it what is true: what alternation and learned tracking must make of perfect networks."""
from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.frames import CameraFrame, resize_intrinsics
from depth_ros.geometry import pinhole, se3
from depth_ros.models.deepv2d import DeepV2DNetworkConfig
from depth_ros.models.deepv2d_depth import DepthEstimate

SIZE = 160, 120
K = np.array([[140.0, 0.0, 79.5], [0.0, 140.0, 59.5], [0.0, 0.0, 1.0]])
STRIDE = 4
# The smallest network of the package: for what need not have learned anything.
NARROW = DeepV2DNetworkConfig(
    motion_width=8, motion_blocks=0, motion_norm='none', motion_features=8, motion_flow=8, motion_levels=3, motion_widest=16, pose_network=False, depth_width=8, depth_blocks=0,
    depth_norm='none', depth_hourglasses=0, depth_features=8, matching='correlation', groups=2, zncc=True, depth_flow=True, volume_width=4, volume_hourglasses=1, volume_levels=2,
    volume_growth=4, volume_norm='none', upsampling='convex', planes=24, near=0.4, far=12.0, spacing='inverse')
STEP = 33_333_333


@dataclass(frozen=True)
class Clip:
    """Frames of one scene, the keyframe first, with what is true of them."""

    frames: list[CameraFrame]
    depth: np.ndarray           # (N, H, W) [m]
    T_view_key: np.ndarray      # (V, 4, 4)


def surface(pixels: Tensor, T_world_cam: Tensor, K: Tensor) -> Tensor:
    """Depth (h, w) of a wavy wall about 2 m ahead of the world's origin, seen through pixels (h, w, 2) from T_world_cam (4, 4)."""
    rays = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(K).T
    depth = torch.full(pixels.shape[:-1], 2.0, dtype=pixels.dtype)
    for _ in range(25):     # a fixed point along each ray: the wall is nowhere steep
        X = se3.transform(T_world_cam, depth[..., None] * rays)
        wall = 2.0 + 0.35 * torch.sin(2.3 * X[..., 0]) + 0.25 * torch.cos(3.1 * X[..., 1] + 0.5)
        depth = depth + (wall - X[..., 2]) / (rays @ T_world_cam[2, :3])
    return depth


def clip(twists: np.ndarray, K_true: np.ndarray = K, first_stamp: int = 10 ** 9, seed: int = 0) -> Clip:
    """Views whose T_view_key are the exponentials of twists (V, 6), behind a keyframe at the world's origin; their textures are noise that sticks to the wall."""
    T_cam_world = torch.cat([torch.eye(4, dtype=torch.float64)[None], se3.exp(torch.as_tensor(twists, dtype=torch.float64))])
    pixels, K64 = pinhole.pixel_grid(SIZE[1], SIZE[0]).double(), torch.from_numpy(K_true)
    waves = np.random.default_rng(seed).uniform(-18, 18, (24, 2))
    frames, depths = [], []
    for i, T in enumerate(se3.inverse(T_cam_world)):
        depth = surface(pixels, T, K64)
        X = se3.transform(T, depth[..., None] * (F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(K64).T)).numpy()
        shade = np.sin(X[..., :2] @ waves.T + np.arange(24)).sum(-1)
        image = np.clip(128 + 20 * shade, 0, 255).astype(np.uint8)
        frames.append(CameraFrame(first_stamp + i * STEP, 'camera', np.repeat(image[..., None], 3, -1), K_true))
        depths.append(depth.float().numpy())
    return Clip(frames, np.stack(depths), T_cam_world[1:].numpy())


def drive(count: int) -> Clip:
    """A camera that moves sideways and turns, its first frame the keyframe."""
    t = np.linspace(0, 1, count)[1:, None]
    return clip(np.hstack([-0.5 * t, 0.1 * np.sin(6 * t), 0.15 * t, 0.05 * np.sin(5 * t), 0.12 * t, 0.03 * t]))


class Oracle:
    """Stands in for DeepV2D on clips whose images it was shown; of others it knows nothing. Its features are points of the world and what else it takes to say the truth about them:

    channels 0..2 the point that a pixel of the map sees [m], 3 and 4 that pixel [px of the map], 5..16 the rows of the true T_cam_world.
    """

    def __init__(self, *clips: Clip, K_true: np.ndarray = K) -> None:
        self.config = SimpleNamespace(pose_network=False)
        self.motion, self.depth = OracleMotion(self), OracleDepth(self)
        self.K = resize_intrinsics(torch.from_numpy(K_true), 1 / STRIDE, 1 / STRIDE)
        self.seen = 0       # images whose features were worked out
        self._known: list[tuple[Tensor, Tensor]] = []
        for one in clips:
            poses = np.concatenate([np.eye(4)[None], one.T_view_key])
            self._known += [(torch.from_numpy(f.image).permute(2, 0, 1).float() / 255, torch.from_numpy(T)) for f, T in zip(one.frames, poses, strict=True)]

    def planes(self, like: Tensor) -> Tensor:
        """(B, 2) [m]."""
        return torch.tensor([[0.2, 20.0]]).expand(len(like), -1)

    def features(self, images: Tensor) -> Tensor:
        """(B, 17, h, w)."""
        self.seen += len(images)
        return torch.stack([self._of(image) for image in images])

    def _of(self, image: Tensor) -> Tensor:
        T_cam_world = next((T for known, T in self._known if torch.equal(known, image)), None)
        if T_cam_world is None:
            return torch.zeros(17, SIZE[1] // STRIDE, SIZE[0] // STRIDE)
        pixels = pinhole.pixel_grid(SIZE[1] // STRIDE, SIZE[0] // STRIDE).double()
        T = se3.inverse(T_cam_world)
        X = se3.transform(T, surface(pixels, T, self.K)[..., None] * (F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(self.K).T))
        pose = T_cam_world[:3].reshape(12, 1, 1).expand(-1, *X.shape[:2])
        return torch.cat([X.permute(2, 0, 1), pixels.permute(2, 0, 1), pose]).float()

    def true_pixels(self, points: Tensor, poses: Tensor) -> Tensor:
        """Where (..., 2) [px of the map] a camera with poses (..., 12) sees points (..., 3) of the world."""
        T = poses.unflatten(-1, (3, 4))
        X = (T[..., :3] @ points[..., None])[..., 0] + T[..., 3]
        return pinhole.dehomogenise(X @ self.K.float().T)[0]


class OracleMotion(nn.Module):
    """Residual flow without an error."""

    sees_flow = False

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.features = oracle.features
        self._oracle = oracle

    def forward(self, features_i: Tensor, warped_j: Tensor) -> tuple[Tensor, Tensor]:
        """Where frame j truly sees the point of each pixel, less where it was looked up; sure wherever it was."""
        i, j = features_i.movedim(1, -1), warped_j.movedim(1, -1)
        present = (i[..., 5:].abs().sum(-1) > 0.5) & (j[..., 5:].abs().sum(-1) > 0.5)
        residual = self._oracle.true_pixels(i[..., :3], j[..., 5:]) - j[..., 3:5]
        residual = torch.where(present[..., None], residual, 0.0).movedim(-1, 1)
        return residual, present[:, None].expand_as(residual).float()


class OracleDepth(nn.Module):
    """Triangulates the true correspondences with the poses that it is given: it errs as these do."""

    sees_flow = False

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.features = oracle.features
        self._oracle = oracle

    def forward(self, features: Tensor, K: Tensor, T_view_key: Tensor, planes: Tensor, size: tuple[int, int], measured: object = None) -> DepthEstimate:
        """Least squares over the views in the inverse depth of every pixel of the map."""
        key, views = features[0, 0].movedim(0, -1), features[0, 1:].movedim(1, -1)
        rays = F.pad(pinhole.pixel_grid(*key.shape[:2]), (0, 1), value=1.0) @ torch.linalg.inv(K[0]).T
        top = bottom = 0.0
        for view, T in zip(views, T_view_key[0], strict=True):
            seen = self._oracle.true_pixels(key[..., :3], view[..., 5:])
            x = (F.pad(seen, (0, 1), value=1.0) @ torch.linalg.inv(K[0]).T)[..., :2]
            turned, t = rays @ T[:3, :3].T, T[:3, 3]
            # x (turned_z + w t_z) = turned_xy + w t_xy, linear in the inverse depth w
            a, b = t[:2] - x * t[2], x * turned[..., 2:] - turned[..., :2]
            top, bottom = top + (a * b).sum(-1), bottom + (a * a).sum(-1)
        depth = 1 / (top / bottom.clamp(min=1e-9)).clamp(1 / planes[0, -1], 1 / planes[0, 0])
        depth = F.interpolate(depth[None, None], size, mode='bilinear', align_corners=False)[:, 0]
        return DepthEstimate([depth], torch.ones_like(depth))
