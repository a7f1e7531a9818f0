"""A bench for the tracking node: a camera that slides along a wall, and what the node says of it."""

from __future__ import annotations

import math
import time

import ros_support
from nav_msgs.msg import Odometry
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from depth_ros.ros import codecs
from depth_ros.ros.deepv2d_node import DeepV2DNode
from depth_ros.ros.flow_node import FlowNode

DEPTH = 2.0     # [m] of the wall


class Bench:
    def __init__(self, world, flow=False, depth=DEPTH, **parameters):
        self.world = world
        self.camera = ros_support.Camera(world, depth=depth, speed=2 if depth else 1, step=depth is None)    # without a sensor, a plane alone looks like a rotation
        self.odometry, self.tf = world.record(Odometry, 'deepv2d/odometry'), world.record(TFMessage, '/tf')
        self.nodes = [world.node(DeepV2DNode, **parameters)] + ([world.node(FlowNode)] if flow else [])
        self.node = self.nodes[0]
        world.until(lambda: all(n.state == 'active' for n in self.nodes), 'the nodes')
        world.until(lambda: self.camera.images.get_subscription_count() == len(self.nodes), 'the subscribers')
        world.connected(self.camera.infos, *([] if depth is None else [self.camera.depths]), *[p for p in self.node.publishers if p.topic_name == '/deepv2d/odometry'])

    def track(self, count, every=2.0, **options):
        """Shoot until so many more results came: the next image with each, or after a while, so that a busy machine tracks the same motion as an idle one."""
        for number in range(1, count + 1):
            before = len(self.odometry)
            self.camera.run(lambda: len(self.odometry) > before, f'result {number} of {count}', every, **options)

    def follow(self, condition, what):
        """Shoot until the condition holds, each image once the last one is tracked, or after a while: flow sees the same steps however busy the machine is."""
        shot = -math.inf

        def shoot():
            nonlocal shot
            tracked = self.odometry and codecs.stamp_ns(self.odometry[-1].header.stamp) == self.camera.stamp
            if tracked or time.monotonic() > shot + (10.0 if self.odometry else 1.0):       # the first ones are not tracked: a depth sensor is looked for
                shot = time.monotonic()
                self.camera.shoot()

        self.world.repeat(shoot, condition, what, timeout=ros_support.LIMIT)

    def moved(self, message):
        """How far the camera was to the right of its first place when the image of a message was taken [m]."""
        first = self.camera.shots[codecs.stamp_ns(self.odometry[0].header.stamp)]
        pixels = self.camera.speed * (self.camera.shots[codecs.stamp_ns(message.header.stamp)] - first)
        return pixels * DEPTH / self.camera.K[0, 0]

    def call(self, name):
        client = self.world.tester.create_client(Trigger, f'deepv2d/{name}')
        self.world.until(client.service_is_ready, name)
        future = client.call_async(Trigger.Request())
        self.world.until(future.done, 'the answer')
        self.world.tester.destroy_client(client)
        return future.result()

    def values(self):
        return {v.key: v.value for v in self.node.diagnostics.status().values}

    def close(self):
        self.camera.close()
        for node in self.nodes:
            self.world.remove(node)
        self.world.forget()
