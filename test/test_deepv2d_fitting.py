"""The DeepV2D networks learn: some steps on views of slanted, textured walls take most of the error away, in depth and in motion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow, sample
from depth_ros.models.deepv2d import LIVE, DeepV2D
from depth_ros.models.deepv2d_motion import MeasuredFlow, MotionEstimate, align, keyframe_edges

pytestmark = pytest.mark.usefixtures('one_thread')
HEIGHT, WIDTH, WALLS = 64, 80, 2
K = torch.tensor([[[64.0, 0.0, 39.5], [0.0, 64.0, 31.5], [0.0, 0.0, 1.0]]]).expand(WALLS, 3, 3)
MAPS_K = resize_intrinsics(K, 0.25, 0.25)
EDGES = keyframe_edges(3)


def walls() -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, 3, H, W) of a keyframe and two views of a wall each, the keyframe's depth (B, H, W), and poses (B, 3, 4, 4), the keyframe's the identity."""
    g = torch.Generator().manual_seed(4)
    texture = sum(torch.nn.functional.interpolate(torch.rand(WALLS, 3, HEIGHT // s, WIDTH // s, generator=g), (HEIGHT, WIDTH), mode='bicubic') / 3 for s in (4, 8, 16))
    normal = torch.nn.functional.normalize(torch.tensor([[0.4, 0.1, 1.0], [-0.3, 0.3, 1.0]]), dim=1)
    depth = 2.0 / (pinhole.rays(HEIGHT, WIDTH, K) * normal[:, None, None]).sum(-1)      # the plane normal . X = 2
    poses = se3.exp(torch.randn(WALLS, 3, 6, generator=g) * torch.tensor([0.15, 0.15, 0.15, 0.04, 0.04, 0.04]))
    poses[:, 0] = torch.eye(4)
    images = [texture]
    for T in poses[:, 1:].unbind(1):
        homography = K @ (T[:, :3, :3] + T[:, :3, 3:] @ normal[:, None] / 2.0) @ torch.linalg.inv(K)
        pixels, _ = pinhole.dehomogenise(pinhole.apply_to_grid(torch.linalg.inv(homography), HEIGHT, WIDTH))
        images.append(sample(texture, pixels)[0])
    return torch.stack(images, 1).clamp(0, 1), depth, poses


def maps_of(features: torch.nn.Module, images: Tensor) -> Tensor:
    return features.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def learned_depth(share: float | None) -> float:
    """Least error of log depth within twenty steps, flow to the views being wild for such a share of pixels; None: no flow is shown."""
    torch.manual_seed(0)
    network, (images, depth, poses) = DeepV2D(replace(LIVE, planes=24, depth_flow=share is not None, correction=0)), walls()       # a correction alone would learn two walls
    exact = induced_flow(depth[:, None, 1::4, 1::4].expand(-1, 2, -1, -1), MAPS_K[:, None], poses[:, 1:])[0] + pinhole.pixel_grid(HEIGHT // 4, WIDTH // 4)
    wild = torch.rand(exact.shape[:-1], generator=torch.Generator().manual_seed(1)) < (share or 0.0)
    measured = MeasuredFlow(torch.where(wild[..., None], 2.0 * exact, exact), torch.zeros(exact.shape[:-1]))
    optimiser = torch.optim.Adam(network.depth.parameters(), lr=2e-3)
    errors = []
    for _ in range(20):
        found = network.depth(maps_of(network.depth, images), MAPS_K, poses[:, 1:], network.planes(images), (HEIGHT, WIDTH), measured=measured).depths[-1]
        loss = (found.log() - depth.log()).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert min(errors) < 0.25 * errors[0] and min(errors) < 0.1
    return min(errors)


def test_depth_is_learned_and_better_with_flow_half_of_which_is_wild():
    alone, half, none = learned_depth(None), learned_depth(0.5), learned_depth(1.0)
    assert half < 0.7 * min(alone, none)


def flow_error(estimate: MotionEstimate, depth: Tensor, poses: Tensor) -> list[Tensor]:
    """Mean difference [px of the maps] of the flow of estimated and true motions, after each iteration."""
    known, intrinsics = depth.expand(-1, 2, -1, -1), MAPS_K[:, None]
    truth = induced_flow(known, intrinsics, poses[:, 1:])[0]
    return [(induced_flow(known, intrinsics, i.T_cam_world[:, 1:])[0] - truth).abs().sum(-1).mean() for i in estimate.iterations]


def test_motion_is_learned():
    torch.manual_seed(0)
    network, (images, depth, poses) = DeepV2D(replace(LIVE, measured_flow=False, motion_reach=3)), walls()
    depth = depth[:, None, 1::4, 1::4]
    optimiser = torch.optim.Adam(network.motion.parameters(), lr=2e-3)
    still = torch.eye(4).expand_as(poses)
    last = []
    for _ in range(35):
        found = align(network.motion, maps_of(network.motion, images), depth, MAPS_K, still, EDGES)
        errors = flow_error(found, depth, poses)
        optimiser.zero_grad()
        torch.stack(errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.motion.parameters(), 1.0)
        optimiser.step()
        last.append(float(errors[-1].detach()))
    assert min(last) < 0.3 * last[0]
