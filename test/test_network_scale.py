"""How range hits over time tell the metre of the Global-Local network."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
from global_local_support import BASELINE, SIZE, T_REF_CUR

from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig

pytestmark = [pytest.mark.usefixtures('as_shipped'), pytest.mark.usefixtures('one_thread')]


@pytest.fixture(scope='module')
def scene():
    return support.wall()


def made(variant='pose_aware', **config):
    return GlobalLocalEngine(GlobalLocalEngineConfig(variant=variant, width=SIZE[0], height=SIZE[1], backend='torch', **config))


@pytest.mark.parametrize(('scale', 'seconds', 'source'), [('auto', 0.5, 'hits'), ('auto', 2.0, 'odometry'), ('hits', 2.0, 'hits')])
def test_the_scale_of_hits_serves_while_there_are_any_and_then_the_odometry(scene, scale, seconds, source):
    result, truth = scene
    engine = made('published', scale=scale)
    engine.step(result, T_REF_CUR, support.hits_on(truth), step_length=BASELINE)
    assert engine.scale_from == 'hits'
    later = replace(result.pair.current, stamp=result.pair.current.stamp + int(seconds * 1e9))
    engine.step(replace(result, pair=replace(result.pair, current=later)), T_REF_CUR, np.zeros_like(truth), step_length=BASELINE)
    assert engine.scale_from == source


@pytest.mark.parametrize(('between', 'seconds', 'source'), [(0.03, 0.2, 'hits'), (0.03, 0.5, 'odometry'), (0.2, 0.5, 'hits'), (0.2, 0.8, 'odometry')])
def test_rarer_hits_are_waited_for_longer(scene, between, seconds, source):
    result, truth = scene
    engine = made('published')

    def at(seconds, hits):
        current = replace(result.pair.current, stamp=result.pair.current.stamp + int(seconds * 1e9))
        engine.step(replace(result, pair=replace(result.pair, current=current)), T_REF_CUR, hits, step_length=BASELINE)

    for number in range(3):
        at(number * between, support.hits_on(truth))
    at(2 * between + seconds, np.zeros_like(truth))
    assert engine.scale_from == source


def test_a_frame_tells_half_of_the_scale_and_five_that_contradict_it_all(scene):
    result, truth = scene
    engine = made()
    depths = [engine.step(result, T_REF_CUR, support.hits_on(truth, ratio)).depth.depth for ratio in (1.0, 1.2, 1.2, 1.2, 1.2, 3.0, 3.0, 3.0, 3.0, 3.0)]
    told = [float(np.median(np.log(depth / depths[0])) / np.log(1.2)) for depth in depths]
    assert told[1:5] == pytest.approx([0.5, 0.75, 0.875, 0.9375], abs=0.01)
    assert told[5:9] == pytest.approx([0.9375] * 4, abs=0.01) and told[9] == pytest.approx(np.log(3.0) / np.log(1.2), rel=0.01)


def test_hits_smooth_over_frames_where_the_motion_is_known_and_outlast_their_absence(scene):
    result, truth = scene
    engine = made()
    first = engine.step(result, T_REF_CUR, support.hits_on(truth)).depth.depth
    second = engine.step(result, T_REF_CUR, support.hits_on(truth, 1.2)).depth.depth
    assert np.median(np.log(second / first)) / np.log(1.2) == pytest.approx(0.5, rel=0.05)      # of two frames each has its half
    third = engine.step(result, T_REF_CUR, None).depth
    np.testing.assert_allclose(third.depth, second, rtol=1e-5)
    engine.reset()
    assert engine.step(result, T_REF_CUR, None).depth is None
