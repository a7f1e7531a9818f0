"""The thread that learns outlives what fails in it, and one that has ended all the same says so."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from learner_support import QUICK

from depth_ros.engines import learning_thread
from depth_ros.engines.cpu_budget import CpuBudget
from depth_ros.engines.learning_thread import LearningThread
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import State

pytestmark = pytest.mark.usefixtures('one_thread')
PATIENCE = 60.0     # [s]


def test_a_failure_that_cannot_even_be_told_does_not_end_it(caplog):
    worked, told = threading.Semaphore(0), threading.Event()

    def work():
        worked.release()
        raise MemoryError('for a batch')

    def failed(error):
        told.set()
        raise MemoryError('for the roll-back')

    thread = LearningThread(work, failed, CpuBudget(1.0), niceness=0, only_idle=False)
    thread.start()
    try:
        for _ in range(3):
            thread.grant(1, 1)
            assert worked.acquire(timeout=PATIENCE)
        assert told.is_set() and not thread.has_died
    finally:
        assert thread.stop(PATIENCE)
    assert not thread.has_died and 'for the roll-back' in caplog.text


@pytest.mark.parametrize('only_idle', [False, True])
def test_it_alone_waits_for_idle_cores(only_idle):
    told, found = threading.Event(), []

    def work():
        found.append(os.sched_getscheduler(0))
        told.set()

    thread = LearningThread(work, lambda error: None, CpuBudget(1.0), niceness=0, only_idle=only_idle)
    thread.start()
    try:
        thread.grant(1, 1)
        assert told.wait(PATIENCE)
    finally:
        assert thread.stop(PATIENCE)
    assert found == [os.SCHED_IDLE if only_idle else os.SCHED_OTHER] and os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_thread_that_gets_next_to_nothing_of_a_core_says_so(start, monkeypatch):
    wall, processor, turns = 0.0, 0.0, threading.Semaphore(0)
    learner = OnlineLearner(start, QUICK)
    monkeypatch.setattr(learning_thread, 'time', SimpleNamespace(monotonic=lambda: wall, thread_time=lambda: processor))

    def work():
        nonlocal wall, processor
        wall, processor = wall + 1.0, processor + got
        turns.release()

    monkeypatch.setattr(learner._thread, '_work', work)
    assert not learner.concern
    for got, count in ((0.05, 2), (0.5, 10)):
        learner._thread.start()
        for _ in range(count):
            learner._thread.grant(1, 1)
            assert turns.acquire(timeout=PATIENCE)
        assert learner._thread.stop(PATIENCE)
        assert ('max_share' in learner.concern) == (got < 0.1)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_dead_thread_is_told_until_it_is_begun_again(start, monkeypatch):
    learner = OnlineLearner(start, QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(learner.budget, 'pause', lambda: 1 / 0)
        learner.start()
        learner._thread.grant(1, 1)
        learner._thread._thread.join(PATIENCE)
    assert learner.state is State.DEAD and 'ended unasked' in learner.reason
    assert learner.stop(PATIENCE) and learner.state is not State.DEAD
    learner.start()
    try:
        assert learner.state is not State.DEAD
    finally:
        assert learner.stop(PATIENCE)
