"""Pairs and the hits of their images come together: each pair once, in order, with hits that no other had."""

from __future__ import annotations

import numpy as np
import pytest

from depth_ros.ros import codecs
from depth_ros.ros.pair_matching import PairMatcher, Patience

FRAME = 33_000_000      # [ns]
ALL = Patience(hits=0.5, odometry=0.2, offset=0.1, rate=1000.0)


def hits(stamp):
    empty = np.zeros((2, 2), np.float32)
    return codecs.depth_image(empty, empty > 0, codecs.make_header(stamp, 'camera'))


def given(pairs):
    """(stamp, stamp of its hits) of each pair."""
    return [(p.stamp, None if p.hits is None else codecs.stamp_ns(p.hits.header.stamp)) for p in pairs]


@pytest.fixture
def matcher():
    one = PairMatcher()
    one.heard_odometry(0.0)
    return one


def test_a_pair_waits_for_the_hits_of_its_image_and_for_its_pose(matcher):
    matcher.put_pair(FRAME, {}, 0.0)
    assert not matcher.take(0.0, FRAME, ALL)
    matcher.put_hits(hits(FRAME), 0.1)
    assert not matcher.take(0.1, FRAME - 1, ALL)
    assert given(matcher.take(0.1, FRAME, ALL)) == [(FRAME, FRAME)]
    assert not matcher.take(9.0, FRAME, ALL)


@pytest.mark.parametrize('order', ['pairs first', 'hits first'])
def test_pairs_between_two_scans_are_skipped(matcher, order):
    """Ten scans a second, thirty images."""
    def pairs():
        for number in range(1, 8):
            matcher.put_pair(number * FRAME, {}, 0.0)

    if order == 'pairs first':
        pairs()
    for number in (1, 4, 7):
        matcher.put_hits(hits(number * FRAME), 0.0)
    if order == 'hits first':
        pairs()
    assert given(matcher.take(0.0, 10 * FRAME, ALL)) == [(n * FRAME, n * FRAME) for n in (1, 4, 7)]


def test_hits_of_a_skipped_image_go_to_the_next_pair_once(matcher):
    matcher.put_hits(hits(2 * FRAME), 0.0)
    for number in (3, 4, 5):
        matcher.put_pair(number * FRAME, {}, 0.0)
    assert not matcher.take(0.0, 9 * FRAME, ALL)        # their own may still come
    matcher.put_hits(hits(5 * FRAME), 0.1)
    assert given(matcher.take(0.1, 9 * FRAME, ALL)) == [(3 * FRAME, 2 * FRAME), (5 * FRAME, 5 * FRAME)]


def test_hits_too_old_stand_in_for_none(matcher):
    matcher.put_hits(hits(FRAME), 0.0)
    matcher.put_pair(FRAME + 101_000_000, {}, 0.0)
    matcher.put_hits(hits(FRAME + 150_000_000), 0.1)
    assert not matcher.take(0.1, 10 ** 10, ALL)


def test_a_silent_sensor_is_waited_for_only_so_long(matcher):
    matcher.put_hits(hits(FRAME), 0.0)
    matcher.put_pair(9 * FRAME, {}, 1.0)
    assert not matcher.take(1.4, 9 * FRAME, ALL)
    assert given(matcher.take(1.6, 9 * FRAME, ALL)) == [(9 * FRAME, None)]


def test_a_silent_odometry_is_waited_for_only_so_long(matcher):
    matcher.put_hits(hits(FRAME), 1.0)
    matcher.put_pair(FRAME, {}, 1.0)
    assert not matcher.take(1.1, None, ALL)
    assert given(matcher.take(1.3, None, ALL)) == [(FRAME, FRAME)]


def test_no_more_pairs_than_wanted(matcher):
    for number in range(1, 31):
        matcher.put_pair(number * FRAME, {}, 0.0)
        matcher.put_hits(hits(number * FRAME), 0.0)
    stamps = [p.stamp for p in matcher.take(0.0, 10 ** 10, Patience(rate=5.0))]
    assert len(stamps) in (5, 6) and np.diff(stamps).min() >= 0.9e9 / 5


@pytest.mark.parametrize('speed', [0.5, 1.0, 2.0])
def test_the_wanted_rate_is_of_real_time_however_fast_a_recording_is_played(matcher, speed):
    taken = []
    for number in range(1, 241):
        now = number * FRAME * 1e-9 / speed
        matcher.put_hits(hits(number * FRAME), now)
        matcher.put_pair(number * FRAME, {}, now)
        matcher.heard_odometry(now)
        taken += [now for _ in matcher.take(now, number * FRAME, Patience(rate=5.0))]
    late = [t for t in taken if t >= 1.0]
    assert len(late) / (now - 1.0) == pytest.approx(5.0, rel=0.12)


def test_by_stamps_the_same_pairs_are_taken_however_they_arrive(matcher):
    random = np.random.default_rng(0)
    taken = []
    for matcher in (matcher, PairMatcher()):
        now, found = 0.0, []
        for number in range(1, 121):
            now += random.uniform(0.0, 0.2)
            matcher.put_hits(hits(number * FRAME), now)
            matcher.put_pair(number * FRAME, {}, now)
            matcher.heard_odometry(now)
            found += [p.stamp for p in matcher.take(now, number * FRAME, Patience(rate=5.0, by_stamps=True))]
        taken.append(found)
    assert taken[0] == taken[1] and 19 <= len(taken[0]) <= 22


def test_hits_from_the_future_hold_nothing_up_for_long(matcher):
    matcher.put_hits(hits(10 ** 12), 0.0)
    matcher.put_pair(FRAME, {}, 0.0)
    matcher.put_hits(hits(FRAME), 0.1)
    assert given(matcher.take(0.1, FRAME, ALL)) == [(FRAME, FRAME)]


@pytest.mark.parametrize('patience', [ALL, Patience(rate=0.1)])
def test_after_a_jump_of_the_clock_pairs_go_on(matcher, patience):
    matcher.put_pair(10 ** 10, {}, 0.0)
    matcher.put_hits(hits(10 ** 10), 0.0)
    assert matcher.take(0.0, 10 ** 10, patience)
    matcher.clear()
    matcher.put_pair(FRAME, {}, 0.1)
    matcher.put_hits(hits(FRAME), 0.1)
    assert given(matcher.take(0.1, FRAME, patience)) == [(FRAME, FRAME)]
