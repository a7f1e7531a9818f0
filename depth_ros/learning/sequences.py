"""What every recorded sequence offers, wherever it is stored: frames by index, and its events in the order of their stamps."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from depth_ros.frames import CameraFrame
from depth_ros.learning.trajectory import PoseTable, Trajectory, pose_matrices

MAX_DEPTH_OFFSET = 20_000_000                   # [ns] between an image and the depth that belongs to it
DEFAULT_FRAME_ID = 'openni_rgb_optical_frame'   # as in TUM's bags
INTRINSICS = {                                  # TUM's calibrations of 640 x 480 images: fx fy cx cy [px]
    'fr1': (517.3, 516.5, 318.6, 255.3),
    'fr2': (520.9, 521.0, 325.1, 249.7),
    'fr3': (535.4, 539.2, 320.1, 247.6),
}
INTRINSICS_SIZE = 640, 480


@dataclass(frozen=True)
class Mount:
    """Where the laser sits on the camera; as it was recorded, like the rows of a PoseTable."""

    frame_id: str           # of the laser: x forward, z up
    row: np.ndarray         # (7,) float64 of T_cam_laser: tx ty tz [m], qx qy qz qw

    @property
    def T_cam_laser(self) -> np.ndarray:
        """(4, 4), cam is optical."""
        return pose_matrices(self.row[None])[0]


@dataclass(frozen=True)
class Scan:
    """One sweep of a 2D laser, with the fields of sensor_msgs/LaserScan (no intensities). Angles [rad], times [s], lengths [m]; REP 117."""

    stamp: int              # [ns]
    frame_id: str
    angle_min: float
    angle_max: float
    angle_increment: float
    time_increment: float
    scan_time: float
    range_min: float
    range_max: float
    ranges: np.ndarray      # (N,) float32

    def points(self) -> np.ndarray:
        """Points (M, 3) float64 [m] of the beams that hit, in the laser's own frame."""
        hit = np.isfinite(self.ranges) & (self.ranges >= np.float32(self.range_min)) & (self.ranges <= np.float32(self.range_max))
        ranges, angles = self.ranges[hit].astype(np.float64), self.angle_min + np.flatnonzero(hit) * self.angle_increment
        return np.stack([ranges * np.cos(angles), ranges * np.sin(angles), np.zeros_like(ranges)], axis=-1)


@dataclass(frozen=True)
class PoseEvent:
    """A pose of the ground truth."""

    stamp: int              # [ns]
    row: np.ndarray         # (7,) float64 of T_world_cam: tx ty tz [m], qx qy qz qw


@dataclass(frozen=True)
class ScanEvent:
    """A recorded scan."""

    stamp: int              # [ns]
    scan: Scan


@dataclass(frozen=True)
class DepthEvent:
    """A depth image."""

    stamp: int              # [ns]
    depth: np.ndarray       # (H, W) float32 [m], NaN where not valid


@dataclass(frozen=True)
class ColourEvent:
    """A colour image."""

    stamp: int              # [ns]
    image: np.ndarray       # (H, W, 3) uint8 RGB


Event = PoseEvent | ScanEvent | DepthEvent | ColourEvent


class Sequence(abc.ABC):
    """A recording of one RGB-D camera. Images are decoded when asked for. Not safe for use by several threads at once."""

    name: str
    frame_id: str                       # of the optical frame
    K: np.ndarray                       # (3, 3) float64 [px]
    size: tuple[int, int]               # (width, height) [px]
    colour_stamps: np.ndarray           # (N,) int64 [ns], rising
    depth_stamps: np.ndarray            # (M,) int64 [ns], rising; may be empty
    poses: PoseTable | None             # ground truth
    scans: tuple[Scan, ...] | None
    mount: Mount | None                 # of the laser that made the scans

    @abc.abstractmethod
    def read_colour(self, index: int) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB of colour_stamps[index]. Raises SequenceError if it cannot be decoded."""

    @abc.abstractmethod
    def read_depth(self, index: int) -> np.ndarray:
        """Depth (H, W) float32 [m] of depth_stamps[index], NaN where not valid. Raises SequenceError if it cannot be decoded."""

    @cached_property
    def ground_truth(self) -> Trajectory | None:
        """T_world_cam of the optical frame, if it was recorded."""
        return None if self.poses is None else self.poses.trajectory

    @cached_property
    def depth_of(self) -> np.ndarray:
        """Index (N,) into depth_stamps of the depth of each image, -1 where none is near enough."""
        return associate(self.colour_stamps, self.depth_stamps, MAX_DEPTH_OFFSET)

    def __len__(self) -> int:
        return len(self.colour_stamps)

    def __getitem__(self, index: int) -> CameraFrame:
        """The frame of an index; negative ones count from the end. Raises IndexError beyond the ends."""
        index = range(len(self))[index]
        depth = valid = None
        if self.depth_of[index] >= 0:
            depth = self.read_depth(int(self.depth_of[index]))
            valid = depth > 0.0
            depth = np.where(valid, depth, np.float32(0.0))
        return CameraFrame(int(self.colour_stamps[index]), self.frame_id, self.read_colour(index), self.K, depth, valid)

    def __iter__(self) -> Iterator[CameraFrame]:
        return (self[i] for i in range(len(self)))

    def timeline(self) -> list[tuple[int, type[Event], int]]:
        """(stamp [ns], kind, index) of every event, by stamp; at the same stamp poses come first and colour last, so that what belongs to it is there."""
        kinds = ((PoseEvent, () if self.poses is None else self.poses.stamps), (ScanEvent, [s.stamp for s in self.scans or ()]),
                 (DepthEvent, self.depth_stamps), (ColourEvent, self.colour_stamps))
        entries = [(int(stamp), rank, index) for rank, (_, stamps) in enumerate(kinds) for index, stamp in enumerate(stamps)]
        return [(stamp, kinds[rank][0], index) for stamp, rank, index in sorted(entries)]

    def event(self, kind: type[Event], index: int) -> Event:
        """Decode one entry of the timeline."""
        if kind is PoseEvent:
            return PoseEvent(int(self.poses.stamps[index]), self.poses.rows[index])
        if kind is ScanEvent:
            return ScanEvent(self.scans[index].stamp, self.scans[index])
        if kind is DepthEvent:
            return DepthEvent(int(self.depth_stamps[index]), self.read_depth(index))
        return ColourEvent(int(self.colour_stamps[index]), self.read_colour(index))

    def events(self) -> Iterator[Event]:
        """Everything that was recorded, in the order of timeline()."""
        return (self.event(kind, index) for _, kind, index in self.timeline())

    def close(self) -> None:
        """Release files; reading afterwards is an error."""

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def associate(stamps: np.ndarray, others: np.ndarray, max_offset: int) -> np.ndarray:
    """Index (N,) of the entry in `others` (M,) nearest to each of `stamps` (N,), both sorted [ns]; -1 where it is further than max_offset [ns]."""
    stamps, others = np.asarray(stamps, np.int64), np.asarray(others, np.int64)
    if len(others) == 0:
        return np.full(len(stamps), -1)
    after = np.searchsorted(others, stamps).clip(1, max(len(others) - 1, 1)).clip(max=len(others) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(others[before] - stamps) <= np.abs(others[after] - stamps), before, after)
    return np.where(np.abs(others[nearest] - stamps) <= max_offset, nearest, -1)


def known_intrinsics(name: str) -> np.ndarray | None:
    """TUM's calibration K (3, 3) [px] by the camera that a sequence's name tells (freiburg1, fr1, ...), or None."""
    lowered = name.lower()
    for camera, (fx, fy, cx, cy) in INTRINSICS.items():
        if camera in lowered or f'freiburg{camera[-1]}' in lowered:
            return camera_matrix(fx, fy, cx, cy)
    return None


def camera_matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """K (3, 3) float64 [px]."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def metres(raw: np.ndarray, units_per_metre: float) -> np.ndarray:
    """Depth (H, W) float32 [m] of integers (H, W), NaN where 0: one division, correctly rounded, so that every copy of a depth image is the same."""
    return np.where(raw > 0, raw.astype(np.float32) / np.float32(units_per_metre), np.float32(np.nan))
