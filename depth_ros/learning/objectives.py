"""What a network of each kind is trained for, and what its validation reports. An objective knows no network by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros.learning import losses, metrics
from depth_ros.learning.batches import Drawn
from depth_ros.learning.deepv2d_objectives import DeepV2DDepth, DeepV2DJoint, DeepV2DMotion
from depth_ros.learning.objective import Objective, Share
from depth_ros.learning.pairs import PairBatch
from depth_ros.learning.recipe import Recipe
from depth_ros.models.pose_head import motion_errors, pose_l1

REPORTED = ('abs_inv', 'abs_rel', 'sc_inv')     # of depth, as the Global-Local paper reports it; sc_inv is its S-RMSE
FARTHEST = 300.0                                # [baselines] that a prediction is clipped to, for no network knows infinity


class InverseDepth(Objective):
    """Inverse depth at the supervised pixels, smooth elsewhere."""

    reported = REPORTED

    def terms(self, network: nn.Module, drawn: Drawn, share: Share) -> dict[str, Tensor]:
        """Those of losses.global_local_loss, weighted as the recipe says."""
        recipe, z = self._recipe, network(*network.inputs(drawn.pairs)).float()
        compare = losses.COMPARISONS[recipe.l1_of]
        terms = losses.global_local_loss(z, drawn.pairs.inverse_depth, drawn.supervised, drawn.pairs.image1, recipe.l1_weight, recipe.smooth_weight, compare)
        return terms | {'l1': share(drawn.supervised.sum()) * terms['l1']}

    def scores(self, network: nn.Module, pairs: PairBatch) -> list[dict[str, float]]:
        """REPORTED, as predicted (no scale is matched)."""
        return depth_scores(network(*network.inputs(pairs)).float(), pairs)


class Photometric(InverseDepth):
    """Image 2, brought onto image 1 by the network's own depth and motion, looks like it: no depth is told at all. For networks that have a `motion`."""

    def terms(self, network: nn.Module, drawn: Drawn, share: Share) -> dict[str, Tensor]:
        """Of the images' difference and of smoothness, each weighted as the recipe says (l1_weight, smooth_weight).

        What is smooth is inverse depth in multiples of its mean (C. Wang et al., "Learning depth from monocular videos using direct methods", CVPR 2018, section 3.2):
        else everything far away is smoothest, and nothing here but the images contradicts it.
        """
        pairs, inputs = drawn.pairs, network.inputs(drawn.pairs)
        z, T_2_1 = network(*inputs).float(), network.motion(*inputs).float()
        difference = losses.photometric(pairs.image1, pairs.image2, z, pairs.K, T_2_1)
        relative = z / z.mean((2, 3), keepdim=True)
        return {'photometric': self._recipe.l1_weight * difference, 'smooth': self._recipe.smooth_weight * losses.edge_aware_smoothness(relative, pairs.image1)}


class Motion(Objective):
    """Rotation vector and direction of translation, for networks that predict those (models/pose_head.py)."""

    reported = 'rotation', 'direction'

    def terms(self, network: nn.Module, drawn: Drawn, share: Share) -> dict[str, Tensor]:
        """L1, as the Global-Local paper's appendix has it."""
        return {'l1': self._recipe.l1_weight * pose_l1(network(*network.inputs(drawn.pairs)).float(), drawn.pairs.T_2_1)}

    def scores(self, network: nn.Module, pairs: PairBatch) -> list[dict[str, float]]:
        """Angles [degrees] between predicted and true rotations, and between translations."""
        rotation, direction = motion_errors(network.motion(*network.inputs(pairs)).float(), pairs.T_2_1)
        return [{'rotation': r, 'direction': d} for r, d in zip(rotation.tolist(), direction.tolist())]


class Flow(Objective):
    """Flow of the projection of depth and motion, for networks that give it at several levels (models/pwc_net.py)."""

    reported = 'epe', 'estimator_epe', 'epe_visible', 'estimator_epe_visible'

    def terms(self, network: nn.Module, drawn: Drawn, share: Share) -> dict[str, Tensor]:
        """Distance from the exact flow, over all levels."""
        levels = [level.float() for level in network.levels(*network.inputs(drawn.pairs))]
        return {'flow': losses.pyramid_flow(levels, drawn.pairs.exact_flow, drawn.pairs.valid)}

    def scores(self, network: nn.Module, pairs: PairBatch) -> list[dict[str, float]]:
        """Mean distance [px] from the exact flow, everywhere that it is known and where image 2 shows the point; and the same of the pairs' own flow."""
        both = {'epe': network(*network.inputs(pairs)).float(), 'estimator_epe': pairs.flow}
        found = {name: (flow - pairs.exact_flow).norm(dim=1, keepdim=True) for name, flow in both.items()}
        masks = {'': pairs.valid, '_visible': pairs.visible}
        return [{name + where: losses.masked_mean(error[i], mask[i]).item() for name, error in found.items() for where, mask in masks.items()} for i in range(len(pairs))]


OBJECTIVES: dict[str, type[Objective]] = {'inverse_depth': InverseDepth, 'photometric': Photometric, 'motion': Motion, 'flow': Flow,
                                          'deepv2d_depth': DeepV2DDepth, 'deepv2d_motion': DeepV2DMotion, 'deepv2d': DeepV2DJoint}


class Learner(nn.Module):
    """A network together with its loss: what several processes share the gradients of, whichever of the network's parts the loss calls."""

    def __init__(self, network: nn.Module, objective: Objective, share: Share) -> None:
        super().__init__()
        self.network, self._objective, self._share = network, objective, share

    def forward(self, drawn: Any) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self._objective.terms(self.network, drawn, self._share)


def kind(recipe: Recipe) -> type[Objective]:
    """The kind of objective that a recipe names. Raises ValueError, listing the known ones, for an unknown one."""
    if recipe.objective not in OBJECTIVES:
        raise ValueError(f'objective: expected one of {", ".join(OBJECTIVES)}, got {recipe.objective!r}')
    return OBJECTIVES[recipe.objective]


def build(recipe: Recipe) -> Objective:
    """The objective that a recipe names. Raises ValueError as kind does, and for a score to go by that it does not report."""
    made = kind(recipe)(recipe)
    if recipe.best_by not in made.reported:
        raise ValueError(f'best_by: expected one of {", ".join(made.reported)}, got {recipe.best_by!r}')
    return made


def depth_scores(z: Tensor, pairs: PairBatch) -> list[dict[str, float]]:
    """REPORTED of each pair that has depth, for inverse depths z (B, 1, H, W) [1/baseline]."""
    depth = z.clamp(min=1.0 / FARTHEST).reciprocal()[:, 0].cpu().numpy()
    valid = pairs.valid[:, 0].cpu().numpy()
    truth = torch.where(pairs.valid, pairs.inverse_depth, 1.0).reciprocal()[:, 0].cpu().numpy()
    if not np.isfinite(depth).all():
        return [dict.fromkeys(REPORTED, float('nan')) for _ in depth]
    everything = [metrics.depth_metrics(*one) for one in zip(depth, truth, valid) if one[2].any()]
    return [{name: scores[name] for name in REPORTED} for scores in everything]
