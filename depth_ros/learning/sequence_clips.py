"""Clips of a recorded sequence with reference poses: a keyframe and earlier frames, as a robot has them. For scoring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from depth_ros import settings
from depth_ros.frames import CameraFrame
from depth_ros.learning.clips import Clip
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.trajectory import NANOSECONDS, SequenceError, Trajectory, read_trajectory
from depth_ros.learning.tum import open_sequence
from depth_ros.settings import setting


@dataclass(frozen=True)
class SequenceClipData:
    """Which clips of a sequence."""

    sequence: str = setting('', 'TUM folder, bag or `sample`')
    poses: str = setting('', 'TUM trajectory with the reference poses; empty: those of the sequence')
    first: int = setting(0, 'first frame that is a keyframe', '', 0)
    last: int = setting(-1, 'last frame that is a keyframe; -1: that of the sequence', '', -1)
    every: int = setting(10, 'step from keyframe to keyframe', 'frames', 1)
    views: int = setting(4, 'earlier frames of a clip', '', 1, 16)
    window: float = setting(1.0, 'how long before the keyframe they may be', 's', 0.01)
    nearest: float = setting(0.02, "smallest baseline, as a share of the keyframe's median depth", '', 1e-4, 1.0)
    farthest: float = setting(0.2, "largest baseline, as a share of the keyframe's median depth", '', 1e-3, 1.0)
    most_turn: float = setting(20.0, 'largest rotation from the keyframe', 'deg', 0.1, 180.0)
    width: int = setting(320, 'width of the views', 'px', 32, 1920)
    height: int = setting(240, 'height of the views', 'px', 24, 1200)


@dataclass(frozen=True)
class SequenceClip:
    """A clip whose last view is the keyframe."""

    frame: int                      # of the keyframe, in the sequence
    stamps: tuple[int, ...]         # [ns] of the views
    clip: Clip


def sequence_clips(spec: SequenceClipData) -> Iterator[SequenceClip]:
    """The clips in the order of their keyframes; a keyframe without pose, depth or enough suitable frames before it has none. Raises SequenceError without poses."""
    settings.check(spec)
    with open_sequence(spec.sequence) as sequence:
        poses = read_trajectory(spec.poses) if spec.poses else sequence.ground_truth
        if poses is None:
            raise SequenceError(f'{spec.sequence}: has no ground truth, and no reference poses were given')
        last = len(sequence) - 1 if spec.last < 0 else min(spec.last, len(sequence) - 1)
        for key in range(spec.first, last + 1, spec.every):
            clip = _clip(sequence, poses, key, spec)
            if clip is not None:
                yield clip


def _clip(sequence: Sequence, poses: Trajectory, key: int, spec: SequenceClipData) -> SequenceClip | None:
    stamps = sequence.colour_stamps
    T_world_key = poses.at(int(stamps[key]))
    if T_world_key is None:
        return None
    frame = sequence[key]
    if frame.depth is None or not frame.depth_valid.any():
        return None
    median = float(np.median(frame.depth[frame.depth_valid]))
    earlier = {}
    for index in range(int(np.searchsorted(stamps, stamps[key] - int(spec.window * NANOSECONDS))), key):
        T_world_cam = poses.at(int(stamps[index]))
        if T_world_cam is not None:
            earlier[index] = T_world_cam
    chosen = _spread(earlier, T_world_key, median, spec)
    if len(chosen) < spec.views:
        return None
    frames = [*(sequence[i].resized(spec.width, spec.height) for i in chosen), frame.resized(spec.width, spec.height)]
    clip = Clip(np.stack([f.image for f in frames]), np.stack([_depth(f) for f in frames]), frames[-1].K, np.stack([*(earlier[i] for i in chosen), T_world_key]))
    return SequenceClip(key, tuple(f.stamp for f in frames), clip)


def _spread(earlier: dict[int, np.ndarray], T_world_key: np.ndarray, median: float, spec: SequenceClipData) -> list[int]:
    """So many frames, by time, of those with suitable motion, that their baselines are spread evenly up to the largest; fewer if there are no more."""
    baselines = {}
    for index, T_world_cam in earlier.items():
        T = np.linalg.inv(T_world_cam) @ T_world_key
        share, turn = np.linalg.norm(T[:3, 3]) / median, np.degrees(Rotation.from_matrix(T[:3, :3]).magnitude())
        if spec.nearest <= share <= spec.farthest and turn <= spec.most_turn:
            baselines[index] = share
    largest = max(baselines.values(), default=0.0)
    chosen: list[int] = []
    for wanted in np.arange(spec.views, 0, -1) / spec.views * largest:
        left = [index for index in baselines if index not in chosen]
        if left:
            chosen.append(min(left, key=lambda index: abs(baselines[index] - wanted)))
    return sorted(chosen)


def _depth(frame: CameraFrame) -> np.ndarray:
    """(H, W) [m], 0 where there is none."""
    return np.zeros(frame.image.shape[:2], np.float32) if frame.depth is None else np.where(frame.depth_valid, frame.depth, np.float32(0.0))
