"""What sensor_msgs_py.point_cloud2 promises; the real package keeps these promises too."""
import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2, PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header


def _fields(**types):
    fields, offset = [], 0
    for name, (datatype, size) in types.items():
        fields.append(PointField(name=name, offset=offset, datatype=datatype, count=1))
        offset += size
    return fields


COLOURED = {'x': (PointField.FLOAT32, 4), 'y': (PointField.FLOAT32, 4), 'z': (PointField.FLOAT32, 4), 'label': (PointField.UINT16, 2)}


@pytest.fixture
def points():
    return np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)


def test_xyz_cloud_returns_the_points(points):
    header = Header(frame_id='camera')
    cloud = point_cloud2.create_cloud_xyz32(header, points)
    assert (cloud.header, cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (header, 1, 50, 12, 600)
    assert [field.name for field in cloud.fields] == ['x', 'y', 'z']
    assert len(cloud.data) == 600
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(cloud), points)


def test_a_list_of_points_is_as_good_as_an_array(points):
    from_list = point_cloud2.create_cloud_xyz32(Header(), [tuple(map(float, point)) for point in points])
    assert from_list.data == point_cloud2.create_cloud_xyz32(Header(), points).data


def test_structured_points_keep_every_field(points):
    fields = _fields(**COLOURED)
    stored = np.zeros(50, point_cloud2.dtype_from_fields(fields))
    for axis, name in enumerate('xyz'):
        stored[name] = points[:, axis]
    stored['label'] = np.arange(50)
    cloud = point_cloud2.create_cloud(Header(), fields, stored)
    assert cloud.point_step == 14
    np.testing.assert_array_equal(point_cloud2.read_points(cloud), stored)
    np.testing.assert_array_equal(point_cloud2.read_points(cloud, ['label'])['label'], np.arange(50))


def test_nan_points_are_skipped_only_on_request_and_only_where_asked_for(points):
    points[4, 2] = np.nan
    cloud = point_cloud2.create_cloud_xyz32(Header(), points)
    assert len(point_cloud2.read_points(cloud)) == 50
    kept = point_cloud2.read_points_numpy(cloud, skip_nans=True)
    np.testing.assert_array_equal(kept, np.delete(points, 4, axis=0))
    assert len(point_cloud2.read_points(cloud, ['x', 'y'], skip_nans=True)) == 50


def test_indices_select_points(points):
    cloud = point_cloud2.create_cloud_xyz32(Header(), points)
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(cloud, uvs=[7, 2]), points[[7, 2]])


def test_padding_between_points_is_skipped():
    fields = _fields(x=(PointField.FLOAT32, 4))
    raw = np.zeros((3, 4), np.float32)
    raw[:, 0] = [1.0, 2.0, 3.0]
    cloud = PointCloud2(height=1, width=3, fields=fields, point_step=16, row_step=48, data=raw.tobytes())
    np.testing.assert_array_equal(point_cloud2.read_points(cloud)['x'], [1.0, 2.0, 3.0])


def test_big_endian_data_come_out_in_order():
    cloud = PointCloud2(height=1, width=2, fields=_fields(x=(PointField.FLOAT32, 4)), point_step=4, row_step=8, is_bigendian=True,
                        data=np.array([1.5, -2.0], '>f4').tobytes())
    np.testing.assert_array_equal(point_cloud2.read_points(cloud)['x'], np.array([1.5, -2.0], np.float32))


def test_a_field_of_several_values_becomes_several_fields():
    dtype = point_cloud2.dtype_from_fields([PointField(name='n', offset=0, datatype=PointField.FLOAT32, count=3)])
    assert dtype.names == ('n_0', 'n_1', 'n_2')


def test_mixed_types_cannot_become_one_plain_array():
    fields = _fields(**COLOURED)
    cloud = point_cloud2.create_cloud(Header(), fields, np.zeros(2, point_cloud2.dtype_from_fields(fields)))
    with pytest.raises(AssertionError):
        point_cloud2.read_points_numpy(cloud)


def test_an_unknown_field_is_refused(points):
    with pytest.raises(AssertionError):
        point_cloud2.read_points(point_cloud2.create_cloud_xyz32(Header(), points), ['intensity'])
