"""What DeepV2D is trained for: depth with known motion, motion with known depth (its stage I), and both together (stage II).

Source: Teed & Deng, "DeepV2D: Video to depth with differentiable structure from motion", ICLR 2020, section 3.3 and appendix. Depth alone with known motion, slightly
disturbed, is no stage of the paper's: it lets the two modules be trained apart, and at the same time.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry.depth_maps import reduce_depth
from depth_ros.geometry.gauss_newton import relative_motion
from depth_ros.geometry.precision import full_precision
from depth_ros.learning import deepv2d_losses, metrics
from depth_ros.learning.batches import Batches
from depth_ros.learning.clip_batches import ClipBatches, DrawnClips
from depth_ros.learning.clips import ClipBatch
from depth_ros.learning.objective import Objective, Share
from depth_ros.learning.pose_metrics import length_factor, pose_metrics, rescaled
from depth_ros.learning.recipe import Recipe
from depth_ros.models import registry
from depth_ros.models.deepv2d import TYPICAL_DEPTH
from depth_ros.models.deepv2d_depth import DepthEstimate
from depth_ros.models.deepv2d_motion import STRIDE, MeasuredFlow, MotionEstimate, align, edges_of, keyframe_edges, measured_flow

_IN_USE = 3             # iterations of the motion network in a validation, whatever it is trained with
_ROUNDS = 2             # of motion and depth, in the validation of both
_DEPTH = 'abs_rel', 'abs_rel_metric', 'sc_inv'
_POSES = 'rotation', 'direction', 'translation_cm'


class _OfClips(Objective):
    """What the three have in common."""

    batches: ClassVar[type[Batches]] = ClipBatches

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        config, parts = registry.configuration(recipe.model, recipe.model_config), self.parts or ('motion', 'depth')
        sees = 'motion' in parts and config.measured_flow or 'depth' in parts and config.depth_flow
        if sees != recipe.measured_flow:
            raise ValueError(f'measured_flow: expected {sees}, as what is trained {"sees" if sees else "does not see"} measured flow, got {recipe.measured_flow}')

    def _depth(self, network: nn.Module, clips: ClipBatch, T_cam_world: Tensor) -> DepthEstimate:
        """The depth module's, given poses (B, N, 4, 4)."""
        features = _features(network.depth, clips.images)
        T_view_key = full_precision(relative_motion)(T_cam_world, *keyframe_edges(T_cam_world.shape[1]))
        planes, measured = network.planes(clips.K), self._from_key(clips) if network.depth.sees_flow else None
        return network.depth(features, _map_intrinsics(clips.K), T_view_key, planes, tuple(clips.images.shape[-2:]), measured=measured)

    def _from_key(self, clips: ClipBatch) -> MeasuredFlow:
        """The flow that was measured from the keyframe to each view, among those of all edges."""
        from_key = edges_of(self._recipe.form, clips.images.shape[1])[0] == 0       # in either form these go to the views in their order
        return measured_flow(clips.flow[:, from_key], clips.flow_error[:, from_key])

    def _motion(self, network: nn.Module, clips: ClipBatch, depth: Tensor, T_start: Tensor, iterations: int | None = None) -> MotionEstimate:
        """The motion module's, given depth (B, N, h, w) of the maps and poses to start from; as many iterations as the recipe says, or so many."""
        form = self._recipe.form
        features, K = _features(network.motion, clips.images), _map_intrinsics(clips.K)
        measured = None if clips.flow is None else measured_flow(clips.flow, clips.flow_error)
        return align(network.motion, features, depth, K, T_start, edges_of(form, clips.images.shape[1]), form, iterations=iterations or self._recipe.iterations, measured=measured)

    def _depth_terms(self, estimate: DepthEstimate, network: nn.Module, clips: ClipBatch, share: Share) -> dict[str, Tensor]:
        """Of the keyframe's depth, where planes can tell it."""
        truth = clips.depth[:, 0]
        valid = clips.valid[:, 0] & (truth >= network.config.near) & (truth <= network.config.far)
        terms = deepv2d_losses.depth_terms([d.float() for d in estimate.depths], truth, valid, self._recipe.l1_of)
        return {'depth': self._recipe.l1_weight * share(valid.sum()) * terms['depth'], 'smooth': self._recipe.smooth_weight * terms['smooth']}

    def _motion_terms(self, estimate: MotionEstimate, network: nn.Module, clips: ClipBatch, start: bool = True) -> dict[str, Tensor]:
        """Of the poses, and of the first guess where there is a network for it."""
        depth, K = reduce_depth(clips.depth, STRIDE), _map_intrinsics(clips.K)
        terms = deepv2d_losses.motion_terms(estimate, depth, K, clips.T_cam_world, self._recipe.flow_weight)
        if network.config.pose_network and start:
            guesses = torch.stack([network.motion.initial_motion(clips.images[:, 0], view) for view in clips.images[:, 1:].unbind(1)], 1)
            terms |= deepv2d_losses.start_terms(guesses.float(), depth[:, 0], K, clips.T_cam_world[:, 1:])
        return terms


class DeepV2DDepth(_OfClips):
    """Depth with true poses, which have the errors that the recipe gives them."""

    reported = _DEPTH
    parts = ('depth',)

    def terms(self, network: nn.Module, drawn: DrawnClips, share: Share) -> dict[str, Tensor]:
        """Of depth alone."""
        return self._depth_terms(self._depth(network, drawn.clips, drawn.T_near), network, drawn.clips, share)

    def scores(self, network: nn.Module, unseen: ClipBatch) -> list[dict[str, float]]:
        """Of depth with exact poses."""
        return _depth_scores(self._depth(network, unseen, unseen.T_cam_world).depths[-1], unseen)


class DeepV2DMotion(_OfClips):
    """Motion with true depth: the paper's stage I. Holes in it are left out, where the paper fills them."""

    reported = _POSES
    parts = ('motion',)

    def terms(self, network: nn.Module, drawn: DrawnClips, share: Share) -> dict[str, Tensor]:
        """Of motion alone."""
        estimate = self._motion(network, drawn.clips, reduce_depth(drawn.clips.depth, STRIDE), drawn.T_start)
        return self._motion_terms(estimate, network, drawn.clips)

    def scores(self, network: nn.Module, unseen: ClipBatch) -> list[dict[str, float]]:
        """Of poses found with true depth from no motion at all."""
        estimate = self._motion(network, unseen, reduce_depth(unseen.depth, STRIDE), _still(unseen), _IN_USE)
        return _pose_scores(estimate.T_cam_world, unseen, False)


class DeepV2DJoint(_OfClips):
    """Motion and depth together, depth with the motion that was found: the paper's stage II.

    Motion is found with true depth at first, and later, in half of the steps, with the depth that is predicted now (the paper keeps predictions of earlier epochs).
    """

    reported = (*_DEPTH, *_POSES)

    def terms(self, network: nn.Module, drawn: DrawnClips, share: Share) -> dict[str, Tensor]:
        """Of both."""
        clips = drawn.clips
        depth = reduce_depth(clips.depth, STRIDE)
        if drawn.predicted:
            with torch.no_grad():
                guess = self._depth(network, clips, drawn.T_near).depths[-1]
            depth = torch.cat([reduce_depth(guess[:, None], STRIDE), depth[:, 1:]], 1)
        moved = self._motion(network, clips, depth, drawn.T_start)
        found = self._depth(network, clips, moved.T_cam_world.detach())
        return self._depth_terms(found, network, clips, share) | self._motion_terms(moved, network, clips)

    def scores(self, network: nn.Module, unseen: ClipBatch) -> list[dict[str, float]]:
        """Of what two rounds make of no motion and the same depth everywhere; lengths of the poses are matched."""
        T, depth = _still(unseen), torch.full_like(unseen.depth[:, :1], TYPICAL_DEPTH)
        for _ in range(_ROUNDS):
            maps = reduce_depth(depth, STRIDE).expand(-1, unseen.depth.shape[1], -1, -1)
            T = self._motion(network, unseen, maps, T, _IN_USE).T_cam_world
            depth = self._depth(network, unseen, T).depths[-1][:, None]
        poses = _pose_scores(T, unseen, True)
        return [of_depth | of_poses for of_depth, of_poses in zip(_depth_scores(depth[:, 0], unseen), poses)]


def _features(module: nn.Module, images: Tensor) -> Tensor:
    """Features (B, N, C, h, w) of images (B, N, 3, H, W)."""
    return module.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def _map_intrinsics(K: Tensor) -> Tensor:
    return resize_intrinsics(K, 1 / STRIDE, 1 / STRIDE)


def _still(clips: ClipBatch) -> Tensor:
    """Poses of no motion at all."""
    return torch.eye(4, device=clips.K.device).expand_as(clips.T_cam_world)


def _depth_scores(depth: Tensor, clips: ClipBatch) -> list[dict[str, float]]:
    """Scores of depth (B, H, W) of every keyframe: after its median is matched, and of its metric size."""
    made = []
    for own, true, valid in zip(depth.float().cpu().numpy(), clips.depth[:, 0].cpu().numpy(), clips.valid[:, 0].cpu().numpy()):
        if not np.isfinite(own).all():
            made.append(dict.fromkeys((*_DEPTH, 'delta_1_25'), float('nan')))
        elif valid.any():
            matched = metrics.depth_metrics(own * metrics.median_scale(own, true, valid), true, valid)
            made.append({name: matched[name] for name in ('abs_rel', 'sc_inv', 'delta_1_25')} | {'abs_rel_metric': metrics.depth_metrics(own, true, valid)['abs_rel']})
    return made


def _pose_scores(T_cam_world: Tensor, clips: ClipBatch, match: bool) -> list[dict[str, float]]:
    """Mean scores over the views of every clip, lengths at a median depth of TYPICAL_DEPTH; matched, with one factor a clip, if asked for."""
    made = []
    for own, true in zip(T_cam_world[:, 1:].float(), clips.T_cam_world[:, 1:]):
        if not torch.isfinite(own).all():
            made.append(dict.fromkeys(_POSES, float('nan')))
            continue
        made.append(metrics.mean_metrics(pose_metrics(rescaled(own, length_factor(own, true)) if match else own, true)))
    return made
