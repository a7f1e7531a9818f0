"""Poses, odometry, paths, transforms and time references: messages to (4, 4) matrices and back."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from geometry_msgs.msg import Pose, PoseStamped, Transform, TransformStamped
from nav_msgs.msg import Odometry, Path
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import TimeReference
from std_msgs.msg import Header

from depth_ros.ros.wire import BadMessage, copied, make_header, to_stamp

_UNKNOWN_VARIANCE = 1.0e6    # of what nobody measured: large, so that a filter gives it no weight
_NORM_TOLERANCE = 1.0e-2     # of the squared norm of a quaternion, as in tf2


def pose(T: np.ndarray) -> Pose:
    """Pose from T_a_b (4, 4): of b in a."""
    msg = Pose()
    _fill(T, msg.position, msg.orientation)
    return msg


def pose_stamped(T: np.ndarray, header: Header) -> PoseStamped:
    """T_frame_b (4, 4) at the time and in the frame of the header."""
    return PoseStamped(header=copied(header), pose=pose(T))


def transform(T: np.ndarray, header: Header, child_frame_id: str) -> TransformStamped:
    """TransformStamped from T_frame_child (4, 4)."""
    msg = TransformStamped(header=copied(header), child_frame_id=child_frame_id)
    _fill(T, msg.transform.translation, msg.transform.rotation)
    return msg


def odometry(T: np.ndarray, covariance: np.ndarray, header: Header, child_frame_id: str, twist: np.ndarray | None = None) -> Odometry:
    """Odometry from T_odom_child (4, 4), its covariance (6, 6) of (translation [m], rotation [rad]) along the child's axes, which the message wants
    along odom's, and the twist (6,) [m/s, rad/s] in the child frame, if known."""
    msg = Odometry(header=copied(header), child_frame_id=child_frame_id)
    msg.pose.pose = pose(T)
    turn = np.kron(np.eye(2), np.asarray(T, np.float64)[:3, :3])
    msg.pose.covariance = (turn @ np.asarray(covariance, np.float64) @ turn.T).ravel()
    if twist is None:
        msg.twist.covariance = (np.eye(6) * _UNKNOWN_VARIANCE).ravel()
    else:
        linear, angular = msg.twist.twist.linear, msg.twist.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, twist)
    return msg


def path(poses: Iterable[tuple[int, np.ndarray]], header: Header) -> Path:
    """Path from (stamp [ns], T_frame_cam (4, 4)) in the frame of the header."""
    poses = list(poses)
    if not poses:
        return Path(header=copied(header))
    stamps, matrices = zip(*poses)
    T = _finite(np.stack(matrices))
    quaternions = Rotation.from_matrix(T[:, :3, :3]).as_quat()    # all at once: SciPy's calls cost more than its arithmetic
    messages = []
    for stamp, translation, quaternion in zip(stamps, T[:, :3, 3].tolist(), quaternions.tolist()):
        msg = PoseStamped(header=make_header(stamp, header.frame_id))
        _write(translation, quaternion, msg.pose.position, msg.pose.orientation)
        messages.append(msg)
    return Path(header=copied(header), poses=messages)


def time_reference(current: int, reference: int, frame_id: str, source: str) -> TimeReference:
    """Says that what is stamped `current` [ns] was compared with what is stamped `reference` [ns]."""
    return TimeReference(header=make_header(current, frame_id), time_ref=to_stamp(reference), source=source)


def matrix(msg: TransformStamped | Transform | Pose | PoseStamped | Odometry, topic: str = 'transform') -> np.ndarray:
    """T (4, 4) float64 of a message: of a TransformStamped T_frame_child, of a pose T_frame_body."""
    while not isinstance(msg, (Pose, Transform)):
        msg = msg.transform if isinstance(msg, TransformStamped) else msg.pose
    t, q = (msg.position, msg.orientation) if isinstance(msg, Pose) else (msg.translation, msg.rotation)
    translation, quaternion = (t.x, t.y, t.z), (q.x, q.y, q.z, q.w)
    if not all(map(math.isfinite, translation + quaternion)) or abs(sum(c * c for c in quaternion) - 1.0) > _NORM_TOLERANCE:
        raise BadMessage(topic, f'translation {translation}, quaternion {quaternion}', 'finite values and a unit quaternion')
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    T[:3, 3] = translation
    return T


def _fill(T: np.ndarray, translation: object, rotation: object) -> None:
    """Write T (4, 4) into a message's vector and quaternion; what is not finite must never leave the process."""
    T = _finite(T)
    _write(T[:3, 3].tolist(), Rotation.from_matrix(T[:3, :3]).as_quat().tolist(), translation, rotation)


def _finite(T: np.ndarray) -> np.ndarray:
    """T (..., 4, 4) as float64. Raises ValueError for NaN and inf."""
    T = np.asarray(T, np.float64)
    if not np.isfinite(T).all():
        raise ValueError(f'a pose with NaN or inf cannot be published: {T[~np.isfinite(T).all(axis=(-2, -1))].tolist()}')
    return T


def _write(values: list[float], quaternion: list[float], translation: object, rotation: object) -> None:
    translation.x, translation.y, translation.z = values
    rotation.x, rotation.y, rotation.z, rotation.w = quaternion
