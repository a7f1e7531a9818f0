"""Clouds, scans and ranges survive the way through a message; what is doubtful is refused with topic and reason."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from sensor_msgs.msg import LaserScan, PointCloud2, PointField, Range
from sensor_msgs_py import point_cloud2

from depth_ros.ros import cloud
from depth_ros.ros.wire import BadMessage, make_header, stamp_ns

HEADER = make_header(7_000_000_001, 'camera_optical')
K = np.array([[520.0, 0.0, 31.0], [0.0, 510.0, 23.5], [0.0, 0.0, 1.0]])
SHAPE = HEIGHT, WIDTH = 48, 64


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def scene(rng):
    """(depth, valid, rgb) of a random picture."""
    return rng.uniform(0.4, 6.0, SHAPE).astype(np.float32), rng.random(SHAPE) < 0.6, rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


@pytest.mark.parametrize('stride', [1, 2, 5])
def test_points_project_back_to_their_pixels(scene, stride):
    depth, valid, rgb = scene
    msg = cloud.point_cloud(depth, valid, K, rgb, HEADER, stride)
    rows, columns = -(-HEIGHT // stride), -(-WIDTH // stride)
    assert (msg.height, msg.width, msg.point_step, msg.row_step, msg.is_dense) == (rows, columns, 16, 16 * columns, False)
    assert [field.name for field in msg.fields] == ['x', 'y', 'z', 'rgb'] and isinstance(msg.data, array.array)
    points = point_cloud2.read_points_numpy(msg).reshape(rows, columns, 4)[..., :3].astype(np.float64)
    seen = valid[::stride, ::stride]
    np.testing.assert_array_equal(np.isfinite(points).all(axis=-1), seen)
    np.testing.assert_array_equal(np.isnan(points).all(axis=-1), ~seen)
    pixels = points[seen] @ K.T
    grid = np.stack(np.meshgrid(np.arange(0, WIDTH, stride), np.arange(0, HEIGHT, stride)), axis=-1)[seen]
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], grid, atol=1e-3)
    np.testing.assert_array_equal(points[seen][:, 2], depth[::stride, ::stride][seen])


def test_colours_are_packed_as_viewers_unpack_them(scene):
    depth, valid, rgb = scene
    packed = point_cloud2.read_points(cloud.point_cloud(depth, valid, K, rgb, HEADER))['rgb'].view(np.uint32)
    np.testing.assert_array_equal(np.stack([packed >> shift & 255 for shift in (16, 8, 0)], axis=-1).reshape(*SHAPE, 3), rgb)


def test_a_list_of_points_is_one_row(rng):
    points = rng.normal(size=(10, 3)).astype(np.float32)
    msg = cloud.coloured_cloud(points, np.zeros((10, 3), np.uint8), HEADER)
    assert (msg.height, msg.width, msg.row_step) == (1, 10, 160)
    np.testing.assert_array_equal(cloud.cloud_points(msg, '/points'), points)


def test_finite_points_come_back_in_order(scene):
    depth, valid, rgb = scene
    msg = cloud.point_cloud(depth, valid, K, rgb, HEADER)
    points = cloud.cloud_points(msg, '/points')
    np.testing.assert_array_equal(points[:, 2], depth[valid])


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize(('datatype', 'kind'), [(PointField.FLOAT32, 'f4'), (PointField.FLOAT64, 'f8')])
def test_any_layout_of_a_cloud_is_read(rng, datatype, kind, big_endian):
    size = int(kind[1])
    layout = np.dtype({'names': ['z', 'x', 'y'], 'formats': [('>' if big_endian else '<') + kind] * 3, 'offsets': [0, 2 * size, 3 * size], 'itemsize': 5 * size})
    points = rng.normal(size=(3, 4, 3)).astype(np.float32)
    points[1, 2, 0] = np.inf
    rows = np.zeros((3, 4 * 5 * size + 12), np.uint8)    # padded at the end of each row
    for row, values in zip(rows, points):
        stored = np.zeros(4, layout)
        stored['x'], stored['y'], stored['z'] = values.T
        row[:4 * 5 * size] = np.frombuffer(stored.tobytes(), np.uint8)
    fields = [PointField(name=name, offset=layout.fields[name][1], datatype=datatype, count=1) for name in 'zxy']
    msg = PointCloud2(header=HEADER, height=3, width=4, fields=fields, is_bigendian=big_endian, point_step=5 * size, row_step=rows.shape[1],
                      data=array.array('B', rows.tobytes()))
    flat = points.reshape(-1, 3)
    np.testing.assert_array_equal(cloud.cloud_points(msg, '/points'), flat[np.isfinite(flat).all(axis=1)])


def test_an_empty_cloud_has_no_points():
    assert cloud.cloud_points(point_cloud2.create_cloud_xyz32(HEADER, np.zeros((0, 3), np.float32)), '/points').shape == (0, 3)


@pytest.mark.parametrize(('change', 'quoted'), [(lambda m: setattr(m, 'data', m.data[:-1]), 'bytes of data'), (lambda m: setattr(m, 'row_step', 1), 'row_step 1'),
                                                (lambda m: setattr(m, 'fields', m.fields[:2]), 'fields'), (lambda m: setattr(m, 'point_step', 8), 'in 8 bytes'),
                                                (lambda m: setattr(m.fields[0], 'datatype', PointField.INT32), 'fields')])
def test_a_malformed_cloud_is_refused_with_the_reason(rng, change, quoted):
    msg = point_cloud2.create_cloud_xyz32(HEADER, rng.normal(size=(6, 3)))
    change(msg)
    with pytest.raises(BadMessage, match=f'^/points: .*{quoted}.*accepted: '):
        cloud.cloud_points(msg, '/points')


def scan(ranges, **changes):
    values = dict(angle_min=-1.0, angle_max=1.0, angle_increment=0.5, time_increment=0.001, range_min=0.1, range_max=10.0) | changes
    return LaserScan(header=HEADER, ranges=ranges, **values)


def test_only_ranges_within_the_limits_are_hits():
    ranges = [math.inf, -math.inf, math.nan, 0.05, 0.1, 3.0, 10.0, 10.1, 0.0, -2.0]
    hits = cloud.scan_hits(scan(ranges), '/scan')
    np.testing.assert_allclose(np.linalg.norm(hits.points, axis=1), [0.1, 3.0, 10.0], rtol=1e-6)
    np.testing.assert_array_equal(hits.stamps - stamp_ns(HEADER.stamp), np.array([4, 5, 6]) * 1_000_000)


def test_beams_lie_where_and_when_they_were_measured():
    message = scan([2.0, math.nan, 2.0, 2.0, 2.0])
    hits = cloud.scan_hits(message, '/scan')
    angles = np.array([-1.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(hits.points, 2.0 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1), atol=1e-6)
    np.testing.assert_array_equal(hits.stamps - stamp_ns(HEADER.stamp), np.array([0, 2, 3, 4]) * 1_000_000)
    assert abs(cloud.middle(message) - hits.stamps[1]) < 10 and hits.spread == 0.0


def test_an_endless_range_limit_does_not_make_infinity_a_hit():
    assert len(cloud.scan_hits(scan([math.inf], range_max=math.inf), '/scan').points) == 0


def test_a_scan_without_beams_has_no_hits():
    hits = cloud.scan_hits(scan([]), '/scan')
    assert hits.points.shape == (0, 3) and hits.stamps.shape == (0,) and cloud.middle(scan([])) == stamp_ns(HEADER.stamp)


@pytest.mark.parametrize('changes', [dict(angle_increment=math.nan), dict(angle_min=math.inf), dict(angle_increment=0.0), dict(range_min=math.nan),
                                     dict(range_min=5.0, range_max=1.0), dict(range_min=-1.0)])
def test_a_scan_that_cannot_be_placed_is_refused(changes):
    with pytest.raises(BadMessage, match='^/scan: '):
        cloud.scan_hits(scan([1.0, 2.0], **changes), '/scan')


@pytest.mark.parametrize(('reading', 'hit'), [(0.7, True), (0.2, True), (4.0, True), (0.1, False), (4.5, False), (math.inf, False), (-math.inf, False), (math.nan, False)])
def test_a_rangefinder_hits_on_the_axis_of_its_cone(reading, hit):
    hits = cloud.range_hit(Range(header=HEADER, min_range=0.2, max_range=4.0, range=reading, field_of_view=0.3), '/range')
    assert hits.points.shape == (int(hit), 3) and hits.spread == pytest.approx(0.15)
    if hit:
        np.testing.assert_allclose(hits.points, [[reading, 0.0, 0.0]], rtol=1e-6)
        assert hits.stamps.tolist() == [stamp_ns(HEADER.stamp)]


@pytest.mark.parametrize('angle', [math.nan, -0.1, 4.0])
def test_a_cone_that_is_none_is_refused(angle):
    with pytest.raises(BadMessage, match='^/range: got field_of_view'):
        cloud.range_hit(Range(header=HEADER, min_range=0.2, max_range=4.0, range=1.0, field_of_view=angle), '/range')


def test_points_of_a_cloud_are_of_one_moment():
    hits = cloud.cloud_hits(point_cloud2.create_cloud_xyz32(HEADER, np.ones((3, 3), np.float32)), '/points')
    assert hits.points.shape == (3, 3) and set(hits.stamps.tolist()) == {stamp_ns(HEADER.stamp)}
