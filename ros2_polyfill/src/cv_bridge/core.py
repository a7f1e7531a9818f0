"""cv_bridge.CvBridge: messages to OpenCV arrays and back, with row padding and byte order honoured."""
from __future__ import annotations

import array
import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from cv_bridge.encodings import NUMPY_TYPES, UnknownEncoding, convert, storage

_TYPE_NAMES = {numpy_name: name for name, numpy_name in NUMPY_TYPES.items()}


class CvBridgeError(TypeError):
    """A conversion is not possible."""


class CvBridge:
    """Stateless; one instance serves all threads."""

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """('uint8', 3) of rgb8."""
        try:
            dtype, channels = storage(encoding)
        except UnknownEncoding as error:
            raise CvBridgeError(error) from error
        return dtype.name, channels

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = 'passthrough') -> np.ndarray:
        """The image (H, W) or (H, W, channels) in native byte order; as it came with 'passthrough', else converted."""
        name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(name).newbyteorder('>' if img_msg.is_bigendian else '<')
        row = img_msg.width * channels * dtype.itemsize
        if img_msg.step < row or len(img_msg.data) < img_msg.step * img_msg.height:
            raise TypeError(f'buffer is too small: {len(img_msg.data)} bytes, step {img_msg.step} for {img_msg.width} x {img_msg.height} {img_msg.encoding}')
        rows = np.frombuffer(img_msg.data, np.uint8, img_msg.step * img_msg.height).reshape(img_msg.height, img_msg.step)
        pixels = np.ascontiguousarray(rows[:, :row]).view(dtype)
        image = pixels.reshape(img_msg.height, img_msg.width, channels) if channels > 1 else pixels
        image = image.astype(dtype.newbyteorder('='), copy=False)
        return image if desired_encoding == 'passthrough' else self._converted(image, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = 'passthrough', header: Header | None = None) -> Image:
        """The array as a message; 'passthrough' names the encoding after the array's type."""
        if not isinstance(cvim, (np.ndarray, np.generic)):
            raise TypeError('Your input type is not a numpy array')
        channels = 1 if cvim.ndim < 3 else cvim.shape[2]
        own = f'{_TYPE_NAMES[cvim.dtype.name]}C{channels}'
        if encoding == 'passthrough':
            encoding = own
        elif self.encoding_to_dtype_with_channels(encoding) != (cvim.dtype.name, channels):
            raise CvBridgeError(f'encoding specified as {encoding}, but image has incompatible type {own}')
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding)
        if header is not None:
            message.header = header
        message.is_bigendian = int(cvim.dtype.byteorder == '>' or (cvim.dtype.byteorder == '=' and sys.byteorder == 'big'))
        message.step = cvim.shape[1] * channels * cvim.dtype.itemsize
        message.data = _bytes(cvim)
        return message

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg: CompressedImage, desired_encoding: str = 'passthrough') -> np.ndarray:
        """The decoded image, BGR (or grey, where the file is and nothing else is desired)."""
        keep = cv2.IMREAD_ANYCOLOR if desired_encoding == 'passthrough' else cv2.IMREAD_COLOR
        coded = np.frombuffer(cmprs_img_msg.data, np.uint8)
        image = cv2.imdecode(coded, keep) if coded.size else None
        if image is None or desired_encoding == 'passthrough':
            return image
        return self._converted(image, 'bgr8', desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = 'jpg') -> CompressedImage:
        """The BGR or grey array, encoded as jpg, png, ..."""
        if not isinstance(cvim, (np.ndarray, np.generic)):
            raise TypeError('Your input type is not a numpy array')
        message = CompressedImage(format=dst_format)
        try:
            message.data = _bytes(cv2.imencode(f'.{dst_format}', cvim)[1])
        except cv2.error as error:
            raise CvBridgeError(error) from error
        return message

    def _converted(self, image: np.ndarray, source: str, target: str) -> np.ndarray:
        try:
            return convert(image, source, target)
        except (UnknownEncoding, cv2.error) as error:
            raise CvBridgeError(error) from error

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f'cv_bridge.CvBridge of ros2_polyfill has no {name!r}: it only has what depth_ros needs. Source a full ROS 2 to use it.')


def _bytes(values: np.ndarray) -> array.array:
    """The array's memory as the only container that message fields take without checking every element."""
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(values).data.cast('B') if values.size else b'')
    return data
