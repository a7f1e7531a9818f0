"""Diagnostics: the level, the reasons and the figures, on a clock that the test moves."""

from __future__ import annotations

import re

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from wait_support import until

from depth_ros.ros.diagnostics import Diagnostics
from depth_ros.ros.latest_worker import LatestWorker


class Bench:
    """Diagnostics of an active node at a time of the test's choosing."""

    def __init__(self, world, **parameters):
        self.time, self.state = 100.0, 'active'
        self.node = Node('subject', context=world.context, parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
        self.diagnostics = Diagnostics(self.node, 2.0, lambda: self.state, lambda: self.time)

    def values(self):
        return {v.key: v.value for v in self.diagnostics.status().values}


@pytest.fixture
def bench(world):
    made = Bench(world)
    yield made
    made.node.destroy_node()


def offered(world, bench, topic):
    """A publisher of the topic, once the bench has found it."""
    publisher = world.publisher(DiagnosticStatus, topic)
    world.until(lambda: bench.node.count_publishers(topic), 'the publisher')
    return publisher


def test_an_input_that_nothing_publishes_is_named_once_others_had_time_to_start(bench):
    bench.diagnostics.input('/image')
    bench.diagnostics.input('/camera_info', stalls=False)
    bench.time += 9.9
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 0.6
    status = bench.diagnostics.status()
    assert (status.level, status.message) == (DiagnosticStatus.STALE, 'nothing publishes /image (10.5 s)')


def test_silence_counts_from_when_somebody_offers_the_topic(world, bench):
    bench.diagnostics.input('/offered')
    bench.time += 9.0
    publisher = offered(world, bench, '/offered')
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 1.9
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 0.6
    status = bench.diagnostics.status()
    assert (status.level, status.message) == (DiagnosticStatus.STALE, 'no message on /offered yet, though it has been offered for 2.5 s')
    world.tester.destroy_publisher(publisher)


def test_a_recording_that_has_not_begun_is_given_time(world):
    bench = Bench(world, use_sim_time=True)
    bench.diagnostics.input('/recorded')
    publisher = offered(world, bench, '/recorded')
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 9.0
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 1.5
    assert bench.diagnostics.status().message == 'no message on /recorded yet, though it has been offered for 10.5 s, and no time on /clock'
    world.tester.destroy_publisher(publisher)
    bench.node.destroy_node()


def test_silence_is_logged_only_while_time_runs(world, monkeypatch):
    """A recording that is being made ready, pauses or is over is silent without trouble; /diagnostics tells of it all the same."""
    bench, said = Bench(world, use_sim_time=True), []
    monkeypatch.setattr(bench.diagnostics, '_warn', lambda name, reason: said.append(reason))
    world.add(bench.node).destroy_timer(bench.diagnostics._timer)      # looks at the time when the test does not expect it
    bench.diagnostics.input('/image')
    bench.diagnostics.publish()
    bench.time += 20.0
    bench.diagnostics.publish()
    assert said == ['nothing publishes /image (20.0 s)']    # nobody offers /clock: was the player forgotten?
    clock = world.publisher(Clock, '/clock')
    world.until(lambda: bench.node.count_publishers('/clock'), 'the clock to be offered')
    assert bench.diagnostics.status().level == DiagnosticStatus.STALE
    bench.diagnostics.publish()
    assert len(said) == 1

    def tell(second):
        message = Clock()
        message.clock.sec = second
        world.repeat(lambda: clock.publish(message), lambda: bench.node.get_clock().now().nanoseconds == second * 10 ** 9, 'the time')
        bench.diagnostics.publish()

    tell(5)
    tell(6)
    assert len(said) == 3       # it runs, and nothing comes
    bench.diagnostics.publish()
    world.tester.destroy_publisher(clock)
    world.until(lambda: not bench.node.count_publishers('/clock'), 'the clock to end')
    bench.diagnostics.publish()
    assert len(said) == 3
    world.remove(bench.node)


def test_an_input_goes_stale_by_name_and_age_and_recovers(bench):
    image = bench.diagnostics.input('/image')
    bench.diagnostics.input('/camera_info', stalls=False)
    image.tick()
    bench.time += 1.9
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 0.6
    status = bench.diagnostics.status()
    assert status.level == DiagnosticStatus.STALE and '/image' in status.message and '2.5 s' in status.message and 'camera_info' not in status.message
    image.tick()
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    bench.time += 3.0
    assert '/image stalled: last message 3.0 s ago' in bench.diagnostics.status().message
    bench.state = 'inactive'
    assert (bench.diagnostics.status().level, bench.diagnostics.status().message) == (DiagnosticStatus.OK, 'inactive')


def test_rates_ages_and_counts(bench):
    image, out = bench.diagnostics.input('/image'), bench.diagnostics.output('/depth')
    for i in range(61):
        bench.time = 100.0 + i / 30
        image.tick()
        if i % 2:
            out.tick()
    bench.time += 0.25
    values = bench.values()
    assert values['/image rate in [Hz]'] == '30.0' and values['/depth rate out [Hz]'] == '15.0'
    assert values['/image age [s]'] == '0.250' and values['/image received'] == '61' and values['/depth published'] == '30'
    bench.time += 10.0
    assert bench.values()['/image rate in [Hz]'] == '0.0'


def test_a_condition_holds_until_cleared_and_outranks_silence(bench):
    bench.diagnostics.input('/image').tick()
    bench.time += 10.0
    bench.diagnostics.hold('calibration', DiagnosticStatus.ERROR, 'no camera_info on /camera_info')
    status = bench.diagnostics.status()
    assert status.level == DiagnosticStatus.ERROR and status.message.startswith('no camera_info') and '/image' in status.message
    bench.diagnostics.clear('calibration')
    assert bench.diagnostics.status().level == DiagnosticStatus.STALE


def test_a_rejected_message_shows_for_five_seconds_and_stays_counted(bench):
    image = bench.diagnostics.input('/image', stalls=False)
    bench.diagnostics.reject(image, "/image: got encoding 'hologram'")
    assert bench.diagnostics.status().level == DiagnosticStatus.WARN
    bench.time += 6.0
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    assert bench.values()['/image rejected'] == '1' and 'hologram' in bench.values()['last error']


def test_warnings_of_one_trouble_are_five_seconds_apart(bench, monkeypatch):
    said = []
    monkeypatch.setattr(bench.node.get_logger(), 'warning', said.append)
    monkeypatch.setattr(bench.node, 'get_logger', lambda logger=bench.node.get_logger(): logger)
    for _ in range(100):
        bench.diagnostics.complain('a', 'a bad image')
        bench.time += 0.1
    bench.diagnostics.complain('b', 'a bad scan')
    assert said == ['a bad image'] * 2 + ['a bad scan']


def test_worker_figures_are_told(bench):
    worker = LatestWorker('worker', lambda item: None, lambda error: pytest.fail(str(error)))
    bench.diagnostics.watch(worker)
    worker.start()
    worker.put(1)
    until(lambda: worker.processed == 1, 'the work')
    assert worker.stop()
    assert bench.values()['processed'] == '1' and bench.values()['dropped'] == '0' and float(bench.values()['latency p95 [ms]']) >= 0.0


def test_what_was_done_is_told_in_one_line(bench):
    assert bench.diagnostics.summary() == ''
    worker = LatestWorker('worker', lambda item: None, lambda error: pytest.fail(str(error)))
    bench.diagnostics.watch(worker, 'map')
    worker.start()
    worker.put(1)
    until(lambda: worker.processed == 1, 'the work')
    assert worker.stop()
    bench.diagnostics.output('/silent')
    for _ in range(3):
        bench.diagnostics.output('/depth').tick()
    assert re.fullmatch(r'map: 1 times at work for \d+ ms, 0 overtaken by newer ones; published 3 on /depth', bench.diagnostics.summary())


def test_the_status_is_published_every_second_on_diagnostics(world):
    heard = world.record(DiagnosticArray, '/diagnostics')
    node = world.add(Node('speaker', namespace='robot', context=world.context))
    Diagnostics(node, 2.0, lambda: 'active')
    world.until(lambda: len(heard) >= 2, 'two statuses')
    assert {message.status[0].name for message in heard} == {'robot/speaker'}
    assert [timer.timer_period_ns for timer in node.timers] == [10 ** 9]
    world.remove(node)


def test_others_that_offer_its_topics_are_told_as_long_as_it_is_active_and_logged_once(world, bench, capfd):
    """In the status always, in the log where something is new."""
    own = [bench.node.create_publisher(DiagnosticStatus, topic, 1) for topic in ('/first', '/second')]
    for publisher in own:
        bench.diagnostics.output(publisher.topic_name)

    def seen(counts) -> None:
        world.until(lambda: [bench.node.count_publishers(topic) for topic in ('/first', '/second')] == counts, 'the publishers')
        for _ in range(8):          # more than the shortest time between two lines about the same
            bench.time += 1.0
            bench.diagnostics.publish()

    seen([1, 1])
    assert bench.diagnostics.status().level == DiagnosticStatus.OK
    others = [world.publisher(DiagnosticStatus, '/first')]
    world.until(lambda: bench.node.count_publishers('/first') == 2, 'the first other')
    bench.diagnostics.publish()
    status = bench.diagnostics.status()
    assert status.level == DiagnosticStatus.WARN and status.message.startswith('/first: offered by others too') and 'ROS_DOMAIN_ID' in status.message
    others.append(world.publisher(DiagnosticStatus, '/second'))
    seen([2, 2])
    assert '/first, /second: offered by others too' in bench.diagnostics.status().message
    said = capfd.readouterr().err
    assert said.count('offered by others') == 2 and said.count('/second') == 1
    bench.state = 'inactive'
    seen([2, 2])
    assert 'offered' not in bench.diagnostics.status().message
    bench.state = 'active'
    for other in others:
        world.tester.destroy_publisher(other)
    seen([1, 1])
    assert 'offered' not in bench.diagnostics.status().message
