"""Bags hold what the folder held, bit for bit; TUM's own kind of bag is understood; bad ones are told by topic."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags import rosbag1
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation
from sequence_support import START, STEP, assert_identical, random_folder, random_row

from depth_ros.learning import bags, transforms
from depth_ros.learning.bag_writer import FORMATS, BagWriter
from depth_ros.learning.trajectory import NANOSECONDS, pose_matrices
from depth_ros.learning.tum import SequenceError, open_sequence

IDENTITY = transforms.IDENTITY


def write_bag(path: Path, folder: Path, kind: str) -> Path:
    sequence = open_sequence(folder)
    with BagWriter(path, sequence, kind) as writer:
        for event in sequence.events():
            writer.add(event)
    return path


def bag_path(folder: Path, kind: str) -> Path:
    return folder / ('copy.bag' if kind == 'bag' else 'copy')


@pytest.mark.parametrize('kind', FORMATS)
def test_a_bag_holds_the_same_bits(tmp_path, kind):
    folder = random_folder(tmp_path / 's')
    source = open_sequence(folder)
    with open_sequence(write_bag(bag_path(tmp_path, kind), folder, kind)) as copy:
        for read, wanted in zip(copy.events(), source.events(), strict=True):
            assert_identical(read, wanted)
        assert copy.timeline() == source.timeline()
        assert copy.K.tobytes() == source.K.tobytes() and copy.size == source.size and copy.frame_id == source.frame_id
        assert copy.mount.row.tobytes() == source.mount.row.tobytes() and copy.mount.frame_id == source.mount.frame_id
        assert np.array_equal(copy.ground_truth.T_world_cam, source.ground_truth.T_world_cam)


@pytest.mark.parametrize('kind', FORMATS)
def test_frames_come_in_any_order(tmp_path, kind):
    folder = random_folder(tmp_path / 's', frames=9)
    source = open_sequence(folder)
    with open_sequence(write_bag(bag_path(tmp_path, kind), folder, kind)) as copy:
        for index in (5, 6, 2, 8, 0, 1, -1, 3, 3):
            frame, wanted = copy[index], source[index]
            assert frame.stamp == wanted.stamp
            assert np.array_equal(frame.image, wanted.image) and np.array_equal(frame.depth, wanted.depth)


@pytest.mark.parametrize(('kind', 'pattern'), [('rosbag2-mcap', '*.mcap'), ('rosbag2-sqlite3', '*.db3')])
def test_a_single_file_of_a_rosbag2_will_do(tmp_path, kind, pattern):
    folder = random_folder(tmp_path / 's')
    write_bag(tmp_path / 'copy', folder, kind)
    (tmp_path / 'copy' / 'metadata.yaml').unlink()
    with open_sequence(next((tmp_path / 'copy').glob(pattern))) as copy:
        for read, wanted in zip(copy.events(), open_sequence(folder).events(), strict=True):
            assert_identical(read, wanted)


@pytest.mark.parametrize('kind', FORMATS)
def test_a_sequence_of_colour_alone_has_nothing_more_as_a_bag(tmp_path, kind):
    folder = random_folder(tmp_path / 's')
    for name in ('depth.txt', 'groundtruth.txt', 'scan.txt'):
        (folder / name).unlink()
    with open_sequence(write_bag(bag_path(tmp_path, kind), folder, kind)) as copy:
        assert copy.ground_truth is None and copy.scans is None and copy.mount is None and len(copy.depth_stamps) == 0
        assert [frame.depth for frame in copy] == [None] * 5


class Ros1Bag:
    """Writes ROS 1 messages of a 4 x 3 camera."""

    def __init__(self, path: Path, tf_type: str = 'tf/msg/tfMessage') -> None:
        self.types = get_typestore(Stores.ROS1_NOETIC)
        self.types.register(get_types_from_msg('geometry_msgs/TransformStamped[] transforms', tf_type))
        self.tf_type, self.writer, self.connections, self.clock = tf_type, rosbag1.Writer(path), {}, itertools.count(START)
        self.writer.open()

    def make(self, kind: str, **fields):
        return self.types.types[kind](**fields)

    def header(self, stamp: int, frame: str):
        time = self.make('builtin_interfaces/msg/Time', sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)
        return self.make('std_msgs/msg/Header', seq=0, stamp=time, frame_id=frame)

    def write(self, topic: str, kind: str, msg) -> None:
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.types)
        self.writer.write(self.connections[topic], next(self.clock), self.types.serialize_ros1(msg, kind))

    def image(self, topic: str, stamp: int, pixels: np.ndarray, encoding: str, big: bool = False, padding: int = 0) -> None:
        height, width = pixels.shape[:2]
        stored = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
        rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(height, -1)
        rows = np.hstack([rows, np.full((height, padding), 255, np.uint8)])
        self.write(topic, 'sensor_msgs/msg/Image', self.make('sensor_msgs/msg/Image', header=self.header(stamp, '/openni_rgb_optical_frame'), height=height, width=width,
                   encoding=encoding, is_bigendian=int(big), step=rows.shape[1], data=rows.ravel()))

    def info(self, stamp: int, width: int = 4, height: int = 3, fx: float = 5.0) -> None:
        K = np.array([fx, 0, 1.5, 0, 6.0, 1.0, 0, 0, 1])
        roi = self.make('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        self.write(bags.CAMERA_INFO, 'sensor_msgs/msg/CameraInfo', self.make('sensor_msgs/msg/CameraInfo', header=self.header(stamp, '/f'), height=height, width=width,
                   distortion_model='plumb_bob', D=np.zeros(5), K=K, R=np.eye(3).ravel(), P=np.zeros(12), binning_x=0, binning_y=0, roi=roi))

    def tf(self, stamp: int, *edges) -> None:
        transforms_ = [self.make('geometry_msgs/msg/TransformStamped', header=self.header(stamp, parent), child_frame_id=child,
                                 transform=self.make('geometry_msgs/msg/Transform', translation=self.make('geometry_msgs/msg/Vector3', **dict(zip('xyz', row[:3]))),
                                                     rotation=self.make('geometry_msgs/msg/Quaternion', **dict(zip('xyzw', row[3:])))))
                       for parent, child, row in edges]
        self.write('/tf', self.tf_type, self.make(self.tf_type, transforms=transforms_))

    def close(self) -> None:
        self.writer.close()


def test_tums_own_bags_are_understood(tmp_path):
    """Encoding bgr8, depth with NaN, slashes before frames, and ground truth over a chain of frames of which the first moves."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 3, 4, 3), dtype=np.uint8)
    depth = rng.uniform(0.5, 4.0, (3, 4)).astype(np.float32)
    depth[0, 0], depth[1, 1], depth[2, 2] = np.nan, np.inf, -1.0
    fixed = [random_row(rng) for _ in range(3)]
    moving = [random_row(rng) for _ in range(4)]
    bag = Ros1Bag(tmp_path / 'tum.bag')
    for i, row in enumerate(moving):
        bag.tf(START + i * STEP // 2, ('/world', '/kinect', row))
    for i in range(3):
        stamp = START + i * STEP
        bag.tf(stamp + 5, ('/kinect', '/openni_camera', fixed[0]), ('/openni_camera', '/openni_rgb_frame', fixed[1]), ('/openni_camera', '/openni_depth_frame', IDENTITY))
        bag.tf(stamp + 6, ('/openni_rgb_frame', '/openni_rgb_optical_frame', fixed[2]))
        bag.info(stamp)
        bag.image(bags.COLOUR, stamp, colour[i], 'bgr8', padding=2)
        bag.image(bags.DEPTH, stamp + 7, depth, '32FC1', big=True)
    bag.close()
    with open_sequence(tmp_path / 'tum.bag') as sequence:
        assert sequence.frame_id == 'openni_rgb_optical_frame' and sequence.size == (4, 3)
        assert np.array_equal(sequence.K, [[5, 0, 1.5], [0, 6, 1], [0, 0, 1]])
        assert sequence.poses.stamps.tolist() == [START + i * STEP // 2 for i in range(4)]
        chain = np.linalg.multi_dot(pose_matrices(np.array(fixed)))
        np.testing.assert_allclose(sequence.ground_truth.T_world_cam, pose_matrices(np.array(moving)) @ chain, atol=1e-12)
        for frame, bgr in zip(sequence, colour, strict=True):
            assert np.array_equal(frame.image, bgr[..., ::-1])
            good = np.isfinite(depth) & (depth > 0)
            assert np.array_equal(frame.depth_valid, good) and np.array_equal(frame.depth, np.where(good, depth, 0.0).astype(np.float32))


@pytest.mark.parametrize(('encoding', 'shape'), [('rgb8', (3, 4, 3)), ('rgba8', (3, 4, 4)), ('bgra8', (3, 4, 4)), ('mono8', (3, 4))])
def test_other_encodings_are_read(tmp_path, encoding, shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    bag = Ros1Bag(tmp_path / 'b.bag')
    bag.info(START)
    bag.image(bags.COLOUR, START, pixels, encoding)
    bag.close()
    wanted = {'rgb8': lambda p: p, 'rgba8': lambda p: p[..., :3], 'bgra8': lambda p: p[..., 2::-1], 'mono8': lambda p: np.repeat(p[..., None], 3, 2)}[encoding]
    with open_sequence(tmp_path / 'b.bag') as sequence:
        assert np.array_equal(sequence[0].image, wanted(pixels))


def test_depth_in_millimetres_is_the_same_as_in_a_folder(tmp_path):
    """16UC1 of REP 118 and TUM's factor of 5000 give the same float32, so a bag converted to a folder is the same sequence."""
    millimetres = np.random.default_rng(2).integers(0, 13000, (3, 4), dtype=np.uint16)
    bag = Ros1Bag(tmp_path / 'b.bag')
    bag.info(START)
    bag.image(bags.COLOUR, START, np.zeros((3, 4, 3), np.uint8), 'rgb8')
    bag.image(bags.DEPTH, START, millimetres, '16UC1')
    bag.close()
    with open_sequence(tmp_path / 'b.bag') as sequence:
        depth = sequence.read_depth(0)
    raw = (millimetres * 5).astype(np.uint16)
    assert np.array_equal(depth, np.where(raw > 0, raw.astype(np.float32) / np.float32(5000), np.float32(np.nan)), equal_nan=True)
    np.testing.assert_allclose(depth[millimetres > 0], millimetres[millimetres > 0] / 1000.0, rtol=1e-6)


def colour_bag(path: Path, *, info: dict | None = None, stamps=(0, 1), encoding: str = 'rgb8', topic: str = bags.COLOUR, shape=(3, 4, 3), depth=None) -> None:
    bag = Ros1Bag(path)
    if info is not None:
        bag.info(START, **info)
    for s in stamps:
        bag.image(topic, START + s, np.zeros(shape, np.uint8), encoding)
    if depth is not None:
        bag.image(bags.DEPTH, START, np.zeros((3, 4), np.float32), depth)
    bag.close()


@pytest.mark.parametrize(('fields', 'told'), [
    ({'info': None}, 'has no topic /camera/rgb/camera_info; it has: /camera/rgb/image_color'),
    ({'info': {}, 'topic': '/left/image'}, 'has no topic /camera/rgb/image_color; it has: /camera/rgb/camera_info, /left/image'),
    ({'info': {}, 'topic': bags.SCAN}, r'topic /scan: expected sensor_msgs/msg/LaserScan, got sensor_msgs/msg/Image'),
    ({'info': {}, 'stamps': (0, 5, 3)}, 'topic /camera/rgb/image_color, message 2: an unsorted time stamp'),
    ({'info': {}, 'stamps': (0, 5, 5)}, 'topic /camera/rgb/image_color, message 2: a duplicate time stamp'),
    ({'info': {'width': 5}}, r'topic /camera/rgb/image_color, message 0: is 4 x 3 pixels, but the calibration \(/camera/rgb/camera_info\) is for 5 x 3'),
    ({'info': {'fx': 0.0}}, 'topic /camera/rgb/camera_info: an uncalibrated camera'),
    ({'info': {}, 'encoding': 'bayer_rggb8', 'shape': (3, 4)}, "expected encoding rgb8.*got 'bayer_rggb8'"),
])
def test_what_cannot_be_used_is_told_by_topic(tmp_path, fields, told):
    colour_bag(tmp_path / 'b.bag', **fields)
    with pytest.raises(SequenceError, match=told):
        open_sequence(tmp_path / 'b.bag')


def test_depth_of_another_encoding_is_told(tmp_path):
    colour_bag(tmp_path / 'b.bag', info={}, depth='64FC1')
    with open_sequence(tmp_path / 'b.bag') as sequence, pytest.raises(SequenceError, match="/camera/depth/image, message 0: .*'64FC1'"):
        sequence[0]


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_a_cut_off_bag_is_an_error_not_a_crash(tmp_path, kind, share):
    path = write_bag(bag_path(tmp_path, kind), random_folder(tmp_path / 's'), kind)
    data = path if kind == 'bag' else next(p for p in path.iterdir() if p.name != 'metadata.yaml')
    data.write_bytes(data.read_bytes()[:int(share * data.stat().st_size)])
    with pytest.raises(SequenceError, match='copy'), open_sequence(path) as sequence:
        list(sequence.events())


@pytest.mark.parametrize('name', ['x.bag', 'x.mcap', 'x.db3'])
def test_what_is_no_bag_is_an_error(tmp_path, name):
    (tmp_path / name).write_text('not a bag at all\n' * 100)
    with pytest.raises(SequenceError, match=name):
        open_sequence(tmp_path / name)


def test_composing_agrees_with_matrices_and_keeps_what_an_identity_leaves():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = random_row(rng), random_row(rng)
        A, B = pose_matrices(np.array([a, b]))
        np.testing.assert_allclose(pose_matrices(transforms.compose(a, b)[None])[0], A @ B, atol=1e-12)
        np.testing.assert_allclose(pose_matrices(transforms.inverse(a)[None])[0], np.linalg.inv(A), atol=1e-12)
        assert transforms.compose(a, IDENTITY).tobytes() == transforms.compose(IDENTITY, a).tobytes() == a.tobytes()


def test_a_tree_finds_its_way_up_and_down():
    rng = np.random.default_rng(4)
    rows = {name: random_row(rng) for name in 'abcd'}
    tree = transforms.TransformTree()
    for parent, child in (('root', 'a'), ('a', 'b'), ('a', 'c'), ('c', 'd')):
        tree.add(parent, child, 10, rows[child])
    T = {name: pose_matrices(row[None])[0] for name, row in rows.items()}
    found = pose_matrices(tree.lookup('b', 'd')[None])[0]
    np.testing.assert_allclose(found, np.linalg.inv(T['b']) @ T['c'] @ T['d'], atol=1e-12)
    assert tree.lookup('b', 'elsewhere') is None and tree.over_time('elsewhere', 'd') is None
    assert Rotation.from_quat(tree.lookup('d', 'd')[3:]).magnitude() == 0.0
    tree.add('d', 'root', 10, rows['a'])     # a loop must not hang
    assert tree.ancestors('b')[:3] == ['b', 'a', 'root']


def test_colour_can_be_decoded_by_opencv_alike(tmp_path):
    """The writer stores rgb8; what other programs then read through OpenCV's BGR is the same picture."""
    folder = random_folder(tmp_path / 's', frames=1)
    with open_sequence(write_bag(tmp_path / 'copy.bag', folder, 'bag')) as copy:
        bgr = cv2.imread(str(next((folder / 'rgb').iterdir())))
        assert np.array_equal(cv2.cvtColor(copy[0].image, cv2.COLOR_RGB2BGR), bgr)
