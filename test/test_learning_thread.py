"""The thread that learns outlives what fails in it, and one that has ended all the same says so."""

from __future__ import annotations

import threading

import pytest
from learner_support import QUICK

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

    thread = LearningThread(work, failed, CpuBudget(1.0), niceness=0)
    thread.start()
    try:
        for _ in range(3):
            thread.grant(1, 1)
            assert worked.acquire(timeout=PATIENCE)
        assert told.is_set() and not thread.has_died
    finally:
        assert thread.stop(PATIENCE)
    assert not thread.has_died and 'for the roll-back' in caplog.text


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
