"""Depth of image pairs without learning, or hardly any: what the networks are compared with in their tables.

Each is called with a PairBatch and gives inverse depth (B, 1, H, W) [1/baseline], positive everywhere. After "Global-Local Network for Learning Depth with Very
Sparse Supervision" (ICLR 2020 submission), appendix 6.3 and 6.4, and the baselines of B. Ummenhofer et al., "DeMoN", CVPR 2017, section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from depth_ros.geometry import plane_sweep, two_view
from depth_ros.learning.pairs import PairBatch
from depth_ros.models.layers import TYPICAL, resize
from depth_ros.models.pose_head import PoseHead

_LOG = logging.getLogger(__name__)

NEAREST, FARTHEST = 10.0, 0.2       # bounds of inverse depth, as multiples of the image's median: rooms have no others
_NOMINAL_WIDTH = 256                # [px] at which thresholds in pixels are meant
_MATCHES = 2000                     # pixels that the refinement uses


@dataclass(frozen=True)
class DatasetMean:
    """The mean inverse depth of the training images, pixel by pixel."""

    inverse_depth: Tensor       # (1, 1, H, W) [1/baseline]

    @classmethod
    def of(cls, batches: Iterable[PairBatch]) -> DatasetMean:
        """The mean over batches of one size. Raises ValueError if none has depth; pixels that never have any get the mean of the others."""
        total, count = 0.0, 0.0
        for batch in batches:
            total = total + torch.where(batch.valid, batch.inverse_depth, 0.0).sum(0, keepdim=True, dtype=torch.float64)
            count = count + batch.valid.sum(0, keepdim=True)
        if not isinstance(count, Tensor) or not count.any():
            raise ValueError('expected pairs with depth to take the mean of, got none')
        return cls(torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum()).float())

    def __call__(self, batch: PairBatch) -> Tensor:
        """The same for every pair."""
        return resize(self.inverse_depth.to(batch.flow), batch.flow).expand(len(batch), -1, -1, -1)


@dataclass(frozen=True)
class Triangulation:
    """Flow and motion triangulated, pixel by pixel."""

    motion: Callable[[PairBatch], Tensor] = lambda batch: batch.T_2_1       # T_2_1 (B, 4, 4); the true one by default

    @classmethod
    def by(cls, head: PoseHead) -> Triangulation:
        """With the motion that a pose head predicts."""
        return cls(lambda batch: head.motion(*head.inputs(batch)))

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> Tensor:
        """What contradicts the motion is taken to be far."""
        found = two_view.triangulate_inverse_depth(batch.flow.permute(0, 2, 3, 1), batch.K, self.motion(batch))
        usual = torch.stack([_median(z[valid]) for z, valid in zip(found.inverse_depth, found.valid)])[:, None, None]
        return torch.clamp(found.inverse_depth, FARTHEST * usual, NEAREST * usual)[:, None]


@dataclass(frozen=True)
class SfmFlow:
    """Structure from motion on flow: essential matrix by RANSAC, refined by the reprojection error, then a plane sweep with semi-global smoothing.

    With `true_motion` the sweep alone is left. A pair whose flow shows no direction of translation gets the usual inverse depth everywhere.
    """

    true_motion: bool = False
    sweep: plane_sweep.SweepConfig = plane_sweep.SweepConfig()

    def __call__(self, batch: PairBatch) -> Tensor:
        """Pair by pair."""
        return torch.stack([self._one(batch.pick([i])) for i in range(len(batch))])

    @torch.no_grad()
    def _one(self, pair: PairBatch) -> Tensor:
        T_2_1 = pair.T_2_1 if self.true_motion else relative_motion(pair.flow[0], pair.K[0])
        if T_2_1 is None:
            return torch.full_like(pair.flow[0, :1], TYPICAL)
        z = Triangulation(lambda _: T_2_1.to(pair.K).reshape(1, 4, 4))(pair)
        nearest = max(float(z.quantile(0.98)) * 1.5, 2 * float(z.median()))
        config = replace(self.sweep, min_inverse_depth=float(z.median()) * FARTHEST, max_inverse_depth=nearest)
        return plane_sweep.sweep(pair.image1[0], pair.image2, pair.K[0], T_2_1.to(pair.K).reshape(1, 4, 4), config).inverse_depth[None]


def relative_motion(flow: Tensor, K: Tensor) -> Tensor | None:
    """T_2_1 (4, 4) with a translation of norm 1 from flow (2, H, W) [px] 1 -> 2 and K (3, 3) alone; None where the flow shows no translation."""
    pixel = flow.shape[-1] / _NOMINAL_WIDTH
    config = two_view.TwoViewConfig(threshold=pixel, min_parallax=pixel)
    vectors, intrinsics = flow.permute(1, 2, 0).double().cpu().numpy(), K.double().cpu().numpy()
    found = two_view.essential_from_flow(vectors, intrinsics, np.ones(vectors.shape[:2], bool), config)
    if found.status is not two_view.TwoViewStatus.OK:
        _LOG.info('no direction of translation from flow: parallax %.2f px', found.parallax)
        return None
    v, u = np.nonzero(found.inliers)
    picked = np.linspace(0, len(u) - 1, min(len(u), _MATCHES)).astype(int)
    start = np.stack([u, v], 1)[picked].astype(np.float64)
    return torch.from_numpy(refined(found.T_ref_cur, start, start + vectors[v, u][picked], intrinsics, pixel))


def refined(T_2_1: np.ndarray, start: np.ndarray, end: np.ndarray, K: np.ndarray, scale: float) -> np.ndarray:
    """T_2_1 (4, 4), translation of norm 1, that minimises the reprojection error of matches `start` -> `end` (N, 2) [px], robust beyond `scale` [px].

    Each point lies on its ray of image 1 at the depth that suits image 2 best; what is then left is the distance of `end` to its epipolar line
    (Hartley and Zisserman, section 11.4). A rotation vector and two numbers for the direction are free.
    """
    inverse = np.linalg.inv(K)
    rays, ends = (np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) for x in (start, end))
    rays = rays @ inverse.T
    R0, t0 = T_2_1[:3, :3], T_2_1[:3, 3]
    tangent = np.linalg.svd(t0[None])[2][1:]

    def moved(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = t0 + x[3:] @ tangent
        return Rotation.from_rotvec(x[:3]).as_matrix() @ R0, t / np.linalg.norm(t)

    def distances(x: np.ndarray) -> np.ndarray:
        R, t = moved(x)
        lines = np.cross(t, rays @ R.T) @ inverse
        return (lines * ends).sum(1) / np.linalg.norm(lines[:, :2], axis=1).clip(min=1e-12)

    R, t = moved(least_squares(distances, np.zeros(5), loss='cauchy', f_scale=scale, max_nfev=30).x)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def _median(z: Tensor) -> Tensor:
    return z.median() if len(z) else z.new_tensor(TYPICAL)
