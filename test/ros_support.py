"""What tests of nodes share: a DDS domain of their own, an executor that is spun until something is true, and recorders of topics."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import rclpy
from domain_coordinator import domain_id
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

from depth_ros.ros import codecs

STEP = 33_000_000   # [ns] between two images
EVERY = 0.05        # [s] between two messages of a kind: a pace that nodes can follow
TIMEOUT = 60.0      # [s] a condition may take on a busy machine; met ones return at once
LIMIT = 120.0       # [s] that a process or a launch may take to start and end there

# The next domain for each world: what is left of the last one's processes must not be heard in it.
_domains = itertools.count(os.getpid())


class World:
    """A ROS context in a domain of its own, one executor, and a tester node `tester`."""

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.tester = self.add(Node('tester', context=self.context))

    def add(self, node: Node) -> Node:
        """Spin a node along with the others."""
        self.executor.add_node(node)
        return node

    def remove(self, node: Node) -> None:
        """Stop spinning a node and destroy it."""
        if hasattr(node, 'trigger_shutdown') and node.state != 'finalized':
            node.trigger_shutdown()
        self.executor.remove_node(node)
        node.destroy_node()

    def node(self, node_class: type, **parameters: Any) -> Node:
        """A node of the package with these parameters, spun with the others."""
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        return self.add(node_class(context=self.context, parameter_overrides=overrides))

    def until(self, condition: Callable[[], Any], what: str | Callable[[], str], timeout: float = TIMEOUT) -> Any:
        """Spin until the condition holds, and return what it gave; fails, naming what was waited for (asked then if it is a function), after the timeout [s]."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f'waited {timeout} s in vain for {what() if callable(what) else what}'
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def repeat(self, act: Callable[[], Any], condition: Callable[[], Any], what: str | Callable[[], str], every: float = EVERY, timeout: float = TIMEOUT) -> Any:
        """Act every so many seconds, and spin, until the condition holds: nothing depends on a single message being heard."""
        due = time.monotonic()

        def act_and_ask() -> Any:
            nonlocal due
            if time.monotonic() >= due:
                act()
                due = time.monotonic() + every
            return condition()

        return self.until(act_and_ask, what, timeout)

    def record(self, kind: type, topic: str, qos: QoSProfile | int = 50) -> list:
        """A list that fills with the messages of a topic."""
        heard: list = []
        self.tester.create_subscription(kind, topic, heard.append, qos)
        return heard

    def publisher(self, kind: type, topic: str, qos: QoSProfile | int = 10) -> Any:
        """A publisher of the tester; `connected` waits for its listeners."""
        return self.tester.create_publisher(kind, topic, qos)

    def forget(self, *publishers: Any) -> None:
        """Destroy publishers of the tester, and all of its subscriptions."""
        for publisher in publishers:
            self.tester.destroy_publisher(publisher)
        for subscription in list(self.tester.subscriptions):
            self.tester.destroy_subscription(subscription)

    def connected(self, *publishers: Any) -> None:
        """Wait until each publisher has a subscriber."""
        self.until(lambda: all(p.get_subscription_count() for p in publishers), f'subscribers of {[p.topic_name for p in publishers]}')

    def change_state(self, node: Node, transition: int) -> ChangeState.Response:
        """Ask a node for a transition through its service, as a lifecycle manager does."""
        client = self.tester.create_client(ChangeState, f'{node.get_fully_qualified_name()}/change_state')
        self.until(client.service_is_ready, 'the change_state service')
        request = ChangeState.Request()
        request.transition.id = transition
        future = client.call_async(request)
        self.until(future.done, 'the change_state answer')
        self.tester.destroy_client(client)
        return future.result()

    def close(self) -> None:
        """End everything."""
        for node in self.executor.get_nodes():
            self.remove(node)
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)


class Camera:
    """A camera of the tester: a textured wall that moves sideways in front of it, `speed` [px] an image.

    With a `step` the lower half of the image shows a step at half the wall's distance, which moves twice as fast.
    """

    def __init__(self, world: World, size: tuple[int, int] = (320, 240), speed: int = 2, depth: float | None = None, step: bool = False) -> None:
        self.world, self.size, self.speed, self.depth, self.step = world, size, speed, depth, step
        self.K = np.array([[300.0, 0.0, size[0] / 2 - 0.5], [0.0, 300.0, size[1] / 2 - 0.5], [0.0, 0.0, 1.0]])
        self.images = world.publisher(Image, 'image')
        self.infos = world.publisher(CameraInfo, 'camera_info')
        self.depths = None if depth is None else world.publisher(Image, 'depth')
        rng = np.random.default_rng(7)
        noise = rng.standard_normal((size[1], 4 * size[0], 3), dtype=np.float32)
        # Texture at every scale, as flow needs it; a blur's contrast falls with its width.
        texture = sum(width * cv2.GaussianBlur(noise, (0, 0), width) for width in (2.0, 6.0, 18.0))
        self.wall = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        self.index, self.stamp = 0, 10 ** 18
        self.shots: dict[int, int] = {}     # index by stamp

    def close(self) -> None:
        """Take back the publishers."""
        for publisher in filter(None, (self.images, self.infos, self.depths)):
            self.world.tester.destroy_publisher(publisher)

    def picture(self, index: int) -> np.ndarray:
        """The image (H, W, 3) of an index; they come again after a while."""
        width, middle = self.size[0], self.size[1] // 2
        at = self.speed * index % (3 * width // 2)
        picture = np.ascontiguousarray(self.wall[:, at:at + width])
        if self.step:
            picture[middle:] = self.wall[middle:, 2 * at:2 * at + width]
        return picture

    def message(self, stamp: int | None = None) -> Image:
        """The image of the current index."""
        return codecs.rgb_image(self.picture(self.index), self.header(stamp))

    def header(self, stamp: int | None = None) -> Any:
        """Header of the current image."""
        return codecs.make_header(self.stamp if stamp is None else stamp, 'camera')

    def shoot(self, info: bool = True, image: Image | None = None) -> int:
        """Publish the next image with its calibration, and depth if there is a sensor; its stamp."""
        self.index, self.stamp = self.index + 1, self.stamp + STEP
        self.shots[self.stamp] = self.index
        if info:
            self.infos.publish(codecs.camera_info(self.K, self.size, self.header()))
        if self.depth is not None:
            depth = np.full(self.size[::-1], self.depth, np.float32)
            self.depths.publish(codecs.depth_image(depth, depth > 0.0, self.header()))
        self.images.publish(self.message() if image is None else image)
        return self.stamp

    def run(self, condition: Callable[[], Any], what: str, every: float = EVERY, **options: Any) -> Any:
        """Shoot an image every so many seconds until the condition holds."""
        return self.world.repeat(lambda: self.shoot(**options), condition, what, every)


class Closing(Protocol):
    """What has an end."""

    def close(self) -> None:
        """End it."""


Bench = TypeVar('Bench', bound=Closing)


@contextlib.contextmanager
def benches(kind: Callable[..., Bench], world: World) -> Iterator[Callable[..., Bench]]:
    """Makes benches of a kind in a world, with options, and closes all of them at the end."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(kind(world, **options))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A world of its own; also the domain of processes that are started in it."""
    with domain_id(lambda: next(_domains) % 100 + 1) as domain:
        before = os.environ.get('ROS_DOMAIN_ID')
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        made = World(domain)
        try:
            yield made
        finally:
            made.close()
            if before is None:
                del os.environ['ROS_DOMAIN_ID']
            else:
                os.environ['ROS_DOMAIN_ID'] = before
