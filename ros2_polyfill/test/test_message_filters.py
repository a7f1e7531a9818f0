"""What message_filters promises; the real package keeps these promises too."""
import message_filters
import pytest
import rclpy
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import String


def _message(seconds, text=''):
    message = Image(encoding=text)
    message.header.stamp = Time(nanoseconds=round(seconds * 1e9)).to_msg()
    return message


def _collect(filter_):
    got = []
    filter_.registerCallback(lambda *messages: got.append(messages))
    return got


def _stamps(got):
    return [tuple(Time.from_msg(m.header.stamp).nanoseconds / 1e9 for m in messages) for messages in got]


@pytest.fixture
def inputs():
    return [message_filters.SimpleFilter() for _ in range(2)]


def test_a_callback_gets_its_own_arguments_after_the_messages():
    head, got = message_filters.SimpleFilter(), []
    head.registerCallback(lambda *args: got.append(args), 'depth', 3)
    head.signalMessage('a', 'b')
    assert got == [('a', 'b', 'depth', 3)]


def test_equal_stamps_meet_whatever_their_order(inputs):
    got = _collect(message_filters.TimeSynchronizer(inputs, 5))
    inputs[0].signalMessage(_message(1.0))
    inputs[0].signalMessage(_message(2.0))
    inputs[1].signalMessage(_message(2.0))
    inputs[1].signalMessage(_message(1.0))
    assert _stamps(got) == [(2.0, 2.0), (1.0, 1.0)]


def test_unequal_stamps_do_not_meet_exactly(inputs):
    got = _collect(message_filters.TimeSynchronizer(inputs, 5))
    inputs[0].signalMessage(_message(1.0))
    inputs[1].signalMessage(_message(1.000001))
    assert got == []


@pytest.mark.parametrize('make', [lambda fs: message_filters.TimeSynchronizer(fs, 2), lambda fs: message_filters.ApproximateTimeSynchronizer(fs, 2, 0.1)])
def test_a_full_queue_forgets_its_oldest(inputs, make):
    got = _collect(make(inputs))
    for seconds in (1.0, 2.0, 3.0):
        inputs[0].signalMessage(_message(seconds))
    inputs[1].signalMessage(_message(1.0))
    inputs[1].signalMessage(_message(3.0))
    assert _stamps(got) == [(3.0, 3.0)]


def test_stamps_within_the_slop_meet_and_others_do_not(inputs):
    got = _collect(message_filters.ApproximateTimeSynchronizer(inputs, 10, 0.05))
    inputs[0].signalMessage(_message(1.0))
    inputs[1].signalMessage(_message(1.08))
    assert got == []
    inputs[1].signalMessage(_message(1.04))
    assert _stamps(got) == [(1.0, 1.04)]


def test_the_nearest_partner_is_taken_and_only_once(inputs):
    got = _collect(message_filters.ApproximateTimeSynchronizer(inputs, 10, 0.05))
    for seconds in (1.0, 1.03):
        inputs[0].signalMessage(_message(seconds))
    inputs[1].signalMessage(_message(1.02))
    inputs[1].signalMessage(_message(1.021))
    assert _stamps(got) == [(1.03, 1.02), (1.0, 1.021)]
    inputs[1].signalMessage(_message(1.01))
    assert len(got) == 2


def test_three_inputs_must_hold_together():
    inputs = [message_filters.SimpleFilter() for _ in range(3)]
    got = _collect(message_filters.ApproximateTimeSynchronizer(inputs, 10, 0.05))
    inputs[0].signalMessage(_message(0.97))
    inputs[1].signalMessage(_message(1.03))
    inputs[2].signalMessage(_message(1.0))    # within the slop of both, which are too far apart from each other
    assert got == []
    inputs[1].signalMessage(_message(1.01))
    assert _stamps(got) == [(0.97, 1.01, 1.0)]


def test_messages_without_a_stamp_are_dropped_unless_allowed(inputs):
    refused = _collect(message_filters.ApproximateTimeSynchronizer(inputs, 10, 5.0))
    allowed = _collect(message_filters.ApproximateTimeSynchronizer(inputs, 10, 5.0, allow_headerless=True))
    inputs[0].signalMessage(String(data='a'))
    inputs[1].signalMessage(String(data='b'))
    assert refused == []
    assert [tuple(m.data for m in messages) for messages in allowed] == [('a', 'b')]


def test_cache_answers_by_time():
    head = message_filters.SimpleFilter()
    cache = message_filters.Cache(head, 3)
    passed = _collect(cache)
    assert cache.getLast() is None and cache.getLastestTime() is None and cache.getOldestTime() is None
    messages = [_message(seconds) for seconds in (1.0, 2.0, 3.0, 4.0)]
    for message in messages:
        head.signalMessage(message)
    at = lambda seconds: Time(nanoseconds=round(seconds * 1e9), clock_type=cache.getLastestTime().clock_type)    # noqa: E731
    assert len(passed) == 4
    assert cache.getInterval(at(2.0), at(3.0)) == messages[1:3]
    assert cache.getElemAfterTime(at(2.5)) is messages[2]
    assert cache.getElemBeforeTime(at(2.5)) is messages[1]
    assert cache.getElemBeforeTime(at(1.5)) is None
    assert (cache.getOldestTime(), cache.getLastestTime()) == (at(2.0), at(4.0))
    assert cache.getLast() is messages[3]


@pytest.fixture
def node(own_domain):
    """A node in a context and a domain of its own."""
    context = rclpy.Context()
    context.init(domain_id=own_domain)
    made = rclpy.create_node('message_filters_contract', context=context)
    yield made
    made.destroy_node()
    context.try_shutdown()


def test_subscriber_passes_on_what_the_topic_carries(node, spin_until):
    subscriber = message_filters.Subscriber(node, Image, 'contract/image', qos_profile=qos_profile_sensor_data)
    assert subscriber.getTopic() == 'contract/image' and subscriber.topic_name == '/contract/image'
    got = _collect(subscriber)
    publisher = node.create_publisher(Image, 'contract/image', qos_profile_sensor_data)
    assert spin_until(node, lambda: bool(got), lambda: publisher.publish(_message(5.0, 'mono8')))
    assert got[0][0].encoding == 'mono8'
