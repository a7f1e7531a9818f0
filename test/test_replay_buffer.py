"""What an online learner remembers: bounded, even over all that it saw, and free of what is no measurement."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from depth_ros.engines.hit_memory import HitMemory
from depth_ros.engines.replay_buffer import ReplayBuffer, lengths, observation, pair_batch, stacked
from depth_ros.frames import DepthResult, Scale


@pytest.fixture(scope='module')
def scene():
    return support.wall()


@pytest.fixture(scope='module')
def one(scene):
    result, depth = scene
    return observation(result, support.T_REF_CUR, support.hits_on(depth))


def stamps(buffer, count=100):
    return [o.stamp for o in buffer.spread(count)]


def test_the_newest_are_all_there_and_nothing_grows(one):
    buffer = ReplayBuffer(recent=5, reservoir=7)
    for stamp in range(1000):
        buffer.add(replace(one, stamp=stamp))
        assert len(buffer) <= 12
    assert set(range(995, 1000)) <= set(stamps(buffer)) and len(buffer) == 12 and buffer.seen == 1000


def test_the_reservoir_is_a_uniform_sample_of_all_older_observations(one):
    counts = np.zeros(40)
    for seed in range(2000):
        buffer = ReplayBuffer(recent=2, reservoir=6, seed=seed)
        for stamp in range(42):
            buffer.add(replace(one, stamp=stamp))
        counts[[s for s in stamps(buffer) if s < 40]] += 1
    assert counts.sum() == 2000 * 6
    assert chisquare(counts).pvalue > 0.01


def test_both_parts_are_drawn_from_alike(one):
    buffer = ReplayBuffer(recent=3, reservoir=50)
    for stamp in range(53):
        buffer.add(replace(one, stamp=stamp))
    drawn = [o.stamp >= 50 for o in buffer.draw(400)]
    assert sum(drawn) == 200
    assert len({o.stamp for o in buffer.draw(400)}) > 40


def test_an_empty_buffer_has_nothing_to_draw():
    with pytest.raises(ValueError, match='empty'):
        ReplayBuffer(3, 3).draw(1)
    with pytest.raises(ValueError, match='at least 1 recent'):
        ReplayBuffer(0, 3)


def test_what_is_no_measurement_is_not_remembered(scene):
    result, depth = scene
    hits = support.hits_on(depth)
    hits[40, :8:2] = np.nan, np.inf, -np.inf, -1.0
    guide = depth.copy()
    guide[0, :3] = np.nan, np.inf, -2.0
    confidence = np.ones_like(depth)
    confidence[:, 64:] = 0.4
    kept = observation(result, support.T_REF_CUR, hits, guide=DepthResult(result.pair.current, guide, np.ones(depth.shape, bool), confidence, Scale.METRIC))
    assert np.count_nonzero(kept.hits) == 60 and np.isfinite(kept.hits).all() and (kept.hits >= 0).all()
    assert np.isfinite(kept.guide).all() and not kept.guide[:, 64:].any() and (kept.guide[0, :3] == 0).all() and (kept.guide[1:, :64] == depth[1:, :64]).all()


def test_a_batch_speaks_in_units_of_the_baseline_and_its_lengths_bring_metres_back(scene, one):
    _, depth = scene
    far = np.array(support.T_REF_CUR)
    far[0, 3] = 0.5
    pairs = pair_batch([one, replace(one, step_length=0.5)])
    np.testing.assert_allclose(pairs.T_2_1[:, :3, 3].norm(dim=1), 1.0, rtol=1e-6)
    hits = stacked([one, one], 'hits')
    assert torch.equal(pairs.valid, hits > 0)
    back = (lengths([one, replace(one, step_length=0.5)]) / pairs.inverse_depth.clamp(min=1e-6))[pairs.valid]
    torch.testing.assert_close(back, hits[pairs.valid])
    assert pairs.image1.shape == (2, 3, 96, 128) and pairs.image1.max() <= 1.0


@pytest.mark.parametrize('T, complaint', [(np.eye(4), 'at least 0.001 m'), (np.full((4, 4), np.nan), 'finite motion')])
def test_a_pair_without_a_known_step_is_refused(scene, T, complaint):
    with pytest.raises(ValueError, match=complaint):
        observation(scene[0], T, support.hits_on(scene[1]))


def test_hits_of_another_size_are_refused(scene):
    with pytest.raises(ValueError, match='hits: expected the size'):
        observation(scene[0], support.T_REF_CUR, np.zeros((10, 10), np.float32))


def test_hits_are_seen_again_where_they_lie(scene):
    """The wall is seen from another place: its old hits lie on the wall there, a row lower as the camera went up."""
    K = scene[0].pair.current.K
    hits = np.zeros((96, 128), np.float32)
    hits[40, 20:100:4] = 2.0
    memory = HitMemory(seconds=1.0)
    memory.add(0, hits, K, np.eye(4))
    T = np.eye(4)
    T[:3, 3] = 0.0, -10 * 2.0 / K[1, 1], 0.5        # up by ten pixels at two metres, and half a metre nearer
    seen = memory.seen(10, K, (128, 96), T)
    assert np.count_nonzero(seen) > 10
    np.testing.assert_allclose(seen[seen > 0], 1.5, rtol=1e-6)
    row = int(np.round(47.5 + (40 - 47.5 + 10) * 2.0 / 1.5))
    assert set(np.nonzero(seen)[0]) == {row}


def test_hits_are_forgotten_in_time_and_when_the_clock_jumps_back(scene):
    K, hits = scene[0].pair.current.K, support.hits_on(scene[1])
    memory = HitMemory(seconds=1.0)
    memory.add(5 * 10 ** 9, hits, K, np.eye(4))
    assert memory.seen(6 * 10 ** 9, K, (128, 96), np.eye(4)).any()
    assert not memory.seen(6 * 10 ** 9 + 1, K, (128, 96), np.eye(4)).any()
    assert not memory.seen(5 * 10 ** 9, K, (128, 96), np.eye(4)).any(), 'an image does not learn from the future, nor from itself twice'
    memory.add(10 ** 9, np.zeros_like(hits), K, np.eye(4))
    assert not memory.seen(5 * 10 ** 9 + 1, K, (128, 96), np.eye(4)).any()
