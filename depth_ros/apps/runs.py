"""Engines stepped through recorded sequences, each giving the same record of every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig
from depth_ros.engines.range_projection import project_points
from depth_ros.frames import CameraFrame, DepthResult, ImagePair, Scale, TrackResult, TrackStatus
from depth_ros.learning import depth_scan
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.trajectory import Trajectory

HITS_OFFSET = 50_000_000    # [ns] between an image and a scan that belongs to it


@dataclass(frozen=True)
class Step:
    """One frame as recorded, and what the engine made of it."""

    index: int
    frame: CameraFrame
    depth: DepthResult | None
    track: TrackResult | None       # None where poses are given
    milliseconds: float             # flow and tracking included


@dataclass(frozen=True)
class Course:
    """What is run: a sequence, with given poses or none, as far as wanted."""

    sequence: Sequence
    poses: Trajectory | None = None
    poses_file: str = ''            # named if no frame has a pose
    frames: int | None = None       # stop after so many
    hits: bool = False              # feed scans as range hits

    def indices(self) -> Iterator[tuple[int, np.ndarray | None]]:
        """Index of every frame to run and its given pose (4, 4). Raises ValueError at the end if poses were given and none fits."""
        count = len(self.sequence) if self.frames is None else min(self.frames, len(self.sequence))
        found = False
        for index in tqdm(range(count), desc=Path(self.sequence.name).name, unit='frame', disable=None):
            pose = None if self.poses is None else self.poses.at(int(self.sequence.colour_stamps[index]))
            if self.poses is not None and pose is None:
                continue    # a reference may begin later than the images
            found = True
            yield index, pose
        if not found:
            raise ValueError(f'{self.sequence.name}: no frame has a pose in {self.poses_file}: do both use the same clock?')

    def hits_of(self, frame: CameraFrame) -> np.ndarray | None:
        """Sparse depth (H, W) [m] of the scan nearest in time, 0 where none; a sequence without scans has one cut from its depth, as the player does."""
        if not self.hits:
            return None
        scans, mount = self.sequence.scans, self.sequence.mount
        if scans and mount is not None:
            scan = min(scans, key=lambda s: abs(s.stamp - frame.stamp))
            if abs(scan.stamp - frame.stamp) > HITS_OFFSET:
                return None
        elif frame.depth is not None:
            scan, mount = depth_scan.cut(np.where(frame.depth_valid, frame.depth, np.nan), frame.K, frame.stamp), depth_scan.MOUNT
        else:
            return None
        T = mount.T_cam_laser
        return project_points(scan.points() @ T[:3, :3].T + T[:3, 3], frame.K, frame.size)[0]


@dataclass
class Summary:
    """What every evaluation reports of a run."""

    tracks: list[TrackResult] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Note a step."""
        self.milliseconds.append(step.milliseconds)
        if step.track is not None:
            self.tracks.append(step.track)

    @property
    def scale(self) -> Scale:
        """FREE if any pose was, for one free pose spoils the metric trajectory."""
        return Scale.FREE if any(t.scale is Scale.FREE for t in self.tracks) else Scale.METRIC

    @property
    def trajectory(self) -> Trajectory:
        """The poses that were tracked; frames before initialisation and lost ones have none."""
        good = [t for t in self.tracks if t.status is TrackStatus.OK]
        return Trajectory(np.array([t.stamp for t in good], dtype=np.int64), np.array([t.T_odom_cam for t in good]).reshape(-1, 4, 4))

    def report(self) -> dict[str, float | int]:
        """The figures."""
        states = [t.status for t in self.tracks]
        return {'frames': len(self.milliseconds), 'lost': states.count(TrackStatus.LOST), 'initialising': states.count(TrackStatus.INITIALISING),
                **times(self.milliseconds)}


def times(milliseconds: list[float] | np.ndarray) -> dict[str, float]:
    """What is told of the times of frames."""
    return {'ms_per_frame_median': float(np.median(milliseconds)), 'ms_per_frame_p95': float(np.percentile(milliseconds, 95))}


def deepv2d(course: Course, config: DeepV2DConfig) -> Iterator[Step]:
    """Track every frame and estimate its depth; without depth in the sequence `depth: auto` is flow."""
    config = resolved(config, course.sequence)
    engine = DeepV2DEngine(config)
    for index, pose in course.indices():
        frame = course.sequence[index]
        seen = frame if config.depth == 'sensor' else replace(frame, depth=None, depth_valid=None)
        hits = course.hits_of(frame)
        started = time.perf_counter()
        result = engine.step(seen, T_odom_cam=pose, hits=hits)
        yield Step(index, frame, result.depth, result.track, 1e3 * (time.perf_counter() - started))


def resolved(config: DeepV2DConfig, sequence: Sequence) -> DeepV2DConfig:
    """The configuration with `depth: auto` settled by whether the sequence has depth."""
    return config if config.depth != 'auto' else replace(config, depth='sensor' if len(sequence.depth_stamps) else 'flow')


def global_local(course: Course, config: GlobalLocalEngineConfig, gap: int, flow: FlowConfig, wanted: Callable[[int], bool]) -> Iterator[Step]:
    """Depth of the wanted frames from pairs `gap` frames apart. Poses are tracked, with all that the sequence has, where none are given and the network needs them."""
    engine, flow_engine = GlobalLocalEngine(config), FlowEngine(flow)
    tracks = course.poses is None and (config.variant == 'pose_aware' or config.scale != 'none')
    tracker = DeepV2DEngine(resolved(DeepV2DConfig(), course.sequence)) if tracks else None
    poses: dict[int, np.ndarray | None] = {}       # of the last frames, by index; None where not known in metres
    for index, pose in course.indices():
        needed = wanted(index) and index - gap in poses
        frame = course.sequence[index] if tracker is not None or needed else None
        track, tracking = None, 0.0
        if tracker is not None:
            hits, started = course.hits_of(frame), time.perf_counter()
            track = tracker.step(frame, hits=hits).track
            tracking = 1e3 * (time.perf_counter() - started)
            pose = track.T_odom_cam if track.status is TrackStatus.OK and track.scale is Scale.METRIC else None
        poses = {i: T for i, T in poses.items() if i > index - gap - 1} | {index: pose}
        if needed:
            step = _pair_step(index, frame, course, gap, (engine, flow_engine), _between(poses[index - gap], pose), track)
            yield replace(step, milliseconds=tracking + step.milliseconds)


def _pair_step(index: int, frame: CameraFrame, course: Course, gap: int, engines: tuple[GlobalLocalEngine, FlowEngine],
               T_ref_cur: np.ndarray | None, track: TrackResult | None) -> Step:
    engine, flow_engine = engines
    reference, hits = course.sequence[index - gap], course.hits_of(frame)
    size = flow_engine.config.width, flow_engine.config.height
    started = time.perf_counter()
    result = flow_engine.step(ImagePair(frame.resized(*size), reference.resized(*size)))
    length = None if T_ref_cur is None else float(np.linalg.norm(T_ref_cur[:3, 3]))
    found = engine.step(result, T_ref_cur, hits, length)
    return Step(index, frame, found.depth, track, 1e3 * (time.perf_counter() - started))


def _between(T_world_ref: np.ndarray | None, T_world_cur: np.ndarray | None) -> np.ndarray | None:
    """T_ref_cur (4, 4), None if either pose is not known."""
    return None if T_world_ref is None or T_world_cur is None else np.linalg.inv(T_world_ref) @ T_world_cur
