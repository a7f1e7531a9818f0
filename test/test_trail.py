"""The trail: bounded, in order, complete where it is recent."""

from __future__ import annotations

import numpy as np
import pytest

from depth_ros.ros.trail import Trail


@pytest.mark.parametrize('count', [10, 100, 1000, 12_345])
def test_it_stays_bounded_in_order_and_keeps_every_recent_pose(count):
    trail = Trail(100)
    for stamp in range(count):
        trail.add(stamp, np.full((4, 4), stamp))
    stamps = [stamp for stamp, _ in trail.poses()]
    assert len(stamps) <= 100 and stamps == sorted(set(stamps)) and stamps[-1] == count - 1 and stamps[0] == 0
    assert stamps[-min(50, count):] == list(range(count))[-50:]
    assert all(T[0, 0] == stamp for stamp, T in trail.poses())


def test_a_limit_spreads_over_the_whole_and_keeps_both_ends():
    trail = Trail(1000)
    for stamp in range(900):
        trail.add(stamp, np.eye(4))
    stamps = np.array([stamp for stamp, _ in trail.poses(limit=10)])
    assert len(stamps) == 10 and stamps[0] == 0 and stamps[-1] == 899
    assert np.ptp(np.diff(stamps)) <= 1
    trail.clear()
    assert trail.poses() == []
