"""What is done to weights after each step of learning online: they are drawn back to the first ones, and a mean follows them."""

from __future__ import annotations

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
