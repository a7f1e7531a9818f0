"""Which range hits an online learner believes, and what it says of those that it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learner_support import QUICK, SHARE, T, feed, hits_on, parameters, same, scene

from depth_ros.engines.observation_gate import ObservationGate
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import State
from depth_ros.engines.replay_buffer import observation


pytestmark = pytest.mark.usefixtures('one_thread')


def test_hits_that_miss_by_a_fifth_to_both_sides_for_long_are_told_as_a_sensor_in_a_wrong_place(start):
    """As a tilted laser's are; no single image is out of the ordinary. The frozen network serves meanwhile."""
    offers, states = [], []
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(100, 110), batches=3)
    assert not same(parameters(offers[-1]), start.model.state_dict())
    for number in range(110, 130):
        result, depth, guide = scene(number)
        learner.observe(result, T, spoiled(depth), np.eye(4), guide)
        states.append(learner.learn(0))
    assert states[0] is not State.HITS and states[-1] is State.HITS and 'TF' in learner.reason
    assert same(parameters(offers[-1]), start.model.state_dict())
    assert feed(learner, range(130, 150), batches=1) is not State.HITS and same(parameters(offers[-1]), parameters(learner.weights()))


def spoiled(depth: np.ndarray) -> np.ndarray:
    """Hits that lie a fifth too far and too near in turn."""
    hits = hits_on(depth, SHARE)
    hits[:, ::2] *= 1.25
    hits[:, 1::2] /= 1.25
    return hits


def distrusting(start, offers: list) -> OnlineLearner:
    """A learner that has learned from good hits, and then seen spoiled ones for long."""
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(100, 110), batches=3)
    for number in range(110, 130):
        result, depth, guide = scene(number)
        learner.observe(result, T, spoiled(depth), np.eye(4), guide)
        learner.learn(0)
    assert same(parameters(offers[-1]), start.model.state_dict())
    return learner


@pytest.mark.parametrize('every', [0, 4, 9, 'elsewhere'])
def test_what_missed_before_says_nothing_once_no_hits_can_be_compared_any_more(start, every):
    """Then depth from flow decides on the learned weights; hits that come rarely, every so many pairs, have not ended."""
    offers = []
    learner = distrusting(start, offers)
    for number in range(130, 180):
        result, depth, guide = scene(number)
        hits = None
        if every == 'elsewhere':            # where flow tells no depth
            guide = replace(guide, valid=guide.valid & (hits_on(depth, SHARE) == 0), depth=np.where(hits_on(depth, SHARE) > 0, 0, guide.depth).astype(np.float32))
            hits = spoiled(depth)
        elif every and number % every == 0:
            hits = spoiled(depth)
        learner.observe(result, T, hits, np.eye(4), guide)
        learner.learn(0)
        if isinstance(every, int) and every or number < 135:
            assert same(parameters(offers[-1]), start.model.state_dict())
    assert same(parameters(offers[-1]), start.model.state_dict()) == (every in (4, 9))


def test_rare_hits_that_miss_are_distrusted_all_the_same():
    gate = ObservationGate()
    for number in range(200):
        if number % 15:
            gate.pass_over()
        else:
            result, depth, guide = scene(number)
            gate.contradiction(observation(result, T, spoiled(depth), guide=guide), QUICK)
        assert gate.distrusts == (number >= 75)         # the first tells how rarely they come, and five after it what they miss by


def test_good_hits_after_a_silence_are_learned_from_at_once(start):
    offers = []
    learner = distrusting(start, offers)
    for number in range(130, 160):
        result, _, guide = scene(number)
        learner.observe(result, T, None, np.eye(4), guide)
        learner.learn(0)
    rollbacks = learner.progress.rollbacks
    assert feed(learner, range(160, 164), batches=0) is State.LEARNING
    assert learner.progress.rollbacks == rollbacks and not same(parameters(offers[-1]), start.model.state_dict())


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
