"""Weights of the Global-Local node: taken over in flight, kept when its settings change, and refused where they do not fit."""

from __future__ import annotations

import threading
from array import array

import global_local_support as support
import numpy as np
import pytest
import ros_support
from global_local_bench import Bench
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from std_msgs.msg import UInt8MultiArray

from depth_ros.engines.global_local import GlobalLocalEngine
from depth_ros.models import checkpoint
from depth_ros.ros import global_local_node
from depth_ros.ros.global_local_node import GlobalLocalNode
from depth_ros.ros.managed_node import LATCHED_QOS


pytestmark = pytest.mark.usefixtures('as_shipped')


@pytest.fixture
def bench(world):
    with ros_support.benches(Bench, world) as make:
        yield make


def test_new_weights_take_over_while_it_runs(bench):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    one.offer(support.blob('published', seed=5, number=12))
    one.world.until(lambda: one.values()['weights of published'] == '12', 'the new weights')
    after = one.depth_at(one.send())
    assert np.median(np.abs(np.log(after / before))) > 1e-3
    assert one.node.set_parameters([Parameter('threads', value=2)])[0].successful        # a new engine, the same weights
    np.testing.assert_allclose(one.depth_at(one.send()), after, rtol=1e-5)
    assert one.values()['weights of published'] == '12'


def test_weights_named_by_a_parameter_make_those_taken_over_before_forgotten(bench, tmp_path):
    one = bench(scale='none')
    one.take(12)
    path = tmp_path / 'own.safetensors'
    checkpoint.save(path, 'global_local', support.network('published', seed=9), {'number': 9})
    one.set('weights', str(path))
    assert one.number() == '9'
    one.set('threads', 2)       # another engine
    assert one.number() == '9'
    one.take(13)                # later offers are kept again
    one.set('threads', 3)
    assert one.number() == '13'


def test_weights_that_a_refused_parameter_would_have_replaced_stay(bench, tmp_path):
    one = bench(scale='none')
    one.take(12)
    assert not one.node.set_parameters([Parameter('weights', value=str(tmp_path / 'absent.safetensors'))])[0].successful
    one.set('threads', 2)
    assert one.number() == '12'


@pytest.mark.parametrize('moment', ['made', 'offered the old weights'])
def test_weights_offered_while_another_engine_is_made_are_not_lost(bench, monkeypatch, moment):
    one = bench(scale='none')
    one.take(12)
    late = UInt8MultiArray(data=array('B', support.blob('published', seed=13, number=13)))
    offering = threading.Thread(target=one.node._try_weights, args=(late,))

    class Meanwhile(GlobalLocalEngine):
        def __init__(self, config):
            super().__init__(config)
            if moment == 'made':
                offering.start()
                offering.join(ros_support.TIMEOUT)
            else:
                self.offer = self.offer_meanwhile

        def offer_meanwhile(self, blob):
            if offering.ident is None:
                offering.start()
                offering.join(0.3)      # without a lock it would have ended long before
            return self.networks.offer(blob)

    monkeypatch.setattr(global_local_node, 'GlobalLocalEngine', Meanwhile)
    one.set('threads', 2)
    offering.join(ros_support.TIMEOUT)
    assert not offering.is_alive() and one.number() == '13'


def test_taken_over_weights_that_do_not_fit_the_new_settings_are_told(bench, monkeypatch):
    one = bench(scale='none')
    one.take(12)
    monkeypatch.setattr(one.node, '_accepted', support.blob('pose_aware'))
    warnings = []
    monkeypatch.setattr(one.node.get_logger(), 'warning', lambda text, **_: warnings.append(text))
    one.set('threads', 2)
    assert one.number() == '0' and len(warnings) == 1 and 'expected weights of published, got pose_aware' in warnings[0]


def test_settings_that_are_not_the_networks_change_without_loading_it_again(bench, monkeypatch):
    one = bench(scale='none')
    one.take(12)
    free = one.depth_at(one.send())
    monkeypatch.setattr(global_local_node, 'GlobalLocalEngine', lambda *_: pytest.fail('made again'))
    one.set('scale', 'auto')
    metric = one.metric()
    one.set('max_depth', float(np.nanmedian(metric)))
    cut = one.metric()
    assert np.isfinite(free).all() and 0.2 < np.isnan(cut).mean() < 0.8 and one.number() == '12'


def spoilt(value: float) -> bytes:
    """Weights of a whole network with one value in every tensor: not finite themselves, or what they give is not."""
    whole = support.blob('published', seed=5)
    start = 8 + int.from_bytes(whole[:8], 'little')
    weights = np.frombuffer(whole[start:], np.float32).copy()
    weights[:] = value
    return whole[:start] + weights.tobytes()


@pytest.mark.parametrize(('blob', 'complaint'), [
    (lambda: support.blob('published', seed=5)[:-10], 'not a safetensors file'),
    (lambda: support.blob('published', coordinates=False), 'expected a network of'),
    (lambda: support.blob('pose_aware'), 'got pose_aware'),
    (lambda: support.blob('published', seed=5).replace(b'depth_ros network 1', b'depth_ros network 2'), "expected a 'depth_ros network 1', got 'depth_ros network 2'"),
    (lambda: support.blob('published', seed=5).replace(b'"global_local"', b'"another_kind"'), 'expected weights of global_local, got those of another_kind'),
    (lambda: spoilt(float('nan')), 'not finite'),
    (lambda: spoilt(1e38), 'values that are not finite'),
    (lambda: b'', 'not a safetensors file'),
])
def test_weights_that_do_not_fit_are_refused_and_the_last_good_ones_stay(bench, blob, complaint):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    one.offer(blob())
    one.says(complaint)
    assert 'the last good ones stay' in one.message() and one.values()['/online_learning/weights rejected'] == '1'
    np.testing.assert_array_equal(one.depth_at(one.send()), before)


def test_weights_offered_before_it_started_are_taken(bench, world):
    trainer = world.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
    trainer.publish(UInt8MultiArray(data=array('B', support.blob('published', seed=5, number=3))))
    one = bench(scale='none')
    world.until(lambda: one.values().get('weights of published') == '3', 'the latched weights')
    world.tester.destroy_publisher(trainer)


def test_a_corrupt_checkpoint_fails_the_configuration_and_is_named(world, tmp_path):
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(support.blob('published')[:1000])
    node = world.node(GlobalLocalNode, autostart=False, weights=str(broken))
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert node.state == 'unconfigured' and 'broken.safetensors: not a safetensors file' in node.diagnostics.status().message
    checkpoint.save(broken, 'global_local', support.network('published'), {})
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success       # mended, it starts
    world.remove(node)


def test_weights_that_cannot_be_used_are_refused_as_a_parameter_and_it_runs_on(bench, tmp_path):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    refused = one.node.set_parameters([Parameter('weights', value=str(tmp_path / 'absent.safetensors'))])[0]
    assert not refused.successful and 'absent.safetensors' in refused.reason
    np.testing.assert_array_equal(one.depth_at(one.send()), before)
