"""Lamps, an even glow, and reflections on glossy surfaces: how bright a point of a synthetic scene looks.

Diffuse light is Lambert's; a gloss adds what lies in the direction of mirror reflection, as soft spots of light all around (B. T. Phong, "Illumination for
computer generated pictures", CACM 1975), and the scene itself may be mirrored by a share of its light. Reflections move otherwise than surfaces do, which misleads matching as in life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_REACH = 2.5        # [m] at which a lamp has lost half of its light


@dataclass(frozen=True)
class Lights:
    """The light in S scenes; S is 1 or the number of cameras."""

    ambient: Tensor         # (S,) from everywhere
    suns: Tensor            # (S, K, 4) far lights: unit direction, strength
    lamps: Tensor           # (S, L, 4) place [m], strength near it
    spots: Tensor           # (S, M, 5) what glossy surfaces mirror: unit direction, sharpness (exponent), brightness

    def to(self, device: torch.device | str) -> Lights:
        """The same on another device."""
        return Lights(*(getattr(self, f.name).to(device) for f in fields(self)))

    def pick(self, scenes: Tensor | slice) -> Lights:
        """The light of some of the scenes; where all have the same, that."""
        if len(self.ambient) == 1:
            return self
        return Lights(*(getattr(self, f.name)[scenes] for f in fields(self)))

    def seen_from(self, T_world_cam: Tensor) -> Lights:
        """The light in the frames of cameras T_world_cam (B, 4, 4)."""
        back, batch = T_world_cam[:, :3, :3].mT, len(T_world_cam)

        def turned(values: Tensor, origin: Tensor | float = 0.0) -> Tensor:
            return torch.cat([(values[..., :3] - origin).expand(batch, -1, 3) @ back.mT, values[..., 3:].expand(batch, -1, -1)], -1)
        return Lights(self.ambient.expand(batch), turned(self.suns), turned(self.lamps, T_world_cam[:, None, :3, 3]), turned(self.spots))

    def diffuse(self, camera: Tensor, point: list[Tensor], normal: list[Tensor]) -> Tensor:
        """Brightness (P,) of surfaces with unit normals at points, each three planes (P,), in the frame of the camera (P,) int64 that the light is seen from."""
        suns = ([_of(self.suns[:, k, i], camera) for i in range(4)] for k in range(self.suns.shape[1]))
        brightness = _of(self.ambient, camera) + sum(_dot(normal, sun[:3]).clamp(min=0.0) * sun[3] for sun in suns)
        for lamp in range(self.lamps.shape[1]):
            x, y, z, strength = (_of(self.lamps[:, lamp, i], camera) for i in range(4))
            towards = [x - point[0], y - point[1], z - point[2]]
            squared = _dot(towards, towards)
            fading = 1.0 / (squared.sqrt() * (1.0 + squared * _REACH ** -2))
            brightness = brightness + strength * fading * _dot(normal, towards).clamp(min=0.0)
        return brightness

    def mirrored(self, camera: Tensor, ray: list[Tensor], normal: list[Tensor]) -> Tensor:
        """Brightness (P,) of what surfaces mirror towards the camera along rays (three planes (P,), any length)."""
        length, along = _dot(ray, ray).sqrt(), 2.0 * _dot(ray, normal)
        away = [(r - along * n) / length for r, n in zip(ray, normal)]
        brightness = torch.zeros_like(length)
        for spot in range(self.spots.shape[1]):
            x, y, z, sharpness, bright = (_of(self.spots[:, spot, i], camera) for i in range(5))
            brightness = brightness + bright * torch.exp(sharpness * (_dot(away, [x, y, z]) - 1.0))      # as good as a power of the cosine
        return brightness


def mirrored_share(head_on: Tensor, cosine: Tensor) -> Tensor:
    """Share (P,) of the light that a surface mirrors where a ray falls in with that cosine (P,), given its share head on (P,); none where that is 0.

    C. Schlick, "An inexpensive BRDF model for physically-based rendering", Computer Graphics Forum 1994, equation 24.
    """
    return torch.where(head_on > 0.0, head_on + (1.0 - head_on) * (1.0 - cosine) ** 5, 0.0)


def sunlight(directions: Tensor, strengths: Tensor, ambient: float) -> Lights:
    """Far lights from directions (K, 3) with strengths (K,) over an even glow; nothing is mirrored."""
    suns = torch.cat([directions / directions.norm(dim=1, keepdim=True), strengths[:, None]], 1)
    return Lights(torch.full((1,), ambient), suns[None], torch.zeros(1, 0, 4), torch.zeros(1, 0, 5))


def lights_together(lights: Sequence[Lights]) -> Lights:
    """The lights of single scenes as those of many; where one has fewer lamps or spots, dark ones stand in."""
    ambient = torch.cat([light.ambient for light in lights])
    return Lights(ambient, *(pad_sequence([getattr(light, name)[0] for light in lights], batch_first=True) for name in ('suns', 'lamps', 'spots')))


def _of(values: Tensor, camera: Tensor) -> Tensor:
    """The value (P,) of each point's camera, or the only one (1,)."""
    return values if len(values) == 1 else values[camera]


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
