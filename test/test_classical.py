"""Depth without learning: each method recovers what its input determines."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depth_ros.geometry import pinhole, se3, warp
from depth_ros.learning import classical
from depth_ros.learning.pairs import PairBatch
from depth_ros.models.pose_head import PoseHead, motion_errors

SIZE = (72, 96)


pytestmark = pytest.mark.usefixtures('one_thread')


def pairs(count: int = 2, noise: float = 0.0, translation: float = 1.0) -> PairBatch:
    """Views of bumpy walls, textured, with the flow of their depth and motion and noise [px] on it."""
    generator = torch.Generator().manual_seed(4)
    height, width = SIZE
    K = torch.tensor([[80.0, 0.0, 47.5], [0.0, 80.0, 35.5], [0.0, 0.0, 1.0]]).expand(count, 3, 3)
    rotation = 0.03 * torch.randn(count, 3, generator=generator)
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 0.3, 0.2], [-0.6, 1.0, -0.3]])[:count], dim=1)
    turned = se3.exp(torch.cat([torch.zeros(count, 3), rotation], 1))
    T = se3.from_rotation_translation(turned[:, :3, :3], translation * direction)
    z = 0.04 + 0.06 * smooth(count, 1, 6, generator)
    flow, _ = warp.induced_flow(1 / z[:, 0], K, T)
    texture = smooth(count, 3, 48, generator)
    image1, inside = warp.warp_by_flow(texture, flow)
    exact = flow.permute(0, 3, 1, 2)
    seen = inside[:, None]
    return PairBatch(image1, texture, exact + noise * torch.randn(exact.shape, generator=generator), z, torch.ones_like(seen), K, T, exact, seen)


def smooth(count: int, channels: int, cells: int, generator: torch.Generator) -> torch.Tensor:
    return F.interpolate(torch.rand(count, channels, cells, cells, generator=generator), size=SIZE, mode='bicubic').clamp(0, 1)


def ratio(z: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    return (z / batch.inverse_depth).log().abs()[batch.visible]


def test_triangulation_with_the_true_motion_is_exact():
    batch = pairs()
    torch.testing.assert_close(classical.Triangulation()(batch), batch.inverse_depth, rtol=1e-3, atol=1e-5)


def test_triangulation_stays_positive_where_flow_contradicts_the_motion():
    batch = pairs()
    batch.flow[:, :, 10:20, 10:20] *= -1
    z = classical.Triangulation()(batch)
    usual = batch.inverse_depth.flatten(1).median(1).values[:, None, None, None]
    assert (z > 0.15 * usual).all() and (z < 12 * usual).all()
    untouched = torch.ones(SIZE, dtype=torch.bool)
    untouched[10:20, 10:20] = False
    torch.testing.assert_close(z[:, :, untouched], batch.inverse_depth[:, :, untouched], rtol=1e-3, atol=1e-5)


def test_triangulation_goes_by_the_motion_it_is_given():
    batch = pairs()
    told = SimpleNamespace(inputs=lambda b: (b.image1, b.image2, b.flow), motion=lambda *_: batch.T_2_1)
    without = dataclasses.replace(batch, T_2_1=torch.eye(4).expand(2, 4, 4))
    torch.testing.assert_close(classical.Triangulation.by(told)(without), classical.Triangulation()(batch))
    torch.manual_seed(0)
    head = PoseHead().eval()
    predicted = dataclasses.replace(batch, T_2_1=head.motion(*head.inputs(batch)).detach())
    torch.testing.assert_close(classical.Triangulation.by(head)(without), classical.Triangulation()(predicted))


def test_the_motion_is_found_from_flow_alone():
    batch = pairs(noise=0.2)
    found = torch.stack([classical.relative_motion(batch.flow[i], batch.K[i]).float() for i in range(2)])
    rotation, translation = motion_errors(found, batch.T_2_1)
    assert rotation.max() < 0.5 and translation.max() < 5


def test_refinement_returns_to_the_motion_that_made_the_matches():
    batch = pairs()
    true, K = batch.T_2_1[0].double().numpy(), batch.K[0].double().numpy()
    start = pinhole.pixel_grid(*SIZE)[::4, ::4].reshape(-1, 2).double().numpy()
    end = start + batch.flow[0].permute(1, 2, 0)[::4, ::4].reshape(-1, 2).double().numpy()
    end[::10] += np.random.default_rng(0).uniform(-20, 20, end[::10].shape)     # wrong matches
    off = se3.exp(torch.tensor([0.0, 0, 0, 0.01, -0.02, 0.01])).double().numpy() @ true
    off[:3, 3] = true[:3, 3] + [0.05, -0.1, 0.1]
    off[:3, 3] /= np.linalg.norm(off[:3, 3])
    errors = [motion_errors(torch.from_numpy(T)[None], torch.from_numpy(true)[None]) for T in (off, classical.refined(off, start, end, K, 0.3))]
    assert errors[0][0] > 1 and errors[0][1] > 3
    assert errors[1][0] < 0.02 and errors[1][1] < 0.2
    assert np.isclose(np.linalg.norm(classical.refined(off, start, end, K, 0.3)[:3, 3]), 1)


@pytest.mark.parametrize('true_motion', [False, True])
def test_structure_from_motion_recovers_depth(true_motion):
    batch = pairs(noise=0.1)
    error = ratio(classical.SfmFlow(true_motion)(batch), batch)
    spread = ratio(torch.full_like(batch.inverse_depth, batch.inverse_depth.median()), batch)
    assert error.median() < 0.05 and error.mean() < 0.5 * spread.mean()


def test_a_rotation_alone_gets_the_usual_depth():
    batch = pairs(1, noise=0.05, translation=1e-3)
    assert classical.relative_motion(batch.flow[0], batch.K[0]) is None
    assert classical.SfmFlow()(batch).unique().numel() == 1


def test_the_dataset_mean_is_the_mean_of_what_is_known():
    batch = pairs()
    batch.valid[0, :, :36] = False
    batch.valid[:, :, :, :10] = False
    mean = classical.DatasetMean.of([batch.pick([0]), batch.pick([1])])
    z = mean(batch.pick([0]))[0, 0]
    torch.testing.assert_close(z[36:, 10:], batch.inverse_depth[:, 0].mean(0)[36:, 10:])
    torch.testing.assert_close(z[:36, 10:], batch.inverse_depth[1, 0, :36, 10:])
    torch.testing.assert_close(z[:, :10], batch.inverse_depth[batch.valid].mean().expand(72, 10))
    batch.valid[:] = False
    for nothing in ([], [batch]):
        with pytest.raises(ValueError, match='expected pairs with depth'):
            classical.DatasetMean.of(nothing)
