"""Several range sensors, one set of hits an image: whole, once, in order, and never waiting for a sensor that is gone."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from depth_ros.ros.hit_gathering import HitGathering

PATIENCE = 0.1
MS = 1_000_000


class Bench:
    def __init__(self):
        self.gathering = HitGathering(PATIENCE)
        self.infos = {}

    def put(self, sensor, stamp, count, now, epoch=0, spread=0.0):
        info = self.infos.setdefault(stamp, CameraInfo())
        self.gathering.put(epoch, sensor, stamp, info, np.full((count, 3), stamp / MS), spread, now)

    def take(self, now):
        """(stamp, number of hits) of what comes out."""
        out = []
        for gathered in self.gathering.take(now):
            stamp = next(s for s, info in self.infos.items() if info is gathered.info)
            points = np.concatenate(gathered.points)
            assert (points == stamp / MS).all() and len(np.concatenate(gathered.spreads)) == len(points)
            out.append((stamp, len(points)))
        return out


@pytest.fixture
def bench():
    return Bench()


def test_the_hits_of_one_sensor_do_not_wait(bench):
    for index in range(5):
        bench.put('scan', index * 33 * MS, 10, index * 0.033)
        assert bench.take(index * 0.033) == [(index * 33 * MS, 10)]


def test_those_of_two_come_together_once(bench):
    bench.put('scan', 0, 10, 0.0)
    bench.put('range', 0, 1, 0.0)
    bench.take(0.0)
    bench.put('scan', 33 * MS, 10, 0.04)
    assert bench.take(0.05) == []
    bench.put('range', 33 * MS, 1, 0.06)
    assert bench.take(0.06) == [(33 * MS, 11)] and bench.take(9.0) == []


def test_a_sensor_that_was_seen_at_a_later_image_is_not_waited_for(bench):
    bench.put('range', 66 * MS, 1, 0.07)
    bench.put('scan', 33 * MS, 10, 0.08)
    assert bench.take(0.08) == [(33 * MS, 10)]
    bench.gathering.skip(0, 'scan', 99 * MS, 0.1)
    assert bench.take(0.1) == [(66 * MS, 1)]


def test_nothing_waits_for_longer_than_the_patience_and_order_is_kept(bench):
    bench.put('range', 0, 1, 0.0)
    bench.take(0.0)
    bench.put('scan', 33 * MS, 10, 0.05)
    bench.put('scan', 66 * MS, 10, 0.10)
    assert bench.take(0.149) == []
    assert bench.take(0.151) == [(33 * MS, 10)]
    bench.put('range', 33 * MS, 1, 0.16)        # too late for it
    assert bench.gathering.late == 1 and bench.take(0.16) == []
    assert bench.take(0.21) == [(66 * MS, 10)]


def test_a_sensor_that_is_gone_is_forgotten(bench):
    bench.put('range', 0, 1, 0.0)
    bench.take(0.0)
    bench.put('scan', 3000 * MS, 10, 3.0)
    assert bench.take(3.0) == [(3000 * MS, 10)]


def test_after_a_jump_of_the_clock_what_was_under_way_is_ignored(bench):
    bench.put('scan', 90_000 * MS, 10, 0.0)
    bench.take(0.0)
    bench.put('scan', 90_033 * MS, 10, 0.03)
    bench.gathering.clear()
    bench.put('scan', 90_066 * MS, 10, 0.06, epoch=0)
    assert bench.take(1.0) == []
    bench.put('scan', 33 * MS, 10, 1.0, epoch=1)
    assert bench.take(1.0) == [(33 * MS, 10)]
