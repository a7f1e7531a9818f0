"""Blocks that several networks share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TYPICAL = 0.05                  # [1/baseline] inverse depth of usual pairs: the baseline is a fiftieth to a tenth of the depth
FLOW_GAIN = 10.0                # flow in tenths of the width: usual ones are then of the order of 1, as the other inputs are
NEAREST = 10.0                  # [1/baseline] nothing is taken to be nearer than a tenth of the baseline
_FARTHEST = 1e-4                # [1/baseline]
_KNEE = 0.03                    # [1/baseline] see inverse_depth_of
LEAK = 0.1                      # slope of every Leaky ReLU below zero
_LANES = 8                      # the CPU's convolutions are written for channels in multiples of this; others take a path half as fast


class Pairs(Protocol):
    """What a batch of image pairs has that a network may look at (learning/pairs.py holds the batch itself)."""

    image1: Tensor      # (B, 3, H, W) in [0, 1], the image whose depth is wanted
    image2: Tensor      # (B, 3, H, W) in [0, 1]
    flow: Tensor        # (B, 2, H, W) [px], 1 -> 2
    K: Tensor           # (B, 3, 3) [px]
    T_2_1: Tensor       # (B, 4, 4), translation of norm 1
    prior: Tensor | None    # (B, 2, H, W), inverse depth [1/baseline] of image1 that a filter knows beforehand, 0 where none, and its confidence in [0, 1]


class Conv(nn.Conv2d):
    """Convolution that keeps the size, or divides it by the stride and rounds up; weights drawn for a Leaky ReLU to follow (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=bias)

    def reset_parameters(self) -> None:
        """Variance kept from layer to layer; no bias at first."""
        nn.init.kaiming_normal_(self.weight, a=LEAK)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class UpConv(nn.ConvTranspose2d):
    """Transposed convolution to twice the size; weights drawn for a Leaky ReLU to follow, a quarter of them meeting in each pixel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride=2, padding=(kernel - 1) // 2, output_padding=kernel % 2, bias=bias)

    def reset_parameters(self) -> None:
        """Variance kept from layer to layer; no bias at first."""
        inputs, _, *kernel = self.weight.shape
        nn.init.normal_(self.weight, std=nn.init.calculate_gain('leaky_relu', LEAK) / math.sqrt(inputs * math.prod(kernel) / 4))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def leaky(x: Tensor) -> Tensor:
    """The Leaky ReLU of all networks here."""
    return F.leaky_relu(x, LEAK)


def conv_leaky(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution and Leaky ReLU."""
    return nn.Sequential(Conv(inputs, outputs, kernel, stride, dilation), nn.LeakyReLU(LEAK))


def coordinates(like: Tensor) -> Tensor:
    """X and Y of the pixels of `like` (B, C, H, W) as channels (B, 2, H, W), -1 and 1 at the image's edges (CoordConv, Liu et al. 2018)."""
    batch, _, height, width = like.shape
    x = (torch.arange(width, dtype=like.dtype, device=like.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=like.dtype, device=like.device) * 2 + 1) / height - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(batch, 2, height, width)


def scaled_flow(flow: Tensor) -> Tensor:
    """Flow (B, 2, H, W) [px] as a share of the width, so that the same weights serve images of any size."""
    return flow * (FLOW_GAIN / flow.shape[-1])


def centred(image: Tensor) -> Tensor:
    """Image in [0, 1] brought to [-1, 1]."""
    return 2 * image - 1


def inverse_depth_of(x: Tensor, training: bool) -> Tensor:
    """Positive inverse depth [1/baseline] of a network's last channel, whatever its value; only in use, not in training, is it held below NEAREST.

    Softplus with its knee a little below the usual inverse depths: linear for near points, where flow and inverse depth are proportional, and logarithmic for
    far ones, so that a step of the optimiser never makes one negative and its gradient falls with the value itself, never to nothing as a clamp's would.
    """
    z = _FARTHEST + _KNEE * F.softplus(x)
    return z if training else z.clamp(max=NEAREST)


def start_typical(last: nn.Conv2d) -> None:
    """Make a last convolution before inverse_depth_of start near TYPICAL at every pixel."""
    with torch.no_grad():
        last.weight.mul_(0.3)
        last.bias.fill_(math.log(math.expm1(TYPICAL / _KNEE)))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, h, w) brought to the height and width of `like`, bilinearly."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=False)


def pooled(x: Tensor, step: int) -> Tensor:
    """Means of x (B, C, H, W) over squares of step x step; its last column and row are repeated to fill the last squares."""
    if step == 1:
        return x
    height, width = (int(n) for n in x.shape[-2:])
    if height % step or width % step:       # ONNX Runtime divides squares that stand out otherwise than torch
        x = F.pad(x, (0, -width % step, 0, -height % step), mode='replicate')
    return F.avg_pool2d(x, step)


def enlarged(x: Tensor, step: int, like: Tensor) -> Tensor:
    """x (B, C, h, w) of squares of step x step as `pooled` makes them, bilinearly, at the height and width of `like`."""
    height, width = (int(n) for n in x.shape[-2:])
    return F.interpolate(x, size=(step * height, step * width), mode='bilinear', align_corners=False)[..., :like.shape[-2], :like.shape[-1]]


def local_network(x: Tensor, banks: list[Tensor], last: nn.Conv2d | None = None) -> Tensor:
    """x (B, C, H, W) through filter banks [(B, out, in, 3, 3), ...] of its own for every sample, a Leaky ReLU after each, then through `last`: (B, out, H, W).

    All samples go at once, as groups of one convolution over (1, B C, H, W). Channels are padded with zeros to multiples of 8, which Leaky ReLU and
    zero filters leave zero, and `last` goes the same way: 4-20-10-20-1 forwards and backwards at 16 x 96 x 128 on one CPU core then takes 180 ms. Without
    the padding it takes 360; as separate convolutions of the samples 310; as unfold and matrix product over 900.
    """
    batch, channels, height, width = x.shape
    if batch == 1:
        return _one_sample(x, [bank[0] for bank in banks], last)
    x = F.pad(x, (0, 0, 0, 0, 0, -channels % _LANES)).reshape(1, -1, height, width)
    for bank in banks:
        x = F.leaky_relu(_grouped(x, bank, None), LEAK, inplace=True)
    outputs = banks[-1].shape[1]
    if last is not None:
        outputs = last.out_channels
        x = _grouped(x, last.weight.expand(batch, -1, -1, -1, -1), last.bias.expand(batch, -1))
    return x.view(batch, -1, height, width)[:, :outputs]


def _one_sample(x: Tensor, banks: list[Tensor], last: nn.Conv2d | None) -> Tensor:
    """local_network for one sample with filter banks [(out, in, 3, 3), ...], as plain convolutions: faster for one, and what a graph can be exported of."""
    for bank in banks:
        x = leaky(F.conv2d(x, bank, padding=1))
    return x if last is None else last(x)


def _grouped(x: Tensor, bank: Tensor, bias: Tensor | None) -> Tensor:
    """x (1, B C, H, W), C padded, through filters (B, out, in, 3, 3) and biases (B, out) of each sample: (1, B C', H, W), C' padded."""
    wide = F.pad(bank, (0, 0, 0, 0, 0, -bank.shape[2] % _LANES, 0, -bank.shape[1] % _LANES))
    bias = None if bias is None else F.pad(bias, (0, -bias.shape[1] % _LANES)).flatten()
    return F.conv2d(x, wide.flatten(0, 1), bias, padding=1, groups=len(bank))


class FilterGenerator(nn.Module):
    """One linear layer from parameters (B, P) to 3 x 3 filter banks [(B, out, in, 3, 3), ...] without bias terms (Global-Local, section 3.1).

    The linear layer's own bias holds an ordinary network, drawn as one would draw it alone; what the parameters add starts at half of its variance when they
    are of unit size. So the activations keep their size whatever the parameters are at first, and yet depend on them from the first step.
    """

    def __init__(self, parameters: int, channels: list[int]) -> None:
        super().__init__()
        self.shapes = [(out, in_, 3, 3) for in_, out in zip(channels[:-1], channels[1:])]
        self.linear = nn.Linear(parameters, sum(math.prod(shape) for shape in self.shapes))
        spread = torch.cat([torch.full((math.prod(shape),), nn.init.calculate_gain('leaky_relu', LEAK) / math.sqrt(9 * shape[1])) for shape in self.shapes])
        with torch.no_grad():
            self.linear.bias.copy_(torch.randn_like(spread) * spread * math.sqrt(2 / 3))
            self.linear.weight.copy_(torch.randn_like(self.linear.weight) * spread[:, None] / math.sqrt(3 * parameters))

    def forward(self, parameters: Tensor) -> list[Tensor]:
        """Filter banks of each sample."""
        parts = self.linear(parameters).split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes)]
