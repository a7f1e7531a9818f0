"""Global-Local behind a flow network of its own, to see whether tuning the flow for depth helps (Global-Local, appendix: fixed flow does better)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depth_ros.models.global_local import GlobalLocal, GlobalLocalConfig
from depth_ros.models.layers import Pairs
from depth_ros.models.pwc_net import PwcNet, PwcNetConfig
from depth_ros.settings import setting


@dataclass(frozen=True)
class FlowAndDepthConfig(PwcNetConfig):
    """Size of the flow network, and whether it learns from depth."""

    tune: bool = setting(False, 'train the flow network together with the depth network, not the latter alone')
    image_pair: bool = setting(True, 'the depth network\'s global module sees both images, not the flow alone')
    coordinates: bool = setting(True, 'the depth network appends X and Y channels to what its generated filters see')
    constant: bool = setting(False, 'the depth network appends a channel of ones to what its generated filters see')
    global_width: int = setting(0, 'width that pairs are reduced to before its global module sees them; 0: as they come', 'px', low=0, high=1024)


class FlowAndDepth(nn.Module):
    """Depth of an image pair, whose flow is PWC-Net's. The flow network starts untrained; `take` gives it a trained one's weights."""

    def __init__(self, config: FlowAndDepthConfig = FlowAndDepthConfig()) -> None:
        super().__init__()
        self.config = config
        self.flow = PwcNet(PwcNetConfig(config.share)).requires_grad_(config.tune)
        self.depth = GlobalLocal(GlobalLocalConfig(image_pair=config.image_pair, coordinates=config.coordinates, constant=config.constant, global_width=config.global_width))

    def take(self, model: PwcNet) -> None:
        """Start from a trained flow network. Raises ValueError if it is of another size or no flow network."""
        if not isinstance(model, PwcNet) or model.config.share != self.config.share:
            raise ValueError(f'expected a pwc_net with share {self.config.share}, got a {type(model).__name__} with {model.config}')
        self.flow.load_state_dict(model.state_dict())

    def inputs(self, batch: Pairs) -> tuple[Tensor, Tensor]:
        """What forward takes of a batch; the flow in it is not looked at."""
        return batch.image1, batch.image2

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Inverse depth (B, 1, H, W) [1/baseline] of image1 (B, 3, H, W) in [0, 1]."""
        with torch.set_grad_enabled(self.config.tune and torch.is_grad_enabled()):
            flow = self.flow(image1, image2)
        return self.depth(image1, image2, flow)
