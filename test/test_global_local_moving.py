"""The Global-Local engine on a camera that moves: range hits that come late, and a camera that hangs."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
from global_local_support import BASELINE, SIZE, T_REF_CUR

from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig

pytestmark = [pytest.mark.usefixtures('as_shipped'), pytest.mark.usefixtures('one_thread')]

UNIT = 2.0              # [m] of the odometry
STEP = 100_000_000      # [ns]


def made() -> GlobalLocalEngine:
    return GlobalLocalEngine(GlobalLocalEngineConfig(variant='pose_aware', width=SIZE[0], height=SIZE[1], backend='torch', scale='hits', scale_smoothing=1.0))


def moment(number: int, nearer: float = 0.0):
    """A pair, what it sees (H, W) [m], which comes nearer by a share with every number, its motion and its pose in the odometry's unit."""
    result, depth = support.wall(current=10 ** 9 + number * STEP, reference=10 ** 8)
    share = np.float32((1 - nearer) ** number)
    result = support.living(replace(result, flow=result.flow / share, backward=result.backward / share))
    T_ref_cur, T_odom_cam = T_REF_CUR.copy(), np.eye(4)
    T_ref_cur[:3, 3] /= UNIT
    T_odom_cam[0, 3] = number * BASELINE / UNIT
    return result, depth * share, T_ref_cur, T_odom_cam


def test_late_hits_are_compared_with_the_image_of_their_own_time():
    """A tenth nearer with each image: compared with the next one they would tell a metre that is a tenth too long."""
    engine, before = made(), None
    for number in range(6):
        result, depth, T_ref_cur, T_odom_cam = moment(number, nearer=0.1)
        if before is not None:
            engine.put_hits(*before)
        found = engine.step(result, T_ref_cur, None, None, T_odom_cam).depth
        before = result.pair.current.stamp, support.hits_on(depth)
    np.testing.assert_allclose(np.median(found.depth / depth), 1.0, rtol=0.02)


def test_hits_of_the_image_itself_tell_the_same_with_its_pose_and_without():
    result, depth, T_ref_cur, T_odom_cam = moment(0)
    one, other = (made().step(result, T_ref_cur, support.hits_on(depth), None, pose).depth for pose in (T_odom_cam, None))
    np.testing.assert_allclose(one.depth, other.depth, rtol=1e-6)


def test_hits_that_came_before_the_odometry_jumped_tell_nothing():
    engine = made()
    result, depth, T_ref_cur, T_odom_cam = moment(0)
    engine.step(result, T_ref_cur, None, None, T_odom_cam)
    engine.put_hits(result.pair.current.stamp, support.hits_on(depth))
    engine.forget_places()
    later = moment(1)
    assert engine.step(later[0], T_ref_cur, None, None, later[3]).depth is None and 'no range hits tell the scale' in engine.reason


def test_a_camera_that_hangs_gives_no_depth_and_leaves_the_scale_as_it_was():
    engine = made()
    for number in range(3):
        result, depth, T_ref_cur, T_odom_cam = moment(number)
        assert engine.step(result, T_ref_cur, support.hits_on(depth), None, T_odom_cam).depth is not None
    image = result.pair.current.image
    for number in range(3, 6):
        hung, depth, T_ref_cur, T_odom_cam = moment(number)
        hung = replace(hung, pair=replace(hung.pair, current=replace(hung.pair.current, image=image)))
        assert engine.step(hung, T_ref_cur, support.hits_on(depth, 1.2), None, T_odom_cam) == (None, None) and 'does it hang' in engine.reason
    result, depth, T_ref_cur, T_odom_cam = moment(6)
    found = engine.step(result, T_ref_cur, None, None, T_odom_cam).depth
    np.testing.assert_allclose(np.median(found.depth / depth), 1.0, rtol=0.02)
