"""`player`: replays a recorded sequence as the topics of a live RGB-D camera and a 2D LiDAR."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from tf2_ros import StaticTransformBroadcaster

from depth_ros.learning import depth_scan
from depth_ros.learning.sequences import ColourEvent, DepthEvent, Event, PoseEvent, Scan, ScanEvent, Sequence
from depth_ros.learning.trajectory import pose_matrices
from depth_ros.learning.tum import open_sequence
from depth_ros.ros import codecs, poses
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.ros.playback import Playback
from depth_ros.settings import setting

_SETTLED = 0.5      # [s] without a new subscriber before playing begins: discovery of a node's topics takes a moment
_PATIENCE = 10.0    # [s] after which it is said that subscribers are waited for: a misspelt topic would look like a hang


@dataclass(frozen=True)
class PlayerConfig(NodeConfig):
    """Parameters of `player`."""

    bag: str = setting('sample', 'what to play: sample, a TUM folder, a ROS 1 .bag, a rosbag2 folder, .mcap or .db3', read_only=True)
    rate: float = setting(1.0, 'speed, 1.0 being real time', low=0.01, high=100.0)
    loop: bool = setting(False, 'begin again at the end, for ever; stamps and clock then jump back', read_only=True)
    passes: int = setting(1, 'times that it is played, where it does not loop for ever; stamps and clock jump back in between', '', 1, 1000000, read_only=True)
    publish_clock: bool = setting(True, 'publish the time of the recording on /clock', read_only=True)
    clock_rate: float = setting(50.0, 'least rate of /clock', 'Hz', low=1.0, high=1000.0, read_only=True)
    scan_rate: float = setting(10.0, 'rate of the scans cut from depth where none was recorded; 0: cut none', 'Hz', low=0.0, high=100.0, read_only=True)
    scan_beams: int = setting(0, 'beams of the scans that are cut, evenly across the view; 1: straight ahead alone, as of a single rangefinder; 0: one each half degree', '', 0, 10000,
                              read_only=True)
    scan_noise: float = setting(0.0, 'noise of the scans that are cut: one standard deviation, as a share of the range', '', 0.0, 1.0, read_only=True)
    scan_silent_last: int = setting(0, 'images at the end of the recording for which no scan is published, in every lap: what others made of the scans is then judged where none '
                                    'was measured', '', 0, 1000000, read_only=True)
    world_frame: str = setting('world', 'frame of the ground truth', read_only=True)
    wait_for_subscribers: int = setting(1, 'subscribers of the image that playing waits for', low=0, high=100, read_only=True)
    wait_for_topic: str = setting('', 'topic, besides the image, that must have a subscriber before playing begins: an input of the last node of a graph', read_only=True)
    wait_for_listeners: int = setting(1, 'subscribers of that topic that playing waits for', low=1, high=100, read_only=True)
    wait_timeout: float = setting(20.0, 'longest wait for subscribers', 's', low=0.0, high=3600.0, read_only=True)
    linger: float = setting(1.0, 'time that the last images are given before the player ends', 's', low=0.0, high=60.0, read_only=True)


class PlayerNode(ManagedNode):
    """Publishes a recording in time. Deactivating pauses it. It ends with status 0 after the last image, or 1 where the recording cannot be read."""

    config_class = PlayerConfig
    config: PlayerConfig

    def __init__(self, **options: Any) -> None:
        self._playback: Playback | None = None
        self._sequence: Sequence | None = None
        self._waiting: Timer | None = None      # for subscribers
        super().__init__('player', **options)

    def setup(self) -> None:
        """Open the recording and begin to read ahead."""
        # First of all: who sees it offered knows that a recording is being made ready, which may take a minute.
        self._time_out = self.publisher(ClockMessage, '/clock') if self.config.publish_clock else None
        self._sequence = open_sequence(self.config.bag)
        self._image = self.publisher(Image, 'camera/rgb/image_color')
        self._image_info = self.publisher(CameraInfo, 'camera/rgb/camera_info')
        # A topic that nothing will come on is not offered: others would wait for it.
        if len(self._sequence.depth_stamps):
            self._depth = self.publisher(Image, 'camera/depth/image')
            self._depth_info = self.publisher(CameraInfo, 'camera/depth/camera_info')
        self._cuts = self._sequence.scans is None and len(self._sequence.depth_stamps) > 0 and self.config.scan_rate > 0.0
        if self._cuts or self._sequence.scans:
            self._scan = self.publisher(LaserScan, 'scan')
        if self._sequence.poses is not None:
            self._truth = self.publisher(PoseStamped, 'ground_truth/pose')
        self._static_tf = StaticTransformBroadcaster(self)
        self._last_cut = -1
        self._scans_until = self._end_of_scans()
        self._begun, self._told_laps = False, 0
        self._playback = Playback(self._read, self._emit, self._tick, self._on_end, self.config.rate, None if self.config.loop else self.config.passes, self.config.clock_rate)
        seconds = (self._sequence.colour_stamps[-1] - self._sequence.colour_stamps[0]) * 1e-9
        self.get_logger().info(f'{self.config.bag}: {len(self._sequence)} images in {seconds:.1f} s, {len(self._sequence.depth_stamps)} of depth')

    def start(self) -> None:
        """Play once the subscribers are there; go on at once after a pause."""
        mount = depth_scan.MOUNT if self._cuts else self._sequence.mount
        if mount is not None:
            header = codecs.make_header(int(self._sequence.colour_stamps[0]), self._sequence.frame_id)
            self._static_tf.sendTransform(poses.transform(mount.T_cam_laser, header, mount.frame_id))
        self._waiting_since = time.monotonic()
        self._seen: tuple[float, tuple[int, ...]] = (self._waiting_since, ())
        self._waiting = self.create_timer(0.05, self._begin_when_heard, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stop(self) -> None:
        """Pause."""
        self._stop_waiting()
        if self._playback is not None:
            self._playback.pause()

    def teardown(self) -> None:
        """Close the recording."""
        if self._playback is not None:
            self._playback.close()
            self.destroy_publisher(self._static_tf.pub_tf)
        if self._sequence is not None:
            self._sequence.close()
        self._playback = self._sequence = None

    def reconfigured(self, before: PlayerConfig) -> None:
        """The rate may change while playing."""
        self._playback.rate = self.config.rate

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self.destroy_timer(self._waiting)
            self._waiting = None

    def _begin_when_heard(self) -> None:
        now, counts = time.monotonic(), tuple(p.get_subscription_count() for p in (self._image, *self._outputs))
        if counts != self._seen[1]:
            self._seen = now, counts
        wanted, topic = self.config.wait_for_subscribers, self.config.wait_for_topic
        listeners = self.count_subscribers(topic) if topic else 0
        complete = not topic or listeners >= self.config.wait_for_listeners
        lacking = '' if complete else f', {"too few" if listeners else "none"} of {topic}'
        heard = complete and counts[0] >= wanted and now - self._seen[0] >= _SETTLED
        late = now - self._waiting_since >= self.config.wait_timeout
        if not (self._begun or heard or late):
            self.diagnostics.value('waiting for subscribers', f'{counts[0]} of {wanted}{lacking}')
            if now - self._waiting_since >= _PATIENCE:
                self.get_logger().warning(f'{self._image.topic_name}: {counts[0]} of {wanted} subscribers{lacking}; playing begins without them after {self.config.wait_timeout:.0f} s',
                                          once=True)
            return
        if late and not heard and not self._begun:
            missing = f'{counts[0]} of {wanted} subscribers{lacking and lacking + ","}'
            self.get_logger().warning(f'{self._image.topic_name}: {missing} after {self.config.wait_timeout:.1f} s; playing all the same')
        self._stop_waiting()
        self.diagnostics.value('waiting for subscribers', 'no')
        if not self._begun:
            self._begun, self._played_since = True, now
        self._playback.play()

    # In the reader's thread: decoding and filling messages

    def _read(self) -> Iterator[tuple[int, list[tuple[Any, Any]]]]:
        for event in self._sequence.events():
            yield event.stamp, self._messages(event)

    def _messages(self, event: Event) -> list[tuple[Any, Any]]:
        """(publisher, message) of an event, calibration before its image."""
        sequence, header = self._sequence, codecs.make_header(event.stamp, self._sequence.frame_id)
        if isinstance(event, PoseEvent):
            T = pose_matrices(event.row[None])[0]
            return [(self._truth, poses.pose_stamped(T, codecs.make_header(event.stamp, self.config.world_frame)))]
        if isinstance(event, ScanEvent):
            return [(self._scan, scan_message(event.scan))] if event.stamp < self._scans_until else []
        info = codecs.camera_info(sequence.K, sequence.size, header)
        if isinstance(event, ColourEvent):
            return [(self._image_info, info), (self._image, codecs.rgb_image(event.image, header))]
        return [(self._depth_info, info), (self._depth, codecs.depth_image(event.depth, event.depth > 0.0, header)), *self._cut(event)]

    def _cut(self, event: DepthEvent) -> list[tuple[Any, Any]]:
        if not self._cuts or event.stamp >= self._scans_until or 0 <= event.stamp - self._last_cut < 0.999e9 / self.config.scan_rate:
            return []
        self._last_cut = event.stamp
        return [(self._scan, scan_message(depth_scan.cut(event.depth, self._sequence.K, event.stamp, self.config.scan_beams, self.config.scan_noise)))]

    def _end_of_scans(self) -> int:
        """The stamp [ns] from which scans are withheld: half-way to the first of the last images that shall have none, for depth comes a little before or after them."""
        stamps = self._sequence.colour_stamps
        first = len(stamps) - self.config.scan_silent_last
        if first >= len(stamps):
            return sys.maxsize
        return int(stamps[first - 1] + stamps[first]) // 2 if first > 0 else 0

    # In the player's thread

    def _emit(self, _stamp: int, messages: list[tuple[Any, Any]]) -> None:
        for publisher, message in messages:
            self.tell(publisher, message)

    def _tick(self, stamp: int) -> None:
        if self._time_out is not None:
            self.tell(self._time_out, ClockMessage(clock=codecs.to_stamp(stamp)))
        self.diagnostics.value('laps', self._playback.laps)
        if self._playback.laps > self._told_laps:
            self._told_laps = self._playback.laps
            self.get_logger().info(f'pass {1 + self._told_laps}' + ('' if self.config.loop else f' of {self.config.passes}'))
        self.diagnostics.value('behind [s]', f'{self._playback.overdue:.3f}')

    def _on_end(self, error: Exception | None) -> None:
        if error is not None:
            self.get_logger().error(f'cannot play on: {error}')
            self.finish(1)
            return
        played, seconds = self.diagnostics.output(self._image.topic_name), time.monotonic() - self._played_since
        self.get_logger().info(f'{self.config.bag}: played to its end, {played.count} images in {seconds:.1f} s')
        if not self._playback.wait_paused(self.config.linger):
            self.finish(0)


def scan_message(scan: Scan) -> LaserScan:
    """The LaserScan of a scan."""
    return LaserScan(header=codecs.make_header(scan.stamp, scan.frame_id), angle_min=scan.angle_min, angle_max=scan.angle_max, angle_increment=scan.angle_increment,
                     time_increment=scan.time_increment, scan_time=scan.scan_time, range_min=scan.range_min, range_max=scan.range_max, ranges=array('f', scan.ranges.tobytes()))
