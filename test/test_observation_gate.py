"""Which range hits an online learner believes, and what it says of those that it does not."""

from __future__ import annotations

import numpy as np
import pytest
from learner_support import QUICK, SHARE, T, feed, hits_on, parameters, same, scene

from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import State


pytestmark = pytest.mark.usefixtures('one_thread')


def test_hits_that_miss_by_a_fifth_to_both_sides_for_long_are_told_as_a_sensor_in_a_wrong_place(start):
    """As a tilted laser's are; no single image is out of the ordinary. The frozen network serves meanwhile."""
    offers, states = [], []
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(100, 110), batches=3)
    assert not same(parameters(offers[-1]), start.model.state_dict())
    for number in range(110, 130):
        result, depth, guide = scene(number)
        hits = hits_on(depth, SHARE)
        hits[:, ::2] *= 1.25
        hits[:, 1::2] /= 1.25
        learner.observe(result, T, hits, np.eye(4), guide)
        states.append(learner.learn(0))
    assert states[0] is not State.HITS and states[-1] is State.HITS and 'TF' in learner.reason
    assert same(parameters(offers[-1]), start.model.state_dict())
    assert feed(learner, range(130, 150), batches=1) is not State.HITS and same(parameters(offers[-1]), parameters(learner.weights()))


@pytest.mark.parametrize('every', [0, 4])
def test_what_missed_before_says_nothing_once_no_hits_come_any_more(start, every):
    """Where hits end in the midst of distrust, depth from flow decides on the learned weights; hits that come rarely, every so many pairs, have not ended."""
    offers = []
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(100, 110), batches=3)
    for number in range(110, 180):
        result, depth, guide = scene(number)
        hits = hits_on(depth, SHARE)
        hits[:, ::2] *= 1.25
        hits[:, 1::2] /= 1.25
        there = number < 130 or (every and number % every == 0)
        learner.observe(result, T, hits if there else None, np.eye(4), guide)
        learner.learn(0)
        if number in (129, 135):
            assert same(parameters(offers[-1]), start.model.state_dict())
    assert same(parameters(offers[-1]), start.model.state_dict()) == bool(every)


@pytest.mark.parametrize('wild, told', [(0, ''), (3, '34%')])
def test_many_wild_hits_are_told_though_they_are_learned_from(start, wild, told):
    learner = OnlineLearner(start, QUICK)
    for number in range(8):
        result, depth, guide = scene(number)
        hits = hits_on(depth, SHARE)
        for column in range(wild):
            hits[20, column::9] *= 2
        learner.observe(result, T, hits, np.eye(4), guide)
    assert learner.state is State.LEARNING and told in learner.concern and bool(told) == bool(learner.concern)


def test_an_observation_weighs_as_much_as_its_hits_agree_with_flow(start):
    learner = OnlineLearner(start, QUICK)
    result, depth, guide = scene(0)
    hits = hits_on(depth, SHARE)
    hits[20, ::4] *= 3
    learner.observe(result, T, hits, np.eye(4), guide)
    learner.observe(*scene(1)[:1], T, hits_on(depth, SHARE), np.eye(4))
    assert [o.weight for o in learner._intake._buffer.spread(2)] == [pytest.approx(0.75), 1.0]
