"""The Global-Local node over DDS: depth, cloud and parameters of a bundle, its scale, its poses, weights in flight, and what goes wrong."""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Float32MultiArray, UInt8MultiArray
from tf2_ros import StaticTransformBroadcaster

from depth_ros.engines import depth_networks
from depth_ros.engines.global_local import GlobalLocalEngine
from depth_ros.models import checkpoint
from depth_ros.ros import bundle, cloud, codecs, global_local_node, poses
from depth_ros.ros.global_local_node import GlobalLocalNode
from depth_ros.ros.managed_node import LATCHED_QOS
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE

SIZE, BASELINE = support.SIZE, support.BASELINE
PAIR = 300_000_000      # [ns] from a reference to its current image


@pytest.fixture(scope='module')
def world():
    with ros_support.world() as made:
        yield made


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    return support.write(tmp_path_factory.mktemp('weights'))


@pytest.fixture(autouse=True)
def as_shipped(shipped, monkeypatch):
    monkeypatch.setattr(depth_networks, 'shipped', lambda variant: shipped / support.FILES[variant])


class Bench:
    """The node, and a tester that plays the flow node, the tracker, the range sensor and the trainer."""

    def __init__(self, world, **parameters):
        self.world = world
        self.stamp = 10 ** 18
        self.bundle = {name: world.publisher(kind, f'flow/{name}') for name, kind in bundle.TOPICS.items()}
        self.hits, self.odometry = world.publisher(Image, 'sparse_depth/image'), world.publisher(Odometry, 'deepv2d/odometry')
        self.weights = world.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
        self.node = world.node(GlobalLocalNode, **{'width': SIZE[0], 'height': SIZE[1], 'backend': 'torch'} | parameters)
        self.depths, self.infos = world.record(Image, 'global_local/depth/image'), world.record(CameraInfo, 'global_local/depth/camera_info')
        self.points, self.parameters = world.record(PointCloud2, 'global_local/points'), world.record(Float32MultiArray, 'global_local/parameters')
        world.until(lambda: self.node.state == 'active', 'the node')
        listened = [self.hits, self.weights, *self.bundle.values()] + ([self.odometry] if self.node._uses_odometry else [])
        world.connected(*listened, *[p for p in self.node.publishers if 'global_local' in p.topic_name])
        self.truth = support.wall()[1]

    def tell(self, publisher, message):
        publisher.publish(message)

    def result(self):
        self.stamp += ros_support.STEP
        return support.wall(self.stamp, self.stamp - PAIR)[0]

    def send(self, result=None, without=()):
        """Publish the bundle of a result, less some parts; its stamp."""
        result = result or self.result()
        bundle.publish(self, {n: _Mute() if n in without else p for n, p in self.bundle.items()}, result)
        return result.pair.current.stamp

    def send_hits(self, stamp, share=1.0):
        hits = support.hits_on(self.truth, share)
        self.hits.publish(codecs.depth_image(hits, hits > 0.0, codecs.make_header(stamp, 'camera')))

    def send_pose(self, stamp, x, variance=0.0, child='camera', T=None):
        pose = np.eye(4) if T is None else T
        pose[0, 3] += x
        self.odometry.publish(poses.odometry(pose, np.eye(6) * variance, codecs.make_header(stamp, 'odom'), child))

    def depth_at(self, stamp):
        """Depth (H, W) [m] of a stamp, once it is there."""
        found = lambda: next((d for d in self.depths if codecs.stamp_ns(d.header.stamp) == stamp), None)
        message = self.world.until(found, 'depth')
        depth, valid = codecs.depth_array(message, '')
        return np.where(valid, depth, np.nan)

    def metric(self, share=1.0):
        """Send a pair with its hits; its depth (H, W) [m]."""
        result = self.result()
        self.send_hits(result.pair.current.stamp, share)
        before = self.count('sparse_depth/image')
        self.world.until(lambda: self.count('sparse_depth/image') > before or self.node._hits.newest == result.pair.current.stamp, 'the hits')
        self.send(result)
        return self.depth_at(result.pair.current.stamp)

    def count(self, topic):
        return int(self.values().get(f'/{topic} received', 0))

    def values(self):
        return {v.key: v.value for v in self.node.diagnostics.status().values}

    def message(self):
        return self.node.diagnostics.status().message

    def says(self, text, what=None):
        self.world.until(lambda: text in self.message(), f'{what or text!r} (it says {self.message()!r})')

    def offer(self, blob):
        self.weights.publish(UInt8MultiArray(data=array('B', blob)))

    def take(self, number):
        """Offer weights of that number, and wait until they are at work."""
        self.offer(support.blob('published', seed=number, number=number))
        self.world.until(lambda: self.number() == str(number), f'weights {number}')

    def number(self):
        return self.values().get('weights of published')

    def set(self, name, value):
        result = self.node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful, result.reason

    def close(self):
        self.world.remove(self.node)
        for publisher in (self.hits, self.odometry, self.weights, *self.bundle.values()):
            self.world.tester.destroy_publisher(publisher)
        for subscription in list(self.world.tester.subscriptions):
            self.world.tester.destroy_subscription(subscription)


class _Mute:
    """A publisher that nobody listens to."""

    def get_subscription_count(self):
        return 0


@pytest.fixture
def bench(world):
    made = []

    def make(**parameters):
        made.append(Bench(world, **parameters))
        return made[-1]

    yield make
    for one in made:
        one.close()


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


def test_the_odometry_of_both_stamps_makes_metres_and_is_waited_for(bench):
    one = bench(variant='pose_aware', odometry_patience=2.0)
    result = one.result()
    one.send_pose(result.pair.reference.stamp, 0.0)
    one.world.until(lambda: one.count('deepv2d/odometry') == 1, 'the odometry')
    one.send(result)
    one.world.until(lambda: one.node._waiting.newest == result.pair.current.stamp, 'the bundle')
    assert not one.depths
    one.send_pose(result.pair.current.stamp, BASELINE)
    np.testing.assert_allclose(np.median(one.depth_at(result.pair.current.stamp) / one.truth), 1.0, rtol=0.02)
    assert one.values()['network'] == 'pose_aware' and one.values()['scale from'] == 'odometry' and one.message() == 'active'


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
        seen = one.count('deepv2d/odometry')
        one.world.until(lambda: one.node._poses.newest == result.pair.current.stamp or one.count('deepv2d/odometry') > seen + 1, 'the odometry')
        one.send(result)
        one.world.until(lambda: not len(one.node._waiting) and one.node._newest.wait_idle(0.0), 'the pair')
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


def test_an_odometry_that_lags_is_waited_for_only_so_long(bench):
    one = bench(variant='pose_aware', odometry_patience=0.05)
    result = one.result()
    one.send_pose(result.pair.reference.stamp, 0.0)
    one.world.until(lambda: one.count('deepv2d/odometry') == 1, 'the odometry')
    one.send(result)
    one.world.until(lambda: one.node._waiting.newest == result.pair.current.stamp, 'the bundle')
    assert not one.depths

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


def test_new_weights_take_over_while_it_runs(bench):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    one.offer(support.blob('published', seed=5, number=12))
    one.world.until(lambda: one.values()['weights of published'] == '12', 'the new weights')
    after = one.depth_at(one.send())
    assert np.median(np.abs(np.log(after / before))) > 1e-3
    assert one.node.set_parameters([Parameter('threads', value=2)])[0].successful        # a new engine, the same weights
    np.testing.assert_allclose(one.depth_at(one.send()), after, rtol=1e-5)
    assert one.values()['weights of published'] == '12'


def test_weights_named_by_a_parameter_make_those_taken_over_before_forgotten(bench, tmp_path):
    one = bench(scale='none')
    one.take(12)
    path = tmp_path / 'own.safetensors'
    checkpoint.save(path, 'global_local', support.network('published', seed=9), {'number': 9})
    one.set('weights', str(path))
    assert one.number() == '9'
    one.set('threads', 2)       # another engine
    assert one.number() == '9'
    one.take(13)                # later offers are kept again
    one.set('threads', 3)
    assert one.number() == '13'


def test_weights_that_a_refused_parameter_would_have_replaced_stay(bench, tmp_path):
    one = bench(scale='none')
    one.take(12)
    assert not one.node.set_parameters([Parameter('weights', value=str(tmp_path / 'absent.safetensors'))])[0].successful
    one.set('threads', 2)
    assert one.number() == '12'


@pytest.mark.parametrize('moment', ['made', 'offered the old weights'])
def test_weights_offered_while_another_engine_is_made_are_not_lost(bench, monkeypatch, moment):
    one = bench(scale='none')
    one.take(12)
    late = UInt8MultiArray(data=array('B', support.blob('published', seed=13, number=13)))
    offering = threading.Thread(target=one.node._try_weights, args=(late,))

    class Meanwhile(GlobalLocalEngine):
        def __init__(self, config):
            super().__init__(config)
            if moment == 'made':
                offering.start()
                offering.join(ros_support.TIMEOUT)
            else:
                self.offer = self.offer_meanwhile

        def offer_meanwhile(self, blob):
            if offering.ident is None:
                offering.start()
                offering.join(0.3)      # without a lock it would have ended long before
            return self.networks.offer(blob)

    monkeypatch.setattr(global_local_node, 'GlobalLocalEngine', Meanwhile)
    one.set('threads', 2)
    offering.join(ros_support.TIMEOUT)
    assert not offering.is_alive() and one.number() == '13'


def test_taken_over_weights_that_do_not_fit_the_new_settings_are_told(bench, monkeypatch):
    one = bench(scale='none')
    one.take(12)
    monkeypatch.setattr(one.node, '_accepted', support.blob('pose_aware'))
    warnings = []
    monkeypatch.setattr(one.node.get_logger(), 'warning', lambda text, **_: warnings.append(text))
    one.set('threads', 2)
    assert one.number() == '0' and len(warnings) == 1 and 'expected weights of published, got pose_aware' in warnings[0]


def test_settings_that_are_not_the_networks_change_without_loading_it_again(bench, monkeypatch):
    one = bench(scale='none')
    one.take(12)
    free = one.depth_at(one.send())
    monkeypatch.setattr(global_local_node, 'GlobalLocalEngine', lambda *_: pytest.fail('made again'))
    one.set('scale', 'auto')
    metric = one.metric()
    one.set('max_depth', float(np.nanmedian(metric)))
    cut = one.metric()
    assert np.isfinite(free).all() and 0.2 < np.isnan(cut).mean() < 0.8 and one.number() == '12'


def test_a_single_rangefinder_and_an_odometry_give_the_published_network_its_scale(bench):
    one = bench(scale='hits', scale_min_hits=3, odometry_patience=2.0)
    results = [one.result() for _ in range(3)]
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


@pytest.mark.parametrize(('blob', 'complaint'), [
    (lambda: support.blob('published', seed=5)[:-10], 'not a safetensors file'),
    (lambda: support.blob('published', coordinates=False), 'expected a network of'),
    (lambda: support.blob('pose_aware'), 'got pose_aware'),
])
def test_weights_that_do_not_fit_are_refused_and_the_last_good_ones_stay(bench, blob, complaint):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    one.offer(blob())
    one.says(complaint)
    assert 'the last good ones stay' in one.message() and one.values()['/online_learning/weights rejected'] == '1'
    np.testing.assert_array_equal(one.depth_at(one.send()), before)


def test_weights_offered_before_it_started_are_taken(bench, world):
    trainer = world.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
    trainer.publish(UInt8MultiArray(data=array('B', support.blob('published', seed=5, number=3))))
    one = bench(scale='none')
    world.until(lambda: one.values().get('weights of published') == '3', 'the latched weights')
    world.tester.destroy_publisher(trainer)


def test_a_corrupt_checkpoint_fails_the_configuration_and_is_named(world, tmp_path):
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(support.blob('published')[:1000])
    node = world.node(GlobalLocalNode, autostart=False, weights=str(broken))
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert node.state == 'unconfigured' and 'broken.safetensors: not a safetensors file' in node.diagnostics.status().message
    checkpoint.save(broken, 'global_local', support.network('published'), {})
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success       # mended, it starts
    world.remove(node)


def test_weights_that_cannot_be_used_are_refused_as_a_parameter_and_it_runs_on(bench, tmp_path):
    one = bench(scale='none')
    before = one.depth_at(one.send())
    refused = one.node.set_parameters([Parameter('weights', value=str(tmp_path / 'absent.safetensors'))])[0]
    assert not refused.successful and 'absent.safetensors' in refused.reason
    np.testing.assert_array_equal(one.depth_at(one.send()), before)


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
