"""PWC-Net: D. Sun, X. Yang, M.-Y. Liu, J. Kautz, "PWC-Net: CNNs for optical flow using pyramid, warping, and cost volume", CVPR 2018.

With dense connections in the decoders and two more convolutions at each level of the pyramid, as the authors' PyTorch weights have it (pwc_weights.py loads them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.geometry.warp import warp_by_flow
from depth_ros.models.layers import Conv, Pairs, UpConv, conv_leaky, leaky
from depth_ros.settings import setting

PYRAMID = 16, 32, 64, 96, 128, 196      # channels of levels 1 to 6, each of half the size of the one before
DECODER = 128, 128, 96, 64, 32
CONTEXT = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))    # channels and dilation
REACH = 4                               # [px of a level] of the cost volume
FINEST = 2                              # level at which flow comes out: a quarter of the size
SCALE = 20.0                            # [px] of a unit that the decoders give
_STEP = 2 ** len(PYRAMID)               # sizes of images must be multiples of this


@dataclass(frozen=True)
class PwcNetConfig:
    """The size of the network."""

    share: float = setting(1.0, 'of the published numbers of channels', '', 0.1, 1.0)

    def channels(self, published: int) -> int:
        """How many there are where the published network has so many."""
        return max(round(self.share * published), 1)


class PwcNet(nn.Module):
    """Optical flow of image pairs, from the coarsest level of a feature pyramid to the finest, where each corrects what the one before found."""

    def __init__(self, config: PwcNetConfig = PwcNetConfig()) -> None:
        super().__init__()
        self.config = config
        widths = [3, *map(config.channels, PYRAMID)]
        self.pyramid = nn.ModuleList(nn.Sequential(conv_leaky(a, b, stride=2), conv_leaky(b, b), conv_leaky(b, b)) for a, b in zip(widths, widths[1:]))
        self.decoders = nn.ModuleList(_Decoder(level, config) for level in range(len(PYRAMID), FINEST - 1, -1))
        layers, channels = [], self.decoders[-1].outputs
        for published, dilation in CONTEXT:
            layers.append(conv_leaky(channels, config.channels(published), dilation=dilation))
            channels = config.channels(published)
        self.context = nn.Sequential(*layers, _last(channels))

    def inputs(self, batch: Pairs) -> tuple[Tensor, Tensor]:
        """What forward takes of a batch."""
        return batch.image1, batch.image2

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Flow (B, 2, H, W) [px] from image1 to image2 (B, 3, H, W), RGB in [0, 1], of any one size."""
        return self._full_size(self.levels(image1, image2)[-1], image1)

    def both_ways(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Flow from image1 to image2 (B, 3, H, W), then that from image2 to image1: (2 B, 2, H, W) [px]; features are computed once."""
        features = self._features(torch.cat([image1, image2]))
        other = [torch.cat([f[len(image1):], f[:len(image1)]]) for f in features]
        return self._full_size(self._decoded(features, other, image1)[-1], image1)

    def levels(self, image1: Tensor, image2: Tensor) -> list[Tensor]:
        """Flow (B, 2, h, w) of each level from the coarsest to the finest, [px] of the images: what training compares."""
        features = self._features(torch.cat([image1, image2]))
        return self._decoded([f[:len(image1)] for f in features], [f[len(image1):] for f in features], image1)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features of levels 1 to 6, of images brought to a size that can be halved so often."""
        size = [(n + _STEP - 1) // _STEP * _STEP for n in images.shape[-2:]]     # in an exported graph, a negative number would be divided towards zero
        x = images if list(images.shape[-2:]) == size else F.interpolate(images, size, mode='bilinear', align_corners=False)
        found = []
        for level in self.pyramid:
            x = level(x)
            found.append(x)
        return found

    def _decoded(self, features1: list[Tensor], features2: list[Tensor], image: Tensor) -> list[Tensor]:
        """See levels; `image` (..., H, W) has the size that flow is measured in."""
        found, x, passed = [], None, (None, None)
        for decoder in self.decoders:
            x = decoder(features1[decoder.level - 1], features2[decoder.level - 1], *passed)
            found.append(decoder.predict(x))
            if decoder.level > FINEST:
                passed = decoder.up_flow(found[-1]), decoder.up_features(x)
        found[-1] = found[-1] + self.context(x)
        height, width = (n * 2 ** FINEST for n in found[-1].shape[-2:])
        unit = found[-1].new_tensor([SCALE * image.shape[-1] / width, SCALE * image.shape[-2] / height])[:, None, None]
        return [flow * unit for flow in found]

    @staticmethod
    def _full_size(flow: Tensor, image: Tensor) -> Tensor:
        return F.interpolate(flow, image.shape[-2:], mode='bilinear', align_corners=False)


class _Decoder(nn.Module):
    """One level: cost volume after warping, densely connected convolutions, flow; and what the next finer level gets of it."""

    def __init__(self, level: int, config: PwcNetConfig) -> None:
        super().__init__()
        self.level = level
        channels = (2 * REACH + 1) ** 2
        if level < len(PYRAMID):
            channels += config.channels(PYRAMID[level - 1]) + 4
        self.convs = nn.ModuleList()
        for published in DECODER:
            self.convs.append(conv_leaky(channels, config.channels(published)))
            channels += config.channels(published)
        self.outputs = channels
        self.predict = _last(channels)
        if level > FINEST:
            self.up_flow, self.up_features = UpConv(2, 2, 4), UpConv(channels, 2, 4)

    def forward(self, features1: Tensor, features2: Tensor, flow: Tensor | None, coarser: Tensor | None) -> Tensor:
        """Features (B, outputs, h, w) of both images' (B, C, h, w), the coarser level's flow (B, 2, h, w) [SCALE px] and two of its channels, brought to this size."""
        if flow is None:
            x = leaky(cost_volume(features1, features2))
        else:
            warped, inside = warp_by_flow(features2, flow.movedim(1, -1) * (SCALE / 2 ** self.level))
            x = torch.cat([leaky(cost_volume(features1, warped * inside[:, None])), features1, flow, coarser], 1)
        for conv in self.convs:
            x = torch.cat([conv(x), x], 1)
        return x


def cost_volume(features1: Tensor, features2: Tensor, reach: int = REACH) -> Tensor:
    """Mean over channels of features1 (B, C, h, w) times features2 displaced by up to `reach` px: (B, (2 reach + 1)^2, h, w), rows of displacements one by one.

    Zero beyond the edges. One displacement after the other: as one product over an unfolded tensor it takes twenty times as long on a CPU, and 81 times the memory.
    """
    height, width = features1.shape[-2:]
    padded = F.pad(features2, (reach,) * 4)
    displaced = (padded[..., y:y + height, x:x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1))
    return torch.stack([(features1 * other).mean(1) for other in displaced], 1)


def _last(channels: int) -> Conv:
    """The convolution that gives flow; it starts small, for a level's first guess should be no motion."""
    conv = Conv(channels, 2)
    with torch.no_grad():
        conv.weight.mul_(0.1)
    return conv
