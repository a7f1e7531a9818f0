"""Blocks of the DeepV2D networks: feature trunk, residual block, and hourglasses in two and three dimensions.

Source: Teed & Deng, "DeepV2D", appendix F. Every convolution of a residual block or an hourglass comes after its norm and its ReLU. Sizes that cannot be
halved are rounded up, and what comes back up is cropped, so that maps of any size pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.models.layers import centred

NORMS = 'batch', 'group', 'none'
_GROUP = 8                  # channels that share the statistics of a group norm
_BRANCH = 0.3               # a residual branch starts this much smaller than it would alone, so that stacks without norm keep their scale
_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}


def normalisation(kind: str, channels: int, dimensions: int) -> nn.Module:
    """Batch norm as in the paper; group norm, whose statistics are the image's own and so the same in training and in use; or nothing."""
    if kind == 'batch':
        return (nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm3d)(channels)
    if kind == 'group':
        return nn.GroupNorm(max(channels // _GROUP, 1), channels)
    if kind == 'none':
        return nn.Identity()
    raise ValueError(f'expected one of the norms {", ".join(NORMS)}, got {kind!r}')


class Conv3d(nn.Conv3d):
    """Convolution of volumes. For a single small one on a CPU, torch chooses a path that takes six times as long as oneDNN's; in use, not in training, this one does not where there is oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, d, h, w) of x (B, inputs, d, h, w)."""
        usual = torch.is_grad_enabled() or x.device.type != 'cpu' or x.dtype != torch.float32 or torch.onnx.is_in_onnx_export()
        if usual or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


def plain_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dimensions: int = 2) -> nn.Module:
    """Convolution that keeps the size, or divides it by the stride and rounds up; weights for a ReLU before or after it (He et al. 2015), no bias at first."""
    conv = (nn.Conv2d if dimensions == 2 else Conv3d)(inputs, outputs, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity='relu')
    nn.init.zeros_(conv.bias)
    return conv


class NormConv(nn.Sequential):
    """Norm, ReLU, 3 x 3 (x 3) convolution: what the paper calls a convolution inside residual blocks and hourglasses."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = 'batch', dimensions: int = 2) -> None:
        super().__init__(normalisation(norm, inputs, dimensions), nn.ReLU(), plain_conv(inputs, outputs, 3, stride, dimensions))


class Residual(nn.Module):
    """x + two NormConvs of x; with a stride, in the second of them, the shortcut is a 1 x 1 convolution with that stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = 'batch', dimensions: int = 2) -> None:
        super().__init__()
        self.branch = nn.Sequential(NormConv(inputs, outputs, 1, norm, dimensions), NormConv(outputs, outputs, stride, norm, dimensions))
        with torch.no_grad():
            self.branch[1][2].weight.mul_(_BRANCH)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else plain_conv(inputs, outputs, 1, 1, dimensions)
        # The stride of the shortcut, taken before it: on processors without AVX-512, oneDNN's gradient of a strided 1 x 1 convolution of fewer than 8 channels writes beyond its memory.
        self._seen = (..., *[slice(None, None, stride)] * dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, h, w) or (B, outputs, d, h, w) of x."""
        return self.shortcut(x[self._seen]) + self.branch(x)


class Trunk(nn.Sequential):
    """Images (B, 3, H, W) in [0, 1] to features (B, 2 width, ceil(H / 4), ceil(W / 4)): 7 x 7, `blocks` residual blocks, one with stride 2, `blocks` more."""

    def __init__(self, width: int, blocks: int, norm: str) -> None:
        narrow = (Residual(width, width, 1, norm) for _ in range(blocks))
        wide = (Residual(2 * width, 2 * width, 1, norm) for _ in range(blocks))
        super().__init__(plain_conv(3, width, 7, 2), *narrow, Residual(width, 2 * width, 2, norm), *wide)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return super().forward(centred(images))


class Hourglass(nn.Module):
    """One level: a residual block, then half the size with `growth` channels more, the next level, and back, added to what came in.

    The innermost level of a three-dimensional one is a residual block, that of a two-dimensional one a convolution. x is (B, width, [d,] h, w) of any size.
    """

    def __init__(self, levels: int, width: int, growth: int, norm: str, dimensions: int) -> None:
        super().__init__()
        self.pool, wide = _POOL[dimensions], width + growth
        self.own = Residual(width, width, 1, norm, dimensions)
        self.down = NormConv(width, wide, 1, norm, dimensions)
        self.up = NormConv(wide, width, 1, norm, dimensions)
        if levels > 1:
            self.inner: nn.Module = Hourglass(levels - 1, wide, growth, norm, dimensions)
        else:
            self.inner = NormConv(wide, wide, 1, norm, dimensions) if dimensions == 2 else Residual(wide, wide, 1, norm, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        x = self.own(x)
        low = self.up(self.inner(self.down(self.pool(x, 2, ceil_mode=True))))
        return x + cropped(F.interpolate(low, scale_factor=2.0, mode='nearest'), x)


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """x without the last rows, columns and planes that `like` does not have."""
    for dimension in range(2, x.dim()):
        if x.shape[dimension] != like.shape[dimension]:
            x = x.narrow(dimension, 0, like.shape[dimension])
    return x


def standardised(x: Tensor) -> Tensor:
    """Features (B, C, h, w) with mean 0 and deviation 1 in every channel of every image: without it, all pixels of an image correlate with all others."""
    centre = x - x.mean((2, 3), keepdim=True)
    return centre * (centre.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()


def unit(x: Tensor) -> Tensor:
    """Features (B, C, h, w) of length 1 at every pixel."""
    return F.normalize(x, dim=1, eps=1e-6)


def grey_maps(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean grey value (B, 1, h, w) in [0, 1] of images (B, 3, H, W) over the pixels of maps of that size."""
    return F.interpolate(images.mean(1, keepdim=True), size, mode='area')
