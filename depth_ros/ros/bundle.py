"""The flow bundle: one FlowResult as six messages of one stamp, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image, TimeReference

from depth_ros.frames import CameraFrame, FlowResult, ImagePair
from depth_ros.ros import codecs, diagnostics, poses
from depth_ros.ros.codecs import BadMessage, Topics
from depth_ros.ros.diagnostics import Flow
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.sync import Order, PartsBuffer, StampOrder

# All carry the stamp of the current image, the reference image too, so that they can be matched exactly; `reference` names the other stamp.
TOPICS = {'image': Image, 'reference_image': Image, 'flow': Image, 'backward': Image, 'camera_info': CameraInfo, 'reference': TimeReference}
# What a node needs that takes in the camera's images itself.
WITHOUT_IMAGES = ('flow', 'backward', 'camera_info', 'reference')


def publish(node: ManagedNode, publishers: Mapping[str, Publisher], result: FlowResult) -> None:
    """Publish a result, of its large messages only those that somebody listens to."""
    current, reference = result.pair.current, result.pair.reference
    header = codecs.make_header(current.stamp, current.frame_id)
    makers: dict[str, Callable[[], Any]] = {
        'camera_info': lambda: codecs.camera_info(current.K, current.size, header),
        'reference': lambda: poses.time_reference(current.stamp, reference.stamp, current.frame_id, source='flow'),
        'image': lambda: codecs.rgb_image(current.image, header),
        'reference_image': lambda: codecs.rgb_image(reference.image, header),
        'flow': lambda: codecs.flow_image(result.flow, header),
        'backward': lambda: codecs.flow_image(result.backward, header),
    }
    for name, make in makers.items():
        if publishers[name].get_subscription_count():
            node.tell(publishers[name], make())


class BundleInput:
    """Subscribes the flow bundle, with its images or without, and hands complete ones with their stamp [ns] to `on_bundle`."""

    def __init__(self, node: ManagedNode, on_bundle: Callable[[int, Mapping[str, Any]], None], prefix: str = 'flow', images: bool = False) -> None:
        """`images`: take them as well; the bundle is then the node's only input, and its silence is trouble."""
        self._node, self._on_bundle, self._order = node, on_bundle, StampOrder()
        names = tuple(TOPICS) if images else WITHOUT_IMAGES
        self.parts = PartsBuffer(names)
        self.inputs = {name: node.listen(TOPICS[name], f'{prefix}/{name}', self._taker(name), stalls=images and name == 'flow') for name in names}

    def _taker(self, name: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            stamp = codecs.stamp_ns(message.header.stamp)
            parts = self.parts.put(name, stamp, message)
            if parts is not None:
                self._on_bundle(stamp, parts)
        return take

    def sort(self, stamp: int) -> Order:
        """The relation of a bundle to those before it; a late one is counted, a jump back told."""
        order, flow = self._order.sort(stamp), self.inputs['flow']
        if order is Order.LATE:
            flow.late += 1
        elif order is Order.JUMP:
            self._node.get_logger().info(f'{flow.topic}: the clock jumped back; starting afresh')
        return order

    def refuse(self, error: BadMessage, *others: Flow) -> None:
        """Count and tell a message of the bundle, or of another input of the node, that cannot be used. A camera_info stays wrong until a good one comes."""
        refused = next(flow for flow in (*self.inputs.values(), *others) if flow.topic == error.topic)
        if refused is self.inputs['camera_info']:
            refused.rejected += 1
            self._node.diagnostics.hold('camera_info', diagnostics.ERROR, str(error))
        else:
            self._node.diagnostics.reject(refused, str(error))

    def reference_stamp(self, parts: Mapping[str, Any]) -> int:
        """Stamp [ns] of the image that the current one was compared with."""
        return codecs.stamp_ns(parts['reference'].time_ref)

    def whole_result(self, parts: Mapping[str, Any]) -> FlowResult:
        """The FlowResult of a bundle that has its images. Raises BadMessage."""
        current, reference = (codecs.camera_frame(parts[name], parts['camera_info'], topics=Topics(self.inputs[name].topic, self.inputs['camera_info'].topic))
                              for name in ('image', 'reference_image'))
        return self.result(parts, current, replace(reference, stamp=self.reference_stamp(parts)))

    def result(self, parts: Mapping[str, Any], current: CameraFrame, reference: CameraFrame) -> FlowResult:
        """The FlowResult of a bundle, with the two frames it belongs to at any size. Raises BadMessage."""
        flow, backward = (codecs.flow_array(parts[name], self.inputs[name].topic) for name in ('flow', 'backward'))
        if flow.shape != backward.shape:
            raise BadMessage(self.inputs['backward'].topic, f'flow of {backward.shape[1]} x {backward.shape[0]} pixels',
                             f'the size of {self.inputs["flow"].topic}, {flow.shape[1]} x {flow.shape[0]}')
        for name, values in (('flow', flow), ('backward', backward)):
            if not np.isfinite(values).all():
                raise BadMessage(self.inputs[name].topic, 'flow with NaN or inf', 'finite flow')
        size = flow.shape[1], flow.shape[0]
        return FlowResult(ImagePair(current.resized(*size), reference.resized(*size)), flow, backward)
