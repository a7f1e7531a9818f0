"""Playing in time: in order, complete, never early, through pauses, laps and errors."""

from __future__ import annotations

import threading
import time

import pytest
from wait_support import WAIT, until

from depth_ros.ros.playback import Playback

MS = 1_000_000
LONG = 10_000_000 * MS      # longer than any test


class Show:
    """A playback of stamps START + i * period, with a long gap before one of them if wanted, and what came of it."""

    def __init__(self, count=10, period=10 * MS, rate=1.0, passes=1, fail_at=None, gap_at=None):
        self.count, self.period, self.fail_at, self.gap_at = count, period, fail_at, count if gap_at is None else gap_at
        self.items, self.ticks, self.end, self.error = [], [], threading.Event(), None
        self.changed = threading.Condition()
        self.playback = Playback(self.read, self.emit, self.ticks.append, self.on_end, rate, passes, 1000.0)

    def read(self):
        for i in range(self.count):
            if i == self.fail_at:
                raise ValueError('rgb/3.png: is truncated')
            yield 5_000 * MS + i * self.period + LONG * (i >= self.gap_at), i

    def emit(self, stamp, item):
        with self.changed:
            self.items.append((time.monotonic(), stamp, item))
            self.changed.notify_all()

    def on_end(self, error):
        self.error = error
        self.end.set()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.items) >= count, WAIT)

    def indices(self):
        return [item for _, _, item in self.items]


@pytest.fixture
def show():
    shows = []

    def make(**options):
        shows.append(Show(**options))
        return shows[-1]

    yield make
    for one in shows:
        one.playback.close()
    assert not any(t.name in ('reader', 'player') for t in threading.enumerate())


@pytest.mark.parametrize('rate', [0.5, 1.0, 4.0])
def test_everything_comes_in_order_and_never_early(show, rate):
    one, begin = show(rate=rate), time.monotonic()
    one.playback.play()
    assert one.end.wait(WAIT) and one.error is None
    assert one.indices() == list(range(10))
    assert all(at - begin >= i * 0.01 / rate for i, (at, _, _) in enumerate(one.items))


def test_the_clock_never_goes_back_within_a_lap_and_shows_every_stamp(show):
    one = show(gap_at=9)
    one.playback.play()
    one.wait_for(9)
    count = len(one.ticks)
    until(lambda: len(one.ticks) > count + 20, 'the clock to go on in the gap')
    one.playback.pause()
    assert one.indices() == list(range(9)) and one.ticks == sorted(set(one.ticks))
    assert set(stamp for _, stamp, _ in one.items) <= set(one.ticks)


def test_a_pause_keeps_the_place(show):
    one = show(count=30, gap_at=5)
    one.playback.play()
    one.wait_for(5)
    one.playback.pause()
    assert len(one.items) == 5 and not any(t.name == 'player' for t in threading.enumerate())
    one.playback.play()
    assert one.end.wait(WAIT)
    assert one.indices() == list(range(30))


def test_the_end_is_told_again_to_who_was_paused_meanwhile(show):
    one = show(count=3)
    one.playback.play()
    assert one.end.wait(WAIT)
    one.playback.pause()
    one.end.clear()
    one.playback.play()
    assert one.end.wait(WAIT) and one.indices() == [0, 1, 2]


def test_laps_go_on_until_closed(show):
    one = show(passes=None, period=MS)
    one.playback.play()
    one.wait_for(35)
    assert one.indices()[:35] == [i % 10 for i in range(35)] and one.playback.laps >= 3
    assert not one.end.is_set()


def test_it_ends_after_so_many_passes(show):
    one = show(passes=3, period=MS)
    one.playback.play()
    assert one.end.wait(WAIT) and one.error is None
    assert one.indices() == 3 * list(range(10)) and one.playback.laps == 2


def test_an_error_is_told_after_what_came_before_it(show):
    one = show(fail_at=3)
    one.playback.play()
    assert one.end.wait(WAIT)
    assert one.indices() == [0, 1, 2] and str(one.error) == 'rgb/3.png: is truncated'


def test_a_new_rate_holds_from_now_on(show):
    one = show(gap_at=5)
    one.playback.play()
    one.wait_for(5)
    one.playback.rate = 1e6
    assert one.end.wait(WAIT) and one.indices() == list(range(10))


def test_reading_ahead_is_bounded(show):
    read = []
    one = show(count=1000)

    class Counting:
        def __iter__(self):
            for i in range(1000):
                read.append(i)
                yield i * MS, i

    playback = Playback(Counting, one.emit, lambda t: None, one.on_end, 1.0, False, 10.0)
    until(lambda: len(read) >= 21, 'the queue to fill')
    playback.close()
    assert len(read) == 21          # a full queue, and one in hand
