"""The optimiser that a recipe asks for, with rates of their own for parts of the network."""

from __future__ import annotations

import torch
from torch import nn

from depth_ros import settings
from depth_ros.learning.recipe import Recipe

_DECAY = 0.9        # of RMSProp's mean square, as where it was first proposed (G. Hinton, "Neural networks for machine learning", 2012, lecture 6)


def optimiser_for(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of the weights that are trained. Raises ValueError for a share of the rate of a part that the network does not have."""
    parts: dict[str, list[nn.Parameter]] = {'': []}
    for name, weight in network.named_parameters():
        part = name.partition('.')[0]
        if weight.requires_grad:
            parts.setdefault(part if part in recipe.rate_shares else '', []).append(weight)
    settings.refuse_unknown(recipe.rate_shares, [name for name, _ in network.named_children()], 'rate_shares: the network has no part')
    groups = [{'params': weights, 'share': float(recipe.rate_shares.get(part, 1.0))} for part, weights in parts.items() if weights]
    if recipe.optimiser == 'rmsprop':
        return torch.optim.RMSprop(groups, lr=recipe.rate, alpha=_DECAY)
    # Fused: the steps of networks with tens of millions of weights take longer than their gradients otherwise.
    return torch.optim.Adam(groups, lr=recipe.rate, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be taken at that rate, or the share of it that a part has."""
    for group in optimiser.param_groups:
        group['lr'] = rate * group['share']
