"""The clips of each step of a training, a function of the seed and the step alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depth_ros.learning import augmentation, clip_augmentation
from depth_ros.learning.batches import Batches, generator
from depth_ros.learning.clips import KEYFRAMES, ClipBatch, ClipStore, with_flow
from depth_ros.learning.recipe import Recipe
from depth_ros.models.deepv2d import TYPICAL_DEPTH
from depth_ros.models.deepv2d_motion import edges_of

_OF_THE_STEP = 1        # ends the seed of what is drawn for all processes together


@dataclass(frozen=True)
class DrawnClips:
    """What one process learns from in one step."""

    indices: np.ndarray         # (b,) of the store
    clips: ClipBatch            # b clips, augmented; the keyframe's median depth is about TYPICAL_DEPTH
    T_near: Tensor              # (b, N, 4, 4) poses with the errors of a tracker
    T_start: Tensor             # (b, N, 4, 4) poses that motion is looked for from: those, or no motion at all
    predicted: bool             # whether motion is found with predicted depth

    def to(self, device: torch.device | str) -> DrawnClips:
        """The same on another device."""
        return dataclasses.replace(self, clips=self.clips.to(device), T_near=self.T_near.to(device), T_start=self.T_start.to(device))

    def pick(self, places: list[int]) -> DrawnClips:
        """Some of them."""
        return dataclasses.replace(self, indices=self.indices[places], clips=self.clips.pick(places), T_near=self.T_near[places], T_start=self.T_start[places])


class ClipBatches(Batches):
    """Draws the batches of a recipe from a store of clips, each clip once an epoch."""

    def of_step(self, step: int) -> DrawnClips:
        """This process's part of a step's batch."""
        recipe = self._recipe
        indices, generators = self.drawn_for(step)
        stored: ClipStore = self._store
        joint = generator(recipe.seed, step, recipe.batch, _OF_THE_STEP)
        views = stored.views - 1
        shown = int(torch.randint(min(recipe.fewest_views, views), views + 1, (), generator=joint))
        predicted = step >= recipe.predicted_from * recipe.steps and torch.rand((), generator=joint).item() < 0.5
        clips = stored.batch(indices, [_order(views + 1, shown, g) for g in generators])
        clips = clip_augmentation.reduce(clips, recipe.reduce_at(step))
        if recipe.flip:
            clips = clip_augmentation.mirror(clips, torch.tensor([torch.rand((), generator=g).item() < augmentation.PROBABILITY for g in generators]))
        stretch = torch.tensor([clip_augmentation.draw_stretch(recipe.stretch, g) for g in generators])
        clips = clip_augmentation.rescale(clips, stretch * clip_augmentation.typical_factors(clips, TYPICAL_DEPTH))
        if recipe.colour > 0.0:
            clips = dataclasses.replace(clips, images=torch.stack([clip_augmentation.recolour(i, recipe.colour, g) for i, g in zip(clips.images, generators)]))
        clips = _measured(clips, stored, recipe)
        errors = torch.stack([_errors(recipe, T, g) for T, g in zip(clips.T_cam_world, generators)])
        T_near = clip_augmentation.disturb(clips.T_cam_world, errors)
        still = torch.tensor([torch.rand((), generator=g).item() < recipe.still_start for g in generators])
        T_start = torch.where(still[:, None, None, None], torch.eye(4), T_near)
        return DrawnClips(indices, clips, T_near, T_start, predicted)

    @staticmethod
    def unseen(store: ClipStore, recipe: Recipe, first: int, factor: int) -> ClipBatch:
        """At most a batch of a store that is not trained on, from index `first` on, at 1 / factor of its size, with lengths such that the median depth is typical."""
        clips = clip_augmentation.reduce(store.batch(np.arange(first, min(first + recipe.batch, len(store)))), factor)
        return _measured(clip_augmentation.rescale(clips, clip_augmentation.typical_factors(clips, TYPICAL_DEPTH)), store, recipe)


def _measured(clips: ClipBatch, store: ClipStore, recipe: Recipe) -> ClipBatch:
    """With flow, if the recipe asks for it."""
    return with_flow(clips, store.flow, edges_of(recipe.form, clips.images.shape[1])) if recipe.measured_flow else clips


def _order(views: int, shown: int, generator: torch.Generator) -> list[int]:
    """A keyframe that has views before and after it, and so many of the others in the order of time."""
    key = KEYFRAMES[int(torch.randint(len(KEYFRAMES), (), generator=generator))] if views > 2 else 0
    others = [view for view in range(views) if view != key]
    return [key, *(others[i] for i in sorted(torch.randperm(len(others), generator=generator)[:shown].tolist()))]


def _errors(recipe: Recipe, T_cam_world: Tensor, generator: torch.Generator) -> Tensor:
    """Twists (N, 6): the recipe's pose_error, and errors in proportion to each view's baseline."""
    views = len(T_cam_world)
    baseline = T_cam_world[:, :3, 3].norm(dim=1, keepdim=True)
    spread = torch.cat([recipe.direction_error * baseline, torch.full((views, 1), math.radians(recipe.rotation_error))], 1).repeat_interleave(3, 1)
    first, second = torch.randn(2, views, 6, generator=generator)
    return recipe.pose_error * first + spread * second
