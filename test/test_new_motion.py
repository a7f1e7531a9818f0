"""Laws of giving pairs another motion: what comes out is a pair as true as what went in."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pair_support import identical, wavy_pairs
from torch.nn import functional as F

from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning import new_motion
from depth_ros.learning.pairs import PairBatch


@pytest.fixture
def pairs() -> PairBatch:
    """Pairs with smooth images, whose motion may be found by eye."""
    pairs = wavy_pairs(64)
    smooth = F.interpolate(torch.rand(64, 3, 3, 4, generator=torch.Generator().manual_seed(1)), size=(24, 32), mode='bicubic').clamp(0, 1)
    return dataclasses.replace(pairs, image1=smooth, inverse_depth=pairs.inverse_depth / 6)


def changed(pairs: PairBatch, share: float = 1.0) -> tuple[PairBatch, torch.Tensor]:
    """The pairs moved anew, and which of them did move."""
    random = torch.Generator().manual_seed(2)
    made = new_motion.change(pairs, [new_motion.draw(share, random) for _ in range(len(pairs))])
    return made, (made.T_2_1 != pairs.T_2_1).flatten(1).any(1)


def test_the_exact_flow_of_a_new_motion_is_the_projection_of_depth_and_motion(pairs):
    made, moved = changed(pairs)
    projected, _ = induced_flow(torch.where(made.valid, made.inverse_depth, 1.0)[:, 0].reciprocal(), made.K, made.T_2_1)
    assert moved.sum() > 32
    assert torch.allclose(torch.where(made.valid, projected.movedim(-1, 1), 0.0)[moved], made.exact_flow[moved], atol=1e-4)


@pytest.fixture
def half_known(pairs) -> PairBatch:
    """The pairs without the depth of their right halves."""
    valid = pairs.valid.clone()
    valid[..., 16:] = False
    return dataclasses.replace(pairs, valid=valid, inverse_depth=torch.where(valid, pairs.inverse_depth, 0.0), exact_flow=torch.where(valid, pairs.exact_flow, 0.0))


def test_what_has_no_known_depth_moves_like_the_rest(half_known):
    made, moved = changed(half_known)
    assert moved.sum() > 8 and (made.exact_flow.abs().sum(1, keepdim=True)[~made.valid] == 0).all()
    length = made.flow.norm(dim=1, keepdim=True)
    for one, known in zip(length[moved], made.valid[moved]):
        assert one[~known].max() < 2 * one[known].max() + 1


def test_what_has_no_known_depth_does_not_decide_which_motions_are_too_large(pairs, half_known, monkeypatch):
    monkeypatch.setattr(new_motion, '_LEAST_SEEN', 0.2)
    whole, half = changed(pairs)[1], changed(half_known)[1]
    assert half.sum() > 0.8 * whole.sum()


def test_new_motions_are_motions_of_one_baseline(pairs):
    made, _ = changed(pairs)
    R = made.T_2_1[:, :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3), atol=1e-5) and torch.allclose(made.T_2_1[:, :3, 3].norm(dim=1), torch.ones(64), atol=1e-5)


def test_the_second_image_shows_what_the_first_did_where_flow_leads(pairs):
    made, moved = changed(pairs)
    back, inside = warp_by_flow(made.image2, made.exact_flow.movedim(1, -1))
    difference = (back - made.image1).abs().mean(1)[moved][inside[moved]]
    assert difference.median() < 0.01 and difference.quantile(0.95) < 0.08


def test_the_estimators_errors_are_taken_over(pairs):
    error = 0.3 * torch.randn(pairs.flow.shape, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    made, moved = changed(dataclasses.replace(pairs, flow=pairs.exact_flow + error))
    known = pairs.valid.expand_as(error) & moved[:, None, None, None]
    assert torch.allclose((made.flow - made.exact_flow)[known], error[known], atol=1e-4)


def test_only_the_wanted_share_moves(pairs):
    none, moved = changed(pairs, share=0.0)
    assert not moved.any() and identical(none, pairs)
    assert 0.2 < changed(pairs, share=0.5)[1].float().mean() < 0.7


def test_shapes_of_depth_stay_what_they_were(pairs):
    made, moved = changed(pairs)
    both = made.valid & pairs.valid
    for i in moved.nonzero()[:, 0].tolist():
        ratio = (made.inverse_depth / pairs.inverse_depth)[i][both[i]]
        assert torch.allclose(ratio, ratio[:1], rtol=1e-4)
