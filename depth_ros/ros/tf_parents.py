"""Who else has a frame: TF is a tree, and a second parent makes every lookup through the frame flip between the two."""

from __future__ import annotations

import time

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from depth_ros.ros.managed_node import ManagedNode

SETTLING = 1.0      # [s] in which what is latched on /tf_static reaches a node that has just begun to listen
_QOS = QoSProfile(depth=100, history=HistoryPolicy.KEEP_LAST)
_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL, history=HistoryPolicy.KEEP_LAST)


class TfParents:
    """The parents that TF tells of each frame, all but one's own."""

    def __init__(self, node: ManagedNode, own: str) -> None:
        self._node, self._own = node, _plain(own)
        self._parents: dict[str, str] = {}
        self._settled = time.monotonic() + SETTLING
        self._subscriptions = [node.create_subscription(TFMessage, topic, self._take, qos) for topic, qos in (('/tf', _QOS), ('/tf_static', _STATIC_QOS))]

    @property
    def settled(self) -> bool:
        """Whether it has listened for long enough to know."""
        return time.monotonic() >= self._settled

    def other(self, child: str) -> str | None:
        """The parent that somebody else gives a frame, if anybody does."""
        return self._parents.get(_plain(child))

    def close(self) -> None:
        """Stop listening."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _take(self, message: TFMessage) -> None:
        for transform in message.transforms:
            parent, child = _plain(transform.header.frame_id), _plain(transform.child_frame_id)
            if parent not in ('', self._own, child):
                self._parents[child] = parent


def _plain(frame: str) -> str:
    """A frame's name as tf2 knows it."""
    return frame.removeprefix('/')
