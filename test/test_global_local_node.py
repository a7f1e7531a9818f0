"""The Global-Local node over DDS: depth, cloud and parameters of a bundle, its scale, its poses, and what goes wrong."""

from __future__ import annotations

import time
from array import array
from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticStatus
from global_local_bench import PAIR, SIZE, Bench
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image
from tf2_ros import StaticTransformBroadcaster

from depth_ros.ros import cloud, codecs, global_local_node, poses
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE

BASELINE = support.BASELINE
pytestmark = pytest.mark.usefixtures('as_shipped')


@pytest.fixture
def bench(world):
    with ros_support.benches(Bench, world) as make:
        yield make


@pytest.fixture
def never_silent(monkeypatch):
    """However slowly this test's own messages follow each other, the odometry counts as heard just now."""
    monkeypatch.setattr(global_local_node, '_SILENCE', 1e9)


def test_depth_its_calibration_its_cloud_and_the_parameters_belong_to_the_image(bench):
    one = bench()
    depth = one.metric()
    np.testing.assert_allclose(np.median(depth[40, ::2] / one.truth[40, ::2]), 1.0, rtol=1e-3)
    one.world.until(lambda: one.infos and one.points and one.parameters, 'all outputs')
    assert codecs.stamp_ns(one.infos[0].header.stamp) == codecs.stamp_ns(one.points[0].header.stamp) == one.stamp
    assert {m.header.frame_id for m in (one.depths[0], one.infos[0], one.points[0])} == {'camera'}
    assert (one.infos[0].width, one.infos[0].height, one.infos[0].k[0]) == (*SIZE, 110.0)
    assert (one.depths[0].encoding, one.depths[0].width, one.depths[0].height) == ('32FC1', *SIZE)
    points = cloud.cloud_points(one.points[0], '')
    shown = depth[::2, ::2]
    np.testing.assert_allclose(points[:, 2], shown[np.isfinite(shown)], rtol=1e-6)
    assert len(one.parameters[0].data) == 6 and one.parameters[0].layout.dim[0].size == 6 and np.isfinite(one.parameters[0].data).all()


def test_the_odometry_of_both_stamps_makes_metres_and_is_waited_for(bench, never_silent):
    one = bench(variant='pose_aware', odometry_patience=2.0)
    result = one.begun()
    one.send_pose(result.pair.current.stamp, BASELINE)
    np.testing.assert_allclose(np.median(one.depth_at(result.pair.current.stamp) / one.truth), 1.0, rtol=0.02)
    assert one.values()['network'] == 'pose_aware' and one.values()['scale from'] == 'odometry' and one.message() == 'active'


def test_a_late_pose_frees_two_pairs_and_both_are_taken_up(bench, never_silent):
    one = bench(variant='pose_aware', odometry_patience=2.0)
    first = one.begun()
    begin, second = first.pair.reference.stamp, one.send()
    one.world.until(lambda: one.node._waiting.newest == second, 'the second bundle')
    for stamp in (begin + PAIR // 2, second):       # at constant velocity
        one.send_pose(stamp, BASELINE * (stamp - begin) / PAIR)
    one.world.until(lambda: one.values()['processed'] == '2', 'both pairs')
    np.testing.assert_allclose(np.median(one.depth_at(first.pair.current.stamp) / one.truth), 1.0, rtol=0.02)
    assert one.values()['dropped'] == '0'


def test_motion_between_interpolated_poses_is_exact(bench):
    one = bench(variant='pose_aware', odometry_patience=2.0)
    result = one.result()
    for stamp in (result.pair.reference.stamp, result.pair.current.stamp):
        for offset in (-10_000_000, 10_000_000):     # constant velocity, no pose at the stamps themselves
            one.send_pose(stamp + offset, BASELINE * (stamp + offset - result.pair.reference.stamp) / PAIR)
    one.world.until(lambda: one.count('deepv2d/odometry') == 4, 'the odometry')
    one.send(result)
    np.testing.assert_allclose(np.median(one.depth_at(result.pair.current.stamp) / one.truth), 1.0, rtol=0.02)


def test_odometry_of_the_robot_is_brought_to_its_camera_by_tf(bench):
    one = bench(variant='pose_aware', odometry_patience=2.0)
    T_base_cam = np.array([[0.0, 0.0, 1.0, 0.1], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])
    broadcaster = StaticTransformBroadcaster(one.world.tester)
    broadcaster.sendTransform(poses.transform(T_base_cam, codecs.make_header(10 ** 18, 'base'), 'camera'))
    T_base_cur = np.eye(4)
    T_base_cur[1, 3] = -BASELINE        # the camera's right is the robot's -y

    def sent():
        result = one.result()
        one.send_pose(result.pair.reference.stamp, 0.0, child='base')
        one.send_pose(result.pair.current.stamp, 0.0, child='base', T=T_base_cur.copy())
        seen, done = one.count('deepv2d/odometry'), int(one.values()['processed'])
        one.world.until(lambda: one.node._poses.newest == result.pair.current.stamp or one.count('deepv2d/odometry') > seen + 1, 'the odometry')
        one.send(result)
        one.world.until(lambda: not len(one.node._waiting) and int(one.values()['processed']) > done, 'the pair')
        return one.depths

    one.world.until(sent, 'depth')        # TF may need a moment to be heard
    depth, valid = codecs.depth_array(one.world.until(lambda: one.depths, 'depth')[-1], '')
    np.testing.assert_allclose(np.median(depth[valid] / one.truth[valid]), 1.0, rtol=0.02)
    one.world.tester.destroy_publisher(broadcaster.pub_tf)


def test_a_silent_odometry_is_not_waited_for_and_the_published_network_stands_in(bench):
    one = bench(variant='pose_aware')
    assert np.isfinite(one.metric()).any()
    assert one.values()['network'] == 'published'
    assert 'published one stands in' in one.message() and one.node.diagnostics.status().level == DiagnosticStatus.WARN


def test_an_odometry_that_lags_is_waited_for_only_so_long(bench, never_silent):
    one = bench(variant='pose_aware', odometry_patience=0.05)
    result = one.begun()
    began = one.node._waiting.get(result.pair.current.stamp)[1]
    one.world.until(lambda: time.monotonic() - began > 0.05, 'the end of patience')
    one.send_hits(result.pair.current.stamp)
    one.world.until(lambda: one.count('sparse_depth/image') == 1, 'the hits')
    one.send()
    assert np.isfinite(one.depth_at(result.pair.current.stamp)).any()
    assert one.values()['network'] == 'published' and 'published one stands in' in one.message()


def test_hits_of_another_time_tell_nothing(bench):
    one = bench()
    result = one.result()
    one.send_hits(result.pair.current.stamp - 400_000_000)
    one.world.until(lambda: one.count('sparse_depth/image') == 1, 'the hits')
    one.send(result)
    one.says('neither range hits nor odometry tell the scale')
    assert not one.depths


def test_poses_across_a_loss_of_tracking_tell_no_motion(bench):
    one = bench(variant='pose_aware', odometry_patience=0.05)
    result = one.result()
    one.send_pose(result.pair.reference.stamp, 0.0)
    one.send_pose(result.pair.reference.stamp + 1000, 0.0, variance=UNKNOWN_VARIANCE)
    one.send_pose(result.pair.current.stamp, 5.0)
    one.world.until(lambda: one.count('deepv2d/odometry') == 3, 'the odometry')
    one.send(result)
    one.says('no motion of the pair is known')


def test_without_any_scale_nothing_is_published_and_the_reason_is_told(bench):
    one = bench()
    one.send()
    one.says('neither range hits nor odometry tell the scale')
    assert not one.depths and not one.points
    assert np.isfinite(one.metric()).any()
    assert one.message() == 'active'


def test_up_to_scale_is_published_if_asked_for_and_told(bench):
    one = bench(scale='none')
    assert np.isfinite(one.depth_at(one.send())).all()
    assert 'units of the baseline' in one.message()


def test_a_camera_at_rest_has_no_depth_and_says_why(bench):
    one = bench(scale='none')
    result = one.result()
    one.send(replace(result, flow=0.0 * result.flow, backward=0.0 * result.backward))
    one.says('min_displacement')
    assert not one.depths


def test_a_single_rangefinder_and_an_odometry_give_the_published_network_its_scale(bench):
    one = bench(scale='hits', scale_min_hits=3, odometry_patience=2.0)
    results = [support.living(one.result()) for _ in range(3)]
    begin = results[0].pair.reference.stamp
    for stamp in sorted(stamp for r in results for stamp in (r.pair.reference.stamp, r.pair.current.stamp)):
        one.send_pose(stamp, BASELINE * (stamp - begin) / PAIR)
    one.world.until(lambda: one.count('deepv2d/odometry') == 6, 'the odometry')
    for done, result in enumerate(results, 1):
        stamp, hits = result.pair.current.stamp, np.zeros_like(one.truth)
        hits[48, 64] = one.truth[48, 64]
        one.hits.publish(codecs.depth_image(hits, hits > 0.0, codecs.make_header(stamp, 'camera')))
        one.world.until(lambda: one.node._hits.newest == stamp, 'the hit')
        one.send(result)
        one.world.until(lambda: len(one.parameters) == done, 'the pair')
    assert one.depth_at(stamp)[48, 64] == pytest.approx(one.truth[48, 64], rel=1e-3) and len(one.depths) == 1


def test_hits_that_cannot_be_decoded_are_counted_and_the_others_give_the_pair_its_scale(bench):
    one = bench(scale='hits', odometry_patience=2.0)
    result = one.result()
    reference, current = result.pair.reference.stamp, result.pair.current.stamp
    for stamp, x in ((reference, 0.0), (current, BASELINE)):
        one.send_pose(stamp, x)
    one.world.until(lambda: one.count('deepv2d/odometry') == 2, 'the odometry')
    one.hits.publish(Image(header=codecs.make_header(current - 1000, 'camera'), width=4, height=4, encoding='rgb8', step=12, data=array('B', bytes(48))))
    one.send_hits(current)
    one.world.until(lambda: one.count('sparse_depth/image') == 2, 'the hits')
    one.send(result)
    assert np.isfinite(one.depth_at(current)).any() and one.values()['scale from'] == 'hits'
    assert one.values()['/sparse_depth/image rejected'] == '1' and "got encoding 'rgb8'" in one.message()


@pytest.mark.parametrize('part', ['flow', 'reference_image', 'reference'])
def test_a_bundle_with_a_gap_is_skipped_and_counted(bench, part):
    one = bench(scale='none')
    lost = one.send(without=(part,))
    stamp = one.send()
    one.depth_at(stamp)
    assert lost not in {codecs.stamp_ns(d.header.stamp) for d in one.depths}
    one.world.until(lambda: one.values()['incomplete bundles'] == '1', 'the count')


def with_nan(result):
    flow = result.flow.copy()
    flow[3, 4] = np.nan
    return replace(result, flow=flow)


def uncalibrated(result):
    current = replace(result.pair.current, K=np.zeros((3, 3)))
    return replace(result, pair=replace(result.pair, current=current))


@pytest.mark.parametrize(('damage', 'complaint'), [
    (with_nan, '/flow/flow: got flow with NaN or inf'),
    (uncalibrated, '/flow/camera_info: got an uncalibrated camera'),
    (lambda result: replace(result, backward=result.backward[:50]), '/flow/backward: got flow of 128 x 50 pixels'),
])
def test_a_bundle_that_cannot_be_used_is_refused_and_work_goes_on(bench, damage, complaint):
    one = bench(scale='none')
    one.send(damage(one.result()))
    one.says(complaint)
    assert not one.depths
    assert np.isfinite(one.depth_at(one.send())).all()


def test_late_bundles_are_dropped_and_a_clock_that_jumps_back_starts_afresh(bench):
    one = bench(scale='none')
    stamp = one.send()
    one.depth_at(stamp)
    one.send(support.wall(stamp, stamp - PAIR)[0])
    one.world.until(lambda: one.values()['/flow/flow late'] == '1', 'the late bundle')
    one.stamp -= 60 * 10 ** 9
    assert np.isfinite(one.depth_at(one.send())).all()


def test_the_flow_falling_silent_is_told(bench):
    one = bench(scale='none', stale_after=0.2)
    one.depth_at(one.send())
    one.says('/flow/flow stalled')
    assert one.node.diagnostics.status().level == DiagnosticStatus.STALE
    one.depth_at(one.send())


def test_cleanup_leaves_nothing_and_it_starts_again(bench):
    one = bench(scale='none')
    one.depth_at(one.send())
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert one.world.change_state(one.node, transition).success
    assert not [s for s in one.node.subscriptions if 'flow/' in s.topic_name]
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert one.world.change_state(one.node, transition).success
    one.world.connected(*one.bundle.values())
    one.world.connected(*[p for p in one.node.publishers if 'global_local' in p.topic_name])
    assert np.isfinite(one.depth_at(one.send())).all()
