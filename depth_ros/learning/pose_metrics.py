"""Metrics of camera motion, once for everything: training's validation and evaluation.

Angle between rotations, angle between translations, and distance between translations, as in the tables of B. Ummenhofer et al., "DeMoN", CVPR 2017, section 6.1,
C. Tang, P. Tan, "BA-Net", ICLR 2019, and Z. Teed, J. Deng, "DeepV2D", ICLR 2020, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from depth_ros.models.pose_head import motion_errors

NAMES = ('rotation', 'direction', 'translation_cm')
UNKNOWN_DIRECTION = 90.0        # [deg]: what the direction of a guess is off by in the mean; counts for a motion that has no length, and so says nothing
_NO_LENGTH = 1e-9               # [m]


def pose_metrics(estimated: Tensor, true: Tensor) -> list[dict[str, float]]:
    """NAMES [deg, deg, cm] of each of the motions (N, 4, 4) [m], T_b_a of any pair of cameras. Raises ValueError for other shapes and for what is not finite."""
    if estimated.shape != true.shape or true.shape[1:] != (4, 4):
        raise ValueError(f'expected two sets of motions (N, 4, 4), got {tuple(estimated.shape)} and {tuple(true.shape)}')
    estimated, true = estimated.double(), true.double()
    if not (torch.isfinite(estimated).all() and torch.isfinite(true).all()):
        raise ValueError('expected finite motions')
    rotation, direction = motion_errors(estimated, true)
    still = torch.minimum(estimated[:, :3, 3].norm(dim=1), true[:, :3, 3].norm(dim=1)) < _NO_LENGTH
    direction = torch.where(still, UNKNOWN_DIRECTION, direction)
    apart = 100.0 * (estimated[:, :3, 3] - true[:, :3, 3]).norm(dim=1)
    return [dict(zip(NAMES, row)) for row in torch.stack([rotation, direction, apart], 1).tolist()]


def length_factor(estimated: Tensor, true: Tensor) -> float:
    """The factor on the translations of `estimated` (N, 4, 4) that brings them nearest to those of `true`, in least squares; 1 where none move or all go astray.

    One factor for all motions from a keyframe is what images alone leave open.
    """
    a, b = estimated[:, :3, 3].double(), true[:, :3, 3].double()
    along, length = float((a * b).sum()), float((a * a).sum())
    return along / length if length > _NO_LENGTH ** 2 and along > 0.0 else 1.0


def rescaled(T: Tensor, factor: float) -> Tensor:
    """Motions (..., 4, 4) whose translations are `factor` times as long."""
    scaled = T.clone()
    scaled[..., :3, 3] *= factor
    return scaled
