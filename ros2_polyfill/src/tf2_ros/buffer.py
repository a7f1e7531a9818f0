"""tf2_ros.Buffer: the transforms heard so far, looked up at a time, with a bounded wait."""
from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic

from builtin_interfaces.msg import Time as TimeMsg
from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.time import Time

from tf2_ros.exceptions import TransformException
from tf2_ros.rigid import Rigid, compose
from tf2_ros.tree import FrameTree

_NORM_TOLERANCE = 10e-3    # of the squared norm, as in tf2


class Buffer:
    """Thread-safe; keeps `cache_time` (10 s) of every moving frame. With a node, a clock that jumps back by more than a second clears it."""

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._tree = FrameTree((cache_time or Duration(seconds=10)).nanoseconds)
        self._changed = threading.Condition()
        self._logger = get_logger('tf2_buffer')
        if node is not None:
            threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
            self._jump_handle = node.get_clock().create_jump_callback(threshold, post_callback=self._on_jump)

    def _on_jump(self, _jump: object) -> None:
        self._logger.warning('The clock jumped. Clearing the transform buffer.')
        self.clear()

    def clear(self) -> None:
        """Forget the moving transforms; the static ones stay."""
        with self._changed:
            self._tree.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Store T_frame_id_child_frame_id at its stamp; malformed ones are refused with a logged reason."""
        self._store(transform, authority, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Store a transform that holds at any time."""
        self._store(transform, authority, static=True)

    def _store(self, transform: TransformStamped, authority: str, static: bool) -> None:
        parent, child = (name.removeprefix('/') for name in (transform.header.frame_id, transform.child_frame_id))
        T_parent_child = _from_message(transform)
        fault = _fault(parent, child, T_parent_child)
        if fault:
            self._logger.error(f'Ignoring transform from {parent!r} to {child!r} by {authority!r}: {fault}')
            return
        with self._changed:
            if not self._tree.insert(_nanoseconds(transform.header.stamp), parent, child, T_parent_child, static):
                self._logger.warning(f'TF_OLD_DATA ignoring data from the past for frame {child!r} by {authority!r}')
            self._changed.notify_all()

    def can_transform(self, target_frame: str, source_frame: str, time: Time, timeout: Duration = Duration(),
                      return_debug_tuple: bool = False) -> bool | tuple[bool, str]:
        """Whether a lookup would succeed within the timeout (wall time); with return_debug_tuple also the reason."""
        try:
            self.lookup_transform(target_frame, source_frame, time, timeout)
        except TransformException as error:
            return (False, str(error)) if return_debug_tuple else False
        return (True, '') if return_debug_tuple else True

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time, timeout: Duration = Duration()) -> TransformStamped:
        """T_target_source at the time (0: the latest common one), waiting for it up to the timeout (wall time)."""
        found, stamp = self._awaited(lambda: self._tree.lookup(target_frame, source_frame, _nanoseconds(time)), timeout)
        return _to_message(target_frame, source_frame, stamp, found)

    def lookup_transform_full(self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str,
                              timeout: Duration = Duration()) -> TransformStamped:
        """T_target_source from the source at its time into the target at its own, by way of a frame that stands still between."""
        def look_up() -> tuple[Rigid, int]:
            T_fixed_source, _ = self._tree.lookup(fixed_frame, source_frame, _nanoseconds(source_time))
            T_target_fixed, stamp = self._tree.lookup(target_frame, fixed_frame, _nanoseconds(target_time))
            return compose(T_target_fixed, T_fixed_source), stamp

        found, stamp = self._awaited(look_up, timeout)
        return _to_message(target_frame, source_frame, stamp, found)

    def _awaited(self, look_up: Callable[[], tuple[Rigid, int]], timeout: Duration) -> tuple[Rigid, int]:
        """What a lookup gives once it succeeds; its own exception after the timeout."""
        deadline = monotonic() + timeout.nanoseconds * 1e-9
        with self._changed:
            while True:
                try:
                    return look_up()
                except TransformException:
                    left = deadline - monotonic()
                    if left <= 0.0:
                        raise
                self._changed.wait(left)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f'tf2_ros.Buffer of ros2_polyfill has no {name!r}: it only has what depth_ros needs. Source a full ROS 2 to use it.')


def _nanoseconds(time: Time | TimeMsg) -> int:
    return time.nanoseconds if hasattr(time, 'nanoseconds') else time.sec * 1_000_000_000 + time.nanosec


def _from_message(message: TransformStamped) -> Rigid:
    t, q = message.transform.translation, message.transform.rotation
    return (t.x, t.y, t.z), (q.x, q.y, q.z, q.w)


def _to_message(target: str, source: str, stamp: int, T_target_source: Rigid) -> TransformStamped:
    message = TransformStamped(child_frame_id=source)
    message.header.frame_id = target
    message.header.stamp = TimeMsg(sec=stamp // 1_000_000_000, nanosec=stamp % 1_000_000_000)
    t, q = message.transform.translation, message.transform.rotation
    (t.x, t.y, t.z), (q.x, q.y, q.z, q.w) = T_target_source
    return message


def _fault(parent: str, child: str, T_parent_child: Rigid) -> str | None:
    """Why tf2 would not take this transform."""
    translation, rotation = T_parent_child
    if not parent or not child:
        return 'a frame id is empty'
    if parent == child:
        return 'frame_id and child_frame_id are the same'
    if any(map(math.isnan, translation + rotation)):
        return f'it holds NaN: {translation} {rotation}'
    if abs(sum(c * c for c in rotation) - 1.0) >= _NORM_TOLERANCE:
        return f'the quaternion {rotation} is not of unit length'
    return None
