"""The losses of DeepV2D: depth against known depth, and motion by the flow that it induces.

Source: Teed & Deng, "DeepV2D: Video to depth with differentiable structure from motion", ICLR 2020, section 3.3 and appendix. Maps have a quarter of the images' size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import gauss_newton, pinhole, se3
from depth_ros.geometry.precision import full_precision
from depth_ros.geometry.reprojection import agreement
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning.losses import COMPARISONS, masked_mean
from depth_ros.models.deepv2d_motion import MotionEstimate

EARLIER = 0.5               # weight of the depth of a hourglass beside that of the next one
SMOOTH = 0.02               # of the gradient of depth where the truth is missing
RESIDUAL, CONFIDENCE = 0.01, 0.01       # weights of what the poses leave unexplained, and of the pull of confidences towards 1
_SURE_SHARE = 2048 / (160 * 120)        # of a map's confidences which are pulled: the largest 2048 of the paper's maps
_KNEE = 0.25                # [px] differences below are squared: those that matter are of a fraction of a pixel
_WILD = 32.0                # [knees] errors count as no larger
_SAME = 0.05                # difference of depths, as a share, up to which two frames see the same point
_LARGEST = 250.0            # [px] flow differs by no more: poses that have gone astray would drown all others


@full_precision
def depth_terms(depths: Sequence[Tensor], truth: Tensor, valid: Tensor, compare: str = 'depth') -> dict[str, Tensor]:
    """Terms `depth` and `smooth` of depths (B, H, W) [m], the last the best, against truth (B, H, W) [m] where valid; each earlier one counts half of the next.

    compare: one of losses.COMPARISONS; the paper's is `depth`. Smoothness, over what is not valid, is of depth as a share of its mean.
    """
    weights = [EARLIER ** (len(depths) - 1 - i) for i in range(len(depths))]
    z_true = torch.where(valid, truth, 1.0).reciprocal()[:, None]
    told = sum(w * COMPARISONS[compare](depth.reciprocal()[:, None], z_true, valid[:, None]) for w, depth in zip(weights, depths))
    return {'depth': told, 'smooth': SMOOTH * sum(w * smoothness(depth, ~valid) for w, depth in zip(weights, depths))}


def smoothness(depth: Tensor, where: Tensor) -> Tensor:
    """Mean |difference| of neighbours across and down in depth (B, H, W), as a share of the mean depth, where both are in the mask (B, H, W)."""
    relative = depth / depth.mean((1, 2), keepdim=True)
    across = masked_mean(relative.diff(dim=2).abs(), where[:, :, 1:] & where[:, :, :-1])
    return across + masked_mean(relative.diff(dim=1).abs(), where[:, 1:] & where[:, :-1])


@full_precision
def motion_terms(estimate: MotionEstimate, depth: Tensor, K: Tensor, T_cam_world: Tensor, flow_weight: float = 0.0) -> dict[str, Tensor]:
    """Terms of an aligned set of views: depth (B, N, h, w) [m], 0 where unknown, K (B, 3, 3) [px] of the maps, and the true poses (B, N, 4, 4).

    `motion`: Huber's difference between the flow of estimated and of true motions, in px of the maps, on every edge, over all iterations. `residual`: what the
    poses leave of the network's own flow, squared and weighted by its confidence. `confidence`: cross-entropy of the largest confidences with 1. With
    flow_weight > 0 (not in the paper) also, with that weight, `flow`: the network's own flow against the true one where frame j shows the point, and `certainty`: how
    likely errors of this size are by its confidence, everywhere. Both tell every pixel at once what the poses tell in sum.
    """
    source, target = estimate.source, estimate.target
    known = depth[:, source]
    true, in_front = induced_flow(known, K[:, None], gauss_newton.relative_motion(T_cam_world, source, target))
    height, width = depth.shape[-2:]
    grid = pinhole.pixel_grid(height, width, like=depth)
    end = true + grid
    inside = in_front & ((end >= 0) & (end <= end.new_tensor([width - 1, height - 1]))).all(-1)
    if flow_weight:
        inside = inside & _shown(depth, K, T_cam_world, source, target)
    terms: dict[str, list[Tensor]] = {'motion': [], 'residual': [], 'confidence': []} | ({'flow': [], 'certainty': []} if flow_weight else {})
    for step in estimate.iterations:
        found, ahead = induced_flow(known, K[:, None], gauss_newton.relative_motion(step.T_cam_world, source, target))
        both = in_front & ahead
        terms['motion'].append(huber(found - true, both))
        left = torch.where(step.valid & ahead, ((step.pixels - grid - found).clamp(-_LARGEST, _LARGEST) ** 2 * step.confidence.movedim(2, -1)).sum(-1), 0.0)
        terms['residual'].append(RESIDUAL * left.mean())
        terms['confidence'].append(CONFIDENCE * sureness(step.confidence))
        if flow_weight:
            missed = step.pixels - end
            terms['flow'].append(flow_weight * huber(missed, inside & step.valid))
            terms['certainty'].append(flow_weight * certainty(step.confidence, missed.movedim(-1, 2), in_front & step.valid))
    return {name: torch.stack(values).mean() for name, values in terms.items()}


def _shown(depth: Tensor, K: Tensor, T_cam_world: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Where (B, E, h, w) frame j of an edge shows the point that frame i sees, by both depths."""
    edges, K = (len(depth), len(source)), K.repeat_interleave(len(source), 0)
    motion = gauss_newton.relative_motion(T_cam_world, source, target).flatten(0, 1)
    return agreement(depth[:, source].flatten(0, 1), K, motion, depth[:, target].flatten(0, 1), K, _SAME)[0].unflatten(0, edges)


def certainty(confidence: Tensor, missed: Tensor, where: Tensor) -> Tensor:
    """Negative log-likelihood, but for a constant, of flow that missed by so much (B, E, 2, h, w) [px], where confidences (B, E, 2, h, w) are inverse variances, 1 that of the knee.

    Mean over a mask (B, E, h, w). It is what least squares takes confidences for: one wild pixel that is believed a little outweighs a hundred good ones.
    """
    errors = (missed.detach() / _KNEE).clamp(-_WILD, _WILD) ** 2
    return masked_mean(0.5 * (confidence * errors - confidence.clamp(min=1e-6).log()).sum(2), where)


def huber(difference: Tensor, where: Tensor) -> Tensor:
    """Mean over the mask (...) of Huber's function, with a slope of 1 beyond its knee, of differences (..., 2) [px], summed over both components."""
    bounded = difference.clamp(-_LARGEST, _LARGEST)
    return masked_mean(F.smooth_l1_loss(bounded, torch.zeros_like(bounded), reduction='none', beta=_KNEE).sum(-1), where)


def sureness(confidence: Tensor) -> Tensor:
    """Mean cross-entropy with 1 of the largest confidences (B, E, 2, h, w) in [0, 1] of every edge and axis; the same share of maps of any size."""
    count = max(round(_SURE_SHARE * confidence.shape[-2] * confidence.shape[-1]), 1)
    return -confidence.flatten(3).topk(count, dim=3).values.clamp(min=1e-6).log().mean()


@full_precision
def start_terms(twist: Tensor, depth: Tensor, K: Tensor, T_view_key: Tensor) -> dict[str, Tensor]:
    """Term `start` of first guesses, twists (B, V, 6) of T_view_key (B, V, 4, 4), by the flow that they induce on the keyframe's depth (B, h, w)."""
    known = depth[:, None].expand(-1, twist.shape[1], -1, -1)
    true, in_front = induced_flow(known, K[:, None], T_view_key)
    found, ahead = induced_flow(known, K[:, None], se3.exp(twist))
    return {'start': huber(found - true, in_front & ahead)}
