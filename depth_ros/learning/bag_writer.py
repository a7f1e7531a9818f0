"""Writes bags through rosbags: ROS 1 as TUM's are (topics, and ground truth in /tf over the openni frames), and rosbag2 with sqlite3 or mcap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from depth_ros.learning.bags import CAMERA_INFO, COLOUR, DEPTH, POSE, SCAN, TF, TF_STATIC, TYPES, WORLD
from depth_ros.learning.sequences import ColourEvent, DepthEvent, Event, PoseEvent, Scan, Sequence
from depth_ros.learning.trajectory import NANOSECONDS
from depth_ros.learning.transforms import IDENTITY

FORMATS = ('bag', 'rosbag2-sqlite3', 'rosbag2-mcap')
_ROSBAG2_VERSION = 8            # the newest metadata that Jazzy reads
# Between the frame that TUM's motion capture follows and the optical frame. The poses are those of the optical frame, so these are identities.
_OPENNI = ('kinect', 'openni_camera', 'openni_rgb_frame')
_NO_TIME = QosTime(0, 0)
_LATCHED = Qos(QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _NO_TIME, _NO_TIME, QosLiveliness.AUTOMATIC, _NO_TIME, False)


class BagWriter(contextlib.AbstractContextManager):
    """Fills a new bag with the events of a sequence, given in the order of their stamps. Leaving the context finishes it; on an error it is left unusable."""

    def __init__(self, path: Path, sequence: Sequence, kind: str) -> None:
        """kind: one of FORMATS."""
        self._sequence = sequence
        self._ros1 = kind == 'bag'
        if self._ros1:
            self._types = get_typestore(Stores.ROS1_NOETIC)
            self._types.register(get_types_from_msg('geometry_msgs/TransformStamped[] transforms', 'tf2_msgs/msg/TFMessage'))
            self._writer = rosbag1.Writer(path)
        else:
            self._types = get_typestore(Stores.ROS2_JAZZY)
            plugin = {'rosbag2-sqlite3': rosbag2.StoragePlugin.SQLITE3, 'rosbag2-mcap': rosbag2.StoragePlugin.MCAP}[kind]
            self._writer = rosbag2.Writer(path, version=_ROSBAG2_VERSION, storage_plugin=plugin)
        self._connections: dict[str, Connection] = {}
        self._started = False

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)

    def add(self, event: Event) -> None:
        """Write the messages of an event."""
        if not self._started:
            self._started = True
            self._write_static(event.stamp)
        if isinstance(event, ColourEvent):
            self._write(CAMERA_INFO, event.stamp, self._camera_info(event.stamp))
            self._write(COLOUR, event.stamp, self._image(event.stamp, event.image, 'rgb8'))
        elif isinstance(event, DepthEvent):
            self._write(DEPTH, event.stamp, self._image(event.stamp, event.depth, '32FC1'))
        elif isinstance(event, PoseEvent):
            self._write_pose(event)
        else:
            self._write(SCAN, event.stamp, self._scan(event.scan))

    def _write_static(self, stamp: int) -> None:
        mount = self._sequence.mount
        if mount is not None:
            self._write_transforms(TF if self._ros1 else TF_STATIC, stamp, [(self._sequence.frame_id, mount.frame_id, mount.row)])

    def _write_pose(self, event: PoseEvent) -> None:
        if not self._ros1:
            position, orientation = self._xyz('Point', event.row), self._xyzw(event.row)
            pose = self._make('geometry_msgs/msg/Pose', position=position, orientation=orientation)
            self._write(POSE, event.stamp, self._make(TYPES[POSE][0], header=self._header(event.stamp, WORLD), pose=pose))
            return
        chain = [*_OPENNI, self._sequence.frame_id]
        edges = [(WORLD, chain[0], event.row)] + [(parent, child, IDENTITY) for parent, child in zip(chain, chain[1:])]
        mount = self._sequence.mount
        if mount is not None:
            edges.append((self._sequence.frame_id, mount.frame_id, mount.row))      # again, as ROS 1 does: a player may start anywhere
        self._write_transforms(TF, event.stamp, edges)

    def _write_transforms(self, topic: str, stamp: int, edges: list[tuple[str, str, np.ndarray]]) -> None:
        slash = '/' if self._ros1 else ''
        transforms = [self._make('geometry_msgs/msg/TransformStamped', header=self._header(stamp, slash + parent), child_frame_id=slash + child,
                                 transform=self._make('geometry_msgs/msg/Transform', translation=self._xyz('Vector3', row), rotation=self._xyzw(row)))
                      for parent, child, row in edges]
        self._write(topic, stamp, self._make(TYPES[topic][0], transforms=transforms))

    def _camera_info(self, stamp: int) -> Any:
        K = self._sequence.K
        width, height = self._sequence.size
        values = {'D': np.zeros(5), 'K': K.ravel(), 'R': np.eye(3).ravel(), 'P': np.hstack([K, np.zeros((3, 1))]).ravel()}
        named = {name if self._ros1 else name.lower(): value for name, value in values.items()}
        roi = self._make('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        return self._make(TYPES[CAMERA_INFO][0], header=self._header(stamp, self._sequence.frame_id), height=height, width=width,
                          distortion_model='plumb_bob', binning_x=0, binning_y=0, roi=roi, **named)

    def _image(self, stamp: int, pixels: np.ndarray, encoding: str) -> Any:
        height, width = pixels.shape[:2]
        little = pixels.astype(pixels.dtype.newbyteorder('<'), copy=False)
        return self._make(TYPES[COLOUR][0], header=self._header(stamp, self._sequence.frame_id), height=height, width=width, encoding=encoding, is_bigendian=0,
                          step=little.nbytes // height, data=np.frombuffer(little.tobytes(), np.uint8))

    def _scan(self, scan: Scan) -> Any:
        return self._make(TYPES[SCAN][0], header=self._header(scan.stamp, scan.frame_id), angle_min=scan.angle_min, angle_max=scan.angle_max,
                          angle_increment=scan.angle_increment, time_increment=scan.time_increment, scan_time=scan.scan_time, range_min=scan.range_min,
                          range_max=scan.range_max, ranges=scan.ranges, intensities=np.zeros(0, np.float32))

    def _header(self, stamp: int, frame_id: str) -> Any:
        seconds, rest = divmod(stamp, NANOSECONDS)
        time = self._make('builtin_interfaces/msg/Time', sec=seconds, nanosec=rest)
        # ROS 1 numbers its messages; nobody reads the numbers any more.
        return self._make('std_msgs/msg/Header', stamp=time, frame_id=frame_id, **({'seq': 0} if self._ros1 else {}))

    def _xyz(self, kind: str, row: np.ndarray) -> Any:
        return self._make(f'geometry_msgs/msg/{kind}', x=float(row[0]), y=float(row[1]), z=float(row[2]))

    def _xyzw(self, row: np.ndarray) -> Any:
        return self._make('geometry_msgs/msg/Quaternion', x=float(row[3]), y=float(row[4]), z=float(row[5]), w=float(row[6]))

    def _make(self, msgtype: str, **fields: Any) -> Any:
        make: Callable[..., Any] = self._types.types[msgtype]
        return make(**fields)

    def _write(self, topic: str, stamp: int, msg: Any) -> None:
        msgtype = TYPES[topic][0]
        if topic not in self._connections:
            latched = topic == TF_STATIC
            options = {} if self._ros1 else {'offered_qos_profiles': [_LATCHED] if latched else []}
            self._connections[topic] = self._writer.add_connection(topic, msgtype, typestore=self._types, **options)
        serialise = self._types.serialize_ros1 if self._ros1 else self._types.serialize_cdr
        self._writer.write(self._connections[topic], stamp, serialise(msg, msgtype))
