"""Matching by stamps: exactly, nearly, in order, bounded, and after the clock jumped back."""

from __future__ import annotations

import random

import pytest

from depth_ros.ros.sync import FrameMatcher, Order, Pace, PartsBuffer, StampBuffer, StampOrder

MS = 1_000_000
PERIOD = 33 * MS
TOLERANCE = 20 * MS
START = 10 ** 18


def stamps(count, start=START):
    return [start + i * PERIOD for i in range(count)]


def matcher(depth=True, flow=True):
    return FrameMatcher(depth=depth, flow=flow, tolerance=TOLERANCE, patience=1.0)


def test_order_tells_late_stamps_from_a_clock_that_jumped_back():
    order = StampOrder()
    first, second, third = stamps(3)
    assert [order.sort(s) for s in (first, third, second, third, first - 2 * 10 ** 9, first)] == [
        Order.NEWER, Order.NEWER, Order.LATE, Order.LATE, Order.JUMP, Order.NEWER]


@pytest.mark.parametrize('speed', [1.0, 0.5, 2.0])
@pytest.mark.parametrize('rate, camera', [(18.0, 30.0), (20.0, 30.0), (15.0, 30.0), (10.0, 25.0), (7.0, 60.0)])
def test_a_pace_takes_evenly_what_it_is_allowed_to(rate, camera, speed):
    """The rate is that of arrivals, which come late by up to a period; even is what the stamps tell."""
    random.seed(3)
    period, seconds = 1e9 / camera, 20
    shaken = [START + round(i * period + random.uniform(-0.03, 0.03) * period) for i in range(round(seconds * speed * camera))]
    arrivals = [round(i * period / speed + random.uniform(0.0, 1.0) * period) for i in range(len(shaken))]
    pace = Pace()
    taken = [s for s, a in zip(shaken, arrivals) if pace.is_due(s, a, rate)]
    expected = seconds * min(rate, speed * camera)
    assert abs(len(taken) - expected) <= max(1.0, 0.05 * expected) and pace.left_out == len(shaken) - len(taken)
    settled = taken[len(taken) // 10:]
    gaps = [b - a for a, b in zip(settled, settled[1:])]
    assert max(gaps) - min(gaps) < (1.13 if speed == 1.0 else 2.13) * period        # of whole images, and what the stamps are shaken by; a speed is told to a few per cent


def test_a_pace_takes_all_of_a_slow_camera_and_all_where_none_is_asked_for():
    slow, free = Pace(), Pace()
    assert all(slow.is_due(START + i * 100 * MS, i * 100 * MS, 18.0) for i in range(50))
    assert all(free.is_due(s, s, 0.0) for s in stamps(50)) and slow.left_out == free.left_out == 0


@pytest.mark.parametrize('jump', [-100 * 10 ** 9, -2 * 10 ** 9, 100 * 10 ** 9])
def test_a_pace_begins_afresh_when_the_clock_jumps(jump):
    pace = Pace()
    before = [pace.is_due(s, s, 10.0) for s in stamps(20)]
    assert [pace.is_due(s + jump, s + PERIOD, 10.0) for s in stamps(20)] == before


def test_a_pace_does_not_make_up_for_a_pause():
    """Of a player that was paused: its stamps go on as if nothing had been."""
    pace, pause = Pace(), 20 * 10 ** 9
    taken = [pace.is_due(s, s - START + pause * (i > 100), 10.0) for i, s in enumerate(stamps(400))]
    assert sum(taken[:100]) == pytest.approx(33, abs=2) and sum(taken[150:]) == pytest.approx(83, abs=3)


def test_buffer_finds_the_nearest_within_tolerance_and_stays_bounded():
    buffer = StampBuffer(capacity=8)
    for stamp in stamps(100):
        buffer.put(stamp, stamp)
    assert len(buffer) == 8
    newest = stamps(100)[-1]
    assert buffer.nearest(newest + 5 * MS, TOLERANCE) == newest
    assert buffer.nearest(newest - 20 * MS, TOLERANCE) == newest - PERIOD
    assert buffer.nearest(newest + 21 * MS, TOLERANCE) is None
    assert buffer.nearest(stamps(1)[0], TOLERANCE) is None
    buffer.put(newest - 60 * 10 ** 9, 'after the jump')
    assert len(buffer) == 1 and buffer.newest == newest - 60 * 10 ** 9


def test_parts_come_together_in_any_order_and_overtaken_ones_are_counted():
    parts = PartsBuffer(('a', 'b', 'c'))
    first, second, third = stamps(3)
    assert parts.put('b', second, 1) is None
    assert parts.put('a', first, 0) is None
    assert parts.put('a', second, 2) is None
    assert parts.put('c', second, 3) == {'a': 2, 'b': 1, 'c': 3}
    assert parts.incomplete == 1
    assert parts.put('c', third, 0) is None


def test_every_image_is_matched_whatever_the_order_of_arrival():
    random.seed(0)
    subject, done = matcher(), []
    subject.put_flow(START - PERIOD, None, 0.0)
    arrivals = []
    for i, stamp in enumerate(stamps(50)):
        for put, at, delay in (('put_image', stamp, 0.0), ('put_depth', stamp + random.randint(-10, 10) * MS, 0.0), ('put_flow', stamp, 0.02)):
            arrivals.append((i / 30 + delay + random.uniform(0.0, 0.01), put, at))
    for now, put, at in sorted(arrivals):
        done += getattr(subject, put)(at, at, now)
    assert [m.stamp for m in done] == stamps(50)
    assert all(m.image == m.stamp == m.flow and abs(m.depth - m.stamp) <= 10 * MS for m in done)


def test_an_image_that_the_flow_skipped_is_given_up_and_counted():
    subject = matcher(depth=False)
    first, second, third = stamps(3)
    subject.put_flow(first, 'f', 0.0)
    assert [m.flow for m in subject.put_image(first, 'i', 0.01)] == ['f']
    assert subject.put_image(second, 'i', 0.03) == []
    assert subject.put_image(third, 'i', 0.06) == []
    assert [m.stamp for m in subject.put_flow(third, 'f', 0.1)] == [third]
    assert subject.skipped == 1


def test_a_flow_that_falls_silent_is_not_waited_for():
    subject = matcher(depth=False)
    first, second, third = stamps(3)
    assert [m.flow for m in subject.put_image(first, 'i', 0.0)] == [None]       # none was ever heard
    subject.put_flow(first, 'f', 0.02)
    assert subject.put_image(second, 'i', 0.03) == []
    assert [m.stamp for m in subject.put_image(third, 'i', 1.5)] == [second, third]
    assert subject.flow_silent(1.5)


def test_an_image_without_depth_is_given_up_once_later_depth_is_there():
    subject = matcher(flow=False)
    first, second = stamps(2)
    assert subject.put_image(first, 'i', 0.0) == []
    assert subject.put_image(second, 'i', 0.0) == []
    assert [m.stamp for m in subject.put_depth(second, 'd', 0.0)] == [second]
    assert subject.unmatched == 1


def test_matching_goes_on_after_the_clock_jumped_back():
    subject, done = matcher(), []
    subject.put_flow(START - PERIOD, None, 0.0)
    for lap in range(3):
        for i, stamp in enumerate(stamps(40)):
            now = lap * 2.0 + i / 30
            for put in (subject.put_image, subject.put_depth, subject.put_flow):
                done += put(stamp, stamp, now)
    assert [m.stamp for m in done] == stamps(40) * 3


def test_the_image_that_pairing_begins_with_after_a_jump_goes_on_without_flow():
    subject, done = matcher(depth=False), []
    before = START + 60 * 10 ** 9
    subject.put_image(before, 'i', 0.0)
    subject.put_flow(before, 'f', 0.02, before - PERIOD)
    first, second, third = stamps(3)
    subject.rewind(first)
    done += subject.put_image(first, 'i', 0.03)
    assert [m.stamp for m in done] == [first]       # at once: no flow will come for it
    assert subject.put_flow(before + PERIOD, 'f', 0.04, before) == []        # was on its way
    done += subject.put_image(second, 'i', 0.06)
    done += subject.put_flow(second, 'f', 0.08, first)
    done += subject.put_image(third, 'i', 0.09)
    done += subject.put_flow(third, 'f', 0.11, first)
    assert [m.stamp for m in done] == [first, second, third] and done[-1].flow == 'f'
    assert subject.skipped == 0


@pytest.mark.parametrize('back', [60.0, 1.1])
@pytest.mark.parametrize('order', ['depth jumps first', 'image jumps first', 'old depth comes late'])
def test_the_first_image_after_a_jump_gets_its_depth(order, back):
    """Without it the flow that starts from it would have no pose to start from."""
    subject, before = matcher(), START + round(back * 1e9)
    for put in (subject.put_image, subject.put_depth, subject.put_flow):
        put(before, 'old', 0.0)
    first, second = stamps(2)
    if order == 'depth jumps first':
        assert subject.put_depth(first, 'd', 0.03) == []
    subject.rewind(first)
    done = subject.put_image(first, 'i', 0.03)
    if order == 'old depth comes late':
        assert subject.put_depth(before + PERIOD, 'old', 0.035) == []
    if order != 'depth jumps first':
        done += subject.put_depth(first, 'd', 0.04)
    assert subject.unmatched == 0
    assert [(m.stamp, m.image, m.depth) for m in done] == [(first, 'i', 'd')]
    subject.put_depth(second, 'd', 0.06)
    assert [m.stamp for m in subject.put_image(second, 'i', 0.06)] == [second]


def test_depth_of_a_slow_camera_may_come_before_its_image():
    subject, done = matcher(flow=False), []
    for lap in range(2):
        for i in range(5):
            done += subject.put_depth(START + i * 1500 * MS, 'd', 1.5 * i)
            if lap and not i:
                subject.rewind(START)
            done += subject.put_image(START + i * 1500 * MS, 'i', 1.5 * i)
    assert len(done) == 10 and subject.unmatched == 0


def test_the_image_that_pairing_begins_with_after_a_gap_goes_on_without_flow():
    subject = matcher(depth=False)
    subject.put_flow(START - 20 * PERIOD, 'f', 0.0, START - 21 * PERIOD)
    first, second, third, fourth = stamps(4)
    for i, stamp in enumerate((first, second, third, fourth)):
        assert subject.put_image(stamp, 'i', 0.7 + i / 30) == []
    assert [(m.stamp, m.flow) for m in subject.put_flow(third, 'f', 0.8, second)] == [(second, None), (third, 'f')]
    assert subject.skipped == 1
    assert [(m.stamp, m.flow) for m in subject.put_flow(fourth, 'f', 0.83, second)] == [(fourth, 'f')]


@pytest.mark.parametrize('depth', [True, False])
def test_every_image_is_handed_on_or_counted(depth):
    random.seed(1)
    subject, done = matcher(depth=depth), 0
    subject.put_flow(START - PERIOD, 'f', 0.0)
    for i, stamp in enumerate(stamps(300)):
        now = i / 300                                           # patience lasts: images wait
        done += len(subject.put_image(stamp, 'i', now))
        if not 100 <= i < 200 and random.random() < 0.7:        # both stall for longer than is kept
            done += len(subject.put_depth(stamp, 'd', now))
        if not 100 <= i < 200 and random.random() < 0.7:
            done += len(subject.put_flow(stamp, 'f', now))
    last = stamps(301)[-1]
    subject.put_image(last, 'i', 1.0)
    subject.put_depth(last, 'd', 1.0)
    assert [m.stamp for m in subject.put_flow(last, 'f', 1.0)] == [last]
    assert subject.unmatched + subject.skipped == 300 - done > 100
