"""Augmentation that moves the second camera elsewhere: the depth of a pair is known, so it is known what flow any other motion would give.

A network that has to find the motion by itself otherwise learns the few thousand motions of a store by heart. What the estimator got wrong in the pair's flow
is added to the new one, so that its errors stay those of real flow; the second image is the first one, moved.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning.pairs import PairBatch
from depth_ros.learning.scenes import MAX_ANGLE

_SPREAD = 0.4                       # of the log of the baseline's change
_USUAL = 0.015, 0.3                 # [1/baseline] bounds of the median inverse depth
_MOST_FLOW, _LEAST_SEEN = 0.14, 0.45    # mean flow as a share of the width, share of image 1 that image 2 shows: beyond, a pair keeps its own motion
_LARGEST_ERROR = 0.03               # of the flow that is taken over, as a share of the width
_INVERSIONS = 4                     # steps of the fixed point that turns a flow round; flow is smooth, so they converge fast


@dataclasses.dataclass(frozen=True)
class Motion:
    """A pair's draws."""

    wanted: bool
    stretch: float          # factor on the baseline
    direction: Tensor       # (3,) of norm 1
    turn: Tensor            # (3,) [rad], in multiples of the median inverse depth
    orbit: float            # share of the turn that keeps what is seen in view


def draw(share: float, generator: torch.Generator) -> Motion:
    """Whether and how a pair moves anew; as hands and wheels do, sideways, forward, and turning up to several times as far as translation shows."""
    chance, forward, orbits, orbit = torch.rand(4, generator=generator).tolist()
    normal = torch.randn(8, generator=generator)
    direction = F.normalize(normal[:3] * torch.tensor([1.0, 0.8, (0.3, 1.0, 2.0)[int(3 * forward)]]), dim=0)
    turn = normal[3:6] * torch.tensor([1.0, 1.0, 0.6]) * math.exp(0.8 * normal[6].item())
    return Motion(chance < share, math.exp(_SPREAD * normal[7].item()), direction, turn, 0.5 + 0.7 * orbit if orbits < 0.3 else 0.0)


def change(batch: PairBatch, motions: list[Motion]) -> PairBatch:
    """The pairs with the motions that are wanted and sensible; flow, second image, inverse depth and masks follow."""
    usual = torch.stack([z[v].median() if v.any() else z.new_tensor(_USUAL[0]) for z, v in zip(batch.inverse_depth, batch.valid)])
    stretch = usual.new_tensor([m.stretch for m in motions])
    stretch = (usual * stretch).clamp(*_USUAL) / usual.clamp(min=1e-6)
    inverse_depth = batch.inverse_depth * stretch[:, None, None, None]
    T = _motion(motions, usual * stretch)
    # Where depth is not known the pair's usual one carries image and flow along: any other would tear the image there.
    depth = torch.where(batch.valid, inverse_depth, (usual * stretch).view(-1, 1, 1, 1))[:, 0].reciprocal()
    exact, in_front = induced_flow(depth, batch.K, T)
    valid = batch.valid & in_front[:, None]
    width, height = exact.shape[2], exact.shape[1]
    target = exact + pinhole.pixel_grid(height, width, like=exact)
    inside = ((target >= 0) & (target <= target.new_tensor([width - 1, height - 1]))).all(-1)[:, None]
    bound = _LARGEST_ERROR * width
    exact = exact.movedim(-1, 1)
    error = torch.where(batch.valid, batch.flow - batch.exact_flow, 0.0).clamp(-bound, bound)
    moved = {'T_2_1': T, 'inverse_depth': torch.where(valid, inverse_depth, 0.0), 'valid': valid, 'visible': valid & inside, 'exact_flow': torch.where(valid, exact, 0.0),
             'flow': exact + error, 'image2': _moved(batch.image1, exact)}
    seen = (valid & inside).flatten(1).float().mean(1)
    length = torch.where(valid, exact.norm(dim=1, keepdim=True), 0.0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    taken = usual.new_tensor([m.wanted for m in motions], dtype=torch.bool) & (seen > _LEAST_SEEN) & (length < _MOST_FLOW * width)
    return dataclasses.replace(batch, **{name: torch.where(taken.view(-1, *[1] * (new.ndim - 1)), new, getattr(batch, name)) for name, new in moved.items()})


def _motion(motions: list[Motion], usual: Tensor) -> Tensor:
    """T_2_1 (B, 4, 4) of the draws for pairs with that median inverse depth (B,)."""
    direction = torch.stack([m.direction for m in motions]).to(usual)
    turn = torch.stack([m.turn for m in motions]).to(usual) * usual[:, None]
    orbit = usual.new_tensor([m.orbit for m in motions]) * usual
    turn = turn + orbit[:, None] * torch.stack([direction[:, 1], -direction[:, 0], torch.zeros_like(orbit)], 1)
    T = se3.exp(torch.cat([torch.zeros_like(turn), turn.clamp(-MAX_ANGLE, MAX_ANGLE)], 1))
    T[:, :3, 3] = direction
    return T


def _moved(image: Tensor, flow: Tensor) -> Tensor:
    """Image (B, C, H, W) carried along its flow (B, 2, H, W) [px]; nothing hides anything."""
    back = -flow
    for _ in range(_INVERSIONS):
        back = -warp_by_flow(flow, back.movedim(1, -1))[0]
    return warp_by_flow(image, back.movedim(1, -1))[0]
