"""What a network of depth has to be like for an online learner to teach it, be it one of image pairs, of a stereo camera or of single views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.nn import Parameter

from depth_ros.models.layers import Pairs

Self = TypeVar('Self', bound='DepthModel')


class DepthModel(Protocol):
    """Takes what it looks at out of a batch and gives inverse depth of image 1, differentiable; every torch module with `inputs` and `config` is one.

    The unit is the inverse of the length that the batch's T_2_1 has as 1: the step of the camera for networks of pairs. A stereo network is given the other camera as image
    2, so that its unit is the baseline of the rig; one that tells metres from a single view is given observations whose step_length is 1 m.
    """

    config: Any                     # a dataclass of settings: weights fit a network of an equal one

    def inputs(self, batch: Pairs) -> tuple[Tensor, ...]:
        """The tensors that the network is called with, of a batch of size B; those that it does not look at are left out."""
        ...

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inverse depth (B, 1, H, W) [1/length of T_2_1], positive and finite."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """What is learned, always in the same order."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """All weights by name."""
        ...

    def train(self: Self, mode: bool = True) -> Self:
        """Ready to learn; the network itself."""
        ...

    def eval(self: Self) -> Self:
        """Ready to be used; the network itself."""
        ...
