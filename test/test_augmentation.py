"""Laws of augmentation: what it makes of an exact pair is an exact pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from pair_support import wavy_pairs

from depth_ros.geometry import se3
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning import augmentation
from depth_ros.learning.pairs import PairBatch

FLIPS = torch.tensor(list(itertools.product([False, True], repeat=2)))


def flow_error(pairs: PairBatch) -> torch.Tensor:
    """Largest distance [px] between the pairs' flow and the projection of their depth and motion."""
    depth = torch.where(pairs.valid, pairs.inverse_depth, 1.0)[:, 0].reciprocal()
    projected, _ = induced_flow(depth, pairs.K, pairs.T_2_1)
    return (torch.where(pairs.valid, projected.movedim(-1, 1) - pairs.flow, 0.0)).abs().amax()


def test_the_exact_flow_of_flipped_pairs_is_still_the_projection_of_their_depth_and_motion():
    pairs = wavy_pairs(4)
    flipped = augmentation.flip(pairs, *FLIPS.T)
    assert flow_error(pairs) < 1e-4 and flow_error(flipped) < 1e-4
    assert torch.equal(flipped.flow[0], pairs.flow[0]) and not any(torch.equal(flipped.flow[i], pairs.flow[i]) for i in (1, 2, 3))


def test_flipped_motions_are_motions():
    flipped = augmentation.flip(wavy_pairs(4), *FLIPS.T)
    rotation = flipped.T_2_1[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-6) and torch.allclose(torch.linalg.det(rotation), torch.ones(4))
    assert torch.allclose(flipped.T_2_1[:, :3, 3].norm(dim=1), torch.ones(4))


def test_flipping_twice_is_nothing():
    pairs = wavy_pairs(4)
    twice = augmentation.flip(augmentation.flip(pairs, *FLIPS.T), *FLIPS.T)
    for name in ('image1', 'image2', 'flow', 'exact_flow', 'inverse_depth', 'valid', 'visible', 'T_2_1'):
        assert torch.equal(getattr(twice, name), getattr(pairs, name)), name
    assert torch.allclose(twice.K, pairs.K)


def test_turning_by_half_a_turn_moves_the_image_as_rotating_it_does():
    pairs = wavy_pairs(1)
    turned = augmentation.flip(pairs, torch.tensor([True]), torch.tensor([True]))
    assert torch.equal(turned.image1, pairs.image1.rot90(2, (-2, -1)))


def test_half_of_the_pairs_are_mirrored_and_half_turned():
    random = torch.Generator().manual_seed(0)
    drawn = torch.tensor([augmentation.draw_flips(random) for _ in range(4000)])
    shares = [(drawn == torch.tensor(flip)).all(1).float().mean().item() for flip in itertools.product([False, True], repeat=2)]
    assert all(abs(share - 0.25) < 0.03 for share in shares)


@pytest.mark.parametrize('offsets', [None, torch.tensor([[0.0, 0.0], [0.1, -0.04], [-0.15, 0.16]])])
def test_the_flow_of_zoomed_pairs_is_still_the_projection_of_their_depth_and_motion(offsets):
    pairs = wavy_pairs(3, 48, 64)
    zoomed = augmentation.zoom(pairs, torch.tensor([[1.0, 1.0], [1.3, 1.1], [1.5, 1.5]]), offsets)
    # Interpolating between pixels errs by the curvature of depth and flow.
    assert flow_error(zoomed) < 0.15 < 1.0 < (zoomed.flow - pairs.flow).abs().amax()
    assert torch.allclose(zoomed.flow[0], pairs.flow[0], atol=1e-4) and torch.equal(zoomed.valid[0], pairs.valid[0])


def test_a_zoom_keeps_the_centre_and_magnifies_about_it():
    pairs = wavy_pairs(1, 25, 33)
    zoomed = augmentation.zoom(pairs, torch.tensor([[2.0, 2.0]]))
    assert torch.allclose(zoomed.image1[..., 12, 16], pairs.image1[..., 12, 16], atol=1e-5)
    assert torch.allclose(zoomed.image1[..., 12, 20], pairs.image1[..., 12, 18], atol=1e-5)
    assert zoomed.valid.dtype is torch.bool


def test_a_window_off_the_centre_shows_what_is_there_and_moves_the_principal_point():
    pairs = wavy_pairs(1, 25, 33)
    middle, aside = (augmentation.zoom(pairs, torch.tensor([[2.0, 2.0]]), torch.tensor([[x, 0.0]])) for x in (0.0, 0.25))
    assert torch.allclose(aside.image1[..., 12, 16], pairs.image1[..., 12, 24], atol=1e-5)
    assert torch.allclose(aside.K - middle.K, torch.tensor([[[0.0, 0.0, -16.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]), atol=1e-4)


@pytest.mark.parametrize('factor, offset, complaint', [(0.9, 0.0, 'at least 1'), (1.25, 0.11, 'inside the image')])
def test_a_zoom_that_would_look_outside_is_refused(factor, offset, complaint):
    with pytest.raises(ValueError, match=complaint):
        augmentation.zoom(wavy_pairs(1), torch.tensor([[factor, 1.0]]), torch.tensor([[offset, 0.0]]))


def test_principal_points_vary_as_far_as_there_is_image():
    random = torch.Generator().manual_seed(0)
    factors = torch.tensor([1.0, 1.25])
    offsets = torch.stack([augmentation.draw_offset(0.2, factors, random) for _ in range(500)])
    assert (offsets[:, 0] == 0).all()                   # nothing was magnified: there is no other window
    moved = offsets[:, 1] * factors[1]                  # in heights of the magnified image, half of which is the middle's
    assert -0.1 <= moved.min() < -0.095 and 0.095 < moved.max() <= 0.1


def test_focal_lengths_vary_within_the_spread_of_the_common_one():
    random = torch.Generator().manual_seed(0)
    factors = torch.stack([augmentation.draw_zoom(1.25, 0.2, random) for _ in range(500)])
    assert 1.0 <= factors.min() < 1.02 and 1.48 < factors.max() <= 1.5
    assert (factors[:, 0] - factors[:, 1]).abs().max() > 0.3
    assert (augmentation.draw_zoom(1.25, 0.0, random) == 1.25).all()


def test_the_flow_of_reduced_pairs_is_still_the_projection_of_their_depth_and_motion():
    pairs = wavy_pairs(3, 48, 64)
    reduced = augmentation.reduce(pairs, 2)
    assert reduced.flow.shape == (3, 2, 24, 32) and flow_error(reduced) < 0.1
    assert reduced.valid.dtype is torch.bool and not reduced.valid[:, :, :2, :2].any() and reduced.valid[:, :, 2:, 2:].float().mean() > 0.9


def test_a_size_that_cannot_be_reduced_evenly_is_refused():
    with pytest.raises(ValueError, match='divisor of 32 and 24'):
        augmentation.reduce(wavy_pairs(1), 5)


def test_a_disturbed_motion_is_a_motion_of_the_same_baseline_that_errs_as_much_as_was_asked():
    pairs = wavy_pairs(200, 8, 8)
    random = torch.Generator().manual_seed(0)
    errors = torch.stack([augmentation.draw_motion_error(0.01, 0.05, random) for _ in range(200)])
    disturbed = augmentation.disturb_motion(pairs, errors)
    assert torch.allclose(disturbed.T_2_1[:, :3, 3].norm(dim=1), torch.ones(200), atol=1e-5)
    turned = se3.log(disturbed.T_2_1 @ se3.inverse(pairs.T_2_1))[:, 3:]
    assert torch.allclose(turned, errors[:, 3:], atol=1e-5) and abs(turned.std() - 0.01) < 0.001
    angle = torch.linalg.cross(disturbed.T_2_1[:, :3, 3], pairs.T_2_1[:, :3, 3]).norm(dim=1)
    assert abs(angle.square().mean().sqrt() - 0.05 * 2 ** 0.5) < 0.01       # two of the three axes turn a direction
    assert torch.equal(disturbed.inverse_depth, pairs.inverse_depth)
