"""Point clouds, laser scans and single ranges: messages to arrays and back."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import LaserScan, PointCloud2, PointField, Range
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from depth_ros.ros.wire import NANOSECONDS, BadMessage, copied, stamp_ns

_FLOATS = {PointField.FLOAT32: 4, PointField.FLOAT64: 8}


@dataclass(frozen=True)
class Hits:
    """Where a range sensor hit something, in its own frame."""

    points: np.ndarray      # (N, 3) [m]
    stamps: np.ndarray      # (N,) int64 [ns], when each was measured
    spread: float = 0.0     # [rad], half the angle of the cone that each lies in


def point_cloud(depth: np.ndarray, valid: np.ndarray, K: np.ndarray, rgb: np.ndarray, header: Header, stride: int = 1) -> PointCloud2:
    """Organised cloud of every stride-th pixel: depth (H, W) [m], its mask, K (3, 3) [px] and colours (H, W, 3) uint8; NaN where not valid."""
    depth, valid = depth[::stride, ::stride], valid[::stride, ::stride]
    x_of_z = ((np.arange(depth.shape[1]) * stride - K[0, 2]) / K[0, 0]).astype(np.float32)
    y_of_z = ((np.arange(depth.shape[0]) * stride - K[1, 2]) / K[1, 1]).astype(np.float32)[:, None]
    msg, stored = _empty_cloud(depth.shape, header)
    z = stored[..., 2]
    z.fill(np.nan)
    np.copyto(z, depth, where=valid)
    np.multiply(z, x_of_z, out=stored[..., 0])
    np.multiply(z, y_of_z, out=stored[..., 1])
    _pack_colours(rgb[::stride, ::stride], stored)
    return msg


def coloured_cloud(points: np.ndarray, rgb: np.ndarray, header: Header) -> PointCloud2:
    """Cloud of points (N, 3) or, organised, (H, W, 3) [m] with colours of the same shape, uint8."""
    msg, stored = _empty_cloud(points.shape[:-1], header)
    stored[..., :3] = points
    _pack_colours(rgb, stored)
    return msg


def _empty_cloud(shape: tuple[int, ...], header: Header) -> tuple[PointCloud2, np.ndarray]:
    """A cloud of x, y, z, rgb and its memory as an array (*shape, 4) float32: large clouds are written in place, once."""
    height, width = shape if len(shape) == 2 else (1, shape[0])
    fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1) for index, name in enumerate(('x', 'y', 'z', 'rgb'))]
    msg = PointCloud2(header=copied(header), height=height, width=width, fields=fields, is_bigendian=sys.byteorder == 'big',
                      point_step=16, row_step=16 * width, is_dense=False)
    msg.data = array.array('B', [0]) * (16 * height * width)
    return msg, np.frombuffer(msg.data, np.float32).reshape(*shape, 4)


def _pack_colours(rgb: np.ndarray, stored: np.ndarray) -> None:
    """Write colours (..., 3) uint8 as PCL packs them: red, green and blue in the lower bits of the fourth float."""
    packed = stored.view(np.uint32)[..., 3]
    packed[...] = rgb[..., 0]
    for channel in (1, 2):
        packed <<= 8
        packed |= rgb[..., channel]


def cloud_hits(msg: PointCloud2, topic: str) -> Hits:
    """The points of a sparse cloud, all of one moment: how clouds tell times of their points, nobody has agreed on."""
    points = cloud_points(msg, topic)
    return Hits(points, np.full(len(points), stamp_ns(msg.header.stamp), np.int64))


def cloud_points(msg: PointCloud2, topic: str) -> np.ndarray:
    """The finite points (N, 3) float32 [m] of a cloud, organised or not, padded or not."""
    named = {field.name: field for field in msg.fields}
    axes = [named.get(name) for name in 'xyz']
    if any(axis is None or axis.datatype not in _FLOATS or axis.offset + _FLOATS[axis.datatype] > msg.point_step for axis in axes):
        came = [(field.name, field.datatype, field.offset) for field in msg.fields]
        raise BadMessage(topic, f'fields (name, datatype, offset) {came} in {msg.point_step} bytes', 'x, y, z of type FLOAT32 or FLOAT64')
    if msg.width == 0 or msg.height == 0:
        return np.zeros((0, 3), np.float32)    # nothing was hit: not a fault
    if msg.row_step < msg.width * msg.point_step:
        raise BadMessage(topic, f'row_step {msg.row_step} for {msg.width} points of {msg.point_step} bytes', f'at least {msg.width * msg.point_step}')
    if len(msg.data) < msg.row_step * msg.height:
        raise BadMessage(topic, f'{len(msg.data)} bytes of data', f'{msg.row_step * msg.height} (row_step {msg.row_step}, height {msg.height})')
    item = point_cloud2.dtype_from_fields([PointField(name=axis.name, offset=axis.offset, datatype=axis.datatype, count=1) for axis in axes], msg.point_step)
    cloud = np.ndarray((msg.height, msg.width), item.newbyteorder('>' if msg.is_bigendian else '<'), np.frombuffer(msg.data, np.uint8),
                       strides=(msg.row_step, msg.point_step))
    points = np.stack([cloud[name].astype(np.float32, copy=False) for name in 'xyz'], axis=-1)
    return points[np.isfinite(points).all(axis=-1)]


def scan_hits(msg: LaserScan, topic: str) -> Hits:
    """The beams of a laser scan (x forward, anticlockwise in the plane z = 0) that hit, each at its own time.

    -inf (too close), +inf (no return), NaN (bad) and ranges outside the limits are no hits (REP 117).
    """
    ranges = np.array(msg.ranges, np.float32)
    layout = (msg.angle_min, msg.angle_increment, msg.time_increment)
    if not np.isfinite(layout).all() or (ranges.size > 1 and msg.angle_increment == 0.0):
        raise BadMessage(topic, f'angle_min {layout[0]}, angle_increment {layout[1]}, time_increment {layout[2]}', 'finite values, an increment other than 0')
    beams = np.flatnonzero(_hit(ranges, msg.range_min, msg.range_max, topic))
    angles, distances = msg.angle_min + beams * float(msg.angle_increment), ranges[beams].astype(np.float64)
    points = np.stack([distances * np.cos(angles), distances * np.sin(angles), np.zeros(len(beams))], axis=-1)
    return Hits(points, stamp_ns(msg.header.stamp) + np.rint(beams * (msg.time_increment * NANOSECONDS)).astype(np.int64))


def range_hit(msg: Range, topic: str) -> Hits:
    """A rangefinder's reading as a hit on the axis of its cone, along x (REP 117); none where it is no hit."""
    if not 0.0 <= msg.field_of_view < np.pi:    # false for NaN too
        raise BadMessage(topic, f'field_of_view {msg.field_of_view}', '0 <= field_of_view < pi')
    ranges = np.array([msg.range], np.float32)
    hit = _hit(ranges, msg.min_range, msg.max_range, topic)
    points = np.array([[msg.range, 0.0, 0.0]])[hit]
    return Hits(points, np.full(len(points), stamp_ns(msg.header.stamp), np.int64), msg.field_of_view / 2.0)


def middle(msg: LaserScan | Range | PointCloud2) -> int:
    """The time [ns] half-way through a measurement."""
    stamp = stamp_ns(msg.header.stamp)
    if not isinstance(msg, LaserScan) or not np.isfinite(msg.time_increment):
        return stamp
    return stamp + int(0.5 * max(len(msg.ranges) - 1, 0) * msg.time_increment * NANOSECONDS)


def _hit(ranges: np.ndarray, nearest: float, farthest: float, topic: str) -> np.ndarray:
    if not 0.0 <= nearest <= farthest:    # false for NaN too
        raise BadMessage(topic, f'range limits {nearest} to {farthest}', '0 <= smallest <= largest')
    # The limits are float32 in the message: compared at that precision, a reading at the very limit stays a hit.
    return (ranges >= np.float32(nearest)) & (ranges <= np.float32(farthest)) & np.isfinite(ranges)
