"""Camera poses as an odometry tells them, to ask for the motion between two stamps."""

from __future__ import annotations

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from depth_ros.learning.trajectory import Trajectory
from depth_ros.ros import codecs, diagnostics, poses
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.diagnostics import Flow
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE
from depth_ros.ros.sync import JUMP_BACK, StampBuffer

_KEPT = 10_000_000_000      # [ns]: several times the age of any pair and the time it may wait
_SPACING = 10_000_000       # [ns] between two poses that are kept: wheels tell theirs hundreds of times a second, and between so near ones interpolation loses nothing
_MAX_GAP = 200_000_000      # [ns] between poses that are interpolated
_JUMP, _FASTEST = 0.3, 20.0     # [m], [m/s]: a longer step than a camera makes in the time


class PoseHistory:
    """The last trusted poses. Poses before and after a loss of tracking are not compared. Where the odometry is of another frame than the camera, TF tells the rest."""

    def __init__(self, node: ManagedNode) -> None:
        self._node = node
        self.breaks = 0     # how often poses were forgotten, since when places are told in another frame
        self._poses: StampBuffer[np.ndarray] = StampBuffer(_KEPT // _SPACING + 2)
        self._child = ''
        self._T_child_cam: np.ndarray | None = None
        self._camera = ''
        self._buffer: Buffer | None = None
        self._listener: TransformListener | None = None

    @property
    def newest(self) -> int | None:
        """Stamp [ns] of the newest pose."""
        return self._poses.newest

    def take(self, message: Odometry, source: Flow) -> bool:
        """Keep the pose that came on an input; whether it can be used, else it is counted and told."""
        try:
            self.put(message, source.topic)
        except BadMessage as error:
            self._node.diagnostics.reject(source, str(error))
            return False
        return True

    def put(self, message: Odometry, topic: str) -> None:
        """Keep a pose; one that nobody trusts forgets all before it. Raises BadMessage."""
        if message.pose.covariance[0] >= UNKNOWN_VARIANCE or message.child_frame_id != self._child:
            self.clear()
        if message.child_frame_id != self._child:
            self._child, self._T_child_cam = message.child_frame_id, None
        if message.pose.covariance[0] < UNKNOWN_VARIANCE:
            stamp, T_world_child = codecs.stamp_ns(message.header.stamp), poses.matrix(message, topic)
            if self._is_jump(stamp, T_world_child):
                self.clear()
            self._keep(stamp, T_world_child)

    def _keep(self, stamp: int, T_world_child: np.ndarray) -> None:
        """Keep a pose as the newest; the one before it makes room if it lies near the one before that."""
        last = self._poses.stamps()[-2:]
        if len(last) == 2 and last[1] - last[0] < _SPACING and stamp > last[1]:
            self._poses.drop(last[1])
        self._poses.put(stamp, T_world_child)
        self._poses.drop_until(self._poses.newest - _KEPT)

    def _is_jump(self, stamp: int, T_world_child: np.ndarray) -> bool:
        """Whether no camera can have moved from the last pose to this one: the odometry was reset, or found its place again."""
        last = self.newest
        if last is None:
            return False
        step = float(np.linalg.norm(T_world_child[:3, 3] - self._poses.get(last)[:3, 3]))
        return step > _JUMP + _FASTEST * abs(stamp - last) * 1e-9

    def motion(self, reference: int, current: int, camera: str) -> np.ndarray | None:
        """T_ref_cur (4, 4) of the camera's frame between two stamps [ns], interpolated; None if it is not known."""
        T_world_ref, T_world_cur = self._at(reference), self._at(current)
        if T_world_ref is None or T_world_cur is None:
            return None
        T_child_cam = self._mount(camera)
        if T_child_cam is None:
            return None
        return np.linalg.inv(T_world_ref @ T_child_cam) @ T_world_cur @ T_child_cam

    def pose(self, stamp: int, camera: str) -> np.ndarray | None:
        """T_world_cam (4, 4) of the camera's frame at a stamp [ns], interpolated; None if it is not known."""
        T_world_child = self._at(stamp)
        T_child_cam = None if T_world_child is None else self._mount(camera)
        return None if T_child_cam is None else T_world_child @ T_child_cam

    def rewind(self, stamp: int) -> None:
        """The clock jumped back to a stamp [ns]: forget all poses, unless the odometry has jumped as well already."""
        if self.newest is not None and self.newest > stamp + JUMP_BACK:
            self.clear()

    def clear(self) -> None:
        """Forget all poses."""
        self.breaks += len(self._poses) > 0
        self._poses.clear()

    def close(self) -> None:
        """Stop listening to TF."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = self._buffer = None

    def _at(self, stamp: int) -> np.ndarray | None:
        """T_world_child (4, 4) at a stamp [ns]."""
        exact = self._poses.get(stamp)
        if exact is not None:
            return exact
        stamps = self._poses.stamps()
        after = int(np.searchsorted(stamps, stamp))
        if after in (0, len(stamps)):
            return None
        around = stamps[after - 1:after + 1]
        return Trajectory(np.array(around), np.stack([self._poses.get(s) for s in around])).at(stamp, _MAX_GAP)

    def _mount(self, camera: str) -> np.ndarray | None:
        """T_child_cam (4, 4): where the camera sits on what the odometry is of; None, told, where TF does not know it."""
        if self._child in ('', camera):
            return np.eye(4)
        if self._T_child_cam is not None and self._camera == camera:
            return self._T_child_cam
        if self._buffer is None:
            self._buffer = Buffer(node=self._node)
            self._listener = TransformListener(self._buffer, self._node)
        try:
            found = self._buffer.lookup_transform(self._child, camera, Time(), Duration(seconds=0.0))
        except TransformException as error:
            self._node.diagnostics.hold('tf', diagnostics.WARN, f'no transform from {camera} to {self._child}, which the odometry is of: {error}')
            return None
        self._node.diagnostics.clear('tf')
        self._camera, self._T_child_cam = camera, poses.matrix(found)
        return self._T_child_cam
