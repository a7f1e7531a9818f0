"""Learning in processes of its own: nothing but topics between them, killed at any moment, stopped while at work."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ros_support
import torch
from diagnostic_msgs.msg import DiagnosticArray
from learning_bench import QUICK, Drive, biased, number_of, states_of
from std_msgs.msg import UInt8MultiArray

from depth_ros.models import checkpoint
from depth_ros.ros.managed_node import LATCHED_QOS

KILLS = int(os.environ.get('DEPTH_ROS_KILLS', 3))       # DEPTH_ROS_KILLS=20 ./rosenv pytest test/test_online_learning_processes.py -k killed

PACE = 0.2      # [s] from pair to pair, so that there is time to learn in between


@pytest.fixture
def world(monkeypatch):
    """One for each test, whose messages go through sockets: a process that is killed while it holds a lock of shared memory leaves those after it deaf."""
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    with ros_support.world() as made:
        yield made


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    return biased(tmp_path_factory.mktemp('weights'))


@pytest.fixture
def drive(world):
    one = Drive(world)
    yield one
    one.close()


@contextlib.contextmanager
def learner(first: Path, state: Path, *remappings: str, **parameters) -> Iterator[subprocess.Popen]:
    """The learning node in a process, killed at the end if it still runs."""
    given = {**QUICK, 'weights': str(first), 'state_file': str(state), **parameters}
    words = [word for name, value in given.items() for word in ('-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}')]
    words += [word for remapping in remappings for word in ('-r', remapping)]
    process = subprocess.Popen([sys.executable, '-c', 'from depth_ros.ros import executables; executables.online_learning()', '--ros-args', *words],
                               env={**os.environ, 'XDG_CACHE_HOME': str(state.parent / 'cache')})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def drive_until(drive: Drive, process: subprocess.Popen, count: int, every: float) -> None:
    """Send a pair every so many seconds until the learner has handed out so many weights; fails, with what it last said, if it does not or if it ends."""
    def has_learned() -> bool:
        assert process.poll() is None, f'the learner has ended with {process.returncode}'
        return len(drive.learned) >= count

    said = lambda: {v.key: v.value for v in drive.metrics[-1].status[0].values} if drive.metrics else 'nothing'
    drive.world.repeat(drive.send_pair, has_learned, lambda: f'{count} weights of a learner that says {said()}', every, ros_support.LIMIT)


def observed(metrics: list[DiagnosticArray]) -> int:
    """Pairs that a learner has taken in, as it says."""
    return int(next(v.value for v in metrics[-1].status[0].values if v.key == 'pairs')) if metrics else 0


def meet(drive: Drive, reports: list[DiagnosticArray], *learners: str) -> None:
    """Send what teaches nothing until every one of these learners has heard each of its inputs."""
    topics = [p.topic_name for p in (drive.hits, drive.odometry, *drive.bundle.values())]

    def hears(name: str) -> bool:
        values = next(({v.key: v.value for v in s.values} for r in reversed(reports) for s in r.status if s.name == name), {})
        return all(int(values.get(f'{topic} received', 0)) for topic in topics)

    drive.world.repeat(lambda: drive.send_pair(drive.still()), lambda: all(map(hears, learners)), f'{learners} to hear {topics}', timeout=ros_support.LIMIT)


def test_two_processes_that_share_nothing_but_topics_learn_the_same(world, drive, first, tmp_path):
    other, figures = world.record(UInt8MultiArray, 'other/weights', LATCHED_QOS), world.record(DiagnosticArray, 'other/metrics')
    reports = world.record(DiagnosticArray, '/diagnostics')
    for name in ('one', 'other'):
        (tmp_path / name).mkdir()
    apart = '__node:=other', 'online_learning/weights:=other/weights', 'online_learning/metrics:=other/metrics'
    with learner(first, tmp_path / 'one/state.safetensors'), learner(first, tmp_path / 'other/state.safetensors', *apart):
        meet(drive, reports, 'online_learning', 'other')

        def both_have(count):
            return observed(drive.metrics) >= count and observed(figures) >= count

        count = 0
        while len(drive.learned) < 3 or len(other) < 3:
            count += 1
            assert count < 20, 'nothing is learned'
            drive.send_pair()
            world.until(lambda: both_have(count), f'pair {count}')       # none is overtaken by the next
        world.until(lambda: number_of(drive.blobs[-1]) == number_of(bytes(other[-1].data)), 'the same number')
    for mine, its in zip(drive.blobs, [bytes(message.data) for message in other], strict=True):
        mine, its = checkpoint.from_bytes(mine), checkpoint.from_bytes(its)
        for record in (mine.record, its.record):
            for mark in ('learner', 'run'):         # which tell the two courses of learning apart
                record['lineage'].pop(mark)
        assert mine.record == its.record and all(torch.equal(value, its.model.state_dict()[name]) for name, value in mine.model.state_dict().items())


def test_killed_at_any_moment_it_goes_on_with_the_last_good_weights(world, drive, first, tmp_path):
    state, chance = tmp_path / 'state.safetensors', random.Random(7)
    seen: list[bytes] = []
    for _ in range(KILLS):
        with learner(first, state, rate=1e-3) as process:
            world.until(lambda: drive.metrics, 'the learner', ros_support.LIMIT)
            if seen:
                # It hands out at once what it goes on from: nothing that was handed out before the kill is lost.
                world.until(lambda: len(drive.learned), 'the weights of before', ros_support.LIMIT)
                assert number_of(drive.blobs[0]) >= number_of(seen[-1])
                known = {number_of(b): b for b in seen}
                if number_of(drive.blobs[0]) in known:
                    assert all((value == states_of(known[number_of(drive.blobs[0])])[name]).all() for name, value in states_of(drive.blobs[0]).items())
            wanted = len(drive.learned) + 1 + chance.randrange(2)
            # Pairs faster than it can learn from: it is in the midst of one, or of writing a file, whenever the kill comes.
            drive_until(drive, process, wanted, ros_support.EVERY)
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen += drive.blobs
        drive.learned.clear()
        drive.metrics.clear()
        checkpoint.load(state)
        for leftover in tmp_path.glob(f'{state.name}*'):
            checkpoint.load(leftover)
    with learner(first, state):
        world.until(lambda: drive.metrics, 'the learner', ros_support.LIMIT)
        assert not [p for p in tmp_path.glob('.state.safetensors.*') if p.is_dir()]        # what a kill left is swept up


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_time_while_it_learns_and_keeps_what_it_learned(world, drive, first, tmp_path, number):
    state = tmp_path / 'state.safetensors'
    # In its own thread, which here gives way to nobody: how soon it learns is not what is asked, and the machine may be busy.
    with learner(first, state, batches_per_pair=0, share=1.0, niceness=0, only_idle=False) as process:
        drive_until(drive, process, 1, PACE)
        process.send_signal(number)
        assert process.wait(ros_support.LIMIT) == 0
    assert checkpoint.load(state).record['number'] >= number_of(drive.blobs[-1])
    assert not [p for p in tmp_path.iterdir() if p.name not in ('cache', state.name, f'.{state.name}.lock', f'{state.name}.observations.npz')]
