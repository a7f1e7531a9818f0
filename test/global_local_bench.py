"""For the tests of the Global-Local node: the node, and a tester that plays all that it listens to."""

from __future__ import annotations

from array import array

import global_local_support as support
import numpy as np
import ros_support
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Float32MultiArray, UInt8MultiArray

from depth_ros.ros import bundle, codecs, poses
from depth_ros.ros.global_local_node import GlobalLocalNode
from depth_ros.ros.managed_node import LATCHED_QOS

SIZE = support.SIZE
PAIR = 300_000_000      # [ns] from a reference to its current image


class Bench:
    """The node, and a tester that plays the flow node, the tracker, the range sensor and the trainer."""

    def __init__(self, world, **parameters):
        self.world = world
        self.stamp = 10 ** 18
        self.bundle = {name: world.publisher(kind, f'flow/{name}') for name, kind in bundle.TOPICS.items()}
        self.hits, self.odometry = world.publisher(Image, 'sparse_depth/image'), world.publisher(Odometry, 'deepv2d/odometry')
        self.weights = world.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
        self.node = world.node(GlobalLocalNode, **{'width': SIZE[0], 'height': SIZE[1], 'backend': 'torch'} | parameters)
        self.depths, self.infos = world.record(Image, 'global_local/depth/image'), world.record(CameraInfo, 'global_local/depth/camera_info')
        self.points, self.parameters = world.record(PointCloud2, 'global_local/points'), world.record(Float32MultiArray, 'global_local/parameters')
        world.until(lambda: self.node.state == 'active', 'the node')
        listened = [self.hits, self.weights, *self.bundle.values()] + ([self.odometry] if self.node._uses_odometry else [])
        world.connected(*listened, *[p for p in self.node.publishers if 'global_local' in p.topic_name])
        self.truth = support.wall()[1]

    def tell(self, publisher, message):
        publisher.publish(message)

    def result(self):
        self.stamp += ros_support.STEP
        return support.wall(self.stamp, self.stamp - PAIR)[0]

    def send(self, result=None, without=()):
        """Publish the bundle of a result, less some parts; its stamp."""
        result = result or self.result()
        bundle.publish(self, {n: _Mute() if n in without else p for n, p in self.bundle.items()}, result)
        return result.pair.current.stamp

    def send_hits(self, stamp, share=1.0):
        hits = support.hits_on(self.truth, share)
        self.hits.publish(codecs.depth_image(hits, hits > 0.0, codecs.make_header(stamp, 'camera')))

    def send_pose(self, stamp, x, variance=0.0, child='camera', T=None):
        pose = np.eye(4) if T is None else T
        pose[0, 3] += x
        self.odometry.publish(poses.odometry(pose, np.eye(6) * variance, codecs.make_header(stamp, 'odom'), child))

    def depth_at(self, stamp):
        """Depth (H, W) [m] of a stamp, once it is there."""
        found = lambda: next((d for d in self.depths if codecs.stamp_ns(d.header.stamp) == stamp), None)
        message = self.world.until(found, 'depth')
        depth, valid = codecs.depth_array(message, '')
        return np.where(valid, depth, np.nan)

    def metric(self, share=1.0):
        """Send a pair with its hits; its depth (H, W) [m]."""
        result = self.result()
        self.send_hits(result.pair.current.stamp, share)
        before = self.count('sparse_depth/image')
        self.world.until(lambda: self.count('sparse_depth/image') > before or self.node._hits.newest == result.pair.current.stamp, 'the hits')
        self.send(result)
        return self.depth_at(result.pair.current.stamp)

    def begun(self):
        """Send the pose of the next pair's reference, and the pair, which then waits for the other pose."""
        result = self.result()
        self.send_pose(result.pair.reference.stamp, 0.0)
        self.world.until(lambda: self.count('deepv2d/odometry') == 1, 'the odometry')
        self.send(result)
        self.world.until(lambda: self.node._waiting.newest == result.pair.current.stamp, 'the bundle')
        assert not self.depths
        return result

    def count(self, topic):
        return int(self.values().get(f'/{topic} received', 0))

    def values(self):
        return {v.key: v.value for v in self.node.diagnostics.status().values}

    def message(self):
        return self.node.diagnostics.status().message

    def says(self, text, what=None):
        self.world.until(lambda: text in self.message(), f'{what or text!r} (it says {self.message()!r})')

    def offer(self, blob):
        self.weights.publish(UInt8MultiArray(data=array('B', blob)))

    def take(self, number):
        """Offer weights of that number, and wait until they are at work."""
        self.offer(support.blob('published', seed=number, number=number))
        self.world.until(lambda: self.number() == str(number), f'weights {number}')

    def number(self):
        return self.values().get('weights of published')

    def set(self, name, value):
        result = self.node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful, result.reason

    def close(self):
        self.world.remove(self.node)
        self.world.forget(self.hits, self.odometry, self.weights, *self.bundle.values())


class _Mute:
    """A publisher that nobody listens to."""

    def get_subscription_count(self):
        return 0
