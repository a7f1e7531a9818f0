"""The image encodings of sensor_msgs: how their pixels are stored, and how OpenCV turns one into another."""
from __future__ import annotations

import re

import cv2
import numpy as np

_COLOUR_LAYOUTS = {'mono': ('GRAY', 1), 'rgb': ('RGB', 3), 'bgr': ('BGR', 3), 'rgba': ('RGBA', 4), 'bgra': ('BGRA', 4)}
# ROS names a mosaic by its first two rows from the corner, OpenCV by the second row from the second column.
_BAYER_LAYOUTS = {'bayer_rggb': 'BayerBG', 'bayer_bggr': 'BayerRG', 'bayer_gbrg': 'BayerGR', 'bayer_grbg': 'BayerGB'}
_YUV_LAYOUTS = {'yuv422': 'UYVY', 'uyvy': 'UYVY', 'yuv422_yuy2': 'YUY2', 'yuyv': 'YUY2'}
_GENERIC = re.compile(r'(8U|8S|16U|16S|32S|32F|64F)C([1-4])')
NUMPY_TYPES = {'8U': 'uint8', '8S': 'int8', '16U': 'uint16', '16S': 'int16', '32S': 'int32', '32F': 'float32', '64F': 'float64'}


class UnknownEncoding(ValueError):
    """Not an encoding of sensor_msgs, or no conversion exists; CvBridge turns it into its own error."""


def storage(encoding: str) -> tuple[np.dtype, int]:
    """How the pixels of the encoding lie in memory: (dtype, number of channels)."""
    generic = _GENERIC.fullmatch(encoding)
    if generic:
        return np.dtype(NUMPY_TYPES[generic[1]]), int(generic[2])
    if encoding in _YUV_LAYOUTS:
        return np.dtype(np.uint8), 2
    layout, depth = _split(encoding)
    return np.dtype(f'uint{depth}'), _COLOUR_LAYOUTS[layout][1] if layout in _COLOUR_LAYOUTS else 1


def convert(image: np.ndarray, source: str, target: str) -> np.ndarray:
    """The image in another encoding: colours by OpenCV, 8 and 16 bits scaled to each other's full range."""
    if source == target:
        return image
    from_type, from_channels = storage(source)
    to_type, to_channels = storage(target)
    if _GENERIC.fullmatch(source) or _GENERIC.fullmatch(target):
        if (_GENERIC.fullmatch(source) and not _GENERIC.fullmatch(target)) or from_channels != to_channels:
            raise UnknownEncoding(f'[{source}] carries no colour or other channels: it cannot become [{target}]')
    else:
        image = _recolour(image, source, target)
    return _rescale(image, from_type, to_type)


def _split(encoding: str) -> tuple[str, str]:
    """('bayer_rggb', '8') of bayer_rggb8."""
    found = re.fullmatch(r'([a-z_]+?)(8|16)', encoding)
    if found is None or found[1] not in _COLOUR_LAYOUTS.keys() | _BAYER_LAYOUTS.keys():
        raise UnknownEncoding(f'Unrecognized image encoding [{encoding}]')
    return found[1], found[2]


def _recolour(image: np.ndarray, source: str, target: str) -> np.ndarray:
    layout_from = source if source in _YUV_LAYOUTS else _split(source)[0]
    layout_to = target if target in _YUV_LAYOUTS else _split(target)[0]
    if layout_from == layout_to:
        return image
    if layout_to not in _COLOUR_LAYOUTS:
        raise UnknownEncoding(f'Unsupported conversion from [{source}] to [{target}]')
    name_to = _COLOUR_LAYOUTS[layout_to][0]
    if layout_from in _YUV_LAYOUTS:
        code = f'COLOR_YUV2{name_to}_{_YUV_LAYOUTS[layout_from]}'
    elif layout_from in _BAYER_LAYOUTS:
        code = f'COLOR_{_BAYER_LAYOUTS[layout_from]}2{name_to}'
    else:
        code = f'COLOR_{_COLOUR_LAYOUTS[layout_from][0]}2{name_to}'
    if not hasattr(cv2, code):
        raise UnknownEncoding(f'Unsupported conversion from [{source}] to [{target}]')
    return cv2.cvtColor(image, getattr(cv2, code))


def _rescale(image: np.ndarray, from_type: np.dtype, to_type: np.dtype) -> np.ndarray:
    if from_type == to_type:
        return image
    scale = {(1, 2): 65535.0 / 255.0, (2, 1): 255.0 / 65535.0}.get((from_type.itemsize, to_type.itemsize), 1.0)
    scaled = image.astype(np.float64) * scale
    if to_type.kind in 'iu':
        limits = np.iinfo(to_type)
        scaled = np.clip(np.rint(scaled), limits.min, limits.max)
    return scaled.astype(to_type)
