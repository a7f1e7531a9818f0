"""FCRN: I. Laina et al., "Deeper depth prediction with fully convolutional residual networks", 3DV 2016: a ResNet-50 encoder, up-projections as decoder.

ResNet-50 as in K. He et al., "Deep residual learning for image recognition", CVPR 2016, table 1, with Leaky ReLU and eight input channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from depth_ros.models.baselines import INPUTS, BaselineConfig, PairNetwork
from depth_ros.models.layers import LEAK, Conv, UpConv, leaky, start_typical

_EXPANSION = 4
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))       # inner channels and number of blocks; each but the first halves the size
_DECODER = (1024, 512, 256, 128, 64)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, outputs, kernel, stride, bias=False), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, and what came in on top of it."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * _EXPANSION
        self.body = nn.Sequential(_conv_norm(inputs, inner, 1), nn.LeakyReLU(LEAK), _conv_norm(inner, inner, 3, stride), nn.LeakyReLU(LEAK),
                                  _conv_norm(inner, outputs, 1))
        self.passed = nn.Identity() if inputs == outputs and stride == 1 else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4 inner, h, w)."""
        return leaky(self.passed(x) + self.body(x))


class UpProjection(nn.Module):
    """Twice the size: two ways through unpooling and 5 x 5 convolution, one of them longer (figure 2 c).

    Unpooling puts each value into the corner of 2 x 2 and zeros elsewhere; with the convolution it is a transposed one of stride 2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.long = nn.Sequential(UpConv(inputs, outputs, 5, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(LEAK), _conv_norm(outputs, outputs, 3))
        self.short = nn.Sequential(UpConv(inputs, outputs, 5, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, 2 h, 2 w)."""
        return leaky(self.long(x) + self.short(x))


class FCRN(PairNetwork):
    """Fully convolutional residual network."""

    def __init__(self, config: BaselineConfig = BaselineConfig()) -> None:
        super().__init__(config)
        blocks, before = [], 64
        for stage, (inner, count) in enumerate(_STAGES):
            for block in range(count):
                blocks.append(Bottleneck(before, inner, 2 if stage > 0 and block == 0 else 1))
                before = inner * _EXPANSION
        self.encoder = nn.Sequential(_conv_norm(INPUTS, 64, 7, 2), nn.LeakyReLU(LEAK), nn.MaxPool2d(3, 2, 1), *blocks)
        self.decoder = nn.Sequential(_conv_norm(before, _DECODER[0], 1), *(UpProjection(a, b) for a, b in zip(_DECODER[:-1], _DECODER[1:])))
        self.last = Conv(_DECODER[-1], 1)
        start_typical(self.last)

    def predict(self, x: Tensor) -> Tensor:
        """At half the size."""
        return self.last(self.decoder(self.encoder(x)))
