"""What cv_bridge promises; the real package keeps these promises too."""
import array

import cv2
import numpy as np
import pytest
from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

SHAPES = {'rgb8': (np.uint8, 3), 'bgr8': (np.uint8, 3), 'rgba8': (np.uint8, 4), 'bgra8': (np.uint8, 4), 'mono8': (np.uint8, 1), 'mono16': (np.uint16, 1),
          '16UC1': (np.uint16, 1), '32FC1': (np.float32, 1), '32FC2': (np.float32, 2), '8UC1': (np.uint8, 1), '8UC3': (np.uint8, 3),
          'bayer_rggb8': (np.uint8, 1), 'bayer_bggr8': (np.uint8, 1), 'bayer_gbrg8': (np.uint8, 1), 'bayer_grbg8': (np.uint8, 1), 'yuv422': (np.uint8, 2)}
COLOURS = ['rgb8', 'bgr8', 'rgba8', 'bgra8']


@pytest.fixture
def bridge():
    return CvBridge()


def _random(encoding, seed=0, height=6, width=8):
    dtype, channels = SHAPES[encoding]
    values = np.random.default_rng(seed).integers(0, 256 if dtype == np.uint8 else 60000, (height, width, channels)).astype(dtype)
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize('encoding', SHAPES)
def test_an_array_comes_back_as_it_went(bridge, encoding):
    image = _random(encoding)
    message = bridge.cv2_to_imgmsg(image, encoding, Header(frame_id='camera'))
    assert (message.height, message.width, message.encoding, message.header.frame_id) == (6, 8, encoding, 'camera')
    assert message.step == 8 * image.itemsize * SHAPES[encoding][1]
    assert isinstance(message.data, array.array) and message.data.tobytes() == image.tobytes()
    back = bridge.imgmsg_to_cv2(message)
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize(('source', 'target'), [(a, b) for a in COLOURS for b in COLOURS if a != b])
def test_colours_are_converted_as_opencv_converts_them(bridge, source, target):
    image = _random(source)
    expected = cv2.cvtColor(image, getattr(cv2, f'COLOR_{source[:-1].upper()}2{target[:-1].upper()}'))
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(image, source), target), expected)


@pytest.mark.parametrize(('encoding', 'red_at'), [('bayer_rggb8', (0, 0)), ('bayer_bggr8', (1, 1)), ('bayer_gbrg8', (1, 0)), ('bayer_grbg8', (0, 1))])
def test_a_mosaic_of_a_red_surface_becomes_red(bridge, encoding, red_at):
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[red_at[0]::2, red_at[1]::2] = 200
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(mosaic, encoding), 'rgb8'), np.broadcast_to([200, 0, 0], (8, 8, 3)))


def test_grey_levels_of_yuv422_pass(bridge):
    packed = np.full((2, 4, 2), 128, np.uint8)
    packed[..., 1] = 120    # U Y V Y
    rgb = bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(packed, 'yuv422'), 'rgb8')
    np.testing.assert_array_equal(rgb, cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_UYVY))
    assert np.ptp(rgb) == 0


def test_sixteen_bits_scale_to_eight(bridge):
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(deep, 'mono16'), 'rgb8')[0, :, 1], [0, 100, 255])


@pytest.mark.parametrize('encoding', ['mono16', '16UC1', '32FC1'])
def test_big_endian_data_come_out_as_values(bridge, encoding):
    image = _random(encoding)
    message = bridge.cv2_to_imgmsg(image, encoding)
    message.is_bigendian = 1
    message.data = array.array('B', image.astype(image.dtype.newbyteorder('>')).tobytes())
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message), image)


@pytest.mark.parametrize('encoding', ['rgb8', 'mono16'])
def test_row_padding_is_skipped(bridge, encoding):
    image = _random(encoding)
    row = image.nbytes // 6
    padded = np.full((6, row + 12), 0xAB, np.uint8)
    padded[:, :row] = np.frombuffer(image.tobytes(), np.uint8).reshape(6, row)
    message = Image(height=6, width=8, encoding=encoding, step=row + 12, data=padded.tobytes())
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message), image)


def test_short_data_are_refused(bridge):
    message = bridge.cv2_to_imgmsg(_random('rgb8'), 'rgb8')
    message.data = message.data[:-1]
    with pytest.raises(TypeError):
        bridge.imgmsg_to_cv2(message)


@pytest.mark.parametrize(('encoding', 'desired'), [('32FC1', 'rgb8'), ('16UC1', 'mono8'), ('rgb8', 'no_such_encoding')])
def test_a_conversion_that_makes_no_sense_is_an_error(bridge, encoding, desired):
    with pytest.raises(CvBridgeError):
        bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(_random(encoding), encoding), desired)


def test_an_encoding_that_contradicts_the_array_is_an_error(bridge):
    with pytest.raises(CvBridgeError):
        bridge.cv2_to_imgmsg(np.zeros((4, 4), np.float32), 'rgb8')
    with pytest.raises(TypeError):
        bridge.cv2_to_imgmsg([[1, 2]], 'mono8')


def test_passthrough_names_the_encoding_after_the_array(bridge):
    assert bridge.cv2_to_imgmsg(np.zeros((4, 4, 2), np.float32)).encoding == '32FC2'


def test_png_is_lossless(bridge):
    bgr = _random('bgr8')
    message = bridge.cv2_to_compressed_imgmsg(bgr, 'png')
    assert isinstance(message, CompressedImage) and 'png' in message.format
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(message), bgr)
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(message, 'rgb8'), bgr[..., ::-1])


def test_dtype_and_channels_of_an_encoding(bridge):
    assert bridge.encoding_to_dtype_with_channels('bgra8') == ('uint8', 4)
    assert bridge.encoding_to_dtype_with_channels('32FC2') == ('float32', 2)
