"""Stamps, rows of poses and trajectories, as TUM text files hold them: `timestamp tx ty tz qx qy qz qw`, seconds and metres.

Stamps are read as decimal strings straight into nanoseconds: a float has too few digits for today's seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

NANOSECONDS = 1_000_000_000
MAX_GAP = NANOSECONDS // 10     # [ns] between poses that may still be interpolated
_STAMP = re.compile(r'(\d+)(?:\.(\d*))?')
_NORM_TOLERANCE = 1e-2          # of a quaternion's norm


class SequenceError(ValueError):
    """A sequence, bag or trajectory that cannot be used; the text names the file and line, or the topic."""


def parse_stamp(text: str) -> int:
    """Nanoseconds of decimal seconds such as `1305031102.175304`, exact. Raises ValueError for anything else, or for more than 9 decimals."""
    found = _STAMP.fullmatch(text)
    decimals = (found[2] or '').rstrip('0') if found else ''
    if found is None or len(decimals) > 9:
        raise ValueError(f'expected a time stamp in seconds with at most 9 decimals, got {text!r}')
    return int(found[1]) * NANOSECONDS + int(decimals.ljust(9, '0'))


def format_stamp(stamp: int) -> str:
    """Decimal seconds with 9 decimals of a stamp [ns], exact."""
    seconds, rest = divmod(int(stamp), NANOSECONDS)
    return f'{seconds}.{rest:09d}'


def table(path: Path, columns: str) -> list[tuple[int, int, list[str]]]:
    """(line number, stamp [ns], remaining words) of a text file whose lines start with a stamp; `columns` names them for errors.

    Lines that are empty or start with `#` are skipped. Raises SequenceError unless the stamps rise from line to line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SequenceError(f'{path}: cannot be read: {error}') from error
    rows: list[tuple[int, int, list[str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(',', ' ').split()
        if not words or words[0].startswith('#'):
            continue
        try:
            stamp = parse_stamp(words[0])
        except ValueError as error:
            raise SequenceError(f'{path}:{number}: {error} (expected columns: {columns})') from None
        if rows and stamp <= rows[-1][1]:
            what = 'a duplicate' if stamp == rows[-1][1] else 'an unsorted'
            raise SequenceError(f'{path}:{number}: {what} time stamp {words[0]}, after that of line {rows[-1][0]}')
        rows.append((number, stamp, words[1:]))
    return rows


@dataclass(frozen=True)
class PoseTable:
    """Poses exactly as they were recorded: the very doubles, so that a copy of a sequence is the same sequence."""

    stamps: np.ndarray      # (N,) int64 [ns]
    rows: np.ndarray        # (N, 7) float64: tx ty tz [m], qx qy qz qw

    @property
    def trajectory(self) -> Trajectory:
        """The same as matrices, T_world_cam."""
        return Trajectory(self.stamps, pose_matrices(self.rows))


@dataclass(frozen=True)
class Trajectory:
    """Camera poses over time."""

    stamps_ns: np.ndarray       # (N,) int64 [ns], rising
    T_world_cam: np.ndarray     # (N, 4, 4) float64, cam is optical

    def __post_init__(self) -> None:
        """Raise ValueError unless the shapes agree and the stamps rise."""
        stamps, T = np.asarray(self.stamps_ns, np.int64), np.asarray(self.T_world_cam, np.float64)
        if stamps.ndim != 1 or T.shape != (len(stamps), 4, 4):
            raise ValueError(f'expected stamps (N,) and poses (N, 4, 4), got {stamps.shape} and {T.shape}')
        if (np.diff(stamps) <= 0).any():
            raise ValueError('expected rising stamps')
        object.__setattr__(self, 'stamps_ns', stamps)
        object.__setattr__(self, 'T_world_cam', T)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @cached_property
    def _rotations(self) -> Rotation:
        return Rotation.from_matrix(self.T_world_cam[:, :3, :3])

    def at(self, stamp: int, max_gap: int = MAX_GAP) -> np.ndarray | None:
        """T_world_cam (4, 4) at a stamp [ns]: linear in position, spherical in rotation.

        None before the first and after the last pose, and between poses further apart than max_gap [ns].
        """
        after = int(np.searchsorted(self.stamps_ns, stamp))
        if after < len(self) and self.stamps_ns[after] == stamp:
            return self.T_world_cam[after].copy()
        if after in (0, len(self)):
            return None
        begin, end = (int(s) for s in self.stamps_ns[after - 1:after + 1])
        if end - begin > max_gap:
            return None
        share = (int(stamp) - begin) / (end - begin)
        T = np.eye(4)
        T[:3, :3] = Slerp([0.0, 1.0], self._rotations[after - 1:after + 1])(share).as_matrix()
        T[:3, 3] = (1.0 - share) * self.T_world_cam[after - 1, :3, 3] + share * self.T_world_cam[after, :3, 3]
        return T


def pose_matrices(rows: np.ndarray) -> np.ndarray:
    """T (N, 4, 4) of rows (N, 7): tx ty tz [m], qx qy qz qw of any non-zero norm."""
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    if len(rows):
        T[:, :3, :3] = Rotation.from_quat(rows[:, 3:]).as_matrix()
        T[:, :3, 3] = rows[:, :3]
    return T


def pose_rows(T: np.ndarray) -> np.ndarray:
    """Rows (N, 7), tx ty tz [m] qx qy qz qw with qw >= 0, of T (N, 4, 4)."""
    if len(T) == 0:
        return np.zeros((0, 7))
    return np.hstack([T[:, :3, 3], Rotation.from_matrix(T[:, :3, :3]).as_quat(canonical=True)]) + 0.0


def read_poses(path: str | Path) -> PoseTable:
    """The rows of a TUM trajectory file. Raises SequenceError naming the line that cannot be used."""
    path = Path(path)
    stamps, rows = [], []
    for number, stamp, words in table(path, 'timestamp tx ty tz qx qy qz qw'):
        try:
            row = [float(w) for w in words]
        except ValueError:
            row = []
        if len(row) != 7 or not np.isfinite(row).all() or abs(np.linalg.norm(row[3:]) - 1.0) > _NORM_TOLERANCE:
            raise SequenceError(f'{path}:{number}: expected `timestamp tx ty tz qx qy qz qw` with finite numbers and a unit quaternion, got {" ".join(words)!r}')
        stamps.append(stamp)
        rows.append(row)
    if not rows:
        raise SequenceError(f'{path}: holds no pose')
    return PoseTable(np.array(stamps, np.int64), np.array(rows) + 0.0)     # + 0.0: no negative zeros, which transforms do not keep


def read_trajectory(path: str | Path) -> Trajectory:
    """A trajectory from a TUM text file. Raises SequenceError naming the line that cannot be used."""
    return read_poses(path).trajectory


def write_trajectory(path: str | Path, trajectory: Trajectory) -> None:
    """Write a TUM text file that evo reads: stamps exact, 9 decimals elsewhere."""
    rows = pose_rows(trajectory.T_world_cam)
    lines = [f'{format_stamp(s)} ' + ' '.join(f'{v:.9f}' for v in row) for s, row in zip(trajectory.stamps_ns, rows)]
    Path(path).write_text('\n'.join(['# timestamp tx ty tz qx qy qz qw', *lines, '']))
