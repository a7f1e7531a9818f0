"""TUM folders and trajectories: exact stamps, association, interpolation, and an error with file and line for whatever cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from evo.tools import file_interface
from scipy.spatial.transform import Rotation
from sequence_support import START, STEP, assert_identical, random_events, random_folder, random_row, write_folder

from depth_ros.learning.sequences import INTRINSICS, ColourEvent, DepthEvent, Mount, PoseEvent, ScanEvent
from depth_ros.learning.trajectory import NANOSECONDS, pose_matrices
from depth_ros.learning.tum import SequenceError, Trajectory, associate, format_stamp, open_sequence, parse_stamp, read_trajectory, write_trajectory


def test_stamps_are_exact_to_the_nanosecond():
    stamps = np.random.default_rng(0).integers(0, 2 ** 62, 1000)
    assert [parse_stamp(format_stamp(s)) for s in stamps] == stamps.tolist()
    assert parse_stamp('1305031102.175304') == 1305031102175304000
    assert parse_stamp('1305031102') == parse_stamp('1305031102.') == 1305031102 * NANOSECONDS
    assert parse_stamp('0.000000001000') == 1


@pytest.mark.parametrize('text', ['', 'x', '-1.0', '1e9', '1.2.3', 'nan', '1.0000000001'])
def test_other_stamps_are_refused(text):
    with pytest.raises(ValueError, match='time stamp'):
        parse_stamp(text)


def test_association_is_the_nearest_within_the_limit():
    rng = np.random.default_rng(1)
    for n, m in ((0, 3), (3, 0), (1, 1), (40, 1), (40, 60)):
        stamps, others = (np.sort(rng.integers(0, 1000, size)) for size in (n, m))
        found = associate(stamps, others, 15)
        for stamp, index in zip(stamps, found):
            offsets = np.abs(others - stamp)
            if m == 0 or offsets.min() > 15:
                assert index == -1
            else:
                assert offsets[index] == offsets.min()


def random_trajectory(seed: int, count: int = 20) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(START + STEP * np.arange(count), pose_matrices(np.array([random_row(rng) for _ in range(count)])))


def test_trajectories_survive_the_disk_and_evo_reads_them(tmp_path):
    written = random_trajectory(2)
    write_trajectory(tmp_path / 't.txt', written)
    read = read_trajectory(tmp_path / 't.txt')
    assert np.array_equal(read.stamps_ns, written.stamps_ns)
    np.testing.assert_allclose(read.T_world_cam, written.T_world_cam, atol=2e-9)
    other = file_interface.read_tum_trajectory_file(tmp_path / 't.txt')
    np.testing.assert_allclose(np.array(other.poses_se3), written.T_world_cam, atol=2e-8)


def test_interpolation_moves_and_turns_evenly():
    trajectory = random_trajectory(3)
    for i, share in ((0, 0.5), (7, 0.1), (12, 0.9)):
        begin, end = trajectory.T_world_cam[i], trajectory.T_world_cam[i + 1]
        T = trajectory.at(int(trajectory.stamps_ns[i]) + round(share * STEP))
        turned = Rotation.from_matrix(begin[:3, :3].T @ T[:3, :3]).as_rotvec()
        whole = Rotation.from_matrix(begin[:3, :3].T @ end[:3, :3]).as_rotvec()
        np.testing.assert_allclose(turned, share * whole, atol=1e-6)
        np.testing.assert_allclose(T[:3, 3], begin[:3, 3] + share * (end - begin)[:3, 3], atol=1e-6)
        assert np.array_equal(trajectory.at(int(trajectory.stamps_ns[i])), begin)


def test_nothing_is_invented_outside_or_across_a_gap():
    trajectory = random_trajectory(4)
    first, last = int(trajectory.stamps_ns[0]), int(trajectory.stamps_ns[-1])
    assert trajectory.at(first - 1) is None and trajectory.at(last + 1) is None
    assert trajectory.at(last) is not None
    assert trajectory.at(first + 1, max_gap=STEP - 1) is None
    assert trajectory.at(first + 1, max_gap=STEP) is not None


def test_a_trajectory_checks_itself():
    good = random_trajectory(5)
    with pytest.raises(ValueError, match='shapes|stamps'):
        Trajectory(good.stamps_ns[:-1], good.T_world_cam)
    with pytest.raises(ValueError, match='rising'):
        Trajectory(good.stamps_ns[::-1], good.T_world_cam)


def test_a_folder_gives_back_what_was_written(tmp_path):
    rng = np.random.default_rng(6)
    events, mount = random_events(rng, 5, (32, 24)), Mount('laser', random_row(rng))
    sequence = open_sequence(write_folder(tmp_path / 's', events, (32, 24), mount))
    order = {PoseEvent: 0, ScanEvent: 1, DepthEvent: 2, ColourEvent: 3}
    for read, written in zip(sequence.events(), sorted(events, key=lambda e: (e.stamp, order[type(e)])), strict=True):
        assert_identical(read, written)
    assert sequence.mount.frame_id == 'laser' and sequence.mount.row.tobytes() == mount.row.tobytes()
    assert sequence.frame_id == 'camera_optical' and sequence.size == (32, 24) and sequence.K[1, 1] == 31.7


def test_frames_carry_the_depth_that_belongs_to_them(tmp_path):
    sequence = open_sequence(random_folder(tmp_path / 's'))
    written = {e.stamp: e for e in sequence.events() if isinstance(e, DepthEvent)}
    assert len(sequence) == len(list(sequence)) == 5
    for frame in sequence:
        depth = written[frame.stamp + 5_000_000].depth
        assert np.array_equal(frame.depth_valid, np.isfinite(depth))
        assert np.array_equal(frame.depth, np.nan_to_num(depth)) and frame.depth.dtype == np.float32
    assert sequence[-1].stamp == sequence[4].stamp
    with pytest.raises(IndexError):
        sequence[5]


def test_an_image_without_depth_near_it_has_none(tmp_path):
    folder = random_folder(tmp_path / 's')
    lines = (folder / 'depth.txt').read_text().splitlines()
    (folder / 'depth.txt').write_text('\n'.join(lines[:2] + lines[3:]))
    frames = list(open_sequence(folder))
    assert [frame.depth is None for frame in frames] == [False, True, False, False, False]


def test_a_name_tells_the_camera(tmp_path):
    folder = random_folder(tmp_path / 'rgbd_dataset_freiburg2_desk', frames=1, size=(640, 480))
    (folder / 'calibration.yaml').unlink()
    fx, fy, cx, cy = INTRINSICS['fr2']
    assert np.array_equal(open_sequence(folder).K, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def test_kitchen_is_read_as_it_is(kitchen):
    sequence = open_sequence(kitchen)
    assert len(sequence) == 300 and sequence.size == (640, 480) and len(sequence.ground_truth) == 300
    frame = sequence[17]
    line = (kitchen / 'depth.txt').read_text().splitlines()[19].split()
    raw = cv2.imread(str(kitchen / line[1]), cv2.IMREAD_UNCHANGED)
    assert frame.stamp == parse_stamp(line[0])
    np.testing.assert_allclose(frame.depth, raw / 5000.0, rtol=1e-7)
    assert np.array_equal(frame.depth_valid, raw > 0) and 0.5 < frame.depth_valid.mean() < 1.0
    bgr = cv2.imread(str(kitchen / (kitchen / 'rgb.txt').read_text().splitlines()[19].split()[1]))
    assert np.array_equal(frame.image, bgr[..., ::-1])


def edit(name: str, line: int, change):
    """A spoiler that changes one line (from 1) of a file."""
    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[line - 1] = change(lines[line - 1])
        (folder / name).write_text('\n'.join(lines))
    return spoil


def swap(name: str, first: int):
    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[first - 1], lines[first] = lines[first], lines[first - 1]
        (folder / name).write_text('\n'.join(lines))
    return spoil


def duplicate(name: str, line: int):
    return edit(name, line, lambda text: f'{text}\n{text}')


@pytest.mark.parametrize(('spoil', 'told'), [
    (swap('rgb.txt', 3), r'rgb\.txt:4: an unsorted time stamp'),
    (duplicate('depth.txt', 2), r'depth\.txt:3: a duplicate time stamp'),
    (duplicate('groundtruth.txt', 4), r'groundtruth\.txt:5: a duplicate'),
    (swap('scan.txt', 2), r'scan\.txt:3: an unsorted'),
    (edit('rgb.txt', 2, lambda t: t.split()[0]), r'rgb\.txt:2: expected `timestamp filename`'),
    (edit('rgb.txt', 2, lambda t: 'soon ' + t.split()[1]), r'rgb\.txt:2: expected a time stamp'),
    (edit('depth.txt', 3, lambda t: t.split()[0] + ' depth/none.png'), r'depth\.txt:3: the image depth/none\.png is missing'),
    (edit('groundtruth.txt', 2, lambda t: t.rsplit(' ', 1)[0]), r'groundtruth\.txt:2: expected'),
    (edit('groundtruth.txt', 2, lambda t: ' '.join(t.split()[:4] + ['0'] * 4)), r'groundtruth\.txt:2: expected .* unit quaternion'),
    (edit('groundtruth.txt', 2, lambda t: ' '.join(t.split()[:1] + ['nan'] + t.split()[2:])), r'groundtruth\.txt:2: expected'),
    (edit('scan.txt', 3, lambda t: ' '.join(t.split()[:5])), r'scan\.txt:3: expected'),
    (edit('laser.yaml', 3, lambda t: 'translation: [1, 2]'), r'laser\.yaml:3: translation: expected 3'),
    (edit('calibration.yaml', 1, lambda t: 'fx: -1.0'), r'calibration\.yaml:1: fx: expected a positive number, got -1\.0'),
    (edit('calibration.yaml', 2, lambda t: 'fy: .nan'), r'calibration\.yaml:2: fy: expected a positive'),
    (edit('calibration.yaml', 3, lambda t: ''), r'calibration\.yaml: the key cx is missing'),
    (edit('calibration.yaml', 5, lambda t: 'width: 33'), r'is 32 x 24 pixels, but the calibration .*calibration\.yaml\) is for 33 x 24'),
    (edit('calibration.yaml', 4, lambda t: 'cy: 500.0'), r'calibration\.yaml:4: cy: expected the principal point'),
    (edit('calibration.yaml', 4, lambda t: '{['), r'calibration\.yaml: cannot be read'),
    (lambda folder: (folder / 'calibration.yaml').unlink(), 'has no calibration.yaml'),
    (lambda folder: (folder / 'laser.yaml').unlink(), r'laser\.yaml: cannot be read'),
    (lambda folder: (folder / 'rgb.txt').unlink(), 'rgb.txt is missing'),
    (lambda folder: (folder / 'rgb.txt').write_text('# nothing'), 'names no image'),
    (lambda folder: shutil.rmtree(folder), 'does not exist'),
])
def test_what_cannot_be_used_is_named(tmp_path, spoil, told):
    folder = random_folder(tmp_path / 's')
    spoil(folder)
    with pytest.raises(SequenceError, match=told):
        open_sequence(folder)


@pytest.mark.parametrize('kept', [0, 1, 40, -1, -13])
def test_a_truncated_image_is_named(tmp_path, kept):
    folder = random_folder(tmp_path / 's')
    sequence = open_sequence(folder)
    image = sorted((folder / 'depth').iterdir())[2]
    image.write_bytes(image.read_bytes()[:kept])
    assert sequence[1].depth is not None
    with pytest.raises(SequenceError, match=f'{image.name}: (is truncated or damaged|cannot be decoded)'):
        sequence[2]


def test_a_damaged_or_cut_picture_of_any_kind_is_found(tmp_path):
    folder = random_folder(tmp_path / 's')
    sequence = open_sequence(folder)
    image = sorted((folder / 'rgb').iterdir())[1]
    whole = image.read_bytes()
    image.write_bytes(whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1:])
    with pytest.raises(SequenceError, match='damaged'):
        sequence.read_colour(1)
    jpeg = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))[1].tobytes()
    image.write_bytes(jpeg)
    assert sequence.read_colour(1).shape == (24, 32, 3)
    image.write_bytes(jpeg[:-200])
    with pytest.raises(SequenceError, match='truncated'):
        sequence.read_colour(1)


def test_depth_of_eight_bits_is_refused(tmp_path):
    folder = random_folder(tmp_path / 's')
    sequence = open_sequence(folder)
    cv2.imwrite(str(sorted((folder / 'depth').iterdir())[0]), np.ones((24, 32), np.uint8))
    with pytest.raises(SequenceError, match='16 bits'):
        sequence[0]
