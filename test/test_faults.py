"""What goes wrong in front of the nodes that take images: what is refused, what is said, and that work goes on."""

from __future__ import annotations

import array
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image, TimeReference

from depth_ros.ros import codecs
from depth_ros.ros.deepv2d_node import DeepV2DNode
from depth_ros.ros.flow_node import FlowNode

NODES = {'flow': (FlowNode, TimeReference, 'flow/reference'), 'deepv2d': (DeepV2DNode, Odometry, 'deepv2d/odometry')}


class Bench:
    """One node, a camera before it, and what it says."""

    def __init__(self, world, name):
        node_class, kind, topic = NODES[name]
        self.world = world
        self.camera = ros_support.Camera(world, depth=None if name == 'flow' else 2.0)
        self.node = world.node(node_class)
        self.heard, self.logged = [], []
        self._subscription = world.tester.create_subscription(kind, topic, self.heard.append, 100)
        world.connected(self.camera.images, self.camera.infos, *([] if name == 'flow' else [self.camera.depths]))

    def stamps(self):
        return [codecs.stamp_ns(m.header.stamp) for m in self.heard]

    def status(self):
        return self.node.diagnostics.status()

    def value(self, key):
        return {v.key: v.value for v in self.status().values}[key]

    def works(self):
        """Shoot until three more results come."""
        before = len(self.heard)
        self.camera.run(lambda: len(self.heard) >= before + 3, 'three results')

    def until(self, condition, what):
        return self.world.until(condition, what)

    def until_with(self, condition, what, **fields):
        """Shoot with a calibration of other fields until the condition holds."""
        def shoot():
            self.camera.infos.publish(broken(codecs.camera_info(self.camera.K, self.camera.size, self.camera.header()), **fields))
            self.camera.shoot(info=False)

        self.world.repeat(shoot, condition, what)

    def close(self):
        self.camera.close()
        self.world.tester.destroy_subscription(self._subscription)
        self.world.remove(self.node)


@pytest.fixture(params=NODES)
def bench(world, request):
    made = Bench(world, request.param)
    yield made
    made.close()


def broken(info, **fields):
    for name, value in fields.items():
        setattr(info, name, value)
    return info


def test_without_camera_info_nothing_comes_and_the_diagnostics_say_so(bench):
    bench.camera.run(lambda: bench.status().level == DiagnosticStatus.ERROR, 'the error', info=False)
    assert 'no camera_info on /camera_info' in bench.status().message and '/image' in bench.status().message
    assert bench.heard == []
    bench.works()
    assert bench.status().level != DiagnosticStatus.ERROR


@pytest.mark.parametrize(('fields', 'words'), [
    ({'k': np.zeros(9), 'p': np.zeros(12)}, 'uncalibrated'),
    ({'width': 640, 'height': 480}, '320 x 240'),
    ({'k': np.full(9, np.nan)}, 'NaN')])
def test_a_useless_calibration_is_refused_by_topic_and_reason(bench, fields, words):
    bench.until_with(lambda: bench.status().level == DiagnosticStatus.ERROR and words in bench.status().message, 'the error', **fields)
    assert '/camera_info' in bench.status().message and bench.heard == []
    bench.works()
    assert bench.status().level != DiagnosticStatus.ERROR


def test_p_of_zeros_falls_back_to_k(bench):
    bench.until_with(lambda: len(bench.heard) >= 3, 'results', p=np.zeros(12))


def test_a_lens_that_distorts_is_warned_of_once_and_work_goes_on(bench, monkeypatch):
    said, logger = [], bench.node.get_logger()
    monkeypatch.setattr(logger, 'warning', said.append)
    monkeypatch.setattr(bench.node, 'get_logger', lambda: logger)
    bench.until_with(lambda: len(bench.heard) >= 10, 'results', d=[0.1, -0.2, 0.0, 0.0, 0.0])
    assert bench.status().level == DiagnosticStatus.WARN and 'image_proc' in bench.status().message and '/camera_info' in bench.status().message
    assert len([text for text in said if 'image_proc' in text]) == 1
    bench.until_with(lambda: 'image_proc' not in bench.status().message, 'the end of the warning', d=[0.0] * 5)


def test_a_rectified_image_may_come_with_the_calibration_of_the_raw_one(world):
    camera = ros_support.Camera(world)
    node = world.add(FlowNode(context=world.context, cli_args=['--ros-args', '-r', 'image:=image_rect', '-r', '__node:=rectified']))
    images = world.publisher(Image, 'image_rect')
    heard = []
    subscription = world.tester.create_subscription(TimeReference, 'flow/reference', heard.append, 10)
    world.connected(images, camera.infos)

    def shoot():
        camera.infos.publish(broken(codecs.camera_info(camera.K, camera.size, camera.header()), d=[0.1] * 5))
        camera.shoot(info=False)
        images.publish(camera.message())

    world.repeat(shoot, lambda: len(heard) >= 2, 'flow')
    assert 'image_proc' not in node.diagnostics.status().message
    world.remove(node)
    camera.close()
    world.tester.destroy_publisher(images)
    world.tester.destroy_subscription(subscription)


@pytest.mark.parametrize(('fields', 'words'), [
    ({'encoding': 'hologram8'}, "'hologram8'"),
    ({'width': 0, 'height': 0}, '0 x 0'),
    ({'data': array.array('B', bytes(100))}, '100 bytes'),
    ({'step': 7}, 'step 7'),
    ({'encoding': 'mono16', 'is_bigendian': 7}, 'is_bigendian 7')])
def test_a_malformed_image_is_refused_counted_and_survived(bench, fields, words):
    bench.works()
    bench.camera.shoot(image=broken(bench.camera.message(bench.camera.stamp + ros_support.STEP), **fields))
    bench.until(lambda: words in bench.value('last error'), 'the complaint')
    assert '/image' in bench.value('last error') and 'accepted' in bench.value('last error')
    assert bench.value('/image rejected') == '1'
    bench.works()


def test_a_stamp_that_is_not_newer_is_dropped_and_counted(bench):
    bench.works()
    camera = bench.camera
    for behind in (0, 1, 3):
        camera.images.publish(camera.message(camera.stamp - behind * ros_support.STEP))
    bench.until(lambda: bench.value('/image late') == '3', 'the late images to be counted')
    bench.works()
    assert bench.stamps() == sorted(set(bench.stamps()))


def test_work_goes_on_when_the_clock_jumps_back(bench):
    bench.works()
    for _ in range(2):
        bench.camera.stamp -= 60 * 10 ** 9
        jumped = bench.camera.stamp
        bench.camera.run(lambda: len([s for s in bench.stamps() if jumped < s < jumped + 30 * 10 ** 9]) >= 5, 'results after the jump')
    assert all(isinstance(m, TimeReference) is False or codecs.stamp_ns(m.time_ref) < codecs.stamp_ns(m.header.stamp) for m in bench.heard)
    assert all(codecs.stamp_ns(m.header.stamp) - codecs.stamp_ns(m.time_ref) < 10 ** 9 for m in bench.heard if isinstance(m, TimeReference))


def test_a_gap_starts_a_new_pair(bench):
    bench.works()
    before = bench.camera.stamp
    bench.camera.stamp += 30 * 10 ** 9
    bench.works()
    assert not any(codecs.stamp_ns(m.time_ref) <= before < codecs.stamp_ns(m.header.stamp) for m in bench.heard if isinstance(m, TimeReference))


def test_an_input_that_stalls_makes_it_stale_until_it_returns(world, bench):
    statuses = world.record(DiagnosticArray, '/diagnostics')
    name = bench.node.get_name()
    bench.node.set_parameters([ros_support.Parameter('stale_after', value=0.5)])
    bench.works()
    last = lambda: next((s for m in reversed(statuses) for s in m.status if s.name == name), DiagnosticStatus())
    world.until(lambda: last().level == DiagnosticStatus.STALE and re.search(r'/image stalled: last message [0-9.]+ s ago', last().message), 'STALE on /diagnostics')
    bench.works()
    bench.camera.run(lambda: last().level in (DiagnosticStatus.OK, DiagnosticStatus.WARN), 'the recovery on /diagnostics')


def test_a_publisher_that_dies_and_returns_is_taken_up_again(world, bench):
    bench.works()
    depth = bench.camera.depth
    index, stamp = bench.camera.index, bench.camera.stamp
    bench.camera.close()
    bench.camera = ros_support.Camera(world, depth=depth)
    bench.camera.index, bench.camera.stamp = index, stamp
    world.connected(bench.camera.images, bench.camera.infos)
    bench.works()


def test_overload_takes_the_newest_and_counts_the_rest(world, bench):
    bench.works()
    engine, gate = bench.node._engine, threading.Semaphore(0)
    step = engine.step

    def slow(*args, **kwargs):
        assert gate.acquire(timeout=ros_support.TIMEOUT)
        return step(*args, **kwargs)

    bench.node._engine = type('Slow', (), {'step': staticmethod(slow), '__getattr__': lambda self, name: getattr(engine, name)})()
    dropped, received = int(bench.value('dropped')), int(bench.value('/image received'))
    for count in range(8):
        bench.camera.shoot()
        bench.until(lambda: int(bench.value('/image received')) > received + count, 'the image')
    newest = bench.camera.stamp
    gate.release(100)
    bench.until(lambda: newest in bench.stamps(), 'the newest image to be worked on')
    assert int(bench.value('dropped')) >= dropped + 5
    assert float(bench.value('latency p95 [ms]')) > 0.0


def test_cleanup_and_configure_start_from_nothing(world, bench):
    bench.works()
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert getattr(bench.node, f'trigger_{transition}')().name == 'SUCCESS'
    world.connected(bench.camera.images, bench.camera.infos)
    assert bench.value('processed') == '0'
    bench.works()


@pytest.mark.parametrize('executable', ['flow', 'deepv2d', 'sparse_depth', 'player', 'global_local'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_executable_with_status_zero_and_nothing_half_written(world, tmp_path, executable, number):
    statuses = world.record(DiagnosticArray, '/diagnostics')
    code = f'from depth_ros.ros import executables; executables.{executable}()'
    process = subprocess.Popen([sys.executable, '-c', code, '--ros-args', '-r', f'__node:={executable}', '-p', 'bag:=sample' if executable == 'player' else 'autostart:=true'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')})
    try:
        if executable == 'player':      # in the middle of rendering the sample
            world.until(lambda: process.poll() is not None or list(tmp_path.rglob('*.png')) or list(tmp_path.rglob('*.jpg')), 'the first rendered image', ros_support.LIMIT)
        else:
            world.until(lambda: any(s.name == executable and s.message != 'unconfigured' for m in statuses for s in m.status), 'its diagnostics', ros_support.LIMIT)
        process.send_signal(number)
        _, errors = process.communicate(timeout=ros_support.TIMEOUT)
    finally:
        process.kill()
        world.tester.destroy_subscription(list(world.tester.subscriptions)[-1])
    assert process.returncode == 0 and 'Traceback' not in errors, errors
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and p.stat().st_size]     # a lock may stay
