"""How far predicted depth is from what was measured, and a loss of it that bears outliers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.engines.replay_buffer import Observation, lengths, pair_batch, stacked
from depth_ros.learning.pairs import PairBatch
from depth_ros.models.depth_model import DepthModel

NEAREST = 1e-4              # [1/baseline] that the log of an inverse depth is bounded by
_LEAST_SCALE = 0.1          # of the loss, as an error of the log of depth
_ROUNDED = 0.01             # error of a log below which the loss is quadratic


def log_error(inverse_depth: Tensor, observed: Tensor, length: Tensor) -> Tensor:
    """log of predicted over observed depth, 0 where it is unknown: inverse depth (B, 1, H, W) [1/baseline], depth (B, 1, H, W) [m] or 0, length (B, 1, 1, 1) [m]."""
    known = observed > 0
    error = length.log() - inverse_depth.clamp(min=NEAREST).log() - torch.where(known, observed, 1.0).log()
    return torch.where(known, error, 0.0)


def robust(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of c log(1 + |e| / c) of errors (B, 1, H, W), c twice the median error: an outlier pulls the less the farther away it is, and the median decides."""
    known = weight > 0
    if not known.any():
        return (error * 0.0).sum()
    scale = (2 * error.detach().abs()[known].median()).clamp(min=_LEAST_SCALE)
    size = (error.square() + _ROUNDED ** 2).sqrt() - _ROUNDED
    return (weight * scale * (size / scale).log1p()).sum() / weight.sum()


def observed_loss(model: DepthModel, some: Sequence[Observation], config: OnlineLearnerConfig) -> Tensor:
    """Of a network's depth at the hits of the images, at those of earlier images, and where flow is sure, each weighted as the configuration says."""
    z = model(*model.inputs(pair_batch(some)))
    weights = torch.tensor([o.weight for o in some]).view(-1, 1, 1, 1)
    planes = {'hits': config.hit_weight, 'carried': config.carried_weight, 'guide': config.guide_weight}
    observed = {plane: stacked(some, plane) for plane, weight in planes.items() if weight > 0}
    return sum((planes[plane] * robust(log_error(z, depth, lengths(some)), (depth > 0) * weights) for plane, depth in observed.items()), z.sum() * 0.0)


def rehearsed_error(model: DepthModel, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Errors (B, 1, H, W) of the log of depth on pairs whose inverse depth is known, and where it is."""
    truth = torch.where(pairs.valid, 1 / torch.where(pairs.valid, pairs.inverse_depth, 1.0).clamp(min=NEAREST), 0.0)
    return log_error(model(*model.inputs(pairs)), truth, truth.new_ones(len(pairs), 1, 1, 1)), truth > 0
