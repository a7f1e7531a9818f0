"""The filter base and the subscription that heads a chain of filters."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.clock import ROSClock
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.time import Time


class SimpleFilter:
    """Hands its output to the callbacks registered with it."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., Any], tuple]] = {}

    def registerCallback(self, cb: Callable[..., Any], *args: Any) -> int:
        """Call `cb(*messages, *args)` for each output; returns the number of the connection."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *msg: Any) -> None:
        """Pass messages on to everybody registered."""
        for cb, args in list(self.callbacks.values()):
            cb(*msg, *args)


class Subscriber(SimpleFilter):
    """A subscription as a filter; takes the arguments of `Node.create_subscription`, without the callback."""

    def __init__(self, node: Node, msg_type: type, topic: str, *, qos_profile: QoSProfile | int = 10, **options: Any) -> None:
        super().__init__()
        self.node, self.topic = node, topic
        self.sub = node.create_subscription(msg_type, topic, self.callback, qos_profile=qos_profile, **options)

    def callback(self, msg: Any) -> None:
        """One message came."""
        self.signalMessage(msg)

    def getTopic(self) -> str:
        """The topic as it was asked for."""
        return self.topic

    def __getattr__(self, name: str) -> Any:
        """The attributes of the subscription, as the real filter offers them."""
        if name == 'sub':    # not made yet: without this the look-up would recurse
            raise AttributeError(name)
        return getattr(self.sub, name)


def stamp_of(msg: Any, allow_headerless: bool, user: str) -> Time | None:
    """The stamp of the message's header; for one without, the current time when that is allowed, else None and a warning."""
    stamp = getattr(getattr(msg, 'header', None), 'stamp', None)
    if stamp is not None:
        return Time.from_msg(stamp)
    if allow_headerless:
        return ROSClock().now()
    get_logger(user).warning(f'dropped a {type(msg).__name__} without a stamp; allow_headerless=True would take it with the current time')
    return None
