"""Which weights an online learner hands out: those that help where the robot is, after a restart as before; and what it does when nobody takes them."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from learner_support import QUICK, SHARE, T, feed, hits_on, parameters, same, scene

from depth_ros.engines import update_guard
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import State
from depth_ros.engines.replay_buffer import observation
from depth_ros.models import checkpoint


pytestmark = pytest.mark.usefixtures('one_thread')


WATCHING = replace(QUICK, watch_every=1, watched=3, anchor=0.0)


def show(learner, numbers, share):
    """A place without hits, whose depth is a share of what was learned, as flow tells."""
    for number in numbers:
        result, _, guide = scene(number)
        learner.observe(result, T, None, np.eye(4), replace(guide, depth=guide.depth * np.float32(share / SHARE)))
        assert learner.learn(1) is State.HITS


def test_what_does_harm_is_not_handed_out_after_a_restart_either_but_is_once_it_helps_again(start, tmp_path):
    learner = OnlineLearner(start, WATCHING)
    feed(learner, range(12), batches=3)
    learned = parameters(learner.weights())
    show(learner, range(20, 23), 1 / SHARE)
    assert learner.progress.serves_frozen and same(parameters(learner.weights()), start.model.state_dict())
    learner.save(tmp_path / 'state.safetensors')
    offers = []
    again = OnlineLearner(start, WATCHING, offers.append)
    again.restore(tmp_path / 'state.safetensors')
    assert same(parameters(again.weights()), start.model.state_dict()) and checkpoint.from_bytes(again.weights()).record['number'] == learner.progress.number
    feed(again, [22])
    assert again.state is State.ROLLED_BACK and 'before the restart' in again.reason
    show(again, range(30, 36), SHARE)
    assert not again.progress.serves_frozen and same(parameters(offers[-1]), learned)


def test_the_frozen_network_is_handed_out_where_learning_does_harm_and_the_learned_one_where_it_helps(start):
    """Learned where hits say one thing, it is of no use in a place that says another, of which only flow tells: there the frozen weights come back."""
    offers = []
    learner = OnlineLearner(start, replace(QUICK, watch_every=1, watched=3, anchor=0.0), offers.append)
    feed(learner, range(12), batches=3)
    learned = parameters(offers[-1])
    assert not same(learned, start.model.state_dict())
    for share, number in ((1 / SHARE, 20), (SHARE, 30)):
        for later in range(6):
            result, depth, guide = scene(number + later)
            learner.observe(result, T, None, np.eye(4), replace(guide, depth=depth * np.float32(share)))
            assert learner.learn(1) is State.HITS
        wanted = start.model.state_dict() if share < 1 else parameters(learner.weights())
        assert same(parameters(offers[-1]), wanted)
    assert [checkpoint.from_bytes(blob).record['number'] for blob in offers] == list(range(1, len(offers) + 1))


def test_weights_that_had_to_go_do_not_come_back_on_the_word_of_what_was_seen_before(start):
    """Pairs of the place where they were good do not outweigh the few that sent them away, or they would come and go with every pair."""
    learner = OnlineLearner(start, WATCHING)
    feed(learner, range(12), batches=3)
    show(learner, range(20, 26), SHARE)         # good, so far
    assert not learner.progress.serves_frozen
    show(learner, range(26, 28), 1 / SHARE)     # turned away
    assert learner.progress.serves_frozen
    rollbacks = learner.progress.rollbacks
    show(learner, range(30, 32), SHARE)
    assert learner.progress.serves_frozen       # one less than `watched`
    show(learner, range(32, 40), SHARE)
    assert not learner.progress.serves_frozen and learner.progress.rollbacks == rollbacks


def test_an_image_is_judged_by_its_hits_though_it_was_looked_at_without_them(start):
    result, depth, guide = scene(0)
    whole = observation(result, T, hits_on(depth, SHARE), guide=guide)
    known = update_guard.Checked(start.model)
    assert known.errors([replace(whole, hits=np.zeros_like(whole.hits))]).withheld is None
    assert known.errors([whole]) == update_guard.Checked(start.model).errors([whole])


def test_a_recording_that_comes_again_with_other_hits_at_the_same_stamps_is_judged_by_those(start):
    result, depth, guide = scene(0)
    laps = [observation(result, T, hits_on(depth, share), guide=guide) for share in (SHARE, 1.3 * SHARE)]
    known = update_guard.Checked(start.model)
    assert [known.errors([lap]) for lap in laps] == [update_guard.Checked(start.model).errors([lap]) for lap in laps]


@pytest.mark.parametrize('kind', [RuntimeError, KeyError])
def test_a_failing_batch_is_told_and_the_thread_goes_on(start, monkeypatch, kind, caplog):
    learner = OnlineLearner(start, replace(QUICK, share=1.0))
    failed, learned, step = threading.Event(), threading.Event(), learner._step

    def fails_once():
        if not failed.is_set():
            failed.set()
            raise kind('no memory left')
        step()
        learned.set()

    monkeypatch.setattr(learner, '_step', fails_once)
    learner.start()
    try:
        feed(learner, range(12))
        assert failed.wait(60) and learned.wait(60)
    finally:
        learner.stop()
    assert learner.progress.rollbacks >= 1 and learner.progress.batches > 0
    assert any(record.exc_info and record.exc_info[0] is kind for record in caplog.records)


def learn_until(learner, condition, most=300):
    for _ in range(most):
        if condition():
            return
        learner.learn(1)
    pytest.fail(f'not met after {most} batches: {learner.progress}')


def test_weights_that_nobody_takes_are_told_and_learning_goes_on_from_them(start):
    taken = []

    def offer(blob):
        if not taken:
            taken.append(None)
            raise KeyError('no publisher')
        taken.append(blob)

    learner = OnlineLearner(start, QUICK, offer)
    feed(learner, range(6))
    learn_until(learner, lambda: taken)
    assert learner.progress.updates == 1 and learner.progress.rollbacks == 0 and 'weights could not be handed out: KeyError' in learner.concern
    assert not same(parameters(learner.weights()), start.model.state_dict())
    learn_until(learner, lambda: len(taken) > 1)
    assert learner.concern == ''


@pytest.mark.parametrize(('changes', 'needed'), [({}, QUICK.withheld_run), ({'withheld_run': 10, 'checks': 3}, 3), ({'withheld_run': 10, 'recent': 5, 'reservoir': 0}, 1)])
def test_nothing_is_handed_out_on_the_word_of_one_image_of_a_run_but_as_soon_as_there_can_be_no_more(start, changes, needed):
    learner = OnlineLearner(start, replace(QUICK, **changes))
    for number in range(20):
        feed(learner, [number], batches=1)
        assert (learner.progress.batches > 0) == (learner.buffered['withheld'] >= needed)
    assert learner.progress.batches > 0


def test_while_weights_are_handed_out_others_need_not_wait_for_the_learner(start):
    asked = []

    def offer(blob):
        other = threading.Thread(target=lambda: asked.append(learner.weights()))
        other.start()
        other.join(60)

    learner = OnlineLearner(start, QUICK, offer)
    feed(learner, range(6))
    learn_until(learner, lambda: learner.progress.updates)
    assert len(asked) == 1


def test_a_changed_rate_holds_at_once_and_none_above_it_survives_a_restart(start, tmp_path):
    learner = OnlineLearner(start, QUICK)
    learner.save(tmp_path / 'state.safetensors')
    slower = replace(QUICK, rate=QUICK.rate / 10)
    learner.change(slower)
    assert [group['lr'] for group in learner._optimiser.param_groups] == [slower.rate] and learner.progress.rate == slower.rate
    again = OnlineLearner(start, slower)
    again.restore(tmp_path / 'state.safetensors')
    assert [group['lr'] for group in again._optimiser.param_groups] == [slower.rate] and again.progress.rate == slower.rate
