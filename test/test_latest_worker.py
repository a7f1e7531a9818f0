"""The newest-item thread: nothing stale is worked on, nothing is lost silently."""

from __future__ import annotations

import threading

import pytest
from wait_support import WAIT, until

from depth_ros.ros.latest_worker import LatestWorker


class Gate:
    """Work that stands still until it is let go, and remembers what it was given."""

    def __init__(self) -> None:
        self.begun, self.open, self.seen = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, item: int) -> None:
        self.begun.release()
        assert self.open.acquire(timeout=WAIT)
        self.seen.append(item)


@pytest.fixture
def gate():
    return Gate()


def make(work, on_error=None, **options):
    worker = LatestWorker('worker', work, on_error or (lambda error: pytest.fail(str(error))), **options)
    worker.start()
    return worker


@pytest.mark.parametrize(('waiting', 'seen'), [(1, [0, 5]), (2, [0, 4, 5])])
def test_overtaken_items_are_dropped_and_counted_and_the_others_worked_on_in_their_order(gate, waiting, seen):
    worker = make(gate, waiting=waiting)
    worker.put(0)
    assert gate.begun.acquire(timeout=WAIT)
    for item in range(1, 6):
        worker.put(item)
    gate.open.release(len(seen))
    until(lambda: worker.processed == len(seen), 'the newest items')
    assert gate.seen == seen
    assert worker.dropped == 6 - len(seen)
    assert 0.0 < worker.latency(50) <= worker.latency(95)
    assert worker.stop()


def test_an_exception_is_reported_and_the_next_item_worked_on():
    errors = []

    def work(item):
        if item == 0:
            raise ZeroDivisionError('nought')

    worker = make(work, errors.append)
    for item in range(2):
        worker.put(item)
        until(lambda: worker.processed == item + 1, 'the item')
    assert [str(error) for error in errors] == ['nought'] and worker.processed == 2
    assert worker.stop()


def test_stop_forgets_what_waits_and_ends_the_thread(gate):
    worker = make(gate)
    worker.put(0)
    assert gate.begun.acquire(timeout=WAIT)
    worker.put(1)
    assert not worker.stop(timeout=0.01) and worker.abandoned       # still at work: said, not hidden
    gate.open.release()
    assert worker.stop(WAIT) and not worker.abandoned
    assert gate.seen == [0]
    assert not any(t.name == 'worker' for t in threading.enumerate())
    worker.put(2)
    assert gate.seen == [0]


def test_the_thread_keeps_no_item_alive():
    import weakref

    class Thing:
        pass

    worker = make(lambda thing: None)
    thing = Thing()
    alive = weakref.ref(thing)
    worker.put(thing)
    del thing
    until(lambda: worker.processed == 1, 'the thing')
    assert alive() is None
    assert worker.stop()
