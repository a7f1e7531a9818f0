"""Learned modules and slow depth in the tracking node, over DDS: tracking never waits, weights that cannot be used are told, and diagnostics say what is at work."""

from __future__ import annotations

import shutil
import threading

import pytest
import ros_support
import torch
from deepv2d_bench import Bench
from deepv2d_support import NARROW
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image

from depth_ros.engines import deepv2d, learned_depth
from depth_ros.engines.sweep import Sweeper
from depth_ros.models import checkpoint
from depth_ros.models.deepv2d import DeepV2D
from depth_ros.ros import codecs, deepv2d_node
from depth_ros.ros.deepv2d_node import DeepV2DNode, KeyframeJob


@pytest.fixture
def bench(world, tf_settled):
    with ros_support.benches(Bench, world) as make:
        yield make


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A checkpoint of a network that has learned nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'untrained.safetensors'
    checkpoint.save(path, 'deepv2d', DeepV2D(NARROW), {})
    return str(path)


def test_tracking_goes_on_while_depth_is_worked_out(world, bench, monkeypatch):
    images = world.record(Image, 'deepv2d/depth/image')
    work, let_go, begun = Sweeper._work, threading.Event(), threading.Event()

    def held(*arguments):
        begun.set()
        assert let_go.wait(ros_support.LIMIT)
        return work(*arguments)

    monkeypatch.setattr(Sweeper, '_work', held)
    one = bench(depth=None, **{'sweep_every': 3, 'sweep_width': 80, 'sweep_fine_width': 80})
    assert one.node.set_parameters([ros_support.Parameter('depth', value='sweep')])[0].successful
    try:
        one.follow(begun.is_set, 'a keyframe')
        count = len(one.odometry)
        one.follow(lambda: len(one.odometry) >= count + 7, 'odometry beside it')
        assert not images
    finally:
        let_go.set()
    one.follow(lambda: images, 'depth')
    assert codecs.stamp_ns(images[0].header.stamp) in {codecs.stamp_ns(m.header.stamp) for m in one.odometry}
    assert one.values()['depth from'] == 'sweep' and one.values()['keyframe depth'] == 'ok'


def test_depth_that_comes_late_is_warned_of_until_it_does_not(bench, monkeypatch):
    one = bench(depth=None, sweep_every=3, sweep_width=80, sweep_fine_width=80)
    assert one.node.set_parameters([ros_support.Parameter('depth', value='sweep')])[0].successful

    def told() -> bool:
        return 'depth from sweep comes' in one.node.diagnostics.status().message

    monkeypatch.setattr(deepv2d_node, '_LATE', 0.0)
    one.follow(told, 'the warning')
    monkeypatch.setattr(deepv2d_node, '_LATE', ros_support.LIMIT)
    one.follow(lambda: not told(), 'its end')
    monkeypatch.setattr(deepv2d_node, '_LATE', 0.0)
    one.follow(told, 'another warning')
    assert one.node.set_parameters([ros_support.Parameter('depth', value='flow')])[0].successful
    one.follow(lambda: not told(), 'its end, as no such depth is made any more')


def test_depth_that_comes_late_once_is_not_warned_of_nor_that_of_an_engine_of_before(bench):
    one = bench(depth=None)
    one.follow(lambda: one.odometry, 'an engine at work')
    node, told = one.node, []
    current = KeyframeJob(None, node._engine_at_work, None, node._map.generation, 0.0)
    for job, delay in ((current, 3.0), (current, 0.1), (current, 3.0), (current, 3.0), (current._replace(generation=-1), 3.0)):
        node._tell_delay(job, delay)
        told.append('comes 3.0 s after its image' in node.diagnostics.status().message)
    assert told == [False, False, False, True, False]


def test_depth_from_before_a_reset_is_dropped(world, bench, monkeypatch):
    images = world.record(Image, 'deepv2d/depth/image')
    work, let_go, stamps, done = Sweeper._work, threading.Event(), [], []

    def held(self, frames, *rest):
        stamps.append(frames[0].stamp)
        assert let_go.wait(ros_support.LIMIT)
        found = work(self, frames, *rest)
        done.append(found)
        return found

    monkeypatch.setattr(Sweeper, '_work', held)
    one = bench(depth=None, sweep_every=3, sweep_width=80, sweep_fine_width=80)
    assert one.node.set_parameters([ros_support.Parameter('depth', value='sweep')])[0].successful
    try:
        one.follow(lambda: stamps, 'a keyframe')
        count = len(one.odometry)
        assert one.call('reset').success
        one.follow(lambda: len(one.odometry) >= count + 3, 'odometry after the reset')
    finally:
        let_go.set()
    one.follow(lambda: len(done) > 1 and images, 'depth after the reset')
    assert stamps[0] not in {codecs.stamp_ns(m.header.stamp) for m in images}


@pytest.mark.parametrize('choice', [{'motion': 'learned'}, {'depth': 'learned'}])
def test_weights_that_are_not_there_fail_configure_with_the_reason(world, tmp_path, choice):
    node = world.node(DeepV2DNode, autostart=False, weights=str(tmp_path / 'none.safetensors'), **choice)
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    status = node.diagnostics.status()
    assert status.level == DiagnosticStatus.ERROR and 'none.safetensors: there is no such file' in status.message
    world.remove(node)


def test_what_is_learned_is_told_and_can_be_chosen_while_it_runs(bench, untrained, tmp_path):
    one = bench(weights=untrained)
    one.track(4)
    assert one.values()['motion from'] == 'flow'
    one.world.until(lambda: one.node.set_parameters([ros_support.Parameter('motion', value='learned')])[0].successful, 'learned motion')
    count = len(one.odometry)
    one.camera.run(lambda: len(one.odometry) > count and one.values()['motion from'] == 'learned', 'learned motion at work')
    refused = one.node.set_parameters([ros_support.Parameter('weights', value=str(tmp_path / 'none.safetensors'))])[0]
    assert not refused.successful and 'there is no such file' in refused.reason
    assert one.node.config.engine.weights == untrained
    refused = one.node.set_parameters([ros_support.Parameter('motion', value='guess')])[0]
    assert not refused.successful and 'flow, learned' in refused.reason


def test_weights_are_read_where_they_are_chosen_and_never_while_an_image_waits(bench, untrained, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(deepv2d_node, 'load', lambda weights: (read.append(weights), learned_depth.load(weights))[1])
    monkeypatch.setattr(deepv2d, 'load', None)      # the engine has nothing to read
    one = bench(weights=untrained, motion='learned', window=True)
    one.track(2)
    assert read == [untrained] and one.values()['depth from'] == 'sensor'
    assert one.node.set_parameters([ros_support.Parameter('max_gap', value=2.0)])[0].successful and read == [untrained]
    refused = one.node.set_parameters([ros_support.Parameter('depth', value='flow')])[0]
    assert not refused.successful and 'window: true needs sensor depth, but depth is flow' in refused.reason
    other = shutil.copy(untrained, tmp_path / 'other.safetensors')
    assert one.node.set_parameters([ros_support.Parameter('weights', value=str(other))])[0].successful and read == [untrained, str(other)]


def test_a_window_waits_where_no_sensor_is_found(bench):
    one = bench(depth=None, window=True)
    one.camera.run(lambda: one.values().get('depth from') == 'flow', 'depth from flow')
    assert one.node.config.engine.window
