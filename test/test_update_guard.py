"""What an online learner's loss is, and what its guard makes of changed weights."""

from __future__ import annotations

import global_local_support as support
import numpy as np
import pytest
import torch

from depth_ros.engines.online_loss import log_error, robust
from depth_ros.engines.replay_buffer import observation
from depth_ros.engines.update_guard import Checked, Errors, Verdict, does_harm, helps, judge
from depth_ros.frames import DepthResult, Scale


def test_outliers_hardly_pull():
    """A third of wild errors, all on one side, pulls less than a quarter of what the others do."""
    error = torch.full((1, 1, 1, 30), 0.1)
    error[..., :9] = 2.0
    error.requires_grad_()
    robust(error, torch.ones_like(error)).backward()
    assert error.grad[..., :9].abs().sum() < 0.25 * error.grad[..., 9:].abs().sum()


def test_the_log_error_is_that_of_depth_and_nothing_where_nothing_is_known():
    z = torch.full((1, 1, 1, 3), 0.1)                   # 10 baselines of 0.2 m: 2 m
    observed = torch.tensor([[[[1.0, 2.0, 0.0]]]])
    torch.testing.assert_close(log_error(z, observed, torch.full((1, 1, 1, 1), 0.2))[0, 0, 0], torch.tensor([2.0, 1.0, 1.0]).log())


def errors(withheld, away, rehearsed, count: int = 5) -> Errors:
    """The same of each observation."""
    return Errors((withheld,) * count, (away,) * count, rehearsed)


@pytest.mark.parametrize('new, verdict', [
    ((0.08, 0.09, 0.10), Verdict.BETTER),
    ((0.08, 0.15, 0.10), Verdict.WORSE),        # better on the hits, worse elsewhere
    ((0.15, 0.05, 0.10), Verdict.WORSE),
    ((0.101, 0.101, 0.10), Verdict.TOLERATED),
    ((0.10, 0.10, 0.10), Verdict.TOLERATED),    # the same is no gain
    ((0.05, 0.05, 0.15), Verdict.WORSE),        # it forgot
    ((0.08, None, None), Verdict.BETTER),
])
def test_both_the_hits_and_the_rest_of_the_image_must_agree(new, verdict):
    old = errors(*(0.1 if error is not None else None for error in new))
    assert judge(errors(*new), old, old, tolerance=0.03, forgetting=0.1).verdict is verdict


def test_better_than_before_is_not_enough_if_the_frozen_network_is_better_still():
    verdict = judge(errors(0.15, 0.1, None), errors(0.2, 0.1, None), errors(0.1, 0.1, None), 0.03, 0.1)
    assert verdict.verdict is Verdict.WORSE and 'frozen' in verdict.reason


@pytest.mark.parametrize('rise, verdict', [
    ((0.1, 0.1, 0.1, 0.1, 0.1), Verdict.WORSE),             # each a little worse
    ((0.5, 0.01, 0.0, -0.01, 0.0), Verdict.TOLERATED),      # the same mean from a single one: chance
    ((0.5, -0.4, 0.4, -0.3, 0.3), Verdict.TOLERATED),       # and from some up, some down
    ((0.2, 0.05, 0.1, 0.15, 0.0), Verdict.WORSE),           # most of them by more than they vary
    ((0.5, None, None, None, None), Verdict.WORSE),         # one alone does not tell how it varies
])
def test_a_rise_that_may_be_chance_is_no_harm(rise, verdict):
    old = Errors((0.2,) * 5, (0.1,) * 5, None)
    new = Errors(tuple(None if r is None else 0.2 + r for r in rise), (0.1,) * 5, None)
    assert new.withheld > 0.29 and judge(new, old, old, tolerance=0.1, forgetting=0.1).verdict is verdict


def test_a_rise_that_may_be_chance_is_no_gain_either_however_much_the_rest_gains():
    old, new = Errors((0.2,) * 5, (0.1,) * 5, None), Errors((0.1,) * 5, (0.3, 0.05, 0.1, 0.1, 0.1), None)
    found = judge(new, old, old, tolerance=0.1, forgetting=0.1)
    assert new.total < old.total and found.verdict is Verdict.TOLERATED and 'chance' in found.reason


def watched(sure: float, unsure: float, count: int = 12) -> list:
    """Pairs without hits whose depth from flow has these confidences on the left and on the right half."""
    result, depth = support.wall()
    confidence = np.where(np.arange(support.SIZE[0]) < support.SIZE[0] // 2, np.float32(sure), np.float32(unsure)) * np.ones_like(depth)
    guide = DepthResult(result.pair.current, depth, depth > 0, confidence, Scale.METRIC)
    return [observation(result, support.T_REF_CUR, np.zeros_like(depth), guide=guide) for _ in range(count)]


def off_by(bias: float) -> Checked:
    """A network that begins with depth from flow and moves it by that, as far as it may."""
    network = support.network('pose_aware', prior=True)
    with torch.no_grad():
        network.local.refiner.last.bias[0] = bias
    return Checked(network)


def test_straying_where_flow_is_unsure_is_harm_too():
    frozen, pairs = off_by(0.0), watched(0.93, 0.3)
    assert does_harm(off_by(0.3), frozen, pairs, 6, 0.05) and not helps(off_by(0.3), frozen, pairs, 6, 0.05)
    assert not does_harm(off_by(0.05), frozen, pairs, 6, 0.05) and helps(off_by(0.05), frozen, pairs, 6, 0.05)


def test_weights_do_not_come_back_where_nothing_tells_whether_they_are_good():
    frozen = off_by(0.0)
    assert not helps(frozen, frozen, watched(0.3, 0.3), 6, 0.05)
    assert not helps(frozen, frozen, [*watched(0.3, 0.3, 11), *watched(0.9, 0.9, 1)], 6, 0.05)
    assert not helps(frozen, frozen, watched(0.9, 0.9, 11), 6, 0.05)
