"""What a tracker tells the robot: odometry with covariance and twist, the transform of its camera or base, and the path so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nav_msgs.msg import Odometry, Path
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, ManagedEntity, TransitionCallbackReturn
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from depth_ros.frames import TrackResult, TrackStatus
from depth_ros.geometry import rigid
from depth_ros.ros import codecs, diagnostics, poses
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.tf_parents import TfParents
from depth_ros.ros.trail import Trail
from depth_ros.settings import setting

UNKNOWN_VARIANCE = 1.0e6    # of a pose that must not be trusted, [m^2] and [rad^2]
_PATH_PERIOD = 1.0          # [s]
_MAX_TWIST_GAP = 500_000_000    # [ns] between two poses that still tell a velocity


@dataclass(frozen=True)
class OdometryConfig:
    """Parameters of a node that publishes odometry."""

    odom_frame: str = setting('odom', 'the fixed frame, z up', read_only=True)
    base_frame: str = setting('', "the robot's frame; empty: odometry and TF are of the camera. Else TF must know the camera in it", read_only=True)
    publish_tf: bool = setting(True, 'publish odom -> camera (or base) on /tf, unless TF has another parent of that frame already', read_only=True)
    tf_timeout: float = setting(0.2, 'longest wait for a transform', 's', low=0.0, high=10.0, read_only=True)
    path_poses: int = setting(1000, 'most poses of the published path, spread over the drive', low=2, high=100_000, read_only=True)
    trajectory_poses: int = setting(200_000, 'most poses kept for the path and for save_trajectory; older ones are thinned out', low=100, high=10_000_000, read_only=True)


class OdometryOutputs:
    """Publishers of one node under `prefix`; call `publish` with every result, from one thread.

    The path is made in a thread of its own, which runs while the node is active: odometry must not wait for it.
    """

    def __init__(self, node: ManagedNode, config: OdometryConfig, prefix: str) -> None:
        self._node, self._config = node, config
        self._odometry = node.publisher(Odometry, f'{prefix}/odometry')
        self._path = node.publisher(Path, f'{prefix}/path')
        self._broadcaster = TransformBroadcaster(node) if config.publish_tf else None
        self._parents = TfParents(node, config.odom_frame) if config.publish_tf else None
        self._buffer = self._listener = None
        if config.base_frame:
            self._buffer = Buffer()     # without the node, whose clock and services would hold on to it; jumps of the clock come through `restart`
            self._listener = TransformListener(self._buffer, node)
        self.trail = Trail(config.trajectory_poses)
        self._T_base_cam: np.ndarray | None = None
        self._T_odom_engine: np.ndarray | None = None   # brings the tracker's own level start to where the robot says the camera sits
        self._T_odom_cam: np.ndarray | None = None      # last one published
        self._previous: tuple[int, np.ndarray] | None = None
        self._interval = 0.0    # [s] between the last two poses
        self._path_at = 0.0
        self._path_worker: LatestWorker[Header] | None = None
        self._activation = _Activation(self._begin)
        node.add_managed_entity(self._activation)

    def publish(self, track: TrackResult, camera_frame: str) -> np.ndarray | None:
        """Publish a result; T_odom_cam (4, 4) as published, or None where TF does not tell where the camera is."""
        if not self._place(camera_frame, track.T_odom_cam):
            return None
        T_odom_cam = self._T_odom_cam = self._T_odom_engine @ track.T_odom_cam
        trusted = track.status is TrackStatus.OK
        header = codecs.make_header(track.stamp, self._config.odom_frame)
        child = self._config.base_frame or camera_frame
        T_odom_child, covariance = T_odom_cam @ np.linalg.inv(self._T_base_cam), _moved(track.covariance, self._T_base_cam)
        if not trusted:
            covariance, self._previous = np.eye(6) * UNKNOWN_VARIANCE, None
        twist = self._twist(track.stamp, T_odom_child) if trusted else None
        message = poses.odometry(T_odom_child, covariance, header, child, twist)
        if not trusted:
            message.pose.covariance = covariance.ravel()    # the same along all axes; turned into odom's it may be rounded to less than listeners compare with
        if twist is not None:
            message.twist.covariance = (2.0 * covariance / self._interval ** 2).ravel()
        self._node.tell(self._odometry, message)
        if trusted:
            self.trail.add(track.stamp, T_odom_cam)
            if self._may_broadcast(child):
                self._broadcaster.sendTransform(poses.transform(T_odom_child, header, child))
        self._publish_path(header)
        return T_odom_cam

    def restart(self) -> None:
        """The clock jumped back: begin a new path, forget transforms and velocity; the pose goes on."""
        self.change_unit()
        if self._buffer is not None:
            self._buffer.clear()

    def change_unit(self) -> None:
        """Lengths mean something else from here on: begin a new path, forget the velocity."""
        self.trail.clear()
        self._previous = None

    def relocate(self) -> None:
        """Tracking starts at its origin again: look up where the camera sits on the robot once more."""
        self.restart()
        self._T_base_cam = self._T_odom_engine = self._T_odom_cam = None

    def rebase(self) -> None:
        """Another tracker takes over: its first pose is the last one published."""
        self._T_odom_engine = None

    def close(self) -> None:
        """Take back what the node does not close by itself."""
        self._activation.action = None
        if self._broadcaster is not None:
            self._node.destroy_publisher(self._broadcaster.pub_tf)
            self._parents.close()
        if self._listener is not None:
            self._listener.unregister()

    def _place(self, camera_frame: str, T_engine_cam: np.ndarray) -> bool:
        """Learn where the camera sits, and where the tracker's frame lies in odom: the robot stands at the origin first; False while TF does not tell."""
        base = self._config.base_frame
        if self._T_base_cam is None:
            self._T_base_cam = self._look_up(base, camera_frame) if base else np.eye(4)
        if self._T_base_cam is None:
            return False
        if self._T_odom_engine is None:
            start = self._T_odom_cam if self._T_odom_cam is not None else self._T_base_cam if base else T_engine_cam
            self._T_odom_engine = start @ np.linalg.inv(T_engine_cam)
        return True

    def _look_up(self, base: str, camera_frame: str) -> np.ndarray | None:
        """T_base_cam (4, 4), waiting for it a little; None, told, where TF does not know it."""
        try:
            found = self._buffer.lookup_transform(base, camera_frame, Time(), Duration(seconds=self._config.tf_timeout))
        except TransformException as error:
            self._node.diagnostics.hold('tf', diagnostics.ERROR, f'no transform from {camera_frame} to base_frame {base}, so no odometry: {error}')
            return None
        self._node.diagnostics.clear('tf')
        return poses.matrix(found)

    def _may_broadcast(self, child: str) -> bool:
        """Whether TF is wanted, and nobody else places the frame; told where somebody does."""
        if self._broadcaster is None or not self._parents.settled:
            return False
        other = self._parents.other(child)
        if other is not None:
            self._node.diagnostics.hold('tf parent', diagnostics.WARN, f'no TF {self._config.odom_frame} -> {child}: TF has {child} below {other}, and a second parent would make '
                                        "lookups flip; set base_frame to the robot's uppermost frame, such as base_link, or publish_tf to false")
        return other is None

    def _twist(self, stamp: int, T_odom_child: np.ndarray) -> np.ndarray | None:
        """Velocity (6,) [m/s, rad/s] along the child's axes, from the last two poses."""
        previous, self._previous = self._previous, (stamp, T_odom_child)
        if previous is None or not 0 < stamp - previous[0] <= _MAX_TWIST_GAP:
            return None
        self._interval = (stamp - previous[0]) * 1e-9
        R_child_odom = T_odom_child[:3, :3].T
        turned = Rotation.from_matrix(previous[1][:3, :3].T @ T_odom_child[:3, :3]).as_rotvec()
        return np.hstack([R_child_odom @ (T_odom_child[:3, 3] - previous[1][:3, 3]), turned]) / self._interval

    def _publish_path(self, header: Header) -> None:
        """Have the path published if somebody listens and the last time is long enough ago."""
        now = time.monotonic()
        if self._path_worker is None or now - self._path_at < _PATH_PERIOD or not self._path.get_subscription_count():
            return
        self._path_at = now
        self._path_worker.put(header)

    def _begin(self) -> None:
        self._path_worker = self._node.worker(self._work, 'path')

    def _work(self, header: Header) -> None:
        self._node.tell(self._path, poses.path(self.trail.poses(self._config.path_poses), header))


class _Activation(ManagedEntity):
    """Calls `action` whenever the node is activated. A node has no way to let go of an entity, so that None must end it."""

    def __init__(self, action: Callable[[], None] | None) -> None:
        self.action = action

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call the action, before the node begins to listen."""
        if self.action is not None:
            self.action()
        return TransitionCallbackReturn.SUCCESS


def _moved(covariance: np.ndarray, T_base_cam: np.ndarray) -> np.ndarray:
    """Covariance (6, 6) of (translation, rotation) in the camera frame, of the base frame: Sigma_base = Ad(T_base_cam) Sigma_cam Ad^T."""
    adjoint = rigid.adjoint(T_base_cam)
    return adjoint @ covariance @ adjoint.T
