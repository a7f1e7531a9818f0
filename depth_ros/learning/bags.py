"""Bags as sequences: ROS 1 .bag, rosbag2 folders (sqlite3, mcap) and single .db3 or .mcap files, read through rosbags.

The topics are those of TUM's bags. Their ground truth is in /tf: /world -> /kinect, and from there over /openni_camera and /openni_rgb_frame to the optical
frame. Where /ground_truth/pose is recorded, that is used instead. Stamps are those of the headers.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag1 import ReaderError as Reader1Error
from rosbags.rosbag2 import ReaderError as Reader2Error
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from depth_ros.learning.sequences import DEFAULT_FRAME_ID, INTRINSICS_SIZE, Mount, Scan, Sequence, camera_matrix, known_intrinsics, metres
from depth_ros.learning.transforms import TransformTree
from depth_ros.learning.trajectory import NANOSECONDS, PoseTable, SequenceError

COLOUR, CAMERA_INFO, DEPTH = '/camera/rgb/image_color', '/camera/rgb/camera_info', '/camera/depth/image'
SCAN, POSE, TF, TF_STATIC = '/scan', '/ground_truth/pose', '/tf', '/tf_static'
WORLD = 'world'
TYPES = {COLOUR: ('sensor_msgs/msg/Image',), DEPTH: ('sensor_msgs/msg/Image',), CAMERA_INFO: ('sensor_msgs/msg/CameraInfo',),
         SCAN: ('sensor_msgs/msg/LaserScan',), POSE: ('geometry_msgs/msg/PoseStamped',), TF: ('tf2_msgs/msg/TFMessage', 'tf/msg/tfMessage'),
         TF_STATIC: ('tf2_msgs/msg/TFMessage',)}
_TO_RGB = {'rgb8': (3, None), 'bgr8': (3, cv2.COLOR_BGR2RGB), '8UC3': (3, cv2.COLOR_BGR2RGB), 'rgba8': (4, cv2.COLOR_RGBA2RGB),
           'bgra8': (4, cv2.COLOR_BGRA2RGB), 'mono8': (1, cv2.COLOR_GRAY2RGB), '8UC1': (1, cv2.COLOR_GRAY2RGB)}
_MILLIMETRES = 1000.0
_LOG = logging.getLogger(__name__)
# What rosbags raises for files that are no bags, cut off or damaged; the last ones come from its parsers.
_DAMAGE = (AnyReaderError, Reader1Error, Reader2Error, SerdeError, OSError, sqlite3.Error, struct.error, AssertionError, LookupError, ValueError, TypeError,
           EOFError)


@dataclass(frozen=True)
class _Entry:
    """Where a message lies: its place among the messages of its topic that were recorded at the same time."""

    stamp: int      # [ns] of its header
    recorded: int   # [ns]
    ordinal: int


class BagSequence(Sequence):
    """A bag. Opening it reads it once for the stamps and everything that is small; images are read when asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self._closing = contextlib.ExitStack()
        self._streams: dict[str, tuple[int, Iterator[Any]]] = {}
        try:
            with self._damage():
                self._reader = self._closing.enter_context(AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_JAZZY)))
                self._connections = self._checked()
            self._scan_bag()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See Sequence."""
        self._streams.clear()
        self._closing.close()

    def read_colour(self, index: int) -> np.ndarray:
        """See Sequence."""
        return self._rgb(self._message(COLOUR, index), index)

    def read_depth(self, index: int) -> np.ndarray:
        """See Sequence."""
        msg = self._message(DEPTH, index)
        if msg.encoding == '16UC1':
            return metres(self._pixels(DEPTH, index, msg, 'u2', 1), _MILLIMETRES)
        if msg.encoding != '32FC1':
            raise SequenceError(f'{self.path}: topic {DEPTH}, message {index}: expected encoding 32FC1 or 16UC1, got {msg.encoding!r}')
        depth = self._pixels(DEPTH, index, msg, 'f4', 1)
        return np.where((depth > 0.0) & (depth < np.inf), depth, np.float32(np.nan))

    @contextlib.contextmanager
    def _damage(self) -> Generator[None, None, None]:
        try:
            yield
        except SequenceError:
            raise
        except _DAMAGE as error:
            raise SequenceError(f'{self.path}: cannot be read as a bag: {" ".join(str(error).split()) or type(error).__name__}') from error

    def _checked(self) -> dict[str, list[Connection]]:
        """The connections of each topic that is known here; raises SequenceError if what is needed is missing or of another type."""
        found: dict[str, list[Connection]] = {}
        for connection in self._reader.connections:
            topic = '/' + connection.topic.lstrip('/')
            if topic in TYPES:
                if connection.msgtype not in TYPES[topic]:
                    raise SequenceError(f'{self.path}: topic {topic}: expected {" or ".join(TYPES[topic])}, got {connection.msgtype}')
                found.setdefault(topic, []).append(connection)
        needed = [COLOUR] if known_intrinsics(self.name) is not None else [COLOUR, CAMERA_INFO]
        missing = [topic for topic in needed if topic not in found]
        if missing:
            topics = ', '.join(sorted({c.topic for c in self._reader.connections})) or 'none'
            raise SequenceError(f'{self.path}: has no topic {" and no ".join(missing)}; it has: {topics}')
        return found

    def _scan_bag(self) -> None:
        """Fill the fields of Sequence in one pass over the bag."""
        self._index: dict[str, list[_Entry]] = {COLOUR: [], DEPTH: []}
        scans: list[Scan] = []
        poses: dict[int, np.ndarray] = {}
        tree, info, first = TransformTree(), None, None
        ties: dict[str, tuple[int, int]] = {}
        for topic, recorded, msg in self._messages(list(self._connections)):
            if topic in self._index:
                last, count = ties.get(topic, (recorded, -1))
                ties[topic] = recorded, count + 1 if last == recorded else 0
                self._index[topic].append(_Entry(self._rising(topic, msg, self._index[topic]), *ties[topic]))
                first = msg if first is None and topic == COLOUR else first
            elif topic == CAMERA_INFO:
                info = info or msg
            elif topic == SCAN:
                scans.append(_scan(msg, self._rising(SCAN, msg, scans)))
            elif topic == POSE:
                poses.setdefault(_stamp(msg), _row(msg.pose.position, msg.pose.orientation))
            else:
                for t in msg.transforms:
                    tree.add(_frame(t.header.frame_id), _frame(t.child_frame_id), _stamp(t), _row(t.transform.translation, t.transform.rotation))
        if first is None:
            raise SequenceError(f'{self.path}: topic {COLOUR} holds no message')
        self.colour_stamps, self.depth_stamps = (np.array([e.stamp for e in self._index[t]], np.int64) for t in (COLOUR, DEPTH))
        self.frame_id = _frame(first.header.frame_id) or (info is not None and _frame(info.header.frame_id)) or DEFAULT_FRAME_ID
        self.K, self.size = self._calibration(info)
        self._rgb(first, 0)     # a calibration that does not fit is found now
        self.poses = PoseTable(np.array(sorted(poses), np.int64), np.array([poses[s] for s in sorted(poses)])) if poses else tree.over_time(WORLD, self.frame_id)
        self.scans, self.mount = tuple(scans) or None, None
        if scans:
            row = tree.lookup(self.frame_id, scans[0].frame_id)
            self.mount = Mount(scans[0].frame_id, row) if row is not None else None
            if row is None:
                _LOG.warning('%s: no transform connects the laser %s with %s', self.path, scans[0].frame_id, self.frame_id)

    def _rising(self, topic: str, msg: Any, before: list[Any]) -> int:
        stamp = _stamp(msg)
        if before and stamp <= before[-1].stamp:
            what = 'a duplicate' if stamp == before[-1].stamp else 'an unsorted'
            raise SequenceError(f'{self.path}: topic {topic}, message {len(before)}: {what} time stamp {stamp} ns, after {before[-1].stamp} ns')
        return stamp

    def _calibration(self, info: Any | None) -> tuple[np.ndarray, tuple[int, int]]:
        """K and size from camera_info, where P, if filled, is that of the image; else by the bag's name."""
        if info is None:
            return known_intrinsics(self.name), INTRINSICS_SIZE
        K, P = (np.array(getattr(info, name, None) if hasattr(info, name) else getattr(info, name.lower()), np.float64) for name in 'KP')
        fx, fy, cx, cy = (P[0], P[5], P[2], P[6]) if P[0] > 0.0 else (K[0], K[4], K[2], K[5])
        if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0.0 and fy > 0.0 and info.width > 0 and info.height > 0):
            raise SequenceError(f'{self.path}: topic {CAMERA_INFO}: an uncalibrated camera: K {K.tolist()}, P {P.tolist()}, {info.width} x {info.height}')
        return camera_matrix(fx, fy, cx, cy) + 0.0, (int(info.width), int(info.height))

    def _messages(self, topics: list[str], start: int | None = None) -> Iterator[tuple[str, int, Any]]:
        """(topic, recorded [ns], message) of all messages of the topics, from a recording time on."""
        connections = [c for topic in topics for c in self._connections.get(topic, [])]
        with self._damage():
            for connection, recorded, data in self._reader.messages(connections, start=start) if connections else ():
                yield '/' + connection.topic.lstrip('/'), recorded, self._reader.deserialize(data, connection.msgtype)

    def _message(self, topic: str, index: int) -> Any:
        """A message by its number. The next one in order continues where the last one ended; any other starts anew."""
        following, stream = self._streams.pop(topic, (None, None))
        if following != index:
            entry = self._index[topic][index]
            stream = self._messages([topic], entry.recorded)
            for _ in range(entry.ordinal):
                next(stream)
        try:
            _, _, msg = next(stream)
        except StopIteration:
            raise SequenceError(f'{self.path}: topic {topic}, message {index}: has gone') from None
        self._streams[topic] = index + 1, stream
        return msg

    def _rgb(self, msg: Any, index: int) -> np.ndarray:
        if msg.encoding not in _TO_RGB:
            raise SequenceError(f'{self.path}: topic {COLOUR}, message {index}: expected encoding {", ".join(_TO_RGB)}, got {msg.encoding!r}')
        channels, code = _TO_RGB[msg.encoding]
        image = self._pixels(COLOUR, index, msg, 'u1', channels)
        return image.copy() if code is None else cv2.cvtColor(np.ascontiguousarray(image), code)

    def _pixels(self, topic: str, index: int, msg: Any, dtype: str, channels: int) -> np.ndarray:
        """The pixels (H, W) or (H, W, channels) of an image message in native byte order."""
        item = np.dtype(('>' if msg.is_bigendian else '<') + dtype)
        row = msg.width * channels * item.itemsize
        if (msg.width, msg.height) != self.size:
            raise SequenceError(f'{self.path}: topic {topic}, message {index}: is {msg.width} x {msg.height} pixels, but the calibration ({CAMERA_INFO}) '
                                f'is for {self.size[0]} x {self.size[1]}')
        if msg.step < row or len(msg.data) < msg.step * msg.height:
            raise SequenceError(f'{self.path}: topic {topic}, message {index}: {len(msg.data)} bytes in rows of {msg.step} do not hold {msg.width} x {msg.height} '
                                f'pixels of {msg.encoding}')
        lines = np.frombuffer(msg.data, np.uint8, msg.step * msg.height).reshape(msg.height, msg.step)[:, :row]
        pixels = np.ascontiguousarray(lines).view(item).astype(item.newbyteorder('='), copy=False)
        return pixels if channels == 1 else pixels.reshape(msg.height, msg.width, channels)


def _stamp(msg: Any) -> int:
    return int(msg.header.stamp.sec) * NANOSECONDS + int(msg.header.stamp.nanosec)


def _frame(name: str) -> str:
    """A frame's name as ROS 2 wants it: without the slash that tf of ROS 1 put before it."""
    return name.lstrip('/')


def _row(translation: Any, rotation: Any) -> np.ndarray:
    return np.array([translation.x, translation.y, translation.z, rotation.x, rotation.y, rotation.z, rotation.w], np.float64) + 0.0


def _scan(msg: Any, stamp: int) -> Scan:
    return Scan(stamp, _frame(msg.header.frame_id), float(msg.angle_min), float(msg.angle_max), float(msg.angle_increment), float(msg.time_increment),
                float(msg.scan_time), float(msg.range_min), float(msg.range_max), np.array(msg.ranges, np.float32))
