"""Images, depth, flow and calibration survive the way through a message; what is doubtful is refused with topic and reason."""

from __future__ import annotations

import array
import sys

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from depth_ros.frames import resize_intrinsics
from depth_ros.ros import codecs
from depth_ros.ros.codecs import BadMessage

K = np.array([[520.9, 0.0, 325.1], [0.0, 521.0, 249.7], [0.0, 0.0, 1.0]])
HEADER = codecs.make_header(1_305_031_910_765_238_000, 'camera_optical')
SIZE = WIDTH, HEIGHT = 64, 48
# encoding: (dtype, channels)
ENCODINGS = {'rgb8': (np.uint8, 3), 'bgr8': (np.uint8, 3), 'rgba8': (np.uint8, 4), 'bgra8': (np.uint8, 4), 'mono8': (np.uint8, 1), 'mono16': (np.uint16, 1),
             '8UC1': (np.uint8, 1), '8UC3': (np.uint8, 3), 'bayer_rggb8': (np.uint8, 1), 'bayer_bggr8': (np.uint8, 1), 'bayer_gbrg8': (np.uint8, 1),
             'bayer_grbg8': (np.uint8, 1), 'yuv422': (np.uint8, 2), 'uyvy': (np.uint8, 2), 'yuv422_yuy2': (np.uint8, 2), 'yuyv': (np.uint8, 2)}
DEPTH_ENCODINGS = {'32FC1': (np.float32, 1), '16UC1': (np.uint16, 1)}
PADDING = 21    # odd, so that no row of a wider type is aligned


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def message(pixels, encoding, padding=0, big_endian=False):
    """An image message whose rows are followed by `padding` bytes of rubbish."""
    stored = pixels.astype(pixels.dtype.newbyteorder('>' if big_endian else '<'))
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(len(pixels), -1)
    padded = np.full((len(rows), rows.shape[1] + padding), 0xA5, np.uint8)
    padded[:, :rows.shape[1]] = rows
    return Image(header=HEADER, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=padded.shape[1], is_bigendian=int(big_endian),
                 data=array.array('B', padded.tobytes()))


def random_pixels(rng, dtype, channels):
    if dtype == np.float32:
        return rng.uniform(0.4, 8.0, (HEIGHT, WIDTH)).astype(np.float32)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, channels)).astype(dtype)
    return pixels[..., 0] if channels == 1 else pixels


def surface(encoding, colour):
    """The raw pixels that a camera of this encoding sends for a surface of one RGB colour."""
    red, green, blue = colour
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    whole = np.ones((HEIGHT, WIDTH, 1), np.uint8)
    if encoding.startswith('bayer'):
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for place, letter in enumerate(encoding[6:10]):
            pixels[place // 2::2, place % 2::2] = {'r': red, 'g': green, 'b': blue}[letter]
        return pixels
    if encoding in ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'):    # ITU-R BT.601, studio range
        y = 16 + luma * 219 / 255
        u, v = 128 + (blue - luma) * 0.564 * 224 / 255, 128 + (red - luma) * 0.713 * 224 / 255
        pair = [[u, y], [v, y]] if encoding in ('yuv422', 'uyvy') else [[y, u], [y, v]]
        return np.tile(np.rint(pair).astype(np.uint8), (HEIGHT, WIDTH // 2, 1))
    if encoding in ('mono8', '8UC1'):
        return whole[..., 0] * np.uint8(round(luma))
    if encoding == 'mono16':
        return whole[..., 0] * np.uint16(round(luma) * 257)
    by_name = {'r': red, 'g': green, 'b': blue, 'a': 255}
    order = 'bgr' if encoding == '8UC3' else encoding.rstrip('8')
    return whole * np.array([by_name[letter] for letter in order], np.uint8)


@pytest.mark.parametrize('colour', [(200, 40, 30), (20, 180, 60), (90, 90, 90)])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_shows_the_colour_of_the_surface(encoding, colour):
    image = codecs.image_array(message(surface(encoding, colour), encoding), '/camera')
    grey = ENCODINGS[encoding][1] == 1 and not encoding.startswith('bayer')
    expected = np.full(3, round(np.dot(colour, [0.299, 0.587, 0.114]))) if grey else np.array(colour)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= (3 if ENCODINGS[encoding][1] == 2 else 0)    # YUV has rounded its parts


@pytest.mark.parametrize('encoding', [*ENCODINGS, *DEPTH_ENCODINGS])
def test_row_padding_changes_nothing(rng, encoding):
    dtype, channels = {**ENCODINGS, **DEPTH_ENCODINGS}[encoding]
    pixels = random_pixels(rng, dtype, channels)
    decode = codecs.image_array if encoding in ENCODINGS else lambda *args: codecs.depth_array(*args)[0]
    np.testing.assert_array_equal(decode(message(pixels, encoding, PADDING), '/camera'), decode(message(pixels, encoding), '/camera'))


@pytest.mark.parametrize('encoding', ['mono16', *DEPTH_ENCODINGS])
def test_byte_order_changes_nothing(rng, encoding):
    pixels = random_pixels(rng, *{**ENCODINGS, **DEPTH_ENCODINGS}[encoding])
    decode = codecs.image_array if encoding in ENCODINGS else lambda *args: codecs.depth_array(*args)[0]
    np.testing.assert_array_equal(decode(message(pixels, encoding, big_endian=True), '/camera'), decode(message(pixels, encoding), '/camera'))


def test_rgb_images_come_back_bit_for_bit_and_without_a_copy(rng):
    image = random_pixels(rng, np.uint8, 3)
    sent = codecs.rgb_image(image, HEADER)
    assert (sent.encoding, sent.step, sent.header.frame_id) == ('rgb8', 3 * WIDTH, 'camera_optical')
    assert isinstance(sent.data, array.array) and sent.data.typecode == 'B'
    back = codecs.image_array(sent, '/camera')
    np.testing.assert_array_equal(back, image)
    assert np.shares_memory(back, np.frombuffer(sent.data, np.uint8))


def test_images_that_are_views_are_written_in_their_own_order(rng):
    image = random_pixels(rng, np.uint8, 3)
    np.testing.assert_array_equal(codecs.image_array(codecs.rgb_image(image[::2, ::-1], HEADER), '/camera'), image[::2, ::-1])


def test_messages_never_share_a_header():
    first = codecs.rgb_image(np.zeros((2, 2, 3), np.uint8), HEADER)
    first.header.frame_id = 'other'
    first.header.stamp.sec = 1
    assert HEADER.frame_id == 'camera_optical' and codecs.stamp_ns(HEADER.stamp) == 1_305_031_910_765_238_000


@pytest.mark.parametrize('stamp', [0, 1, 999_999_999, 1_000_000_000, 1_305_031_910_765_238_123])
def test_stamps_come_back(stamp):
    assert codecs.stamp_ns(codecs.to_stamp(stamp)) == stamp


def test_depth_comes_back_with_its_mask(rng):
    depth = random_pixels(rng, np.float32, 1)
    valid = rng.random(depth.shape) < 0.7
    sent = codecs.depth_image(depth, valid, HEADER)
    np.testing.assert_array_equal(np.isnan(np.frombuffer(sent.data, np.float32).reshape(depth.shape)), ~valid)
    back, back_valid = codecs.depth_array(sent, '/depth')
    assert back.dtype == np.float32 and back_valid.dtype == bool
    np.testing.assert_array_equal(back_valid, valid)
    np.testing.assert_array_equal(back, np.where(valid, depth, 0.0))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_depth_that_is_no_distance_is_masked(bad):
    pixels = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    pixels[3, 4] = bad
    depth, valid = codecs.depth_array(message(pixels, '32FC1'), '/depth')
    assert not valid[3, 4] and valid.sum() == valid.size - 1
    assert depth[3, 4] == 0.0 and np.isfinite(depth).all()


def test_millimetres_become_metres():
    pixels = np.array([[0, 1, 1234, 65535]], np.uint16)
    depth, valid = codecs.depth_array(message(pixels, '16UC1'), '/depth')
    np.testing.assert_allclose(depth, [[0.0, 0.001, 1.234, 65.535]], rtol=1e-6)
    np.testing.assert_array_equal(valid, [[False, True, True, True]])


def test_flow_comes_back(rng):
    flow = rng.normal(0.0, 10.0, (HEIGHT, WIDTH, 2)).astype(np.float32)
    sent = codecs.flow_image(flow, HEADER)
    assert sent.encoding == '32FC2' and sent.step == 8 * WIDTH
    np.testing.assert_array_equal(codecs.flow_array(sent, '/flow'), flow)
    with pytest.raises(BadMessage, match='/flow.*32FC1.*32FC2'):
        codecs.flow_array(message(flow[..., 0], '32FC1'), '/flow')


def compressed(image, extension='.png', kind='jpeg'):
    return CompressedImage(header=HEADER, format=kind, data=array.array('B', cv2.imencode(extension, image)[1].tobytes()))


@pytest.mark.parametrize('form', ['bgr', 'bgra', 'grey', 'deep'])
def test_compressed_images_are_decoded_to_rgb(rng, form):
    bgr = random_pixels(rng, np.uint8, 3)
    grey = bgr[..., 1]
    stored, expected = {'bgr': (bgr, bgr[..., ::-1]), 'bgra': (np.dstack([bgr, np.full_like(grey, 255)]), bgr[..., ::-1]),
                        'grey': (grey, np.dstack([grey] * 3)), 'deep': (grey.astype(np.uint16) * 257, np.dstack([grey] * 3))}[form]
    np.testing.assert_array_equal(codecs.image_array(compressed(stored), '/camera'), expected)


@pytest.mark.parametrize('data', [b'', b'not an image at all', 'cut'])
def test_undecodable_images_are_refused(data):
    whole = compressed(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).data.tobytes()
    msg = CompressedImage(format='png', data=array.array('B', whole[:20] if data == 'cut' else data))
    with pytest.raises(BadMessage, match='/camera.*png'):
        codecs.image_array(msg, '/camera')


def compressed_depth(encoded, kind, a=0.0, b=0.0):
    header = np.array([(0, a, b)], [('format', '<i4'), ('a', '<f4'), ('b', '<f4')]).tobytes()
    return CompressedImage(format=f'{kind}; compressedDepth png', data=array.array('B', header + cv2.imencode('.png', encoded)[1].tobytes()))


def test_compressed_depth_of_either_kind_is_metres(rng):
    depth = random_pixels(rng, np.float32, 1)
    depth[2, 3] = 0.0
    millimetres = np.rint(depth * 1000).astype(np.uint16)
    found, valid = codecs.depth_array(compressed_depth(millimetres, '16UC1'), '/depth')
    np.testing.assert_allclose(found, depth, atol=6e-4)
    assert not valid[2, 3] and valid.sum() == valid.size - 1
    # the transport's quantisation of floats: level = a / depth + b, where the largest depth, 10 m, is level 1
    a, b = 10_000.0, 1.0 - 10_000.0 / 10.0
    level = np.where(depth > 0, np.rint(a / np.maximum(depth, 0.1) + b), 0).astype(np.uint16)
    found, valid = codecs.depth_array(compressed_depth(level, '32FC1', a, b), '/depth')
    np.testing.assert_allclose(found, depth, rtol=8.0 / a)
    assert not valid[2, 3] and valid.sum() == valid.size - 1


@pytest.mark.parametrize('msg', [compressed(np.zeros((4, 4, 3), np.uint8)), CompressedImage(format='16UC1; compressedDepth', data=array.array('B', bytes(40)))])
def test_compressed_depth_that_is_none_is_refused(msg):
    with pytest.raises(BadMessage, match='/depth'):
        codecs.depth_array(msg, '/depth')


@pytest.mark.parametrize('encoding', [*ENCODINGS, *DEPTH_ENCODINGS])
@pytest.mark.parametrize(('fault', 'quoted'), [('short', 'bytes of data'), ('no data', '0 bytes of data'), ('bad step', 'step'), ('no width', '0 x'), ('no height', 'x 0')])
def test_every_fault_of_the_layout_is_refused_with_the_reason(rng, encoding, fault, quoted):
    msg = message(random_pixels(rng, *{**ENCODINGS, **DEPTH_ENCODINGS}[encoding]), encoding, PADDING)
    if fault in ('short', 'no data'):    # even where only padding is missing: the sender and the message disagree
        msg.data = msg.data[:-1] if fault == 'short' else array.array('B')
    elif fault == 'bad step':
        msg.step -= PADDING + 1
    else:
        setattr(msg, fault.removeprefix('no '), 0)
    decode = codecs.image_array if encoding in ENCODINGS else codecs.depth_array
    with pytest.raises(BadMessage, match=f'^/some/topic: .*{quoted}.*accepted: '):
        decode(msg, '/some/topic')


@pytest.mark.parametrize('encoding', ['mono16', *DEPTH_ENCODINGS])
def test_a_byte_order_that_is_neither_is_refused(rng, encoding):
    msg = message(random_pixels(rng, *{**ENCODINGS, **DEPTH_ENCODINGS}[encoding]), encoding)
    msg.is_bigendian = 2
    with pytest.raises(BadMessage, match='/camera.*is_bigendian 2'):
        (codecs.image_array if encoding in ENCODINGS else codecs.depth_array)(msg, '/camera')


@pytest.mark.parametrize('encoding', ['', '32FC1', '64FC1', 'rgb16', 'nv21', 'RGB8'])
def test_an_unsupported_encoding_is_quoted_with_the_supported_ones(encoding):
    with pytest.raises(BadMessage, match=f"/camera: got encoding '{encoding}'; accepted: rgb8, bgr8.*bayer_rggb8"):
        codecs.image_array(message(np.zeros((HEIGHT, WIDTH), np.float32), encoding), '/camera')
    if encoding != '32FC1':
        with pytest.raises(BadMessage, match=f"/depth: got encoding '{encoding}'; accepted: 32FC1.*16UC1"):
            codecs.depth_array(message(np.zeros((HEIGHT, WIDTH), np.float32), encoding), '/depth')


def test_yuv_of_odd_width_is_refused():
    with pytest.raises(BadMessage, match='odd width 5'):
        codecs.image_array(message(np.zeros((4, 5, 2), np.uint8), 'yuv422'), '/camera')


@pytest.mark.parametrize('error', [ImportError('numpy.core.multiarray failed to import'), AttributeError('_ARRAY_API not found')])
def test_a_cv_bridge_that_does_not_load_says_what_to_install_and_spares_plain_images(monkeypatch, rng, error):
    class Broken:
        def __getattr__(self, name):
            raise error

    codecs._bridge.cache_clear()
    monkeypatch.setitem(sys.modules, 'cv_bridge', Broken())
    plain = message(random_pixels(rng, np.uint8, 3), 'bgr8')
    try:
        with pytest.raises(BadMessage, match="/camera.*cv_bridge.*install"):
            codecs.image_array(message(surface('bayer_rggb8', (1, 2, 3)), 'bayer_rggb8'), '/camera')
        assert codecs.image_array(plain, '/camera').shape == (HEIGHT, WIDTH, 3)
    finally:
        codecs._bridge.cache_clear()


def test_calibration_comes_back():
    info = codecs.camera_info(K, SIZE, HEADER)
    assert (info.width, info.height, info.distortion_model) == (WIDTH, HEIGHT, 'plumb_bob')
    np.testing.assert_array_equal(np.reshape(info.p, (3, 4)), np.hstack([K, np.zeros((3, 1))]))
    np.testing.assert_array_equal(np.reshape(info.r, (3, 3)), np.eye(3))
    np.testing.assert_array_equal(codecs.camera_matrix(info, SIZE, '/info'), K)
    info.k[0] = 1.0
    assert K[0, 0] == 520.9     # the message does not hold the caller's memory


def test_rectified_images_use_p_and_an_empty_p_falls_back_to_k():
    info = codecs.camera_info(K, SIZE, HEADER)
    info.p[0], info.p[2], info.p[5], info.p[6] = 400.0, 30.0, 401.0, 20.0
    np.testing.assert_array_equal(codecs.camera_matrix(info, SIZE, '/info'), [[400.0, 0.0, 30.0], [0.0, 401.0, 20.0], [0.0, 0.0, 1.0]])
    info.p = np.zeros(12)
    np.testing.assert_array_equal(codecs.camera_matrix(info, SIZE, '/info'), K)


def test_binning_and_region_of_interest_move_the_intrinsics():
    info = codecs.camera_info(K, SIZE, HEADER)
    info.binning_x = info.binning_y = 2
    np.testing.assert_allclose(codecs.camera_matrix(info, (WIDTH // 2, HEIGHT // 2), '/info'), resize_intrinsics(K, 0.5, 0.5))
    info.binning_x = info.binning_y = 0
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 10, 4, 40, 30
    np.testing.assert_allclose(codecs.camera_matrix(info, (40, 30), '/info'), K - [[0, 0, 10], [0, 0, 4], [0, 0, 0]])


@pytest.mark.parametrize(('change', 'quoted'), [(lambda i: i.k.__setitem__(0, 0.0), 'uncalibrated'), (lambda i: i.p.__setitem__(5, -1.0), 'uncalibrated'),
                                                (lambda i: i.k.__setitem__(2, float('nan')), 'NaN'), (lambda i: i.p.__setitem__(0, float('inf')), 'inf'),
                                                (lambda i: setattr(i, 'width', WIDTH + 1), f'{WIDTH + 1} x {HEIGHT}'),
                                                (lambda i: setattr(i, 'height', 0), f'{WIDTH} x 0')])
def test_a_calibration_that_does_not_serve_is_refused_with_the_reason(change, quoted):
    info = codecs.camera_info(K, SIZE, HEADER)
    change(info)
    with pytest.raises(BadMessage, match=f'^/info: .*{quoted}'):
        codecs.camera_matrix(info, SIZE, '/info')


def test_an_empty_calibration_is_refused():
    with pytest.raises(BadMessage, match='/info.*uncalibrated'):
        codecs.camera_matrix(CameraInfo(), SIZE, '/info')


def test_a_frame_holds_what_its_messages_hold(rng):
    image, depth = random_pixels(rng, np.uint8, 3), random_pixels(rng, np.float32, 1)
    valid = rng.random(depth.shape) < 0.5
    messages = codecs.rgb_image(image, HEADER), codecs.camera_info(K, SIZE, HEADER), codecs.depth_image(depth, valid, HEADER)
    frame = codecs.camera_frame(*messages)
    assert (frame.stamp, frame.frame_id, frame.size) == (codecs.stamp_ns(HEADER.stamp), 'camera_optical', SIZE)
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.K, K)
    np.testing.assert_array_equal(frame.depth_valid, valid)
    np.testing.assert_array_equal(frame.depth, np.where(valid, depth, 0.0))
    without = codecs.camera_frame(*messages[:2])
    assert without.depth is None and without.depth_valid is None


def test_a_frame_names_the_topic_that_is_at_fault():
    topics = codecs.Topics('/rgb', '/info', '/depth')
    image, info = codecs.rgb_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8), HEADER), codecs.camera_info(K, SIZE, HEADER)
    small = codecs.depth_image(np.ones((HEIGHT // 2, WIDTH // 2)), np.ones((HEIGHT // 2, WIDTH // 2), bool), HEADER)
    nameless = codecs.make_header(5, '')
    with pytest.raises(BadMessage, match=f'^/depth: got depth of {WIDTH // 2} x {HEIGHT // 2}'):
        codecs.camera_frame(image, info, small, topics)
    with pytest.raises(BadMessage, match='^/info: '):
        codecs.camera_frame(image, CameraInfo(), None, topics)
    with pytest.raises(BadMessage, match='^/rgb: .*frame_id'):
        codecs.camera_frame(codecs.rgb_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8), nameless), codecs.camera_info(K, SIZE, nameless), None, topics)


@pytest.mark.parametrize('decode', [codecs.image_array, codecs.depth_array, codecs.flow_array])
def test_whatever_comes_is_decoded_or_refused_and_never_read_beyond_its_end(rng, decode):
    encodings = [*ENCODINGS, *DEPTH_ENCODINGS, '32FC2', 'nonsense']
    outcomes = {'decoded': 0, 'refused': 0}
    for _ in range(3000):
        height, width, step, size = (int(v) for v in rng.integers(0, [8, 12, 100, 700]))
        msg = Image(height=height, width=width, step=step, encoding=str(rng.choice(encodings)), is_bigendian=int(rng.integers(0, 3)),
                    data=array.array('B', rng.bytes(size)))
        try:
            result = decode(msg, '/topic')
        except BadMessage:
            outcomes['refused'] += 1
            continue
        outcomes['decoded'] += 1
        assert size >= step * height > 0
        assert (result[0] if isinstance(result, tuple) else result).shape[:2] == (height, width)
    assert min(outcomes.values()) > 5
