"""ros2 topic."""
from __future__ import annotations

import argparse
import collections
import math
import time
from typing import Any, Sequence

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from ..errors import CommandError
from ..interfaces import get_interface, is_message, to_yaml
from ..node import direct_node, full_name, is_hidden, matching_qos, node_names, settled, wait_until
from ..parsers import VerbParser, add_discovery, positive_int


def main(words: Sequence[str]) -> int | None:
    """List, show and measure topics."""
    parser = VerbParser("topic", "List, show and measure topics.")
    listing = parser.add("list", _list, "Output the names of all topics")
    add_discovery(listing)
    listing.add_argument("-t", "--show-types", action="store_true", help="show the type of each")
    listing.add_argument("-c", "--count-topics", action="store_true", help="show only how many there are")
    listing.add_argument("-a", "--include-hidden-topics", action="store_true", help="show hidden topics too")
    info = parser.add("info", _info, "Output a topic's type, publishers and subscriptions")
    add_discovery(info)
    info.add_argument("topic_name")
    info.add_argument("-v", "--verbose", action="store_true", help="show node, type and QoS of each publisher and subscription")
    kind = parser.add("type", _type, "Output a topic's type")
    add_discovery(kind)
    kind.add_argument("topic_name")
    _add_echo(parser)
    rate = parser.add("hz", _hz, "Print the average rate at which a topic's messages arrive")
    add_discovery(rate)
    rate.add_argument("topic_name")
    rate.add_argument("-w", "--window", type=positive_int, default=10000, help="how many messages to average over (default: %(default)s)")
    rate.add_argument("--wall-time", action="store_true", help="accepted for compatibility: the rate is always of the wall clock here")
    _add_qos(rate)
    return parser.run(words)


def _add_qos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qos-reliability", choices=ReliabilityPolicy.short_keys(), help="instead of what the publishers offer")
    parser.add_argument("--qos-durability", choices=DurabilityPolicy.short_keys(), help="instead of what the publishers offer")
    parser.add_argument("--qos-depth", type=positive_int, default=10, help="length of the queue (default: %(default)s)")


def _add_echo(parser: VerbParser) -> None:
    echo = parser.add("echo", _echo, "Output a topic's messages")
    add_discovery(echo)
    echo.add_argument("topic_name")
    echo.add_argument("message_type", nargs="?", help="for example std_msgs/msg/String; then it waits for a publisher of any kind")
    echo.add_argument("--once", action="store_true", help="end after the first message")
    echo.add_argument("--field", metavar="NAME", help="show only this field, such as header.stamp")
    echo.add_argument("--no-arr", action="store_true", help="show length and type of arrays instead of their items")
    echo.add_argument("--no-str", action="store_true", help="show the length of strings instead of their text")
    echo.add_argument("--flow-style", action="store_true", help="show arrays in one line")
    echo.add_argument("-f", "--full-length", action="store_true", help="show all items of arrays and strings")
    echo.add_argument("-l", "--truncate-length", type=positive_int, default=128, help="show so many items (default: %(default)s)")
    _add_qos(echo)


def _list(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        topics = settled(node, lambda: sorted(node.get_topic_names_and_types()), arguments.spin_time)
    shown = [(name, kinds) for name, kinds in topics if arguments.include_hidden_topics or not is_hidden(name)]
    if arguments.count_topics:
        print(len(shown))
        return
    for name, kinds in shown:
        print(f"{name} [{', '.join(kinds)}]" if arguments.show_types else name)


def _kinds(node: Node, topic: str) -> list[str]:
    return dict(node.get_topic_names_and_types()).get(topic, [])


def _single_kind(node: Node, topic: str, seconds: float) -> str:
    kinds = wait_until(node, lambda: _kinds(node, topic), seconds)
    if not kinds:
        raise CommandError(f"Could not determine the type for the passed topic: '{topic}' does not appear to be published yet")
    if len(kinds) > 1:
        raise CommandError(f"topic '{topic}' has more than one type: [{', '.join(kinds)}]")
    return kinds[0]


def _type(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        print(_single_kind(node, full_name(node, arguments.topic_name), arguments.spin_time))


def _info(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        topic = full_name(node, arguments.topic_name)
        if not wait_until(node, lambda: _kinds(node, topic), arguments.spin_time):
            raise CommandError(f"Unknown topic '{arguments.topic_name}'")
        settled(node, lambda: (node.count_publishers(topic), node.count_subscribers(topic), node_names(node)), arguments.spin_time)
        kinds = _kinds(node, topic)
        print(f"Type: {kinds[0] if len(kinds) == 1 else kinds}")
        for label, count, endpoints in (("Publisher", node.count_publishers, node.get_publishers_info_by_topic),
                                        ("Subscription", node.count_subscribers, node.get_subscriptions_info_by_topic)):
            if arguments.verbose:
                print(f"\n{label} count: {count(topic)}\n")
                print("\n\n".join(str(endpoint) for endpoint in endpoints(topic)))
            else:
                print(f"{label} count: {count(topic)}")


def _await_publisher(node: Node, topic: str, arguments: argparse.Namespace) -> Any:
    """Profile that fits the publishers, once there is one; hence the first message is not missed by a wrong guess."""
    wait_until(node, lambda: node.count_publishers(topic), arguments.spin_time)
    return matching_qos(node, topic, arguments.qos_reliability, arguments.qos_durability, arguments.qos_depth)


def _field(message: Any, path: str | None) -> tuple[Any, str]:
    """A field of a message and its type."""
    kind = ""
    for name in path.split(".") if path else ():
        kinds = message.get_fields_and_field_types() if is_message(message) else {}
        if name not in kinds:
            raise CommandError(f"Invalid field '{path}': {type(message).__name__} has no field '{name}'"
                               + (f"; its fields: {', '.join(kinds)}" if kinds else ""))
        message, kind = getattr(message, name), kinds[name]
    return message, kind


def _echo(arguments: argparse.Namespace) -> None:
    done: list[bool] = []
    failed: list[CommandError] = []

    def show(message: Any) -> None:
        if done and arguments.once:
            return
        try:
            value, kind = _field(message, arguments.field)
        except CommandError as error:
            failed.append(error)
            return
        print(to_yaml(value, flow_style=arguments.flow_style, length=None if arguments.full_length else arguments.truncate_length,
                      no_arr=arguments.no_arr, no_str=arguments.no_str, field_type=kind), end="\n---\n", flush=True)
        done.append(True)

    with direct_node() as node:
        topic = full_name(node, arguments.topic_name)
        kind = arguments.message_type or _single_kind(node, topic, arguments.spin_time)
        message_class = get_interface(kind, "msg")
        _field(message_class(), arguments.field)
        node.create_subscription(message_class, topic, show, _await_publisher(node, topic, arguments))
        while rclpy.ok() and not failed and not (done and arguments.once):
            rclpy.spin_once(node, timeout_sec=0.2)
        if failed:
            raise failed[0]
        if arguments.once and not done:
            raise KeyboardInterrupt


class RateMeter:
    """Mean, extremes and spread of the intervals between arrivals, over a window [s]."""

    def __init__(self, window: int) -> None:
        self._intervals: collections.deque[float] = collections.deque(maxlen=window)
        self._last: float | None = None
        self.arrived = 0

    def add(self, now: float) -> None:
        """Note an arrival at a time in seconds."""
        if self._last is not None:
            self._intervals.append(now - self._last)
        self._last = now
        self.arrived += 1

    def report(self) -> str | None:
        """Two lines, or None before the second arrival."""
        count = len(self._intervals)
        if not count:
            return None
        mean = sum(self._intervals) / count
        spread = math.sqrt(sum((interval - mean) ** 2 for interval in self._intervals) / count)
        rate = 1.0 / mean if mean > 0.0 else 0.0
        return (f"average rate: {rate:.3f}\n\tmin: {min(self._intervals):.3f}s max: {max(self._intervals):.3f}s "
                f"std dev: {spread:.5f}s window: {count}")


def _hz(arguments: argparse.Namespace) -> None:
    """Count raw messages: nothing is decoded, so that large images cost little."""
    meter = RateMeter(arguments.window)
    with direct_node() as node:
        topic = full_name(node, arguments.topic_name)
        if not wait_until(node, lambda: _kinds(node, topic), 0.5):
            print(f"WARNING: topic [{topic}] does not appear to be published yet", flush=True)
        wait_until(node, lambda: _kinds(node, topic), math.inf)
        message_class = get_interface(_single_kind(node, topic, arguments.spin_time), "msg")
        node.create_subscription(message_class, topic, lambda _: meter.add(time.monotonic()),
                                 _await_publisher(node, topic, arguments), raw=True)
        next_report, reported = time.monotonic() + 1.0, 0
        while rclpy.ok():
            rclpy.spin_once(node, timeout_sec=max(0.0, min(0.2, next_report - time.monotonic())))
            if time.monotonic() < next_report:
                continue
            next_report = time.monotonic() + 1.0
            report = meter.report()
            if report is not None and meter.arrived > reported:
                print(report, flush=True)
            elif reported or meter.arrived == 0:
                print("no new messages", flush=True)
            reported = meter.arrived
