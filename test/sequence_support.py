"""Small sequences for the tests, and the comparison of their events."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from depth_ros.learning.sequences import ColourEvent, DepthEvent, Event, Mount, PoseEvent, Scan, ScanEvent, camera_matrix
from depth_ros.learning.tum_writer import TumWriter

START = 1_305_031_102_175_304_123     # [ns]
STEP = 33_333_333
BEGINNING = 60      # frames of the fixture `beginning`


def random_row(rng: np.random.Generator) -> np.ndarray:
    """A random pose: tx ty tz, qx qy qz qw."""
    quaternion = rng.normal(size=4)
    return np.hstack([rng.normal(size=3), quaternion / np.linalg.norm(quaternion)])


def random_events(rng: np.random.Generator, frames: int, size: tuple[int, int], scans: bool = True) -> list[Event]:
    """Events of a camera of `size` (width, height) and a laser, with depth 5 ms after colour and poses in between."""
    events: list[Event] = []
    for i in range(frames):
        stamp = START + i * STEP
        raw = rng.integers(0, 60000, size[::-1], dtype=np.uint16) * rng.integers(0, 2, size[::-1], dtype=np.uint16)
        depth = np.where(raw > 0, raw.astype(np.float32) / np.float32(5000.0), np.float32(np.nan))
        events.append(ColourEvent(stamp, rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)))
        events.append(DepthEvent(stamp + 5_000_000, depth))
        events.append(PoseEvent(stamp + 1_000_001, random_row(rng)))
        if scans and i % 2 == 0:
            ranges = rng.uniform(0.2, 9.0, 11).astype(np.float32)
            ranges[[1, 4, 7]] = np.inf, -np.inf, np.nan
            fields = (float(np.float32(v)) for v in (-1.1, 1.1, 0.22, 1e-4, 0.1, 0.12, 9.5))
            events.append(ScanEvent(stamp, Scan(stamp, 'laser', *fields, ranges)))
    return sorted(events, key=lambda e: e.stamp)


def write_folder(folder: Path, events: Iterable[Event], size: tuple[int, int], mount: Mount | None = None) -> Path:
    """A TUM folder with these events."""
    writer = TumWriter(folder, camera_matrix(30.1, 31.7, 15.2, 11.9), size, 'camera_optical', mount)
    for event in events:
        writer.add(event)
    writer.close()
    return folder


def random_folder(folder: Path, frames: int = 5, size: tuple[int, int] = (32, 24), scans: bool = True, seed: int = 0) -> Path:
    """A TUM folder of noise, with ground truth and scans."""
    rng = np.random.default_rng(seed)
    return write_folder(folder, random_events(rng, frames, size, scans), size, Mount('laser', random_row(rng)) if scans else None)


def walking_folder(folder: Path, frames: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """A TUM folder of noise whose camera goes 5 cm to the side from frame to frame."""
    events = random_events(np.random.default_rng(seed), frames, size, scans=False)
    first = next(event.stamp for event in events if isinstance(event, PoseEvent))
    walked = [PoseEvent(event.stamp, np.array([0.05 * (event.stamp - first) / STEP, 0, 0, 0, 0, 0, 1.0])) if isinstance(event, PoseEvent) else event for event in events]
    return write_folder(folder, walked, size)


def head_of(source: Path, target: Path, frames: int) -> Path:
    """The first frames of a TUM folder, as a folder of its own."""
    target.mkdir()
    shutil.copy(source / 'calibration.yaml', target)
    for name in ('rgb.txt', 'depth.txt', 'groundtruth.txt'):
        lines = [line for line in (source / name).read_text().splitlines() if not line.startswith('#')][:frames]
        (target / name).write_text('\n'.join(lines) + '\n')
        if name != 'groundtruth.txt':
            (target / name.removesuffix('.txt')).mkdir()
            for line in lines:
                shutil.copy(source / line.split()[1], target / line.split()[1])
    return target


def assert_identical(a: object, b: object) -> None:
    """Fails unless two events are the same bit for bit."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (other.dtype, other.shape), name
            assert value.tobytes() == other.tobytes(), name
        elif isinstance(value, Scan):
            assert_identical(value, other)
        else:
            assert value == other, name
