"""What a node tells about itself on /diagnostics: rates, losses, latency, the age of its inputs and the reason of every silence."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from depth_ros.ros.latest_worker import LatestWorker

WARNING_PERIOD = 5.0    # [s] between two log lines about the same trouble
_START = 10.0           # [s] that others are given to start in: a machine that loads a graph is slow
_RATE_WINDOW = 5.0      # [s] that rates are counted over
_ACTIVE = 'active'

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE
_SEVERITY = (OK, WARN, STALE, ERROR)    # an error explains more than the silence that it causes


@dataclass
class Flow:
    """Messages of one topic: how many, how often, how long ago."""

    topic: str
    now: Callable[[], float]
    stalls: bool = True         # an input whose absence is trouble
    count: int = 0
    rejected: int = 0
    late: int = 0               # stamps not newer than the last one
    last: float | None = None
    since: float = field(init=False)        # opened
    offered: float | None = None            # since when somebody publishes it, as long as nothing came
    times: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def __post_init__(self) -> None:
        self.since = self.now()

    def tick(self) -> None:
        """Count a message that came, or went."""
        self.last = self.now()
        self.count += 1
        self.times.append(self.last)

    def rate(self) -> float:
        """Messages a second [Hz] over the last seconds."""
        begin = self.now() - _RATE_WINDOW
        recent = [t for t in list(self.times) if t >= begin]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0

    def age(self) -> float:
        """Time since the last message, or since the topic was opened [s]."""
        return self.now() - (self.since if self.last is None else self.last)


class Diagnostics:
    """Collects a node's counters and troubles, warns of each at most every 5 s, and publishes one DiagnosticStatus a second in any state.

    A `condition` holds until it is cleared; a `complaint` is an event that shows for 5 s.
    """

    def __init__(self, node: Node, stale_after: float, state: Callable[[], str], now: Callable[[], float] = time.monotonic) -> None:
        self._node, self._now, self._state = node, now, state
        self.stale_after = stale_after
        self._lock = threading.Lock()
        self._inputs: dict[str, Flow] = {}
        self._outputs: dict[str, Flow] = {}
        self._workers: dict[str, LatestWorker] = {}
        self._conditions: dict[str, tuple[int, str]] = {}
        self._complaints: dict[str, tuple[float, str]] = {}
        self._warned: dict[str, float] = {}
        self._values: dict[str, str] = {}
        self._last_error = ''
        self._others_logged = ''                # what the log was last told of others that offer the same topics
        self._time_told: int | None = None      # [ns] on /clock, when last looked at
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady timer: under use_sim_time a paused clock must not silence the node.
        self._timer = node.create_timer(1.0, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def input(self, topic: str, stalls: bool = True) -> Flow:
        """Watch an input; one that stalls makes the node STALE."""
        with self._lock:
            return self._inputs.setdefault(topic, Flow(topic, self._now, stalls))

    def output(self, topic: str) -> Flow:
        """Count an output."""
        with self._lock:
            return self._outputs.setdefault(topic, Flow(topic, self._now))

    def watch(self, worker: LatestWorker, task: str = '') -> None:
        """Tell of a worker's counts and latency, in place of an earlier one with the same task."""
        with self._lock:
            self._workers[task] = worker

    def forget(self) -> None:
        """Drop inputs, outputs, workers and troubles, as a cleaned-up node must."""
        with self._lock:
            for table in (self._inputs, self._outputs, self._workers, self._conditions, self._complaints, self._warned, self._values):
                table.clear()

    def value(self, name: str, value: object) -> None:
        """Show a value of the node's own."""
        with self._lock:
            self._values[name] = str(value)

    def hold(self, name: str, level: int, reason: str, logged: bool = False) -> None:
        """Set a condition, which stays until `clear`; logged: the log has it already."""
        with self._lock:
            self._conditions[name] = (level, reason)
        if not logged:
            self._warn(name, reason)

    def clear(self, name: str) -> None:
        """End a condition."""
        if name in self._conditions:
            with self._lock:
                self._conditions.pop(name, None)
                self._warned.pop(name, None)

    def complain(self, name: str, reason: str, details: str = '') -> None:
        """Tell of an event, such as a message that was refused; the details go to the log only."""
        with self._lock:
            self._complaints[name] = (self._now(), reason)
            self._last_error = reason
        self._warn(name, details or reason)

    def reject(self, flow: Flow, reason: str) -> None:
        """Count a message that was refused and say why; the reason names the topic."""
        flow.rejected += 1
        self.complain(flow.topic, reason)

    def _warn(self, name: str, reason: str) -> bool:
        """Log a reason, unless the last one of that name is too young; whether it did."""
        with self._lock:
            due = self._now() - self._warned.get(name, -WARNING_PERIOD) >= WARNING_PERIOD
            if due:
                self._warned[name] = self._now()
        if due:
            self._node.get_logger().warning(reason)
        return due

    def summary(self) -> str:
        """What the node did, in one line; empty where it did nothing yet."""
        with self._lock:
            done = [f'{flow.count} on {topic}' for topic, flow in self._outputs.items() if flow.count]
            worked = [f'{task or "newest input"}: {w.processed} times at work for {1e3 * w.latency(50):.0f} ms, {w.dropped} overtaken by newer ones'
                      for task, w in self._workers.items() if w.processed]
        return '; '.join([*worked, *(['published ' + ', '.join(done)] if done else [])])

    def publish(self) -> None:
        """Publish the status now; the timer does so every second."""
        self._look_for_others()
        status = self.status()
        if not self._time_stands() and status.level == STALE:
            self._warn('stale', status.message)
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _look_for_others(self) -> None:
        """While the node is active, warn of others that offer a topic which it publishes on: who listens goes to and fro between two times, cameras or maps."""
        with self._lock:
            topics = list(self._outputs) if self._state() == _ACTIVE else []
        shared = [topic for topic in topics if self._node.count_publishers(topic) > 1]
        if not shared:
            self.clear('others')
            self._others_logged = ''
            return
        reason = f'{", ".join(shared)}: offered by others too (one that was killed counts for some 20 s more), and who listens goes to and fro between them; ' \
                 'end them, or set another ROS_DOMAIN_ID or namespace'
        self.hold('others', WARN, reason, logged=True)
        if reason != self._others_logged and self._warn('others', reason):
            self._others_logged = reason

    def _time_stands(self) -> bool:
        """Whether time on /clock has stood since last looked at: a recording is being made ready, pauses or is over, and its silence is no trouble to log."""
        clock = self._node.get_clock()
        if not clock.ros_time_is_active:
            return False
        before, self._time_told = self._time_told, clock.now().nanoseconds
        return self._time_told == before and (before > 0 or self._node.count_publishers('/clock') > 0)

    def status(self) -> DiagnosticStatus:
        """The node's state in one message: the worst trouble's level, and every reason."""
        with self._lock:
            troubles = self._troubles()
            values = self._report()
        level = max((level for level, _ in troubles), key=_SEVERITY.index, default=OK)
        troubles.sort(key=lambda trouble: -_SEVERITY.index(trouble[0]))
        name = self._node.get_fully_qualified_name().lstrip('/')
        return DiagnosticStatus(level=level, name=name, hardware_id='depth_ros', message='; '.join(text for _, text in troubles) or self._state(),
                                values=[KeyValue(key=key, value=value) for key, value in values.items()])

    def _troubles(self) -> list[tuple[int, str]]:
        troubles = list(self._conditions.values())
        troubles += [(WARN, reason) for since, reason in self._complaints.values() if self._now() - since < WARNING_PERIOD]
        if self._state() == _ACTIVE:
            troubles += [(STALE, reason) for flow in self._inputs.values() if flow.stalls and (reason := self._silence(flow))]
        return troubles

    def _silence(self, flow: Flow) -> str | None:
        """Why nothing comes on a topic, once it should have."""
        if flow.last is not None:
            return f'{flow.topic} stalled: last message {flow.age():.1f} s ago' if flow.age() > self.stale_after else None
        if not self._node.count_publishers(flow.topic):
            flow.offered = None
            return f'nothing publishes {flow.topic} ({flow.age():.1f} s)' if flow.age() > _START else None
        if flow.offered is None:
            flow.offered = self._now()
        # A recording waits for its whole audience; until then its time stands at nought.
        clock = self._node.get_clock()
        waits = clock.ros_time_is_active and clock.now().nanoseconds == 0
        silent = self._now() - flow.offered
        if silent <= max(self.stale_after, _START if waits else 0.0):
            return None
        return f'no message on {flow.topic} yet, though it has been offered for {silent:.1f} s' + (', and no time on /clock' if waits else '')

    def _report(self) -> dict[str, str]:
        values = {'state': self._state()}
        for flow in self._inputs.values():
            age = 'never' if flow.last is None else f'{flow.age():.3f}'
            values |= {f'{flow.topic} rate in [Hz]': f'{flow.rate():.1f}', f'{flow.topic} age [s]': age, f'{flow.topic} received': str(flow.count),
                       f'{flow.topic} rejected': str(flow.rejected), f'{flow.topic} late': str(flow.late)}
        for flow in self._outputs.values():
            values |= {f'{flow.topic} rate out [Hz]': f'{flow.rate():.1f}', f'{flow.topic} published': str(flow.count)}
        for task, worker in self._workers.items():
            of = f'{task} ' if task else ''
            values |= {f'{of}processed': str(worker.processed), f'{of}dropped': str(worker.dropped),
                       f'{of}latency median [ms]': f'{1e3 * worker.latency(50):.1f}', f'{of}latency p95 [ms]': f'{1e3 * worker.latency(95):.1f}'}
        return values | self._values | {'last error': self._last_error}

