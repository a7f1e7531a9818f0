"""What the global parameters know of the motion: a small network that reads rotation and direction of translation from them.

Global-Local (ICLR 2020 submission), section 4.4: the head is trained with the true motions, on a global module that is untrained or comes from a depth network
(scratch | pretrained), alone or together with it (MLP | full network). Its long version's main part has two layers of 256, the appendix two of 20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depth_ros import settings
from depth_ros.geometry import se3
from depth_ros.models.global_local import PARAMETERS, GlobalLocal, GlobalLocalConfig
from depth_ros.models.layers import LEAK, Pairs
from depth_ros.models.unsupervised import unit_motion
from depth_ros.settings import setting


@dataclass(frozen=True)
class PoseHeadConfig:
    """Size of the head and what is trained."""

    width: int = setting(20, 'channels of each of the two hidden layers: 20 in the paper\'s appendix, 256 in its main part', '', 1, 4096)
    full: bool = setting(False, 'train the global module as well, not the head alone')
    image_pair: bool = setting(True, 'the global module sees both images, not the flow alone')
    global_width: int = setting(0, 'width that pairs are reduced to before the global module sees them; 0: as they come', 'px', low=0, high=1024)

    def __post_init__(self) -> None:
        settings.check(self)


class PoseHead(nn.Module):
    """Global module and head. The global module starts untrained; `take` gives it that of a depth network."""

    def __init__(self, config: PoseHeadConfig = PoseHeadConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = GlobalLocal(GlobalLocalConfig(image_pair=config.image_pair, global_width=config.global_width))
        del self.encoder.local
        self.encoder.requires_grad_(config.full)
        widths = [PARAMETERS, config.width, config.width]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.LeakyReLU(LEAK)) for a, b in zip(widths[:-1], widths[1:])]
        self.head = nn.Sequential(*hidden, nn.Linear(config.width, 6))

    def take(self, model: GlobalLocal) -> None:
        """Start from the global module of a depth network. Raises ValueError if it has none, or one that sees something else."""
        theirs, ours = model.config, self.config
        if not isinstance(model, GlobalLocal) or not theirs.global_module or not theirs.flow or (theirs.image_pair, theirs.global_width) != (ours.image_pair, ours.global_width):
            raise ValueError(f'expected a network with a global module that sees flow, image_pair {ours.image_pair} and global_width {ours.global_width}, '
                             f'got a {type(model).__name__} with {theirs}')
        self.encoder.global_module.load_state_dict(model.global_module.state_dict())

    def inputs(self, batch: Pairs) -> tuple[Tensor, ...]:
        """What forward takes of a batch."""
        return batch.image1, batch.image2, batch.flow

    def forward(self, image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
        """Rotation vector [rad] and translation (B, 6) of T_2_1, of a pair with flow (B, 2, H, W) [px]; the translation's norm is only about 1."""
        return self.head(self.encoder.global_parameters(image1, image2, flow))

    def motion(self, image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
        """T_2_1 (B, 4, 4), translation of norm 1."""
        return unit_motion(*self(image1, image2, flow).split(3, 1))


def motion_vector(T_2_1: Tensor) -> Tensor:
    """What forward should give (B, 6) for T_2_1 (B, 4, 4): rotation vector [rad] and direction of translation."""
    turned = se3.from_rotation_translation(T_2_1[:, :3, :3], torch.zeros_like(T_2_1[:, :3, 3]))
    return torch.cat([se3.log(turned)[:, 3:], nn.functional.normalize(T_2_1[:, :3, 3], dim=1)], 1)


def pose_l1(predicted: Tensor, T_2_1: Tensor) -> Tensor:
    """Mean absolute difference of forward's (B, 6) from the true T_2_1 (B, 4, 4)."""
    return (predicted - motion_vector(T_2_1)).abs().mean()


def motion_errors(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Angle between the rotations (B,) and between the translations (B,) [degrees] of two T_2_1 (B, 4, 4)."""
    apart = motion_vector(se3.inverse(predicted) @ true)[:, :3].norm(dim=1)
    a, b = predicted[:, :3, 3], true[:, :3, 3]
    between = torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
    return apart.rad2deg(), between.rad2deg()
