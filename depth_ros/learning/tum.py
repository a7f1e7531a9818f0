"""TUM RGB-D folders: `rgb.txt depth.txt groundtruth.txt rgb/ depth/` (https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats), and the way to any sequence.

Beyond TUM's own files a folder may hold `calibration.yaml` (fx fy cx cy width height; optionally depth_scale and frame_id), and the scans of a 2D laser:
`laser.yaml` (frame_id, translation [m] and quaternion x y z w of T_cam_laser) with `scan.txt`, one scan a line: `timestamp angle_min angle_max
angle_increment time_increment scan_time range_min range_max ranges...`, REP 117.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from depth_ros.learning.sequences import DEFAULT_FRAME_ID, INTRINSICS_SIZE, Mount, Scan, Sequence, associate, camera_matrix, known_intrinsics, metres
from depth_ros.learning.trajectory import (PoseTable, SequenceError, Trajectory, format_stamp, parse_stamp, pose_rows, read_poses, read_trajectory, table,
                                           write_trajectory)

__all__ = ['DEPTH_SCALE', 'SCAN_COLUMNS', 'PoseTable', 'Sequence', 'SequenceError', 'Trajectory', 'TumSequence', 'associate', 'format_stamp', 'open_sequence',
           'parse_stamp', 'pose_rows', 'read_trajectory', 'write_trajectory']

SAMPLE = 'sample'
DEPTH_SCALE = 5000.0    # integers per metre
SCAN_COLUMNS = ('angle_min', 'angle_max', 'angle_increment', 'time_increment', 'scan_time', 'range_min', 'range_max')
_BAGS = ('.bag', '.db3', '.mcap')
_PNG = b'\x89PNG\r\n\x1a\n'


def open_sequence(path: str | Path) -> Sequence:
    """Open `sample` or another built-in sequence as sample:hall, a TUM folder, a ROS 1 .bag, a rosbag2 folder or a single .mcap or .db3 file.

    Raises SequenceError naming the file and line, or the topic, that cannot be used.
    """
    # Imported where needed: replaying a folder must wait neither for torch, which renders the sample, nor for rosbags.
    if is_sample(path):
        from depth_ros.learning.sample import SampleSettings, sample_folder
        room = str(path).partition(':')[2]
        return TumSequence(sample_folder(SampleSettings(room=room) if room else SampleSettings()), str(path))
    path = Path(path).expanduser()
    if not path.exists():
        raise SequenceError(f'{path}: does not exist (expected {SAMPLE!r}, a TUM folder, a ROS 1 .bag, a rosbag2 folder, .mcap or .db3)')
    if path.suffix in _BAGS or (path / 'metadata.yaml').exists():
        from depth_ros.learning.bags import BagSequence
        return BagSequence(path)
    if not path.is_dir():
        raise SequenceError(f'{path}: is not a sequence (expected a TUM folder, a ROS 1 .bag, a rosbag2 folder, .mcap or .db3)')
    return TumSequence(path)


def is_sample(path: str | Path) -> bool:
    """Whether this names a built-in sequence: `sample`, or `sample:` and one of its rooms."""
    return str(path).partition(':')[0] == SAMPLE and not Path(path).exists()


@dataclass(frozen=True)
class Calibration:
    """What calibration.yaml says, or what is known where there is none."""

    source: str
    K: np.ndarray                   # (3, 3) float64 [px]
    size: tuple[int, int]           # (width, height) [px]
    depth_scale: float = DEPTH_SCALE
    frame_id: str = DEFAULT_FRAME_ID


class TumSequence(Sequence):
    """A TUM folder. Everything but the images is read and checked at once."""

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = name or self.folder.resolve().name
        if not (self.folder / 'rgb.txt').exists():
            raise SequenceError(f'{self.folder}: is not a TUM folder: rgb.txt is missing')
        self._colour = _index(self.folder, 'rgb.txt')
        self._depth = _index(self.folder, 'depth.txt') if (self.folder / 'depth.txt').exists() else []
        if not self._colour:
            raise SequenceError(f'{self.folder / "rgb.txt"}: names no image')
        self.colour_stamps = np.array([stamp for stamp, _ in self._colour], np.int64)
        self.depth_stamps = np.array([stamp for stamp, _ in self._depth], np.int64)
        self._calibration = _calibration(self.folder, self.name)
        self.K, self.size, self.frame_id = self._calibration.K, self._calibration.size, self._calibration.frame_id
        truth = self.folder / 'groundtruth.txt'
        self.poses = read_poses(truth) if truth.exists() else None
        self.mount, self.scans = _laser(self.folder)
        self.read_colour(0)     # a calibration of another size is found now, not in the middle

    def read_colour(self, index: int) -> np.ndarray:
        """See Sequence."""
        path = self._colour[index][1]
        return self._fitting(cv2.cvtColor(_decoded(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), path)

    def read_depth(self, index: int) -> np.ndarray:
        """See Sequence."""
        path = self._depth[index][1]
        raw = self._fitting(_decoded(path, cv2.IMREAD_UNCHANGED), path)
        if raw.dtype != np.uint16 or raw.ndim != 2:
            raise SequenceError(f'{path}: expected depth as one channel of 16 bits, got {raw.dtype} of shape {raw.shape}')
        return metres(raw, self._calibration.depth_scale)

    def _fitting(self, image: np.ndarray, path: Path) -> np.ndarray:
        if (image.shape[1], image.shape[0]) != self.size:
            width, height = self.size
            raise SequenceError(f'{path}: is {image.shape[1]} x {image.shape[0]} pixels, but the calibration ({self._calibration.source}) is for {width} x {height}')
        return image


def _index(folder: Path, name: str) -> list[tuple[int, Path]]:
    """(stamp [ns], image file) of each line of an index; every file must be there."""
    entries = []
    for number, stamp, words in table(folder / name, 'timestamp filename'):
        if len(words) != 1:
            raise SequenceError(f'{folder / name}:{number}: expected `timestamp filename`, got {len(words) + 1} words')
        image = folder / words[0]
        if not image.is_file():
            raise SequenceError(f'{folder / name}:{number}: the image {words[0]} is missing')
        entries.append((stamp, image))
    return entries


def _decoded(path: Path, mode: int) -> np.ndarray:
    """The image of a file. OpenCV fills up what is missing of a damaged file without an error, so wholeness is checked before."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SequenceError(f'{path}: cannot be read: {error}') from error
    if not _is_whole(data):
        raise SequenceError(f'{path}: is truncated or damaged ({len(data)} bytes)')
    image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if image is None:
        raise SequenceError(f'{path}: cannot be decoded as an image')
    return image


def _is_whole(data: bytes) -> bool:
    """Whether a PNG's chunks all arrive with their check sums, or a JPEG has its end marker; true for other formats unless empty."""
    if data.startswith(b'\xff\xd8'):
        return data.rfind(b'\xff\xd9', -1024) > 0      # some writers pad the end
    if not data.startswith(_PNG):
        return bool(data)
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at:at + 4], 'big')
        if zlib.crc32(data[at + 4:end]) != int.from_bytes(data[end:end + 4], 'big') or end + 4 > len(data):
            return False
        if data[at + 4:at + 8] == b'IEND':
            return True
        at = end + 4
    return False


class _Keys:
    """The keys of a YAML mapping with their lines, and errors that name both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text()
            self.values: Any = yaml.safe_load(text)
            node = yaml.compose(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SequenceError(f'{path}: cannot be read: {" ".join(str(error).split())}') from error
        if not isinstance(self.values, dict):
            raise SequenceError(f'{path}: expected `key: value` lines')
        self.lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}

    def wrong(self, key: str, wanted: str) -> SequenceError:
        return SequenceError(f'{self.path}:{self.lines[key]}: {key}: expected {wanted}, got {self.values[key]!r}')

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self.values and default is None:
            raise SequenceError(f'{self.path}: the key {key} is missing')
        return self.values.get(key, default)

    def positive(self, key: str, default: float | None = None, whole: bool = False) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < math.inf or (whole and value != int(value)):
            raise self.wrong(key, f'a positive {"whole " if whole else ""}number')
        return value

    def numbers(self, key: str, count: int) -> np.ndarray:
        try:
            values = np.array(self.get(key), np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape != (count,) or not np.isfinite(values).all():
            raise self.wrong(key, f'{count} finite numbers')
        return values + 0.0

    def name(self, key: str, default: str | None = None) -> str:
        value = self.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, 'a name')
        return value


def _calibration(folder: Path, name: str) -> Calibration:
    """From calibration.yaml, else by the camera that the name tells."""
    path = folder / 'calibration.yaml'
    if not path.exists():
        K = known_intrinsics(name)
        if K is None:
            raise SequenceError(f'{folder}: has no calibration.yaml (fx fy cx cy width height), and its name tells none of the known cameras fr1, fr2, fr3')
        return Calibration('built in', K, INTRINSICS_SIZE)
    keys = _Keys(path)
    fx, fy, cx, cy = (float(keys.positive(key)) for key in ('fx', 'fy', 'cx', 'cy'))
    width, height = (int(keys.positive(key, whole=True)) for key in ('width', 'height'))
    for key, value, limit in (('cx', cx, width), ('cy', cy, height)):
        if value >= limit:
            raise keys.wrong(key, f'the principal point within the {width} x {height} pixels')
    return Calibration(str(path), camera_matrix(fx, fy, cx, cy), (width, height), float(keys.positive('depth_scale', DEPTH_SCALE)),
                       keys.name('frame_id', DEFAULT_FRAME_ID))


def _laser(folder: Path) -> tuple[Mount | None, tuple[Scan, ...] | None]:
    """The laser's place and its scans, or (None, None) where there are none."""
    path = folder / 'scan.txt'
    if not path.exists():
        return None, None
    keys = _Keys(folder / 'laser.yaml')
    mount = Mount(keys.name('frame_id'), np.hstack([keys.numbers('translation', 3), keys.numbers('quaternion', 4)]))
    scans = []
    for number, stamp, words in table(path, ' '.join(('timestamp', *SCAN_COLUMNS, 'ranges...'))):
        try:
            values = np.array(words, np.float32)
        except ValueError as error:
            raise SequenceError(f'{path}:{number}: {error}') from None
        if len(values) <= len(SCAN_COLUMNS) or not np.isfinite(values[:len(SCAN_COLUMNS)]).all():
            raise SequenceError(f'{path}:{number}: expected `timestamp {" ".join(SCAN_COLUMNS)} ranges...`, got {len(words) + 1} words')
        scans.append(Scan(stamp, mount.frame_id, *(float(v) for v in values[:len(SCAN_COLUMNS)]), values[len(SCAN_COLUMNS):]))
    return mount, tuple(scans)
