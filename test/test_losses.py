"""Laws of the losses."""

from __future__ import annotations

import math

import pytest
import torch
from pair_support import MemoryStore, wavy_pairs
from torch import nn
from torch.nn import functional as F

from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning import losses, objectives
from depth_ros.learning.batches import Batches
from depth_ros.learning.recipe import Recipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_masked_mean_is_the_mean_of_what_is_chosen():
    x = torch.rand(3, 4, 5, generator=generator())
    valid = torch.rand(x.shape, generator=generator(1)) < 0.5
    assert torch.isclose(losses.masked_mean(x, valid), x[valid].mean())


def test_the_masked_mean_of_nothing_is_zero_and_differentiable():
    x = torch.full((2, 3), float('nan'), requires_grad=True)
    mean = losses.masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean == 0.0 and (x.grad == 0.0).all()


def test_l1_counts_the_supervised_pixels_only_and_its_gradient_lives_there():
    z = torch.rand(2, 1, 6, 7, generator=generator(), requires_grad=True)
    supervised = torch.zeros(z.shape, dtype=torch.bool)
    supervised[0, 0, 1, 2] = supervised[1, 0, 3, 3] = True
    truth = torch.where(supervised, z.detach() + 0.25, float('nan'))
    loss = losses.inverse_depth_l1(z, truth, supervised)
    loss.backward()
    assert torch.isclose(loss, torch.tensor(0.25))
    assert torch.equal(z.grad != 0, supervised) and torch.isfinite(z.grad).all()


def test_l1_does_not_depend_on_how_many_pixels_are_supervised():
    z, truth = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5)
    few = torch.zeros(z.shape, dtype=torch.bool)
    few[..., 0, 0] = True
    assert losses.inverse_depth_l1(z, truth, few) == losses.inverse_depth_l1(z, truth, torch.ones_like(few)) == 0.5


def test_the_log_difference_does_not_depend_on_the_unit():
    z, truth = 0.1 + torch.rand(2, 2, 1, 6, 7, generator=generator())
    supervised = torch.rand(z.shape, generator=generator(1)) < 0.5
    near, far = losses.log_depth_l1(z, truth, supervised), losses.log_depth_l1(z / 20, truth / 20, supervised)
    assert torch.isclose(near, far) and torch.isclose(losses.log_depth_l1(1.1 * truth, truth, supervised), torch.tensor(1.1).log())


def test_a_plane_that_faces_the_camera_is_smooth_and_a_slanted_one_costs_its_slope():
    image = torch.full((1, 3, 9, 12), 0.3)
    assert losses.edge_aware_smoothness(torch.full((1, 1, 9, 12), 0.7), image) == 0.0
    slanted = 0.01 * torch.arange(12.0) - 0.03 * torch.arange(9.0)[:, None]
    assert torch.isclose(losses.edge_aware_smoothness(slanted[None, None], image), torch.tensor(0.04))


def test_a_step_of_depth_costs_less_where_the_image_has_one():
    z = torch.zeros(1, 1, 8, 8)
    z[..., 4:] = 1.0
    beside, at = torch.zeros(2, 1, 3, 8, 8)
    beside[..., 2:], at[..., 4:] = 1.0, 1.0
    assert torch.isclose(losses.edge_aware_smoothness(z, at), losses.edge_aware_smoothness(z, beside) * math.exp(-1.0))


def test_the_terms_of_the_whole_loss_are_weighted_as_published():
    z, truth = torch.rand(2, 2, 1, 6, 7, generator=generator())
    image, supervised = torch.rand(2, 3, 6, 7, generator=generator(1)), torch.rand(2, 1, 6, 7, generator=generator(2)) < 0.3
    one, twice = losses.global_local_loss(z, truth, supervised, image), losses.global_local_loss(z, truth, supervised, image, 10.0, 4.0)
    assert torch.isclose(one['l1'], 5.0 * losses.inverse_depth_l1(z, truth, supervised)) and torch.isclose(one['smooth'], 2.0 * losses.edge_aware_smoothness(z, image))
    assert all(torch.isclose(twice[name], 2.0 * one[name]) for name in one)


def test_images_are_like_themselves_and_unlike_their_negatives():
    image = torch.rand(2, 3, 10, 12, generator=generator())
    assert losses.structural_dissimilarity(image, image).abs().max() < 1e-5
    assert losses.structural_dissimilarity(image, 1 - image).mean() > 0.5


def test_the_exact_flow_costs_nothing_at_any_level_and_an_offset_its_length():
    flow, valid = torch.rand(2, 2, 16, 24, generator=generator()), torch.ones(2, 1, 16, 24, dtype=torch.bool)
    levels = [F.avg_pool2d(flow, 8), F.avg_pool2d(flow, 4)]
    assert losses.pyramid_flow(levels, flow, valid) < 1e-6
    moved = [level + torch.tensor([3.0, 4.0])[:, None, None] for level in levels]
    assert torch.isclose(losses.pyramid_flow(moved, flow, valid), torch.tensor(5.0 * (1 + 2 / 4)))        # twice the weight, a quarter of the pixels
    broken = torch.where(valid, flow, float('nan'))
    valid[:, :, :8] = False
    broken[:, :, :8] = float('nan')
    assert losses.pyramid_flow(levels, broken, valid) < 1e-6


@pytest.fixture
def slanted_wall() -> dict[str, torch.Tensor]:
    """A textured wall seen from two places: image2 is what image1's pixels are drawn from."""
    height, width = 24, 32
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing='ij')
    z = (0.2 + 0.005 * u + 0.002 * v)[None, None]
    K = torch.tensor([[[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]]])
    T = torch.eye(4)[None].clone()
    T[0, 0, 3] = -1.0
    image2 = 0.5 + 0.25 * torch.stack([torch.sin(0.3 * u), torch.cos(0.25 * v), torch.sin(0.2 * (u + v))])[None]
    flow, _ = induced_flow(1 / z[:, 0], K, T)
    return {'image1': warp_by_flow(image2, flow)[0], 'image2': image2, 'z': z, 'K': K, 'T_2_1': T}


def test_photometric_loss_is_least_at_the_true_depth(slanted_wall):
    true = losses.photometric(**slanted_wall)
    wrong = [losses.photometric(**{**slanted_wall, 'z': slanted_wall['z'] * factor}) for factor in (0.7, 0.9, 1.1, 1.4)]
    assert true < 1e-3 < min(wrong) / 2


def test_photometric_loss_pulls_depth_towards_the_truth(slanted_wall):
    z = (slanted_wall['z'] * 1.1).requires_grad_()
    losses.photometric(**{**slanted_wall, 'z': z}).backward()
    assert z.grad.sum() > 0.0       # too near: descending makes inverse depth smaller


def test_a_network_without_ground_truth_gains_nothing_by_moving_everything_away():
    """The smoothness that it is trained with is of depth's shape, not of its scale: 0 would be smoothest."""
    drawn = Batches(MemoryStore(wavy_pairs(4)), Recipe(batch=4)).of_step(0)
    shape = torch.rand(drawn.supervised.shape, generator=torch.Generator().manual_seed(3)) + 0.5

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def inputs(self, pairs):
            return pairs.T_2_1,

        def forward(self, T_2_1):
            return self.scale * shape

        def motion(self, T_2_1):
            return T_2_1

    objective = objectives.build(Recipe(objective='photometric', model='unsupervised', smooth_weight=1.0))
    near, far = (objective.terms(Scaled(scale), drawn, torch.ones_like)['smooth'] for scale in (1.0, 0.01))
    assert near > 0.1 and torch.allclose(near, far, rtol=1e-4)
