"""What every objective offers to the trainer: the terms of a loss, the scores of a validation, and how the batches for both are drawn."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from depth_ros.learning.batches import Batches
from depth_ros.learning.recipe import Recipe

Share = Callable[[Tensor], Tensor]
"""Number of points used here -> their weight among the processes' (Ranks.share)."""


class Objective(abc.ABC):
    """One kind of loss and its scores."""

    reported: ClassVar[tuple[str, ...]]             # names of the scores that a best network may be chosen by: the lower the better
    batches: ClassVar[type[Batches]] = Batches      # what draws, from stores of the kind that the objective learns from
    parts: ClassVar[tuple[str, ...]] = ()           # of the network that it trains; none named: all of it

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @abc.abstractmethod
    def terms(self, network: nn.Module, drawn: Any, share: Share) -> dict[str, Tensor]:
        """The weighted terms, of what `batches` has drawn, of the loss whose sum is minimised."""

    @abc.abstractmethod
    def scores(self, network: nn.Module, unseen: Any) -> list[dict[str, float]]:
        """Scores of each sample of what `batches` gives of the validation split."""

    def freeze_others(self, network: nn.Module) -> None:
        """Take what this objective does not train out of the training. A part without gradients would hold up several processes."""
        if self.parts:
            for name, weight in network.named_parameters():
                weight.requires_grad_(weight.requires_grad and name.partition('.')[0] in self.parts)
