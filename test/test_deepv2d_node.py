"""The tracking node over DDS: odometry, TF, depth and map of a wall that slides by, services, loss and recovery."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ros_support
from deepv2d_bench import DEPTH, Bench
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from depth_ros.engines.deepv2d import DeepV2DEngine
from depth_ros.frames import Scale
from depth_ros.learning.trajectory import read_trajectory
from depth_ros.ros import cloud, codecs, poses
from depth_ros.ros.deepv2d_node import DeepV2DNode
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE
from depth_ros.ros.sync import Matched

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def bench(world, tf_settled):
    with ros_support.benches(Bench, world) as make:
        yield make


def test_odometry_follows_the_camera_and_tf_follows_odometry(bench):
    one = bench()
    one.track(12)
    for message in one.odometry:
        assert (message.header.frame_id, message.child_frame_id) == ('odom', 'camera')
        T = poses.matrix(message)
        # odom is z-up and the first camera looks along +x: what is right of it is -y.
        np.testing.assert_allclose(T[:3, 3], [0.0, -one.moved(message), 0.0], atol=0.01 + 0.02 * one.moved(message))
    stamps = [codecs.stamp_ns(m.header.stamp) for m in one.odometry]
    assert stamps == sorted(set(stamps)) and set(stamps) <= set(one.camera.shots)
    one.camera.run(lambda: one.odometry[-1].twist.covariance[0] < 1e3, 'a velocity')     # none is told over a long gap
    last = one.odometry[-1]
    one.world.until(lambda: any(m.transforms[0].header.stamp == last.header.stamp for m in one.tf), 'the transform')
    transform = next(m.transforms[0] for m in one.tf if m.transforms[0].header.stamp == last.header.stamp)
    np.testing.assert_allclose(poses.matrix(transform), poses.matrix(last))
    speed = one.camera.speed * DEPTH / one.camera.K[0, 0] / (ros_support.STEP * 1e-9)
    assert last.twist.twist.linear.x == pytest.approx(speed, rel=0.2)       # x is right in the optical frame


def test_it_uses_the_flow_bundle_and_takes_no_clock_jump_for_its_silence(bench):
    one = bench(flow=True, flow_patience=30.0)
    one.camera.run(lambda: int(one.values().get('flow bundles used', 0)) >= 5, 'bundles', every=0.1)
    one.track(3, every=0.1)
    assert abs(poses.matrix(one.odometry[-1])[1, 3] + one.moved(one.odometry[-1])) < 0.02 + 0.02 * one.moved(one.odometry[-1])
    one.camera.run(lambda: one.node.diagnostics.status().level == DiagnosticStatus.OK, 'the end of all complaints', every=0.1)
    one.node._first_image -= 100.0      # as if it had run for long
    one.camera.stamp -= 60 * 10 ** 9
    one.track(1)
    assert 'no flow' not in one.node.diagnostics.status().message


def test_depth_points_and_map_come_in_metres_with_their_calibration(world, bench):
    images, infos, points, maps = (world.record(k, t, q) for k, t, q in (
        (Image, 'deepv2d/depth/image', 10), (CameraInfo, 'deepv2d/depth/camera_info', 10), (PointCloud2, 'deepv2d/points', 10), (PointCloud2, 'deepv2d/map', LATCHED)))
    one = bench(map_rate=10.0)
    one.camera.run(lambda: images and infos and points and maps and len(cloud.cloud_points(maps[-1], '')) > 0, 'all outputs')
    depth, valid = codecs.depth_array(images[-1], '')
    assert valid.mean() > 0.9
    np.testing.assert_allclose(depth[valid], DEPTH, atol=0.02)
    assert codecs.camera_matrix(infos[0], (images[0].width, images[0].height), '')[0, 0] == pytest.approx(300.0 * images[0].width / 320)
    assert {codecs.stamp_ns(m.header.stamp) for m in (*images, *infos, *points)} <= set(one.camera.shots)
    np.testing.assert_allclose(cloud.cloud_points(points[-1], '')[:, 2], DEPTH, atol=0.02)
    assert maps[-1].header.frame_id == 'odom'
    np.testing.assert_allclose(cloud.cloud_points(maps[-1], '')[:, 0], DEPTH, atol=0.05)     # the wall stands across +x of odom


def test_the_path_and_the_saved_trajectory_are_the_odometry(world, bench, tmp_path):
    paths = world.record(Path, 'deepv2d/path')
    one = bench(trajectory_file=str(tmp_path / 'drive' / 'trajectory.txt'))
    one.camera.run(lambda: len(paths) >= 2 and len(one.odometry) >= 5, 'the path')
    answer = one.call('save_trajectory')
    assert answer.success and answer.message == str(tmp_path / 'drive' / 'trajectory.txt')
    saved = read_trajectory(answer.message)
    by_stamp = {codecs.stamp_ns(m.header.stamp): poses.matrix(m) for m in one.odometry}
    common = [s for s in saved.stamps_ns if s in by_stamp]
    assert len(common) >= 5
    for stamp in common:
        np.testing.assert_allclose(saved.at(stamp), by_stamp[stamp], atol=1e-6)
    assert {codecs.stamp_ns(p.header.stamp) for p in paths[-1].poses} <= set(saved.stamps_ns.tolist()) | set(by_stamp)


def test_the_map_is_saved_as_ply(bench, tmp_path):
    one = bench(map_file=str(tmp_path / 'map.ply'))
    one.track(5)
    answers = []
    one.follow(lambda: answers.append(one.call('save_map')) or answers[-1].success, 'a map with points')
    assert all('no points yet' in answer.message for answer in answers[:-1])
    assert answers[-1].message == str(tmp_path / 'map.ply') and b'element vertex 0\n' not in (tmp_path / 'map.ply').read_bytes()


def test_a_map_without_points_leaves_the_file_that_is_there(bench, tmp_path):
    (tmp_path / 'map.ply').write_bytes(b'of another drive')
    one = bench(depth=None, map_file=str(tmp_path / 'map.ply'))
    one.track(1)
    answer = one.call('save_map')
    assert not answer.success and 'no points yet' in answer.message
    assert (tmp_path / 'map.ply').read_bytes() == b'of another drive'


@pytest.mark.parametrize(('service', 'parameter'), [('save_trajectory', 'trajectory_file'), ('save_map', 'map_file')])
def test_a_file_that_cannot_be_written_is_told(bench, tmp_path, service, parameter):
    (tmp_path / 'file').write_text('in the way')
    one = bench(**{parameter: str(tmp_path / 'file' / 'below')})
    one.track(2)
    answers = []
    one.follow(lambda: answers.append(one.call(service)) or 'no points yet' not in answers[-1].message, 'something to write')
    assert not answers[-1].success and str(tmp_path / 'file' / 'below') in answers[-1].message


def test_reset_starts_afresh_at_the_origin(bench):
    one = bench()
    one.track(10)
    assert abs(poses.matrix(one.odometry[-1])[1, 3]) > 0.05
    assert one.call('reset').success
    count = len(one.odometry)
    one.camera.run(lambda: any(np.abs(poses.matrix(m)[:3, 3]).max() < 1e-6 for m in one.odometry[count:]), 'the origin')


def test_after_a_clock_jump_it_goes_on_from_its_last_pose(bench, tmp_path):
    one = bench(trajectory_file=str(tmp_path / 'trajectory.txt'))
    one.track(10)
    one.world.until(lambda: codecs.stamp_ns(one.odometry[-1].header.stamp) == one.camera.stamp, 'the newest image to be tracked')
    before = poses.matrix(one.odometry[-1])
    one.camera.stamp -= 60 * 10 ** 9
    count, jumped = len(one.odometry), one.camera.stamp
    one.camera.run(lambda: any(codecs.stamp_ns(m.header.stamp) < jumped + 10 ** 10 for m in one.odometry[count:]), 'odometry after the jump')
    after = next(m for m in one.odometry[count:] if codecs.stamp_ns(m.header.stamp) < jumped + 10 ** 10)
    assert np.linalg.norm(poses.matrix(after)[:3, 3] - before[:3, 3]) < 0.01
    one.track(5)
    answer = one.call('save_trajectory')
    assert answer.success and len(read_trajectory(answer.message)) >= 5     # of this lap alone: stamps that rise


def test_lost_is_told_by_covariance_tf_and_diagnostics_and_mended(bench):
    one = bench()
    one.track(8)
    wall, rng = one.camera.wall, np.random.default_rng(3)

    def lost():
        one.camera.wall = rng.integers(0, 255, wall.shape, dtype=np.uint8)
        return one.odometry and one.odometry[-1].pose.covariance[0] >= UNKNOWN_VARIANCE

    one.camera.run(lost, 'the loss', every=0.15)
    assert one.node.diagnostics.status().level == DiagnosticStatus.ERROR and 'lost' in one.node.diagnostics.status().message
    lost_stamps = {codecs.stamp_ns(m.header.stamp) for m in one.odometry if m.pose.covariance[0] >= UNKNOWN_VARIANCE}
    one.camera.wall, one.camera.index = wall, 2
    one.camera.speed = 0
    one.camera.run(lambda: one.odometry[-1].pose.covariance[0] < 1.0, 'the recovery')
    assert not lost_stamps & {codecs.stamp_ns(m.transforms[0].header.stamp) for m in one.tf}
    assert 'lost' not in one.node.diagnostics.status().message


def test_without_a_depth_sensor_depth_comes_from_flow_and_the_scale_is_free(world, bench):
    images = world.record(Image, 'deepv2d/depth/image')
    one = bench(depth=None)
    assert one.node.diagnostics.status().level == DiagnosticStatus.OK
    one.follow(lambda: images, 'depth')
    assert one.values()['depth from'] == 'flow' and one.values()['scale'] == 'free'
    assert 'scale is free' in one.node.diagnostics.status().message and one.node.diagnostics.status().level == DiagnosticStatus.WARN
    depth, valid = codecs.depth_array(images[-1], '')
    wall, step = (np.median(half[half > 0.0]) for half in np.split(np.where(valid, depth, 0.0), 2))
    assert wall / step == pytest.approx(2.0, rel=0.25)
    assert all(m.pose.covariance[0] >= UNKNOWN_VARIANCE for m in one.odometry[:1])      # before the second view


def test_what_has_no_metre_is_withheld_where_that_is_asked_for(world, bench):
    images = world.record(Image, 'deepv2d/depth/image')
    one = bench(depth=None, free_scale=False)
    one.follow(lambda: 'free_scale: false' in one.node.diagnostics.status().message, 'the scale to be found free')
    one.track(5)
    assert all(m.pose.covariance[0] >= UNKNOWN_VARIANCE for m in one.odometry) and not one.tf and not images
    assert one.node.set_parameters([ros_support.Parameter('free_scale', value=True)])[0].successful
    one.follow(lambda: one.tf and images, 'poses and depth in a free unit')


def test_range_hits_make_it_metric_however_late_they_come(world, bench):
    sparse = world.publisher(Image, 'sparse_depth/image')
    one = bench(depth=None)
    world.connected(sparse)

    images, sent = world.record(Image, 'deepv2d/depth/image'), set()

    def told():
        if one.camera.stamp not in sent:
            sent.add(one.camera.stamp)
            hits = np.zeros(one.camera.size[::-1], np.float32)
            hits[60, ::2] = DEPTH
            sparse.publish(codecs.depth_image(hits, hits > 0.0, one.camera.header(one.camera.stamp - 6 * ros_support.STEP)))
        if not images or one.values().get('scale') != 'metric':
            return False
        depth, valid = codecs.depth_array(images[-1], '')
        return np.median(depth[60][valid[60]]) == pytest.approx(DEPTH, rel=0.1)

    one.follow(told, 'depth in metres')
    world.tester.destroy_publisher(sparse)


def test_new_settings_take_over_at_the_last_pose(bench):
    one = bench()
    one.track(8)
    before = poses.matrix(one.odometry[-1])
    assert one.node.set_parameters([ros_support.Parameter('steps', value=5)])[0].successful
    one.track(6)
    assert abs(poses.matrix(one.odometry[-1])[1, 3]) >= abs(before[1, 3]) > 0.05
    refused = one.node.set_parameters([ros_support.Parameter('depth', value='guess')])[0]
    assert not refused.successful and 'auto, sensor, flow, sweep' in refused.reason


def test_settings_change_before_it_is_activated(world):
    node = world.node(DeepV2DNode, autostart=False)
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    result = node.set_parameters([ros_support.Parameter('depth', value='flow')])[0]
    assert result.successful, result.reason
    assert world.change_state(node, Transition.TRANSITION_ACTIVATE).success and node.config.engine.depth == 'flow'
    world.remove(node)


def test_new_settings_in_the_middle_of_a_frame_make_no_jump(bench, monkeypatch):
    one = bench()
    one.track(10)
    engine, entered, release = one.node._engine, threading.Event(), threading.Event()
    step = engine.step

    def blocked(*args, **options):
        entered.set()
        assert release.wait(ros_support.TIMEOUT)
        return step(*args, **options)

    monkeypatch.setattr(engine, 'step', blocked)
    one.camera.run(entered.is_set, 'a frame at work')
    count = len(one.odometry)
    before = abs(poses.matrix(one.odometry[-1])[1, 3])
    assert before > 0.05
    assert one.node.set_parameters([ros_support.Parameter('steps', value=5)])[0].successful
    release.set()
    one.track(5)
    assert one.node._engine is not engine
    assert min(abs(poses.matrix(m)[1, 3]) for m in one.odometry[count:]) > before - 0.01


def test_map_and_path_begin_anew_when_the_scale_becomes_known(bench, monkeypatch):
    one = bench(map_motion=0.0)
    step, free, metric = DeepV2DEngine.step, [True], []

    def in_half_metres(self, *args, **options):
        track, depth = step(self, *args, **options)
        if not free[0]:
            metric.append(track.stamp)
            return track, depth
        T = track.T_odom_cam.copy()
        T[:3, 3] /= 2.0
        return replace(track, T_odom_cam=T, scale=Scale.FREE), depth and replace(depth, depth=depth.depth / 2.0, scale=Scale.FREE)

    monkeypatch.setattr(DeepV2DEngine, 'step', in_half_metres)

    def points():
        with one.node._map._lock:
            return one.node._map._map.arrays()[0]

    one.camera.run(lambda: len(one.odometry) >= 4 and len(points()), 'a map')
    np.testing.assert_allclose(points()[:, 0], DEPTH / 2.0, atol=0.05)
    free[0] = False
    one.camera.run(lambda: one.values()['scale'] == 'metric' and len(points()) and np.abs(points()[:, 0] - DEPTH).max() < 0.05, 'a map in metres alone')
    trail = one.node._odometry.trail.poses()
    assert trail and trail[0][0] >= metric[0] > codecs.stamp_ns(one.odometry[3].header.stamp)


def test_map_and_path_begin_anew_when_metres_were_wrong(bench):
    one = bench(map_motion=0.0)
    one.camera.run(lambda: len(one.odometry) >= 4 and one.node._map._T_map_last is not None, 'a map')
    begun, cleared = one.node._odometry.trail.poses()[0][0], one.node._map._cleared
    one.node._engine._scale.restarts += 1
    one.camera.run(lambda: one.node._map._cleared > cleared and one.node._map._T_map_last is not None, 'another map')
    assert one.node._map._cleared == cleared + 1 and one.node._odometry.trail.poses()[0][0] > begun


def test_compressed_topics_follow_the_remapping_of_their_base(world):
    parameters = [ros_support.Parameter('image_transport', value='compressed'), ros_support.Parameter('depth_transport', value='compressedDepth')]
    node = world.add(DeepV2DNode(context=world.context, parameter_overrides=parameters,
                                 cli_args=['--ros-args', '-r', 'image:=/left/image_raw', '-r', 'depth:=/left/depth_raw']))
    made = [world.publisher(CompressedImage, topic) for topic in ('/left/image_raw/compressed', '/left/depth_raw/compressedDepth')]
    world.connected(*made)
    for publisher in made:
        world.tester.destroy_publisher(publisher)
    world.remove(node)


def test_the_first_depth_message_settles_where_depth_comes_from(bench):
    one = bench(depth=None)
    one.camera.infos.publish(codecs.camera_info(one.camera.K, one.camera.size, one.camera.header()))
    one.world.until(lambda: one.node._camera.infos.count, 'the calibration')
    one.node._take_image(one.camera.message())
    assert one.node._source is None
    depth = np.full(one.camera.size[::-1], DEPTH, np.float32)
    one.node._take_depth(codecs.depth_image(depth, depth > 0.0, one.camera.header()))
    one.world.until(lambda: one.odometry, 'the pose of the first image')
    assert one.values()['depth from'] == 'sensor'


def test_no_sensor_is_looked_for_on_a_topic_named_none(world):
    node = world.add(DeepV2DNode(context=world.context, namespace='left', cli_args=['--ros-args', '-r', 'depth:=none']))
    world.until(lambda: node.state == 'active', 'the node')
    node._first_image = time.monotonic()        # discovery has had no time yet
    node._look_for_depth()
    assert node._depth.topic == '/left/none' and node._source == 'flow' and not node._depth.stalls
    world.remove(node)


def test_depth_may_be_chosen_between_a_reset_and_the_next_image(bench):
    one = bench()
    one.track(2)
    one.camera.stamp += 10 * ros_support.STEP
    one.node._take_image(one.camera.message())      # waits for its depth
    assert one.call('reset').success
    assert one.node.set_parameters([ros_support.Parameter('depth', value='sensor')])[0].successful
    depth = np.full(one.camera.size[::-1], DEPTH, np.float32)
    one.node._take_depth(codecs.depth_image(depth, depth > 0.0, one.camera.header()))
    one.world.until(lambda: codecs.stamp_ns(one.odometry[-1].header.stamp) == one.camera.stamp, 'the pose of the image')


def test_a_depth_sensor_that_starts_late_is_taken_up(bench):
    one = bench(depth=None)
    one.camera.run(lambda: one.values().get('depth from') == 'flow', 'depth from flow', every=0.1)
    one.camera.depth, one.camera.depths = DEPTH, one.world.publisher(Image, 'depth')
    one.world.connected(one.camera.depths)
    one.camera.run(lambda: one.values()['depth from'] == 'sensor' and one.values()['scale'] == 'metric', 'depth from the sensor')
    assert one.node._depth.stalls


def test_a_depth_sensor_that_is_offered_but_never_sends_is_not_waited_for(bench):
    one = bench(stale_after=0.5)
    sends, one.camera.depth = one.camera.depth, None
    one.camera.run(lambda: one.node._source == 'sensor', 'the sensor to be found')
    assert not one.odometry
    one.camera.run(lambda: one.odometry and one.values()['depth from'] == 'flow', 'images tracked without it', every=0.1)
    assert not one.node._depth.stalls
    one.camera.depth = sends
    one.camera.run(lambda: one.values()['depth from'] == 'sensor', 'depth from the sensor')


def test_a_sensor_that_sent_and_fell_silent_is_still_waited_for(bench):
    one = bench(stale_after=0.1)
    one.track(2)
    one.camera.depth = None
    level = lambda: one.node.diagnostics.status().level
    one.camera.run(lambda: level() == DiagnosticStatus.STALE and int(one.values()['images without depth']) > 0, 'images given up for want of depth', every=0.02)
    assert one.node._source == 'sensor'


def test_automatic_depth_looks_anew_for_a_sensor_but_only_when_it_is_chosen(bench):
    one = bench()
    assert one.node.set_parameters([ros_support.Parameter('depth', value='flow')])[0].successful
    one.camera.run(lambda: one.values().get('depth from') == 'flow', 'depth from flow', every=0.1)
    assert one.node.set_parameters([ros_support.Parameter('depth', value='auto')])[0].successful
    assert one.node._source is None
    one.camera.run(lambda: one.values()['depth from'] == 'sensor', 'depth from the sensor')
    assert one.node.set_parameters([ros_support.Parameter('steps', value=5)])[0].successful
    assert one.node._source == 'sensor'


def test_the_image_that_a_flow_starts_from_is_tracked_before_the_one_it_belongs_to(bench, monkeypatch):
    one = bench(depth=None)
    jobs, ours = [], lambda stamp, flow: Matched(stamp, None, None, flow)
    monkeypatch.setattr(one.node._bundle, 'reference_stamp', lambda flow: flow)
    one.node._source = 'flow'
    monkeypatch.setattr(one.node._newest, 'put', lambda job: jobs.append([matched.stamp for _, matched in job]))
    one.node._hand_on([ours(1, None), ours(2, None), ours(3, 2), ours(4, 2), ours(5, 2)])
    assert jobs == [[1], [2, 3], [4], [5]]
