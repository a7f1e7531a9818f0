"""Depth from flow that guides the learner: metric, carried along where the motion is known, silent where it is not."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest

from depth_ros.engines.depth_filter import InverseDepth, filled, halved
from depth_ros.engines.flow_guide import FlowGuide, prior_of
from depth_ros.frames import Scale


def after(result):
    """The same a tenth of a second later."""
    return replace(result, pair=replace(result.pair, current=replace(result.pair.current, stamp=result.pair.current.stamp + 10 ** 8)))


def error(found, depth):
    sure = found.confidence >= 0.5
    assert sure.mean() > 0.5
    return np.median(np.abs(np.log(found.depth[sure] / depth[sure])))


def test_depth_is_in_metres_of_the_odometry():
    result, depth = support.wall()
    found = FlowGuide().step(result, support.T_REF_CUR)
    assert found.scale is Scale.METRIC and found.frame is result.pair.current and error(found, depth) < 0.02
    stretched = support.T_REF_CUR.copy()
    stretched[0, 3] *= 2.0
    assert error(FlowGuide().step(result, stretched), 2.0 * depth) < 0.02


@pytest.mark.parametrize('motion', [None, np.full((4, 4), np.nan), np.eye(4)], ids=['unknown', 'nan', 'none'])
def test_without_a_motion_there_is_no_depth(motion):
    assert FlowGuide().step(support.wall()[0], motion) is None


def test_what_was_known_is_carried_to_the_next_pair_where_the_camera_moved_little():
    """The same images again, with another reference: the second pair tells what the first did, with more confidence."""
    result, depth = support.wall()
    guide = FlowGuide()
    first = guide.step(result, support.T_REF_CUR, np.eye(4))
    later = after(replace(result, pair=replace(result.pair, reference=replace(result.pair.reference, stamp=1))))
    second = guide.step(later, support.T_REF_CUR, np.eye(4))
    assert second.confidence.mean() > first.confidence.mean() and error(second, depth) < 0.02
    far = np.eye(4)
    far[0, 3] = 3.0
    third = guide.step(after(later), support.T_REF_CUR, far)
    np.testing.assert_array_equal(third.confidence, first.confidence)       # begun anew


def test_a_camera_at_rest_grows_no_surer_by_looking_again():
    result, _ = support.wall()
    guide = FlowGuide()
    first = guide.step(result, support.T_REF_CUR, np.eye(4))
    for _ in range(20):
        result = after(result)
        found = guide.step(result, support.T_REF_CUR, np.eye(4))
    assert found.confidence.mean() < first.confidence.mean() + 0.01


@pytest.mark.parametrize('size', [(20, 30), (21, 31)])
def test_half_the_size_is_the_mean_of_what_is_known(size):
    value, information = np.ones(size, np.float32), np.full(size, 50.0, np.float32)
    value[:, 15:] = information[:, 15:] = 0.0
    small = halved(InverseDepth(value, information))
    assert small.value.shape == (10, 15)
    np.testing.assert_allclose(small.value[small.information > 0], 1.0, rtol=1e-5)
    assert small.information[0, 0] == 50.0 and small.information[0, -1] == 0.0
    np.testing.assert_allclose(filled(small), 1.0, rtol=0.02)


def test_a_prior_is_the_same_by_either_way():
    result, _ = support.wall()
    found = FlowGuide().step(result, support.T_REF_CUR)
    quick = prior_of(found, 0.5, found.frame.size)
    gap = found.valid.copy()
    gap[0, 0] = False
    slow = prior_of(replace(found, valid=gap), 0.5, found.frame.size)
    assert quick.dtype == slow.dtype == np.float32 and (slow[0, 0] == 0).all()
    np.testing.assert_allclose(slow[gap], quick[gap], rtol=1e-6)
