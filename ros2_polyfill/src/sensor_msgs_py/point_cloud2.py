"""sensor_msgs_py.point_cloud2: PointCloud2 messages as NumPy arrays and back."""
from __future__ import annotations

import array
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured, unstructured_to_structured
from polyfill_names import unprovided
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_DTYPES = {PointField.INT8: np.dtype(np.int8), PointField.UINT8: np.dtype(np.uint8),
           PointField.INT16: np.dtype(np.int16), PointField.UINT16: np.dtype(np.uint16),
           PointField.INT32: np.dtype(np.int32), PointField.UINT32: np.dtype(np.uint32),
           PointField.FLOAT32: np.dtype(np.float32), PointField.FLOAT64: np.dtype(np.float64)}
DUMMY_FIELD_PREFIX = 'unnamed_field'

__getattr__ = unprovided(__name__)


def dtype_from_fields(fields: Iterable[PointField], point_step: int | None = None) -> np.dtype:
    """The structured type of one point; a field with count n > 1 becomes n fields name_0, name_1, ..."""
    names, formats, offsets = [], [], []
    for index, described in enumerate(fields):
        base = _DTYPES[described.datatype]
        name = described.name or f'{DUMMY_FIELD_PREFIX}_{index}'
        for part in range(described.count):
            names.append(f'{name}_{part}' if described.count > 1 else name)
            formats.append(base.str)
            offsets.append(described.offset + part * base.itemsize)
    assert len(set(names)) == len(names), 'Duplicate field names are not allowed!'
    layout = {'names': names, 'formats': formats, 'offsets': offsets}
    return np.dtype(layout if point_step is None else {**layout, 'itemsize': point_step})


def read_points(cloud: PointCloud2, field_names: Sequence[str] | None = None, skip_nans: bool = False, uvs: Iterable | None = None) -> np.ndarray:
    """The points as a structured array (N,), those at the indices `uvs`, without NaN points if asked to."""
    assert isinstance(cloud, PointCloud2), 'Cloud is not a sensor_msgs.msg.PointCloud2'
    points = np.ndarray((cloud.width * cloud.height,), dtype_from_fields(cloud.fields, cloud.point_step), cloud.data)
    if field_names is not None:
        assert all(name in points.dtype.names for name in field_names), 'Requests field is not in the fields of the PointCloud!'
        points = points[list(field_names)]
    if (sys.byteorder == 'big') != bool(cloud.is_bigendian):
        points = points.byteswap()    # a copy: the message stays as it came
    if skip_nans and not cloud.is_dense:
        points = points[~np.any([np.isnan(points[name]) for name in points.dtype.names], axis=0)]
    if uvs is not None:
        points = points[uvs if isinstance(uvs, np.ndarray) else np.fromiter(uvs, int)]
    return points


def read_points_numpy(cloud: PointCloud2, field_names: Sequence[str] | None = None, skip_nans: bool = False, uvs: Iterable | None = None) -> np.ndarray:
    """The points as a plain array (N, fields); all fields of the cloud must have one type."""
    assert all(described.datatype == cloud.fields[0].datatype for described in cloud.fields[1:]), \
        'All fields need to have the same datatype. Use `read_points()` otherwise.'
    return structured_to_unstructured(read_points(cloud, field_names, skip_nans, uvs))


def create_cloud(header: Header, fields: Sequence[PointField], points: Iterable) -> PointCloud2:
    """An unorganised cloud of the points: a structured array (N,), an array (N, fields) of one type, or a list of tuples."""
    dtype = dtype_from_fields(fields)
    if not isinstance(points, np.ndarray):
        points = np.array([tuple(point) for point in points], dtype)
    elif points.dtype.names is None:
        assert len({described.datatype for described in fields}) == 1, \
            'All fields need to have the same datatype. Pass a structured NumPy array with multiple dtypes otherwise.'
        points = unstructured_to_structured(points, dtype)
    else:
        assert points.dtype == dtype, 'PointFields and structured NumPy array dtype do not match for all fields!'
    # The real function takes rows too, but releases differ in which axis they call the width: set height and width yourself.
    assert points.ndim == 1, 'create_cloud of ros2_polyfill takes a flat list of points'
    data = array.array('B')
    data.frombytes(points.tobytes())
    return PointCloud2(header=header, height=1, width=len(points), is_dense=False, is_bigendian=sys.byteorder != 'little', fields=list(fields),
                       point_step=dtype.itemsize, row_step=dtype.itemsize * len(points), data=data)


def create_cloud_xyz32(header: Header, points: Iterable) -> PointCloud2:
    """A cloud of float32 fields x, y, z."""
    fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1) for index, name in enumerate('xyz')]
    return create_cloud(header, fields, points)
