"""The losses of DeepV2D against small cases worked out by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning import deepv2d_losses as losses
from depth_ros.models.deepv2d_motion import MotionEstimate, MotionIteration, keyframe_edges

K = torch.tensor([[[20.0, 0.0, 3.5], [0.0, 20.0, 2.5], [0.0, 0.0, 1.0]]])
DEPTH = torch.full((1, 2, 6, 8), 2.0)


def poses(*twists) -> torch.Tensor:
    return torch.stack([torch.eye(4), *(se3.exp(torch.tensor(t)) for t in twists)])[None]


def estimate(T, residual=None, confidence=None) -> MotionEstimate:
    """What a motion module would have told about the motion that it ended with."""
    flow, valid = induced_flow(DEPTH[:, :1], K[:, None], T[:, 1:] @ se3.inverse(T[:, :1]))
    residual = torch.zeros(1, 1, 2, 6, 8) if residual is None else residual
    confidence = torch.full((1, 1, 2, 6, 8), 0.5) if confidence is None else confidence
    pixels = flow.detach() + pinhole.pixel_grid(6, 8) + residual.movedim(2, -1)
    step = MotionIteration(T, residual, confidence, valid, pixels)
    return MotionEstimate(T, [step], *keyframe_edges(2), torch.tensor([True]), torch.ones(1, 2, dtype=torch.bool))


def test_depth_of_the_earlier_hourglass_counts_half():
    truth, valid = torch.full((1, 2, 2), 4.0), torch.tensor([[[True, True], [True, False]]])
    first, last = torch.full((1, 2, 2), 6.0), torch.tensor([[[5.0, 4.0], [4.0, 99.0]]])
    terms = losses.depth_terms([first, last], truth, valid)
    assert terms['depth'].item() == pytest.approx(0.5 * 2.0 + 1 / 3)
    assert losses.depth_terms([last], truth, valid, 'inverse_depth')['depth'].item() == pytest.approx((1 / 4 - 1 / 5) / 3)
    assert losses.depth_terms([last], truth, valid, 'log_depth')['depth'].item() == pytest.approx(math.log(5 / 4) / 3)


@pytest.mark.parametrize('compare, slope', [('depth', 1.0), ('inverse_depth', 1 / 25), ('log_depth', 1 / 5)])
def test_the_gradient_of_a_depth_is_that_of_what_is_compared_and_nothing_where_truth_is_missing(compare, slope):
    depth = torch.tensor([[[5.0, 3.0], [4.0, 7.0]]], requires_grad=True)
    valid = torch.tensor([[[True, False], [False, False]]])
    truth = torch.where(valid, 4.0, float('nan'))
    losses.depth_terms([depth], truth, valid, compare)['depth'].backward()
    torch.testing.assert_close(depth.grad, torch.tensor([[[slope, 0.0], [0.0, 0.0]]]))


def test_depth_is_smooth_only_where_truth_is_missing():
    depth = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, 5.0]]])
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool)
    mean = 15 / 6
    assert losses.smoothness(depth, ~nothing).item() == pytest.approx(((1 + 2 + 1 + 3) / 4 + 1 / 3) / mean)
    some = nothing.clone()
    some[:, :, 1:] = True
    assert losses.smoothness(depth, some).item() == pytest.approx((2.5 + 0.5) / mean)
    assert losses.smoothness(depth, nothing) == 0.0
    assert losses.depth_terms([depth], torch.ones_like(depth), ~nothing)['smooth'] == 0.0


def test_true_poses_have_no_loss_but_that_of_doubt():
    T = poses([0.1, -0.05, 0.02, 0.01, 0.02, -0.01])
    terms = losses.motion_terms(estimate(T), DEPTH, K, T, flow_weight=1.0)
    expected = {'motion': 0.0, 'residual': 0.0, 'confidence': 0.01 * math.log(2), 'flow': 0.0, 'certainty': math.log(2)}      # of both axes, half each
    assert {name: round(value.item(), 6) for name, value in terms.items()} == {name: round(value, 6) for name, value in expected.items()}


def test_a_shift_counts_by_its_flow_in_pixels():
    """0.3 m at 2 m with a focal length of 20 px are 3 px, an eighth of a pixel beyond the knee. A thirtieth of it is inside the parabola: 0.1^2 / (2 * 0.25)."""
    for metres, expected in ((0.3, 3.0 - 0.125), (0.01, 0.02)):
        terms = losses.motion_terms(estimate(poses([metres, 0.0, 0.0, 0.0, 0.0, 0.0])), DEPTH, K, poses([0.0] * 6))
        assert terms['motion'].item() == pytest.approx(expected, rel=1e-4)


def test_what_poses_leave_unexplained_is_squared_and_weighted_by_confidence():
    residual, confidence = torch.zeros(1, 1, 2, 6, 8), torch.full((1, 1, 2, 6, 8), 0.25)
    residual[:, :, 0], residual[:, :, 1] = 3.0, -1.0
    confidence[:, :, 1] = 1.0
    terms = losses.motion_terms(estimate(poses([0.0] * 6), residual, confidence), DEPTH, K, poses([0.0] * 6), flow_weight=2.0)
    assert terms['residual'].item() == pytest.approx(0.01 * (0.25 * 9 + 1), rel=1e-5)
    assert terms['flow'].item() == pytest.approx(2.0 * (3.0 + 1.0 - 0.25), rel=1e-5)


def test_only_the_largest_confidences_are_pulled():
    confidence = torch.linspace(0.1, 0.9, 2 * 120 * 160).view(1, 1, 2, 120, 160).requires_grad_()
    losses.sureness(confidence).backward()
    pulled = confidence.grad.flatten(3) != 0
    assert pulled.sum(3).tolist() == [[[2048, 2048]]]
    assert pulled[..., -2048:].all() and (confidence.grad <= 0).all()
    assert losses.sureness(torch.ones(1, 1, 2, 6, 8)) == 0.0


def test_gradients_of_the_motion_terms_are_the_numeric_ones():
    random = torch.Generator().manual_seed(0)
    true = poses([0.05, 0.0, 0.02, 0.0, 0.01, 0.0]).double()
    depth, K64 = DEPTH.double(), K.double()
    twist = 0.05 * torch.randn(6, generator=random, dtype=torch.float64)
    residual = torch.randn(1, 1, 2, 6, 8, generator=random, dtype=torch.float64)
    confidence = torch.rand(1, 1, 2, 6, 8, generator=random, dtype=torch.float64)

    def total(xi, r, c):
        T = torch.stack([torch.eye(4, dtype=torch.float64), se3.exp(xi)])[None]
        pixels = pinhole.pixel_grid(6, 8, like=r) + r.movedim(2, -1)
        step = MotionIteration(T, r, c, torch.ones(1, 1, 6, 8, dtype=torch.bool), pixels)
        told = MotionEstimate(T, [step, step], *keyframe_edges(2), torch.tensor([True]), torch.ones(1, 2, dtype=torch.bool))
        terms = losses.motion_terms(told, depth, K64, true, 0.5)
        return sum(terms[name] for name in terms if name != 'certainty')       # which is to change confidences alone

    assert torch.autograd.gradcheck(total, (twist.requires_grad_(), residual.requires_grad_(), confidence.requires_grad_()))


def test_a_first_guess_is_compared_by_the_flow_it_induces():
    twist = torch.tensor([[[0.3, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 6]])
    terms = losses.start_terms(twist, DEPTH[:, 0], K, torch.eye(4).expand(1, 2, 4, 4))
    assert terms['start'].item() == pytest.approx(2.875 / 2, rel=1e-4)


def test_losses_keep_their_precision_where_networks_run_in_half():
    T, twist = poses([0.05, -0.02, 0.03, 0.01, 0.02, -0.01]), torch.tensor([[[0.04, -0.01, 0.02, 0.02, 0.01, -0.01]]])
    told = estimate(poses(twist[0, 0].tolist()))

    def terms() -> dict[str, torch.Tensor]:
        return losses.motion_terms(told, DEPTH, K, T, 0.5) | losses.start_terms(twist, DEPTH[:, 0], K, T[:, 1:])

    with torch.autocast('cpu', torch.bfloat16):
        half = terms()
    for name, full in terms().items():
        torch.testing.assert_close(half[name], full)


def test_certainty_is_best_at_the_inverse_variance():
    missed = torch.tensor([0.25, 0.5, 2.0]).view(1, 1, 1, 1, 3).expand(1, 1, 2, 1, 3)
    where = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    best = (0.25 / missed) ** 2         # the knee is a quarter of a pixel
    at = {factor: losses.certainty(best * factor, missed, where) for factor in (0.5, 0.8, 0.99)}
    assert at[0.99] < at[0.8] < at[0.5]
    assert losses.certainty(torch.full_like(best, 0.9), missed, where) > at[0.99]
    error = missed.clone().requires_grad_()
    losses.certainty(best.clone().requires_grad_(), error, where).backward()
    assert error.grad is None       # it changes confidences alone
    none = losses.certainty(best, missed, ~where)
    assert none == 0 and torch.isfinite(losses.certainty(best * 0, 1e6 * missed, where))
