"""tf2_ros.TransformListener: fills a Buffer from /tf and /tf_static."""
from __future__ import annotations

from threading import Thread

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from tf2_ros.buffer import Buffer

_AUTHORITY = 'default_authority'


class TransformListener:
    """Listens with the node's executor, or with spin_thread in a thread of its own (the node must then be spun nowhere else)."""

    def __init__(self, buffer: Buffer, node: Node, *, spin_thread: bool = False, qos: QoSProfile | int | None = None,
                 static_qos: QoSProfile | int | None = None) -> None:
        if qos is None:
            qos = QoSProfile(depth=100, durability=DurabilityPolicy.VOLATILE, history=HistoryPolicy.KEEP_LAST)
        if static_qos is None:
            static_qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL, history=HistoryPolicy.KEEP_LAST)
        self.buffer, self.node = buffer, node
        self.group = ReentrantCallbackGroup()    # a callback of the node may wait for a transform while these run
        self.tf_sub = node.create_subscription(TFMessage, '/tf', self.callback, qos, callback_group=self.group)
        self.tf_static_sub = node.create_subscription(TFMessage, '/tf_static', self.static_callback, static_qos, callback_group=self.group)
        self.executor: SingleThreadedExecutor | None = None
        if spin_thread:
            self.executor = SingleThreadedExecutor(context=node.context)
            self.executor.add_node(node)
            self.dedicated_listener_thread = Thread(target=_spin, args=(self.executor,), daemon=True)
            self.dedicated_listener_thread.start()

    def callback(self, data: TFMessage) -> None:
        """Store moving transforms."""
        for transform in data.transforms:
            self.buffer.set_transform(transform, _AUTHORITY)

    def static_callback(self, data: TFMessage) -> None:
        """Store static transforms."""
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, _AUTHORITY)

    def unregister(self) -> None:
        """Stop listening."""
        if self.executor is not None:
            self.executor.shutdown()
            self.dedicated_listener_thread.join()
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass    # the context ended before the listener: nothing is left to hear
