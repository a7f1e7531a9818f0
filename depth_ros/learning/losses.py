"""Losses, once for every network: inverse depth against range, smoothness, and photometric reprojection.

Depth from an image pair learned from as little as one range reading an image (Global-Local): inverse depth is compared where it is known, and elsewhere kept
smooth except at edges of the image; each term is the mean over the points that it uses. The photometric loss follows C. Godard et al.,
"Unsupervised monocular depth estimation with left-right consistency", CVPR 2017, eq. 2, with SSIM over 3 x 3 boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry.warp import induced_flow, warp_by_flow

SSIM_SHARE = 0.85                           # of SSIM in the photometric loss; the rest is L1
_SSIM_STABLE = 0.01 ** 2, 0.03 ** 2         # Wang et al., "Image quality assessment", 2004: for intensities in [0, 1]
_FLOW_WEIGHTS = 0.32, 0.08, 0.02, 0.01, 0.005       # of PWC-Net's levels 6 to 2
_MIN_INVERSE_DEPTH = 1e-3                   # [1/baseline] nearer to zero than this a point is as good as at infinity


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x where valid (same shape, bool); 0, still differentiable, when nothing is."""
    return torch.where(valid, x, 0.0).sum() / valid.sum().clamp(min=1)


def inverse_depth_l1(z: Tensor, z_true: Tensor, supervised: Tensor) -> Tensor:
    """Mean |z - z_true| of inverse depths (B, 1, H, W) [1/baseline] over the pixels of the mask; z_true may be anything elsewhere."""
    known = torch.where(supervised, z_true, z.detach())     # a NaN left in would reach the gradient even through the mask
    return masked_mean((z - known).abs(), supervised)


def log_depth_l1(z: Tensor, z_true: Tensor, supervised: Tensor) -> Tensor:
    """Mean |log z - log z_true| of positive inverse depths (B, 1, H, W) over the pixels of the mask: near and far pairs weigh the same."""
    known = torch.where(supervised, z_true, z.detach()).clamp(min=_MIN_INVERSE_DEPTH)
    return masked_mean((z.clamp(min=_MIN_INVERSE_DEPTH).log() - known.log()).abs(), supervised)


def depth_l1(z: Tensor, z_true: Tensor, supervised: Tensor) -> Tensor:
    """Mean |1 / z - 1 / z_true| of positive inverse depths (B, 1, H, W) over the pixels of the mask: what is far away weighs most."""
    known = torch.where(supervised, z_true, z.detach()).clamp(min=_MIN_INVERSE_DEPTH)
    return masked_mean((z.clamp(min=_MIN_INVERSE_DEPTH).reciprocal() - known.reciprocal()).abs(), supervised)


COMPARISONS = {'inverse_depth': inverse_depth_l1, 'log_depth': log_depth_l1, 'depth': depth_l1}


def edge_aware_smoothness(z: Tensor, image: Tensor) -> Tensor:
    """Mean |dx z| exp(-|dx I|) + mean |dy z| exp(-|dy I|) of z (B, 1, H, W) under image (B, 3, H, W) in [0, 1]; |d I| is the mean over colours."""
    return sum((dz * torch.exp(-di.mean(1, keepdim=True))).mean() for dz, di in zip(_differences(z), _differences(image)))


def global_local_loss(z: Tensor, z_true: Tensor, supervised: Tensor, image: Tensor, l1_weight: float = 5.0, smooth_weight: float = 2.0,
                      compare: Callable[[Tensor, Tensor, Tensor], Tensor] = inverse_depth_l1) -> dict[str, Tensor]:
    """The weighted terms, l1 (by `compare`, of the two above) and smooth, of the loss that Global-Local is trained with."""
    return {'l1': l1_weight * compare(z, z_true, supervised), 'smooth': smooth_weight * edge_aware_smoothness(z, image)}


def structural_dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """(1 - SSIM) / 2 in [0, 1] of images (B, C, H, W) in [0, 1], over 3 x 3 boxes, same size."""
    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode='reflect'), 3, 1)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a ** 2, mean(b * b) - mean_b ** 2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = _SSIM_STABLE
    ssim = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a ** 2 + mean_b ** 2 + c1) * (variance_a + variance_b + c2))
    return ((1 - ssim) / 2).clamp(0, 1)


def pyramid_flow(levels: list[Tensor], flow: Tensor, valid: Tensor) -> Tensor:
    """Weighted sum of the distances [px] of predictions (B, 2, h, w), coarsest first, from flow (B, 2, H, W) [px] where valid (B, 1, H, W): PWC-Net's loss.

    Each level is compared at its own size with the mean of what is valid there. As published (D. Sun et al., "PWC-Net", CVPR 2018, eq. 3, without its weight decay)
    a level's distances are summed over its pixels, so that a coarse one does not outweigh a fine one. The whole is divided by the finest level's weight and number of
    pixels, so that it is in px and the same for images of any size.
    """
    weights = _FLOW_WEIGHTS[-len(levels):]
    finest = weights[-1] * levels[-1][:, 0].numel()
    total = flow.new_zeros(())
    for weight, predicted in zip(weights, levels):
        size = predicted.shape[-2:]
        known = F.adaptive_avg_pool2d(valid.to(flow.dtype), size)
        truth = F.adaptive_avg_pool2d(torch.where(valid, flow, 0.0), size) / known.clamp(min=1e-6)
        total = total + weight / finest * ((predicted - truth).norm(dim=1) * known[:, 0]).sum()
    return total


def photometric(image1: Tensor, image2: Tensor, z: Tensor, K: Tensor, T_2_1: Tensor) -> Tensor:
    """Mean difference of image1 (B, 3, H, W) and image2 brought onto it by z (B, 1, H, W) [1/baseline], K (B, 3, 3), T_2_1 (B, 4, 4), where seen by both."""
    flow, in_front = induced_flow(1.0 / z[:, 0].clamp(min=_MIN_INVERSE_DEPTH), K, T_2_1)
    warped, inside = warp_by_flow(image2, flow)
    difference = SSIM_SHARE * structural_dissimilarity(image1, warped) + (1 - SSIM_SHARE) * (image1 - warped).abs()
    return masked_mean(difference.mean(1), in_front & inside)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """|x - its left neighbour| (..., H, W - 1) and |x - its upper neighbour| (..., H - 1, W)."""
    return x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
