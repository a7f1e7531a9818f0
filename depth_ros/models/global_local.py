"""Global-Local network: dense depth of an image from its flow to another, learned from as little as one range reading per image.

After "Global-Local Network for Learning Depth with Very Sparse Supervision" (ICLR 2020 submission), section 3. A global module sees both images and
the flow and says what it saw in six numbers, which stand for the motion and the camera; one linear layer makes filter banks of them; these, applied to
the flow and nothing else, give the inverse depth. The paper counts 3.9 K generated weights, which is what two input channels give; with
the coordinates, which it appends as well, there are 4320.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros import settings
from depth_ros.models.layers import Conv, FilterGenerator, Pairs, centred, conv_leaky, coordinates, inverse_depth_of, local_network, scaled_flow, start_typical
from depth_ros.models.pose_aware import PoseAwareLocal, geometry, looked_at
from depth_ros.settings import setting

PARAMETERS = 6                  # numbers that the global module may say
BANKS = [20, 10, 20]            # output channels of the generated filter banks


@dataclass(frozen=True)
class GlobalLocalConfig:
    """Which of the two variants, and what the paper's ablations (table 5) take away.

    Without bias terms all that generated filters compute grows in proportion with flow and coordinates, so at the image's centre nothing but the flow there counts: the
    filters cannot take away what a turn of the camera adds to the flow, which is nearly constant. `constant` mends that. With the true motion in the place of the global
    parameters, after 1500 steps on exact flow, the spread of log depth fell from 0.43 to 0.20 without and 0.11 with it.
    """

    pose_aware: bool = setting(False, 'correct what flow and the tracker\'s pose triangulate, instead of going by the flow alone')
    prior: bool = setting(False, 'begin with depth that a recursive filter of flow knows beforehand, where there is any, in place of what the pair alone triangulates')
    image_pair: bool = setting(True, 'show both images to the global module, not the flow alone')
    coordinates: bool = setting(True, 'append X and Y channels to what the generated filters see')
    constant: bool = setting(False, 'append a channel of ones too, which the paper does not (4500 generated weights instead of 4320)')
    global_module: bool = setting(True, 'make the filters from global parameters; else they are the same for every pair')
    flow: bool = setting(True, 'work on the flow; else the global module has the images alone, and the generated filters the images instead of the flow')

    global_width: int = setting(0, 'width that pairs are reduced to before the global module sees them, so that it says the same at every size; 0: as they come, as published, '
                                'or with prior as models/pose_aware.py reduces them', 'px', low=0, high=1024)

    def __post_init__(self) -> None:
        settings.check(self)
        if self.pose_aware and not self.flow:
            raise ValueError('flow: expected True with pose_aware, which triangulates it, got False')
        if self.prior and not self.pose_aware:
            raise ValueError('pose_aware: expected True with prior, which it corrects, got False')
        if not self.image_pair and not self.flow:
            raise ValueError('flow: expected True without image_pair, as nothing else is left to see, got False')


class GlobalModule(nn.Sequential):
    """Images and flow (B, C, H, W) to the global parameters (B, 6): five convolutions, one more to six channels, mean over the image."""

    def __init__(self, inputs: int) -> None:
        widths = [inputs, 16, 32, 64, 128, 256]
        strides = [2, 2, 2, 2, 1]
        super().__init__(*(conv_leaky(a, b, stride=s) for a, b, s in zip(widths[:-1], widths[1:], strides)), Conv(widths[-1], PARAMETERS))

    def forward(self, x: Tensor) -> Tensor:
        """Global parameters."""
        return super().forward(x).mean((2, 3))


class LocalModule(nn.Module):
    """What it is given (B, C, H, W), through three generated filter banks and an ordinary convolution, to inverse depth (B, 1, H, W) [1/baseline]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.generator = FilterGenerator(PARAMETERS, [inputs, *BANKS])
        self.last = Conv(BANKS[-1], 1)
        start_typical(self.last)

    def forward(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Inverse depth."""
        return inverse_depth_of(local_network(x, self.generator(parameters), self.last), self.training)


class GlobalLocal(nn.Module):
    """Both variants: as published, and pose-aware (see pose_aware.py)."""

    def __init__(self, config: GlobalLocalConfig = GlobalLocalConfig()) -> None:
        super().__init__()
        self.config = config
        seen = 6 * config.image_pair + 2 * config.flow
        self.global_module = GlobalModule(seen) if config.global_module else None
        extra = 2 * config.coordinates + config.constant
        self.local = PoseAwareLocal(PARAMETERS, extra, config.prior) if config.pose_aware else LocalModule((2 if config.flow else 6) + extra)

    def inputs(self, batch: Pairs) -> tuple[Tensor, ...]:
        """What forward takes of a batch."""
        pair = batch.image1, batch.image2, batch.flow
        if not self.config.pose_aware:
            return pair
        if not self.config.prior:
            return (*pair, *geometry(batch.flow, batch.K, batch.T_2_1))
        image1, image2, flow, K = looked_at(batch)
        prior = torch.zeros_like(batch.flow) if batch.prior is None else batch.prior
        return (image1, image2, flow, *geometry(flow, K, batch.T_2_1), prior)

    def forward(self, image1: Tensor, image2: Tensor, flow: Tensor, *triangulation: Tensor) -> Tensor:
        """Inverse depth (B, 1, H, W) [1/baseline] of image1 (B, 3, H, W) in [0, 1] by flow (B, 2, H, W) [px] to image2; the rest as PoseAwareLocal takes it."""
        parameters = self.global_parameters(image1, image2, flow)
        seen = [scaled_flow(flow)] if self.config.flow else [centred(image1), centred(image2)]
        if self.config.coordinates:
            seen.append(coordinates(flow))
        if self.config.constant:
            seen.append(torch.ones_like(flow[:, :1]))
        if self.config.pose_aware:
            return self.local(parameters, torch.cat(seen, 1), image1, image2, flow, *triangulation)
        return self.local(parameters, torch.cat(seen, 1))

    def global_parameters(self, image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
        """g (B, 6) of the pair; zeros where the global module is left out."""
        if self.global_module is None:
            return flow.new_zeros(len(flow), PARAMETERS)
        seen = [centred(image1), centred(image2)] if self.config.image_pair else []
        return self.global_module(self._reduced(torch.cat([*seen, scaled_flow(flow)] if self.config.flow else seen, 1)))

    def _reduced(self, seen: Tensor) -> Tensor:
        """Means over squares of (B, C, H, W), so many that about global_width columns are left."""
        factor = seen.shape[-1] // self.config.global_width if self.config.global_width else 1
        return F.avg_pool2d(seen, factor) if factor > 1 else seen
