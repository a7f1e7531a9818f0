"""Images, depth, flow and calibration: messages to arrays and back. Everything doubtful in a message is found here, once."""

from __future__ import annotations

import functools
import math
import re
import sys
from typing import NamedTuple

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from depth_ros.frames import CameraFrame, resize_intrinsics
from depth_ros.ros.wire import BadMessage, copied, make_header, stamp_ns, to_bytes, to_stamp

__all__ = ['BadMessage', 'Topics', 'camera_frame', 'camera_info', 'camera_matrix', 'copied', 'depth_array', 'depth_image', 'flow_array', 'flow_image',
           'image_array', 'make_header', 'rgb_image', 'stamp_ns', 'to_stamp']

# How OpenCV brings each plain encoding to RGB; None: it is RGB. 8UC3 says nothing about its order: what OpenCV writes is BGR.
_TO_RGB = {'rgb8': (3, None), 'bgr8': (3, cv2.COLOR_BGR2RGB), 'rgba8': (4, cv2.COLOR_RGBA2RGB), 'bgra8': (4, cv2.COLOR_BGRA2RGB),
           'mono8': (1, cv2.COLOR_GRAY2RGB), '8UC1': (1, cv2.COLOR_GRAY2RGB), '8UC3': (3, cv2.COLOR_BGR2RGB)}
# The rest is cv_bridge's work: (channels, the name that every release of cv_bridge knows).
_BRIDGED = {**{name: (1, name) for name in ('bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8')},
            'yuv422': (2, 'yuv422'), 'uyvy': (2, 'yuv422'), 'yuv422_yuy2': (2, 'yuv422_yuy2'), 'yuyv': (2, 'yuv422_yuy2')}
_COLOUR = ', '.join((*_TO_RGB, 'mono16', *_BRIDGED))
_DEPTH = '32FC1 [m], 16UC1 [mm]'
_COMPRESSED_DEPTH_HEADER = np.dtype([('format', '<i4'), ('quantisation_a', '<f4'), ('quantisation_b', '<f4')])


class Topics(NamedTuple):
    """The topics that a frame is made of, as errors should name them."""

    image: str = 'image'
    camera_info: str = 'camera_info'
    depth: str = 'depth'


def image_array(msg: Image | CompressedImage, topic: str) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB. rgb8 shares the memory of the message."""
    if isinstance(msg, CompressedImage):
        return _to_rgb(_decompressed(msg, topic))
    if msg.encoding in _TO_RGB:
        channels, code = _TO_RGB[msg.encoding]
        pixels = _pixels(msg, topic, np.uint8, channels)
        return pixels if code is None else cv2.cvtColor(pixels, code)
    if msg.encoding == 'mono16':
        return _to_rgb(_pixels(msg, topic, np.uint16, 1))
    if msg.encoding not in _BRIDGED:
        raise BadMessage(topic, f'encoding {msg.encoding!r}', _COLOUR)
    channels, encoding = _BRIDGED[msg.encoding]
    if channels == 2 and msg.width % 2:
        raise BadMessage(topic, f'{msg.encoding} of odd width {msg.width}', 'even widths, since two pixels share their colour')
    pixels = _pixels(msg, topic, np.uint8, channels)
    return _bridged(topic, 'imgmsg_to_cv2', _compact(pixels, encoding), 'rgb8')


def depth_array(msg: Image | CompressedImage, topic: str) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) float32 [m], 0 where not valid, and its mask (H, W) bool; NaN, inf, zero and negative values are not valid."""
    if isinstance(msg, CompressedImage):
        return _masked(_decompressed_depth(msg, topic))
    if msg.encoding == '32FC1':
        return _masked(_pixels(msg, topic, np.float32, 1))
    if msg.encoding == '16UC1':
        return _metres(_pixels(msg, topic, np.uint16, 1))
    raise BadMessage(topic, f'encoding {msg.encoding!r}', f'{_DEPTH} (REP 118)')


def flow_array(msg: Image, topic: str) -> np.ndarray:
    """Optical flow (H, W, 2) float32 [px]."""
    if msg.encoding != '32FC2':
        raise BadMessage(topic, f'encoding {msg.encoding!r}', '32FC2')
    return _pixels(msg, topic, np.float32, 2)


def camera_matrix(info: CameraInfo, size: tuple[int, int], topic: str) -> np.ndarray:
    """K (3, 3) float64 [px] of an image of `size` (width, height): P where it is filled (rectified images), else K; binning and ROI applied."""
    k, p = np.asarray(info.k).tolist(), np.asarray(info.p).tolist()
    if not all(map(math.isfinite, k + p)):
        raise BadMessage(topic, f'a calibration with NaN or inf: K {k}, P {p}', 'finite values')
    fx, fy, cx, cy = (p[0], p[5], p[2], p[6]) if p[0] != 0.0 else (k[0], k[4], k[2], k[5])
    if k[0] <= 0.0 or fx <= 0.0 or fy <= 0.0:
        raise BadMessage(topic, f'an uncalibrated camera: K {k}, P {p}', 'positive focal lengths in K[0] and K[4]')
    bins = max(info.binning_x, 1), max(info.binning_y, 1)
    window = info.roi.width or info.width, info.roi.height or info.height
    if (window[0] // bins[0], window[1] // bins[1]) != tuple(size):
        raise BadMessage(topic, f'the calibration of {info.width} x {info.height} pixels (binned {bins[0]} x {bins[1]}, window {window[0]} x {window[1]})',
                         f'one that fits the image of {size[0]} x {size[1]} pixels')
    K = np.array([[fx, 0.0, cx - info.roi.x_offset], [0.0, fy, cy - info.roi.y_offset], [0.0, 0.0, 1.0]])
    return resize_intrinsics(K, 1.0 / bins[0], 1.0 / bins[1])


def camera_frame(image: Image | CompressedImage, info: CameraInfo, depth: Image | CompressedImage | None = None, topics: Topics = Topics()) -> CameraFrame:
    """One frame from its messages; the depth must be registered to the image, so of its size."""
    pixels = image_array(image, topics.image)
    size = pixels.shape[1], pixels.shape[0]
    frame_id = image.header.frame_id or info.header.frame_id
    if not frame_id:
        raise BadMessage(topics.image, 'an empty frame_id, here and in camera_info', 'the name of the optical frame')
    metres = valid = None
    if depth is not None:
        metres, valid = depth_array(depth, topics.depth)
        if metres.shape != pixels.shape[:2]:
            raise BadMessage(topics.depth, f'depth of {metres.shape[1]} x {metres.shape[0]} pixels', f'depth registered to the image, {size[0]} x {size[1]}')
    return CameraFrame(stamp_ns(image.header.stamp), frame_id, pixels, camera_matrix(info, size, topics.camera_info), metres, valid)


def camera_info(K: np.ndarray, size: tuple[int, int], header: Header) -> CameraInfo:
    """Calibration of an undistorted image of `size` (width, height) from K (3, 3) [px] at that size."""
    info = CameraInfo(header=copied(header), width=int(size[0]), height=int(size[1]), distortion_model='plumb_bob', d=[0.0] * 5)
    K = np.array(K, np.float64)    # a copy: the message may keep the array it is given
    info.k, info.r, info.p = K.ravel(), np.eye(3).ravel(), np.hstack([K, np.zeros((3, 1))]).ravel()
    return info


def rgb_image(image: np.ndarray, header: Header) -> Image:
    """rgb8 from (H, W, 3) uint8 RGB."""
    return _image(np.asarray(image, np.uint8), 'rgb8', header)


def depth_image(depth: np.ndarray, valid: np.ndarray, header: Header) -> Image:
    """32FC1 [m] from depth (H, W) and its mask: NaN where not valid."""
    return _image(np.where(valid, depth, np.float32(np.nan)).astype(np.float32, copy=False), '32FC1', header)


def flow_image(flow: np.ndarray, header: Header) -> Image:
    """32FC2 from flow (H, W, 2) [px]."""
    return _image(np.asarray(flow, np.float32), '32FC2', header)


def _image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    height, width = pixels.shape[:2]
    msg = Image(header=copied(header), height=height, width=width, encoding=encoding, is_bigendian=int(sys.byteorder == 'big'))
    msg.step = pixels.nbytes // height
    msg.data = to_bytes(pixels)
    return msg


def _pixels(msg: Image, topic: str, dtype: type, channels: int) -> np.ndarray:
    """The pixels (H, W) or (H, W, channels) in native byte order, without a copy unless bytes must be swapped or rows aligned."""
    item = np.dtype(dtype)
    row = msg.width * channels * item.itemsize
    if msg.width == 0 or msg.height == 0:
        raise BadMessage(topic, f'an image of {msg.width} x {msg.height} pixels', 'at least one pixel')
    if msg.step < row:
        raise BadMessage(topic, f'step {msg.step} for {msg.width} pixels of {msg.encoding}', f'a step of at least {row} bytes')
    if len(msg.data) < msg.step * msg.height:
        raise BadMessage(topic, f'{len(msg.data)} bytes of data', f'{msg.step * msg.height} (step {msg.step}, height {msg.height})')
    if item.itemsize > 1:
        if msg.is_bigendian not in (0, 1):
            raise BadMessage(topic, f'is_bigendian {msg.is_bigendian}', '0 or 1')
        item = item.newbyteorder('>' if msg.is_bigendian else '<')
    shape, strides = (msg.height, msg.width), (msg.step, channels * item.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, item.itemsize)
    pixels = np.ndarray(shape, item, np.frombuffer(msg.data, np.uint8), strides=strides)
    return pixels if item.isnative and msg.step % item.itemsize == 0 else pixels.astype(dtype)


def _masked(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    valid = (depth > 0.0) & (depth < np.inf)    # both are false for NaN
    return np.where(valid, depth, np.float32(0.0)), valid


def _metres(millimetres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.multiply(millimetres, np.float32(0.001), dtype=np.float32), millimetres > 0


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """RGB of a grey, BGR or BGRA image of 8 or 16 bits."""
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255.0 / 65535.0)
    channels = 1 if image.ndim == 2 else image.shape[2]
    return cv2.cvtColor(image, {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels])


def _decompressed(msg: CompressedImage, topic: str) -> np.ndarray:
    if 'compressedDepth' in msg.format:
        raise BadMessage(topic, f'format {msg.format!r}', 'a colour image (jpeg, png)')
    image = _bridged(topic, 'compressed_imgmsg_to_cv2', msg, 'passthrough') if len(msg.data) else None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise BadMessage(topic, f'{len(msg.data)} bytes of format {msg.format!r} that cannot be decoded', 'a whole jpeg or png image')
    return image


def _decompressed_depth(msg: CompressedImage, topic: str) -> np.ndarray:
    """Depth [m] of compressed_depth_image_transport: a PNG of millimetres, or of quantised inverse depth, behind a short header."""
    found = re.match(r'(16UC1|32FC1);.*compressedDepth', msg.format)
    if found is None:
        raise BadMessage(topic, f'format {msg.format!r}', "'16UC1; compressedDepth' or '32FC1; compressedDepth'")
    skipped = _COMPRESSED_DEPTH_HEADER.itemsize
    data = np.frombuffer(msg.data, np.uint8)
    coded = cv2.imdecode(data[skipped:], cv2.IMREAD_UNCHANGED) if data.size > skipped else None
    if coded is None or coded.ndim != 2 or coded.dtype != np.uint16:
        raise BadMessage(topic, f'{data.size} bytes of format {msg.format!r} that cannot be decoded', 'a header and a whole 16-bit PNG')
    if found[1] == '16UC1':
        return _metres(coded)[0]
    header = data[:skipped].view(_COMPRESSED_DEPTH_HEADER)[0]
    with np.errstate(divide='ignore'):
        depth = header['quantisation_a'] / (coded.astype(np.float32) - header['quantisation_b'])
    return np.where(coded > 0, depth, np.float32(0.0))


def _compact(pixels: np.ndarray, encoding: str) -> Image:
    """A message without row padding, under a name that cv_bridge knows."""
    return _image(pixels, encoding, Header())


@functools.lru_cache(maxsize=1)
def _bridge() -> object:
    # Imported when first needed: plain encodings must not suffer from a cv_bridge that does not load.
    from cv_bridge import CvBridge
    return CvBridge()


def _bridged(topic: str, method: str, msg: Image | CompressedImage, encoding: str) -> np.ndarray:
    """What a method of CvBridge makes of a message; its failures, those of a mismatched build included, as BadMessage."""
    try:
        return getattr(_bridge(), method)(msg, encoding)
    except (TypeError, cv2.error) as error:    # CvBridgeError is a TypeError
        raise BadMessage(topic, f'an image that cv_bridge refuses: {error}', _COLOUR) from error
    except (ImportError, AttributeError, SystemError) as error:    # how a binary module built for another NumPy fails
        raise BadMessage(topic, f'an image that needs cv_bridge, which does not load with NumPy {np.__version__} ({error})',
                         "this image once cv_bridge is there and fits NumPy: install it (apt: ros-$ROS_DISTRO-cv-bridge) and, where it was built for NumPy 1, "
                         "pip install 'numpy<2'; until then rgb8, bgr8 or mono8 images") from error
