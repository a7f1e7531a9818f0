"""A short-lived node that looks at the graph."""
from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Callable, Iterator, TypeVar

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.expand_topic_name import expand_topic_name
from rclpy.exceptions import InvalidTopicNameException

from .errors import CommandError

_ANNOUNCED = 3.2      # [s] participants announce themselves every 3 s; a newcomer may not hear of an old one before
_QUIET = 0.5          # [s] without change after which the graph counts as known, once that time is over
_Result = TypeVar("_Result")


@contextlib.contextmanager
def direct_node() -> Iterator[Node]:
    """A hidden node for one command."""
    rclpy.init(args=[])
    node = rclpy.create_node(f"_ros2cli_{os.getpid()}", start_parameter_services=False, enable_rosout=False)
    try:
        yield node
    except ExternalShutdownException:
        raise KeyboardInterrupt from None
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _spin(node: Node, seconds: float) -> None:
    rclpy.spin_once(node, timeout_sec=seconds)
    if not rclpy.ok():
        raise KeyboardInterrupt


def wait_until(node: Node, look: Callable[[], _Result], seconds: float) -> _Result:
    """Look at the graph until what is found is true, for at most so long; the last finding."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        _spin(node, 0.05)


def settled(node: Node, look: Callable[[], _Result], seconds: float) -> _Result:
    """Look at the graph until all have announced themselves and it changes no more, for at most so long; the last finding."""
    start = changed = time.monotonic()
    found = look()
    while (now := time.monotonic()) < min(start + seconds, max(start + _ANNOUNCED, changed + _QUIET)):
        _spin(node, 0.05)
        latest = look()
        if latest != found:
            found, changed = latest, now
    return found


def is_hidden(name: str) -> bool:
    """Names with a part that begins with an underscore are not listed by default."""
    return any(part.startswith("_") for part in name.split("/"))


def full_name(node: Node, name: str) -> str:
    """Absolute form of a topic's or service's name."""
    try:
        expanded = expand_topic_name(name, node.get_name(), node.get_namespace())
        validate_full_topic_name(expanded)
    except (ValueError, InvalidTopicNameException) as error:
        raise CommandError(f"invalid name '{name}': {error}") from error
    return expanded


def full_node_name(name: str) -> str:
    return name if name.startswith("/") else "/" + name


def node_names(node: Node) -> list[str]:
    """Full names of all nodes that are known, hidden ones too."""
    return sorted(f"{namespace.rstrip('/')}/{name}" for name, namespace in node.get_node_names_and_namespaces())


def require_node(node: Node, name: str, seconds: float) -> str:
    """Full name of a node that is there, or an error."""
    wanted = full_node_name(name)
    if not wait_until(node, lambda: wanted in node_names(node), seconds):
        raise CommandError(f"Node not found: no node is named '{wanted}' (ros2 node list shows those that are there)")
    return wanted


def call(node: Node, client: Any, request: Any, seconds: float) -> Any:
    """Answer of a service, or an error where none comes in time."""
    if not client.wait_for_service(timeout_sec=seconds):
        raise CommandError(f"service '{client.srv_name}' is not available")
    return wait_for(node, client.call_async(request), seconds, f"service '{client.srv_name}'")


def wait_for(node: Node, future: Any, seconds: float, what: str) -> Any:
    """Result of a future, or an error where none comes in time."""
    rclpy.spin_until_future_complete(node, future, timeout_sec=seconds)
    if not rclpy.ok():
        raise KeyboardInterrupt
    if not future.done():
        raise CommandError(f"{what} did not answer within {seconds:g} s")
    return future.result()


def matching_qos(node: Node, topic: str, reliability: str | None = None, durability: str | None = None, depth: int = 10) -> QoSProfile:
    """Profile that receives from every publisher of a topic; the given policies are taken as they are."""
    publishers = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
    reliable = bool(publishers) and all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in publishers)
    lasting = bool(publishers) and all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in publishers)
    profile = QoSProfile(depth=depth)
    profile.reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    profile.durability = DurabilityPolicy.TRANSIENT_LOCAL if lasting else DurabilityPolicy.VOLATILE
    if reliability is not None:
        profile.reliability = ReliabilityPolicy.get_from_short_key(reliability)
    if durability is not None:
        profile.durability = DurabilityPolicy.get_from_short_key(durability)
    return profile
