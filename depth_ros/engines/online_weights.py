"""What is done to weights that learn online: each step they are drawn back to the first ones and a mean follows them, and first and learned ones are mixed."""

from __future__ import annotations

import copy

import torch

from depth_ros.models.depth_model import DepthModel


@torch.no_grad()
def draw_back(network: DepthModel, first: DepthModel, share: float) -> None:
    """Take all weights that share of their way back to the first ones."""
    if share > 0:
        for weight, anchor in zip(network.parameters(), first.parameters()):
            weight.lerp_(anchor, share)


@torch.no_grad()
def follow(mean: DepthModel, newest: DepthModel, batches: float) -> None:
    """Let the mean over the last batches follow: it bears the few observations of a batch better than any one step (B. Polyak, A. Juditsky, 1992)."""
    for average, weight in zip(mean.parameters(), newest.parameters()):
        average.lerp_(weight, 1 / batches)


@torch.no_grad()
def between(first: DepthModel, learned: DepthModel, share: float) -> DepthModel:
    """A network whose weights lie that share of the way from the first to the learned ones: where it was not learned it errs less than either (M. Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022)."""
    mixed = copy.deepcopy(first)
    for weight, target in zip(mixed.parameters(), learned.parameters()):
        weight.lerp_(target, share)
    return mixed
