"""Networks that Global-Local is compared with (ICLR 2020 submission, section 4.2), each fed both images and the flow, with Leaky ReLU for ReLU.

Channels and kernels are those of their papers. All give inverse depth at the size of the image, through the same last step as Global-Local; all are trained from
scratch, as eight input channels leave no use for weights of another task. FCRN is in fcrn.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.models.layers import LEAK, Conv, Pairs, UpConv, centred, conv_leaky, inverse_depth_of, leaky, resize, scaled_flow, start_typical

INPUTS = 8      # channels of (I1, I2, w)


@dataclass(frozen=True)
class BaselineConfig:
    """Nothing to choose: the sizes are the papers'."""


class PairNetwork(nn.Module):
    """What all baselines share: a subclass's `predict` makes one channel, at any size, of (I1, I2, w)."""

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__()
        self.config = config

    def inputs(self, batch: Pairs) -> tuple[Tensor, ...]:
        """What forward takes of a batch."""
        return batch.image1, batch.image2, batch.flow

    def forward(self, image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
        """Inverse depth (B, 1, H, W) [1/baseline] of image1 (B, 3, H, W) in [0, 1] by image2 and flow (B, 2, H, W) [px] from 1 to 2."""
        x = self.predict(torch.cat([centred(image1), centred(image2), scaled_flow(flow)], 1))
        return inverse_depth_of(resize(x, image1), self.training)

    def predict(self, x: Tensor) -> Tensor:
        """One channel (B, 1, h, w) of x (B, 8, H, W), before it is made an inverse depth."""
        raise NotImplementedError


class Eigen(PairNetwork):
    """Coarse-to-fine: D. Eigen, C. Puhrsch, R. Fergus, "Depth map prediction from a single image using a multi-scale deep network", NIPS 2014, figure 1.

    The coarse network's fully connected layers fix their own sizes: 8 x 6 cells in, as its convolutions make of 256 x 192, and 64 x 48 out, a quarter; another image
    is brought to them by pooling. Both networks are trained together.
    """

    CELLS, COARSE = (6, 8), (48, 64)

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__(config)
        self.features = nn.Sequential(conv_leaky(INPUTS, 96, 11, stride=4), nn.MaxPool2d(2), conv_leaky(96, 256, 5), nn.MaxPool2d(2),
                                      conv_leaky(256, 384), conv_leaky(384, 384), conv_leaky(384, 256), nn.MaxPool2d(2, ceil_mode=True))
        cells, coarse = self.CELLS[0] * self.CELLS[1], self.COARSE[0] * self.COARSE[1]
        self.whole = nn.Sequential(nn.Linear(256 * cells, 4096), nn.LeakyReLU(LEAK), nn.Dropout(0.5), nn.Linear(4096, coarse))
        for layer in (self.whole[0], self.whole[-1]):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
            nn.init.zeros_(layer.bias)
        self.fine = nn.Sequential(conv_leaky(INPUTS, 63, 9, stride=2), nn.MaxPool2d(2))
        self.refine = nn.Sequential(conv_leaky(64, 64, 5), Conv(64, 1, 5))
        start_typical(self.refine[-1])

    def predict(self, x: Tensor) -> Tensor:
        """At a quarter of the size."""
        cells = F.adaptive_avg_pool2d(self.features(x), self.CELLS)
        coarse = self.whole(cells.flatten(1)).view(-1, 1, *self.COARSE)
        fine = self.fine(x)
        return self.refine(torch.cat([fine, resize(coarse, fine)], 1))


class DispNet(PairNetwork):
    """N. Mayer et al., "A large dataset to train convolutional networks for disparity, optical flow, and scene flow estimation", CVPR 2016, table 1 (DispNet).

    The coarse predictions are passed on to the finer levels, as published; only the finest is compared with the truth, as with all networks here.
    """

    ENCODER = ((64, 7), (128, 5), (256, 5), (512, 3), (512, 3), (1024, 3))     # channels and kernel of each level's first convolution, all of stride 2
    DECODER = (512, 256, 128, 64, 32)

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__(config)
        self.encoder, before = nn.ModuleList(), INPUTS
        for level, (channels, kernel) in enumerate(self.ENCODER):
            second = [conv_leaky(channels, channels)] if level >= 2 else []
            self.encoder.append(nn.Sequential(conv_leaky(before, channels, kernel, stride=2), *second))
            before = channels
        self.upwards, self.merge, self.predictions = nn.ModuleList(), nn.ModuleList(), nn.ModuleList([Conv(before, 1)])
        for channels, (skipped, _) in zip(self.DECODER, reversed(self.ENCODER[:-1])):
            self.upwards.append(UpConv(before, channels, 4))
            self.merge.append(conv_leaky(channels + skipped + 1, channels))
            self.predictions.append(Conv(channels, 1))
            before = channels
        for prediction in self.predictions:
            start_typical(prediction)

    def predict(self, x: Tensor) -> Tensor:
        """At half the size."""
        levels = []
        for part in self.encoder:
            x = part(x)
            levels.append(x)
        prediction = self.predictions[0](x)
        for up, merge, predict, skipped in zip(self.upwards, self.merge, self.predictions[1:], reversed(levels[:-1])):
            x = merge(torch.cat([resize(leaky(up(x)), skipped), skipped, resize(prediction, skipped)], 1))
            prediction = predict(x)
        return prediction


class SmallEncDec(PairNetwork):
    """The reduced encoder-decoder that has about as many parameters as Global-Local (section 4.2 of its paper)."""

    ENCODER = ((16, 7), (32, 5), (54, 3), (128, 3))
    DECODER = (128, 64, 32, 16)

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__(config)
        widths = [INPUTS, *(channels for channels, _ in self.ENCODER)]
        self.encoder = nn.ModuleList(conv_leaky(before, channels, kernel, stride=2) for before, (channels, kernel) in zip(widths, self.ENCODER))
        skipped = [*reversed(widths[1:-1]), 0]
        before = [widths[-1], *(a + b for a, b in zip(self.DECODER, skipped))]
        self.decoder = nn.ModuleList(conv_leaky(a, b) for a, b in zip(before, self.DECODER))
        self.last = Conv(self.DECODER[-1], 1)
        start_typical(self.last)

    def predict(self, x: Tensor) -> Tensor:
        """At full size."""
        levels = [x]
        for part in self.encoder:
            levels.append(part(levels[-1]))
        x = levels[-1]
        for part, finer in zip(self.decoder[:-1], reversed(levels[1:-1])):
            x = torch.cat([part(resize(x, finer)), finer], 1)
        return self.last(self.decoder[-1](resize(x, levels[0])))
