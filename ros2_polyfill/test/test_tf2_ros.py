"""What tf2_ros promises; the real package keeps these promises too."""
import threading
import time

import numpy as np
import pytest
import rclpy
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation, Slerp


def _at(seconds):
    return Time(nanoseconds=round(seconds * 1e9))


def _transform(parent, child, seconds, translation=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0, 1.0)):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = _at(seconds).to_msg()
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, translation)
    q.x, q.y, q.z, q.w = map(float, rotation)
    return message


def _matrix(message):
    t, q = message.transform.translation, message.transform.rotation
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    T[:3, 3] = t.x, t.y, t.z
    return T


def _random_link(rng, parent, child, seconds):
    message = _transform(parent, child, seconds, rng.normal(size=3), Rotation.random(random_state=int(rng.integers(1 << 30))).as_quat())
    return message, _matrix(message)


@pytest.fixture
def buffer():
    return tf2_ros.Buffer()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_a_chain_is_the_product_of_its_links(buffer, rng):
    links = [_random_link(rng, parent, child, 5.0) for parent, child in [('map', 'odom'), ('odom', 'base'), ('base', 'camera'), ('base', 'laser')]]
    for message, _ in links:
        buffer.set_transform(message, 'test')
    T_map_odom, T_odom_base, T_base_camera, T_base_laser = (T for _, T in links)
    expected = {('map', 'camera'): T_map_odom @ T_odom_base @ T_base_camera,
                ('camera', 'map'): np.linalg.inv(T_map_odom @ T_odom_base @ T_base_camera),
                ('camera', 'laser'): np.linalg.inv(T_base_camera) @ T_base_laser,
                ('odom', 'base'): T_odom_base, ('odom', 'odom'): np.eye(4)}
    for (target, source), T_target_source in expected.items():
        found = buffer.lookup_transform(target, source, _at(5.0))
        assert (found.header.frame_id, found.child_frame_id) == (target, source)
        assert Time.from_msg(found.header.stamp) == Time(nanoseconds=5_000_000_000, clock_type=Time.from_msg(found.header.stamp).clock_type)
        np.testing.assert_allclose(_matrix(found), T_target_source, atol=1e-9)


def test_through_a_frame_that_stands_still_it_looks_from_one_time_into_another(buffer, rng):
    links = {(child, seconds): _random_link(rng, parent, child, seconds) for parent, child in [('odom', 'base')] for seconds in (5.0, 6.0)}
    mount, T_base_laser = _random_link(rng, 'base', 'laser', 0.0)
    for message, _ in links.values():
        buffer.set_transform(message, 'test')
    buffer.set_transform_static(mount, 'test')
    found = buffer.lookup_transform_full('base', _at(6.0), 'laser', _at(5.0), 'odom')
    assert (found.header.frame_id, found.child_frame_id, found.header.stamp) == ('base', 'laser', _at(6.0).to_msg())
    np.testing.assert_allclose(_matrix(found), np.linalg.inv(links['base', 6.0][1]) @ links['base', 5.0][1] @ T_base_laser, atol=1e-9)
    np.testing.assert_allclose(_matrix(buffer.lookup_transform_full('base', _at(5.5), 'laser', _at(5.5), 'odom')), T_base_laser, atol=1e-9)
    for times in ((_at(7.0), _at(5.0)), (_at(5.0), _at(7.0))):
        with pytest.raises(tf2_ros.ExtrapolationException):
            buffer.lookup_transform_full('base', times[0], 'laser', times[1], 'odom')
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform_full('base', _at(6.0), 'laser', _at(5.0), 'nowhere')


@pytest.mark.parametrize('share', [0.0, 0.25, 0.7, 1.0])
def test_between_two_stamps_it_interpolates(buffer, rng, share):
    ends = Rotation.random(2, random_state=1)
    translations = rng.normal(size=(2, 3))
    for index, sign in enumerate([1.0, -1.0]):    # q and -q are the same rotation
        buffer.set_transform(_transform('odom', 'base', 1.0 + index, translations[index], sign * ends[index].as_quat()), 'test')
    found = _matrix(buffer.lookup_transform('odom', 'base', _at(1.0 + share)))
    np.testing.assert_allclose(found[:3, 3], (1 - share) * translations[0] + share * translations[1], atol=1e-9)
    np.testing.assert_allclose(found[:3, :3], Slerp([0.0, 1.0], ends)(share).as_matrix(), atol=1e-9)


def test_transforms_may_come_in_any_order(buffer):
    for seconds in (3.0, 1.0, 2.0):
        buffer.set_transform(_transform('odom', 'base', seconds, (seconds ** 2, 0, 0)), 'test')
    assert buffer.lookup_transform('odom', 'base', _at(1.5)).transform.translation.x == pytest.approx(2.5)
    assert buffer.lookup_transform('odom', 'base', _at(2.5)).transform.translation.x == pytest.approx(6.5)


def test_time_zero_is_the_latest_common_time(buffer):
    for seconds in (1.0, 2.0, 3.0):
        buffer.set_transform(_transform('odom', 'base', seconds, (seconds, 0, 0)), 'test')
    for seconds in (1.0, 2.4):
        buffer.set_transform(_transform('base', 'camera', seconds), 'test')
    buffer.set_transform_static(_transform('camera', 'optical', 0.0, (0, 0, 1)), 'test')
    found = buffer.lookup_transform('odom', 'optical', Time())
    assert found.header.stamp == _at(2.4).to_msg()
    assert found.transform.translation.x == pytest.approx(2.4)
    assert buffer.lookup_transform('odom', 'base', Time()).header.stamp == _at(3.0).to_msg()


def test_a_static_transform_holds_at_any_time(buffer):
    buffer.set_transform_static(_transform('base', 'camera', 100.0, (1, 2, 3)), 'test')
    for seconds in (0.0, 1.0, 1e6):
        assert buffer.lookup_transform('base', 'camera', _at(seconds)).transform.translation.z == 3.0


@pytest.mark.parametrize('seconds', [0.5, 2.5])
def test_it_never_extrapolates(buffer, seconds):
    buffer.set_transform(_transform('odom', 'base', 1.0), 'test')
    with pytest.raises(tf2_ros.ExtrapolationException):
        buffer.lookup_transform('odom', 'base', _at(seconds))
    buffer.set_transform(_transform('odom', 'base', 2.0), 'test')
    with pytest.raises(tf2_ros.ExtrapolationException):
        buffer.lookup_transform('odom', 'base', _at(seconds))
    assert not buffer.can_transform('odom', 'base', _at(seconds))


def test_every_fault_has_its_own_exception(buffer):
    buffer.set_transform(_transform('odom', 'base', 1.0), 'test')
    buffer.set_transform(_transform('world', 'kinect', 1.0), 'test')
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform('odom', 'nowhere', Time())
    with pytest.raises(tf2_ros.ConnectivityException):
        buffer.lookup_transform('odom', 'kinect', Time())
    with pytest.raises(tf2_ros.ConnectivityException):
        buffer.lookup_transform('odom', 'kinect', _at(1.0))
    for name in ('', '/odom'):
        with pytest.raises(tf2_ros.InvalidArgumentException):
            buffer.lookup_transform(name, 'base', Time())
    for kind in ('LookupException', 'ConnectivityException', 'ExtrapolationException', 'InvalidArgumentException'):
        assert issubclass(getattr(tf2_ros, kind), tf2_ros.TransformException)
    possible, reason = buffer.can_transform('odom', 'kinect', Time(), return_debug_tuple=True)
    assert not possible and 'kinect' in reason
    assert buffer.can_transform('odom', 'base', Time())


def test_a_loop_is_an_error_not_a_hang(buffer):
    buffer.set_transform(_transform('a', 'b', 1.0), 'test')
    buffer.set_transform(_transform('b', 'a', 1.0), 'test')
    buffer.set_transform(_transform('x', 'y', 1.0), 'test')
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform('x', 'a', _at(1.0))


def test_malformed_transforms_are_not_stored(buffer):
    bad = [_transform('odom', 'base', 1.0, (float('nan'), 0, 0)), _transform('odom', 'base', 1.0, rotation=(0, 0, 0, 0)),
           _transform('base', 'base', 1.0), _transform('', 'base', 1.0), _transform('odom', '', 1.0)]
    for message in bad:
        buffer.set_transform(message, 'test')
    buffer.set_transform(_transform('odom', 'other', 1.0), 'test')
    assert not buffer.can_transform('odom', 'base', Time())


def test_leading_slashes_of_publishers_are_forgiven(buffer):
    buffer.set_transform(_transform('/odom', '/base', 1.0, (4, 0, 0)), 'test')
    assert buffer.lookup_transform('odom', 'base', Time()).transform.translation.x == 4.0


def test_the_cache_forgets_what_is_older_than_its_time():
    buffer = tf2_ros.Buffer(cache_time=Duration(seconds=2.0))
    for seconds in (1.0, 2.0, 4.0):
        buffer.set_transform(_transform('odom', 'base', seconds, (seconds, 0, 0)), 'test')
    buffer.set_transform(_transform('odom', 'base', 5.0), 'test')
    buffer.set_transform(_transform('odom', 'base', 5.1), 'test')
    assert not buffer.can_transform('odom', 'base', _at(1.5))
    assert buffer.can_transform('odom', 'base', _at(4.5))
    buffer.set_transform(_transform('odom', 'base', 1.5), 'test')    # from the past: refused
    assert not buffer.can_transform('odom', 'base', _at(2.0))


def test_clear_forgets_moving_frames_and_keeps_static_ones(buffer):
    buffer.set_transform(_transform('odom', 'base', 100.0, (1, 0, 0)), 'test')
    buffer.set_transform_static(_transform('base', 'camera', 0.0, (2, 0, 0)), 'test')
    buffer.clear()
    assert not buffer.can_transform('odom', 'base', Time())
    assert not buffer.can_transform('odom', 'base', _at(100.0))
    assert buffer.can_transform('base', 'camera', Time())
    buffer.set_transform(_transform('odom', 'base', 1.0, (3, 0, 0)), 'test')    # older than what was there: the bag began anew
    assert buffer.lookup_transform('odom', 'camera', Time()).transform.translation.x == pytest.approx(5.0)


def test_a_wait_ends_when_the_transform_comes(buffer):
    late = threading.Timer(0.2, lambda: buffer.set_transform(_transform('odom', 'base', 1.0), 'test'))
    late.start()
    assert buffer.lookup_transform('odom', 'base', _at(1.0), timeout=Duration(seconds=60.0)).child_frame_id == 'base'
    late.join()


def test_a_wait_is_bounded(buffer):
    began = time.monotonic()
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform('odom', 'base', _at(1.0), timeout=Duration(seconds=0.2))
    assert time.monotonic() - began >= 0.15


@pytest.fixture
def ros(own_domain):
    """The default context (a listener that spins for itself uses no other), in a domain of its own."""
    rclpy.init(domain_id=own_domain)
    yield
    rclpy.try_shutdown()


@pytest.fixture
def nodes(ros):
    """A node that talks and one that listens, spun by nobody."""
    made = [rclpy.create_node(name) for name in ('tf_talker', 'tf_listener')]
    yield made
    for node in made:
        node.destroy_node()


def test_what_is_broadcast_arrives_in_the_buffer(nodes, buffer, spin_until):
    talker, hearer = nodes
    static, moving = tf2_ros.StaticTransformBroadcaster(talker), tf2_ros.TransformBroadcaster(talker)
    static.sendTransform([_transform('base', 'camera', 0.0, (0, 0, 2)), _transform('base', 'laser', 0.0)])    # before anybody listens
    listener = tf2_ros.TransformListener(buffer, hearer)
    assert spin_until(hearer, lambda: buffer.can_transform('odom', 'camera', _at(7.0)) and buffer.can_transform('base', 'laser', Time()),
                      lambda: moving.sendTransform(_transform('odom', 'base', 7.0, (1, 0, 0))))
    found = buffer.lookup_transform('odom', 'camera', _at(7.0)).transform.translation
    assert (found.x, found.z) == (1.0, 2.0)
    listener.unregister()


def test_a_listener_with_its_own_thread_serves_a_wait(nodes, buffer):
    talker, hearer = nodes
    static = tf2_ros.StaticTransformBroadcaster(talker)
    listener = tf2_ros.TransformListener(buffer, hearer, spin_thread=True)
    static.sendTransform(_transform('base', 'camera', 0.0, (0, 0, 2)))
    found = buffer.lookup_transform('base', 'camera', Time(), timeout=Duration(seconds=60.0))
    assert found.transform.translation.z == 2.0
    listener.executor.shutdown()
    listener.dedicated_listener_thread.join(timeout=60.0)
    assert not listener.dedicated_listener_thread.is_alive()


def test_a_clock_that_jumps_back_clears_the_buffer_of_a_node(ros, spin_until):
    node = rclpy.create_node('tf_looping', parameter_overrides=[Parameter('use_sim_time', value=True)])
    clock, publisher = node.get_clock(), node.create_publisher(Clock, '/clock', 10)
    buffer = tf2_ros.Buffer(node=node)

    def set_clock(seconds):
        return spin_until(node, lambda: clock.now().nanoseconds == _at(seconds).nanoseconds, lambda: publisher.publish(Clock(clock=_at(seconds).to_msg())))

    try:
        assert set_clock(100.0)
        buffer.set_transform(_transform('odom', 'base', 100.0), 'test')
        buffer.set_transform_static(_transform('base', 'camera', 0.0), 'test')
        assert set_clock(101.0) and buffer.can_transform('odom', 'base', Time())
        assert set_clock(50.0) and not buffer.can_transform('odom', 'base', Time())
        assert buffer.can_transform('base', 'camera', Time())
    finally:
        node.destroy_node()
