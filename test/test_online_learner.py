"""The online learner: what may teach it, what it does with bad news, and what survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
import torch
from learner_support import QUICK, SHARE, T, feed, hits_on, parameters, same, scene, withheld_error

from depth_ros.engines import online_learner, online_loss, update_guard
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import OnlineLearnerConfig, State
from depth_ros.engines.rehearsal import Rehearsal
from depth_ros.engines.replay_buffer import observation, pair_batch
from depth_ros.engines.update_guard import Judgement, Verdict
from depth_ros.models import checkpoint


pytestmark = pytest.mark.usefixtures('one_thread')


def test_it_learns_what_the_hits_say_and_hands_out_numbered_weights(start):
    offers = []
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(10), batches=3)
    after, before = withheld_error(learner, start)
    assert after < 0.7 * before
    numbers = [checkpoint.from_bytes(blob).record['number'] for blob in offers]
    assert numbers == list(range(1, len(offers) + 1)) and learner.progress.updates == len(offers) > 0
    assert same(parameters(offers[-1]), parameters(learner.weights()))
    assert learner.progress.withheld_after < learner.progress.withheld_before


@pytest.mark.parametrize('variant', ['published', 'pose_aware'])
def test_any_network_of_pairs_can_learn(variant):
    start = checkpoint.from_bytes(support.blob(variant))
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(6), batches=3)
    assert learner.progress.batches > 0 and learner.progress.updates > 0


def test_withheld_hits_and_bad_ones_never_reach_the_loss(start, monkeypatch):
    """Every range is a number of its own, so each depth that the loss sees tells where it comes from."""
    taught, judged = set(), set()
    inner = online_loss.log_error, update_guard.log_error

    def spy(seen, function):
        def look(z, observed, length):
            assert torch.isfinite(observed).all()
            seen.update(observed[observed > 0].tolist())
            return function(z, observed, length)
        return look

    monkeypatch.setattr(online_loss, 'log_error', spy(taught, inner[0]))
    monkeypatch.setattr(update_guard, 'log_error', spy(judged, inner[1]))
    learner = OnlineLearner(start, replace(QUICK, guide_weight=0.0))
    came = {}
    for number in range(12):
        result, depth, _ = scene(number)
        hits = hits_on(depth, 1.0 + number / 1000)
        came |= dict.fromkeys(hits[hits > 0].tolist(), number)
        hits[20, :3] = np.nan, np.inf, -np.inf
        learner.observe(result, T, hits, np.eye(4))
        learner.learn(3)
    taught_by, judged_by = ({came[z] for z in seen if z in came} for seen in (taught, judged))
    assert taught_by and judged_by and not taught_by & judged_by
    assert np.isfinite(list(taught)).all()
    assert learner.progress.withheld == 61 * len(judged_by)


@pytest.mark.parametrize('case, state, reason', [
    ('unknown motion', State.MOTION, 'not known'),
    ('no step', State.MOTION, 'min_step'),
    ('only rotation', State.MOTION, 'min_displacement'),
    ('motion that is not a number', State.MOTION, 'not known'),
    ('no hits', State.HITS, '0 range hits'),
    ('NaN hits', State.HITS, '0 range hits'),
    ('hits ten times too far', State.HITS, 'contradict'),
    ('an image that hangs', State.MOTION, 'hang'),
    ('a pair of one image', State.MOTION, 'hang'),
])
def test_without_motion_or_hits_nothing_is_learned_and_the_reason_is_told(start, case, state, reason):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(6))
    assert learner.state is State.LEARNING
    result, depth, guide = scene(50)
    motion, hits, pose = T, hits_on(depth), np.eye(4)
    if case == 'unknown motion':
        motion = None
    elif case == 'no step':
        motion = np.eye(4)
    elif case == 'only rotation':
        result = replace(result, flow=np.zeros_like(result.flow))
    elif case == 'an image that hangs':
        last = scene(5)[0].pair.current.image
        result = replace(result, pair=replace(result.pair, current=replace(result.pair.current, image=last)))
        pose[0, 3] = 0.1
    elif case == 'a pair of one image':
        result = replace(result, pair=replace(result.pair, reference=result.pair.current))
    elif case == 'motion that is not a number':
        motion = np.full((4, 4), np.nan)
    else:
        hits = {'no hits': None, 'NaN hits': hits * np.nan, 'hits ten times too far': 10 * hits}[case]
    before, buffered = parameters(learner.weights()), learner.buffered
    assert not learner.observe(result, motion, hits, pose, guide)
    assert learner.learn(10) is state and reason in learner.reason
    assert same(parameters(learner.weights()), before) and learner.progress.batches == 0
    remembered = sum(learner.buffered.values()) - sum(buffered.values())
    assert remembered == {'no hits': 1, 'NaN hits': 1, 'an image that hangs': -1}.get(case, 0), 'of an image that hangs, what came unnoticed is forgotten'


def test_what_a_hanging_camera_taught_unnoticed_is_forgotten_once_and_learning_resumes(start, caplog):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(6))
    stuck, before = scene(5)[0].pair.current.image, sum(learner.buffered.values())
    for number in range(6, 10):
        result, depth, guide = scene(number)
        hung = replace(result, pair=replace(result.pair, current=replace(result.pair.current, image=stuck)))
        pose = np.eye(4)
        pose[0, 3] = 0.1 * (number - 5)
        assert not learner.observe(hung, T, hits_on(depth, SHARE), pose, guide) and learner.hangs and 'hang' in learner.reason
    assert sum(learner.buffered.values()) == before - 1 and sum('forgotten' in record.message for record in caplog.records) == 1
    assert feed(learner, range(20, 24)) is State.LEARNING and not learner.hangs and sum(learner.buffered.values()) > before - 1


def test_a_changed_batch_size_and_share_hold_for_the_next_batch(start, monkeypatch):
    learner, drawn = OnlineLearner(start, QUICK), []
    feed(learner, range(8))
    draw = learner._intake.draw
    monkeypatch.setattr(learner._intake, 'draw', lambda count: drawn.append(count) or draw(count))
    for batch in (2, 5):
        learner.change(replace(QUICK, batch=batch, share=0.1 * batch))
        learner.learn(1)
    assert drawn == [2, 5] and learner.budget.share == 0.5


def test_a_pair_without_hits_teaches_what_flow_tells_of_it_only_while_there_are_hits(start):
    """Its depth from flow, in a place without hits, is learned once hits are back; with without_hits off it never is."""
    share = {}
    for without_hits in (False, True):
        learner = OnlineLearner(start, replace(QUICK, without_hits=without_hits, hit_weight=0.0, carried_weight=0.0))
        for number in range(12):
            result, _, guide = scene(number)
            learner.observe(result, T, None, np.eye(4), guide)
            learner.learn(3)
        assert learner.progress.batches == 0
        for number in range(20, 24):
            result, depth, _ = scene(number)
            learner.observe(result, T, hits_on(depth, SHARE), np.eye(4))
            learner.learn(6)
        after, before = withheld_error(learner, start)
        share[without_hits] = after / before
    assert share[True] < 0.5 and share[False] > 0.9


def test_nothing_is_learned_before_there_is_something_to_judge_by_nor_while_paused(start):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(2), batches=5)
    assert learner.buffered == {'recent': 2, 'reservoir': 0, 'withheld': 0} and learner.progress.batches == 0
    learner.pause()
    assert feed(learner, range(2, 8), batches=5) is State.PAUSED
    assert learner.progress.batches == 0 and learner.progress.observed == 8
    learner.pause(False)
    learner.learn(3)
    assert learner.progress.batches == 3


@pytest.mark.parametrize('bad', ['worse', 'not finite', 'gradient', 'runaway'])
def test_a_bad_update_brings_back_the_last_good_weights_bit_for_bit_and_halves_the_rate(start, monkeypatch, bad):
    offers = []
    learner = OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(8), batches=3)
    good, number, rate, count = parameters(learner.weights()), learner.progress.number, learner.progress.rate, len(offers)
    real = learner._loss
    if bad == 'worse':
        monkeypatch.setattr(learner, '_loss', lambda some: -30 * real(some))
    elif bad == 'not finite':
        monkeypatch.setattr(learner, '_loss', lambda some: real(some) * float('nan'))
    elif bad == 'gradient':
        monkeypatch.setattr(learner, '_loss', lambda some: real(some) + sum((p - p.detach()).abs().sqrt().sum() for p in learner._model.parameters()))
    else:
        losses = iter([1.0, 1.0, 100.0])
        monkeypatch.setattr(learner, '_loss', lambda some: real(some) * 0 + next(losses))
    rollbacks = learner.progress.rollbacks
    for _ in range(QUICK.round):
        if learner.progress.rollbacks == rollbacks:
            learner.learn(1)
    assert learner.state is State.ROLLED_BACK and learner.progress.rollbacks == rollbacks + 1
    assert learner.progress.rate == pytest.approx(rate / 2) and f'weights {number}' in learner.reason
    assert same(good, parameters(learner.weights())) and same(good, learner._model.state_dict())
    assert len(offers) == count and not learner._optimiser.state
    monkeypatch.undo()
    learner.learn(4 * QUICK.round)
    assert all(torch.isfinite(value).all() for value in parameters(learner.weights()).values())


def test_the_slowest_rate_is_left_when_nothing_is_gained_by_it(start, monkeypatch):
    learner = OnlineLearner(start, replace(QUICK, patience=1))
    feed(learner, range(8), batches=3)
    monkeypatch.setattr(online_learner, 'judge', lambda *given: Judgement(Verdict.TOLERATED, 'no gain'))
    learner.progress.rate = QUICK.rate
    rates = []
    for _ in range(6):
        rollbacks = learner.progress.rollbacks
        learner.learn(QUICK.round)
        assert learner.progress.rollbacks == rollbacks + 1
        rates.append(learner.progress.rate)
    assert rates == pytest.approx([QUICK.rate / slower for slower in (2, 4, 8, 16, 1, 2)])


def test_harm_keeps_the_slowest_rate(start, monkeypatch):
    learner = OnlineLearner(start, replace(QUICK, patience=1))
    feed(learner, range(8), batches=3)
    monkeypatch.setattr(online_learner, 'judge', lambda *given: Judgement(Verdict.WORSE, 'harm'))
    for _ in range(6):
        learner.learn(QUICK.round)
    assert learner.progress.rate == pytest.approx(QUICK.rate / 16)


def test_what_few_observations_taught_is_handed_out_in_part(start, tmp_path):
    """Weights lie between the first and the learned ones by the share of trusted_after that was observed, and come to them without another update; a restart changes nothing of it."""
    learner = OnlineLearner(start, replace(QUICK, trusted_after=20))
    offers = []
    learner.offer_to(offers.append)
    feed(learner, range(10), batches=3)
    share, number_then, first = learner.progress.trusted, learner.progress.number, start.model.state_dict()
    assert 0 < share <= 0.5 and learner.progress.updates > 0
    record = checkpoint.from_bytes(offers[-1]).record['online']
    assert share == record['trusted'] and record['observed'] / 20 - share < 0.1
    for name, learned in learner._good.network.state_dict().items():
        torch.testing.assert_close(parameters(offers[-1])[name], first[name].lerp(learned, share))
    learner.save(tmp_path / 'state.safetensors')
    learner.export(tmp_path / 'shipped.safetensors')
    again = OnlineLearner(start, learner.config)
    again.restore(tmp_path / 'state.safetensors')
    assert same(parameters(again.weights()), parameters(offers[-1])) and same(parameters((tmp_path / 'shipped.safetensors').read_bytes()), parameters(offers[-1]))
    assert same(parameters((tmp_path / 'state.safetensors').read_bytes()), learner._good.network.state_dict())
    for number in range(10, 20):
        feed(learner, [number])
        learner.learn(0)
    assert learner.progress.number >= number_then + 2 and learner.progress.trusted == 1
    assert same(parameters(offers[-1]), learner._good.network.state_dict())


def test_rehearsal_holds_what_it_would_forget(start):
    """The lesson of the hits, that all is farther than flow tells, is wrong on the synthetic pairs: with them it keeps to what flow tells there, without it does not."""
    random = torch.Generator().manual_seed(0)
    pairs = pair_batch([observation(result, T, depth) for result, depth, _ in map(scene, range(8))])
    images = [torch.rand(pairs.image1.shape, generator=random) for _ in range(2)]
    pairs = replace(pairs, image1=images[0], image2=images[1], exact_flow=pairs.flow.clone())
    forgotten = []
    for weight in (0.0, 3.0):
        learner = OnlineLearner(start, replace(QUICK, rehearsal_weight=weight, round=1000), rehearsal=pairs)
        feed(learner, range(10), batches=3)
        error, known = online_loss.rehearsed_error(learner._model, learner._rehearsal.checks)
        forgotten.append(error[known].abs().mean().item())
    assert forgotten[1] < 0.8 * forgotten[0]


def test_pairs_that_judge_what_was_forgotten_are_never_learned_from():
    result, depth, _ = scene(0)
    pairs = pair_batch([observation(result, T, hits_on(depth))] * 6)
    rehearsal = Rehearsal(replace(pairs, image1=torch.arange(6.0).view(6, 1, 1, 1).expand_as(pairs.image1)))
    learned = {int(number) for _ in range(30) for number in rehearsal.draw(4).image1[:, 0, 0, 0]}
    assert learned == {3, 4, 5} and rehearsal.checks.image1[:, 0, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='at least 2'):
        Rehearsal(pairs.pick(slice(0, 1)))


def test_outliers_do_not_make_it_worse_than_frozen(start):
    random = np.random.default_rng(0)

    def spoil(hits):
        wild = (hits > 0) & (random.random(hits.shape) < 0.3)
        return np.where(wild, random.uniform(0.3, 10.0, hits.shape), hits).astype(np.float32)

    learner = OnlineLearner(start, QUICK)
    feed(learner, range(12), batches=3, spoil=spoil)
    after, before = withheld_error(learner, start)
    assert learner.progress.batches > 10 and after < before


def test_weights_and_figures_survive_a_restart(start, tmp_path):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(8), batches=3)
    learner.save(tmp_path / 'state.safetensors')
    again = OnlineLearner(start, QUICK)
    again.restore(tmp_path / 'state.safetensors')
    assert again.progress == learner.progress and not same(parameters(again.weights()), start.model.state_dict())
    assert same(parameters(again.weights()), parameters(learner.weights()))
    record = checkpoint.load(tmp_path / 'state.safetensors', 'global_local').record
    assert record['number'] == learner.progress.number and record['online']['buffer']['withheld'] > 0
    feed(again, range(20, 28), batches=3)
    assert again.progress.batches > learner.progress.batches


def test_another_networks_file_is_refused_and_changes_nothing(start, tmp_path):
    learner = OnlineLearner(start, QUICK)
    before = learner.weights()
    (tmp_path / 'other.safetensors').write_bytes(support.blob('published'))
    (tmp_path / 'plain.safetensors').write_bytes(support.blob('pose_aware'))
    (tmp_path / 'broken.safetensors').write_bytes(before[:1000])
    for name, complaint in (('other', 'expected a network'), ('plain', 'no figures'), ('broken', 'not a safetensors')):
        with pytest.raises(ValueError, match=complaint):
            learner.restore(tmp_path / f'{name}.safetensors')
    assert same(parameters(learner.weights()), parameters(before))


_KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import global_local_support as support
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.models import checkpoint
learner = OnlineLearner(checkpoint.from_bytes(support.blob('pose_aware')))
learner.save({target!r})
learner.progress.number = 7
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
learner.save({target!r})
"""


def test_a_kill_between_write_and_rename_leaves_the_last_good_file(start, tmp_path):
    target = tmp_path / 'state.safetensors'
    code = _KILLED.format(paths=[os.path.dirname(__file__), *sys.path], target=str(target))
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    learner = OnlineLearner(start, QUICK)
    learner.restore(target)
    assert learner.progress.number == 0 and same(parameters(learner.weights()), start.model.state_dict())


def test_the_thread_learns_as_observations_come_and_ends_when_told(start):
    learned = threading.Event()
    learner = OnlineLearner(start, replace(QUICK, round=1, share=1.0, patience=1000), lambda blob: learned.set())
    learner.start()
    try:
        feed(learner, range(40))
        assert learned.wait(120)
    finally:
        learner.stop()
    batches = learner.progress.batches
    assert batches > 0 and not any(t.name == 'online_learner' for t in threading.enumerate())
    feed(learner, range(50, 52))
    assert learner.progress.batches == batches


def test_the_threads_batches_shrink_to_the_time_they_may_take_and_a_callers_do_not(start, monkeypatch):
    learner = OnlineLearner(start, replace(QUICK, batch=8, max_batch_seconds=0.01, share=1.0))
    feed(learner, range(6), batches=1)
    assert learner._batch_size == 8
    learned, step = threading.Event(), learner._step
    monkeypatch.setattr(learner, '_step', lambda: (step(), learned.set()))
    learner.start()
    try:
        feed(learner, range(6, 8))
        assert learned.wait(60)
    finally:
        learner.stop()
    assert learner._batch_size == 1


def test_images_of_another_size_begin_a_new_memory(start):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(8))
    learner.learn(2 * QUICK.round)
    batches = learner.progress.batches
    for number in range(20, 26):
        result, depth = support.wall(current=(number + 2) * 10 ** 8)
        learner.observe(result, T, support.hits_on(depth), np.eye(4))
    assert sum(learner.buffered.values()) == 6
    learner.learn(1)
    assert learner.progress.batches == batches + 1


def test_a_reset_brings_back_the_shipped_weights_and_forgets_everything(start):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(8), batches=3)
    learner.reset()
    assert same(parameters(learner.weights()), start.model.state_dict())
    assert learner.buffered == {'recent': 0, 'reservoir': 0, 'withheld': 0} and learner.progress.number == 0


def test_weights_are_drawn_back_to_the_first_ones(start):
    free, anchored = (OnlineLearner(start, replace(QUICK, anchor=anchor, round=1000)) for anchor in (0.0, 0.3))
    away = []
    for learner in (free, anchored):
        feed(learner, range(8), batches=2)
        away.append(sum((p - q).square().sum() for p, q in zip(learner._model.parameters(), start.model.parameters())).item())
    assert away[1] < 0.5 * away[0]


def test_what_is_judged_is_a_mean_that_steps_to_and_fro_hardly_move(start, monkeypatch):
    learner = OnlineLearner(start, replace(QUICK, averaged=20.0, round=1000, anchor=0.0))
    feed(learner, range(8))
    real, signs = learner._loss, iter([1.0, -1.0] * 10)
    monkeypatch.setattr(learner, '_loss', lambda some: next(signs) * real(some))

    def moved(network):
        return sum((p - q).abs().sum() for p, q in zip(network.parameters(), start.model.parameters())).item()

    farthest = 0.0
    for _ in range(20):
        learner.learn(1)
        farthest = max(farthest, moved(learner._model))
    assert 0.0 < moved(learner._averaged) < 0.5 * farthest
