"""What a robot sees and measures along a sequence from which a network shall learn: pairs with flow and motion, hits cut from the depth image, and faults of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from depth_ros.apps import runs
from depth_ros.apps.depth_scores import SCORED_RANGE
from depth_ros.engines.deepv2d import DeepV2DConfig
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, ImagePair
from depth_ros.learning import metrics
from depth_ros.learning.tum import Sequence
from depth_ros.learning.trajectory import Trajectory

MOST_HITS = 64          # of a scan
FLOW_WIDTH = 256        # [px] that flow is computed at, at least
NOISE = 0.01            # of a range, relative, one standard deviation
OUTLIERS = 0.3          # share of the hits that a fault takes
FAULT_RANGES = 0.3, 10.0        # [m] that outliers are drawn from
LASTS = 5_000_000_000   # [ns] for which ranges are ten times too long, or the image hangs
HANGS_AFTER = 2_000_000_000     # [ns] of a pass
TILT = np.radians(10.0)
FAULTS = ('none', 'outliers', 'nan', 'tenfold', 'tilt', 'frozen')


@dataclass(frozen=True)
class CourseConfig:
    """How the sequence is driven."""

    gap: int = 10               # frames from the reference image to the current one
    every: int = 1              # so many frames is used
    hold_out_last: int = 60     # frames at the end give no hits
    hits: str = 'row'           # row | single
    fault: str = 'none'         # one of FAULTS
    seed: int = 0


@dataclass(frozen=True)
class Moment:
    """One frame of the sequence, and what a robot knows of it."""

    index: int
    result: FlowResult              # with the frame a gap before, at the network's size
    lesson: FlowResult              # the same at the size that is learned at
    T_ref_cur: np.ndarray           # (4, 4) [m]
    T_world_cur: np.ndarray         # (4, 4) [m]
    hits: np.ndarray | None         # (h, w) [m] at the camera's size, 0 where none; None for a held-out frame
    tracked: DepthResult | None     # the tracker's depth from flow, at its own size
    tracked_error: float | None     # its score

    @property
    def truth(self) -> CameraFrame:
        """With sensor depth, at the network's size."""
        return self.result.pair.current

    @property
    def step(self) -> float:
        """[m] from the reference to the current frame."""
        return float(np.linalg.norm(self.T_ref_cur[:3, 3]))


def moments(sequence: Sequence, poses: Trajectory, named: str, course: CourseConfig, size: tuple[int, int], learned_size: tuple[int, int]) -> list[Moment]:
    """The frames that have a reference, depth and poses (`named`: their file), with the flow and the tracker's depth; some 3 MB each."""
    finer = -(-FLOW_WIDTH // size[0])
    fine = finer * size[0], finer * size[1]
    flow, frames, found = FlowEngine(FlowConfig(width=fine[0], height=fine[1], preset='depth')), {}, []
    for step in _steps(sequence, poses, named, course.fault):
        pose = poses.at(int(sequence.colour_stamps[step.index]))
        frames = {i: known for i, known in frames.items() if i >= step.index - course.gap} | {step.index: (step.frame.resized(*fine), pose)}
        if step.index - course.gap not in frames or step.index % course.every or step.frame.depth is None or not step.frame.depth_valid.any():
            continue
        reference, T_world_ref = frames[step.index - course.gap]
        first = found[0].truth.stamp if found else step.frame.stamp
        hits = None
        if step.index < len(sequence) - course.hold_out_last:
            hits = cut_hits(step.frame, course.hits, course.fault, np.random.default_rng([course.seed, step.index]), first)
        whole = flow.step(ImagePair(frames[step.index][0], reference))
        found.append(Moment(step.index, whole.resized(*size), whole.resized(*learned_size), np.linalg.inv(T_world_ref) @ pose, pose, hits, step.depth,
                            score(step.depth, step.frame)))
    if not found:
        raise ValueError(f'{sequence.name}: no frame has depth, a pose and another frame {course.gap} before it')
    return found


def _steps(sequence: Sequence, poses: Trajectory, named: str, fault: str) -> Iterator[runs.Step]:
    """The tracker's depth along the way, and what it saw; of a camera that hangs, the image that it hangs at."""
    course = runs.Course(Hanging(sequence) if fault == 'frozen' else sequence, poses, named)
    return runs.deepv2d(course, DeepV2DConfig(depth='flow'))


class Hanging:
    """A sequence whose camera repeats one image for a while. Everything else goes on."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        stamps = np.asarray(sequence.colour_stamps)
        hangs = (stamps >= stamps[0] + HANGS_AFTER) & (stamps < stamps[0] + HANGS_AFTER + LASTS)
        self._shown = np.where(hangs, np.argmax(hangs), np.arange(len(stamps)))

    def __getattr__(self, name: str) -> object:
        return getattr(self._sequence, name)

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> CameraFrame:
        frame, shown = self._sequence[index], int(self._shown[index])
        return frame if shown == index else replace(frame, image=self._sequence[shown].image)


def cut_hits(frame: CameraFrame, kind: str, fault: str, random: np.random.Generator, first: int) -> np.ndarray:
    """Range hits (H, W) [m] of a sensor at the camera: the middle row of the depth image or its middle, with noise and a fault; they began at `first` [ns]."""
    row, hits = int(round(frame.K[1, 2])), np.zeros(frame.depth.shape, np.float32)
    if kind == 'row':
        columns = np.linspace(0, frame.size[0] - 1, MOST_HITS).round().astype(int)
    else:
        columns = np.array([int(round(frame.K[0, 2]))])
    columns = columns[frame.depth_valid[row, columns]]
    depth = frame.depth[row, columns] * (1 + NOISE * random.standard_normal(len(columns)))
    spoilt = random.random(len(columns)) < OUTLIERS
    if fault == 'outliers':
        depth = np.where(spoilt, random.uniform(*FAULT_RANGES, len(columns)), depth)
    elif fault == 'nan':
        depth = np.where(spoilt, np.nan, depth)
    elif fault == 'tenfold' and frame.stamp - first < LASTS:
        depth = 10 * depth
    elif fault == 'tilt':
        row = min(row + int(frame.K[1, 1] * np.tan(TILT)), frame.size[1] - 1)
    hits[row, columns] = depth
    return hits


def score(result: DepthResult | None, truth: CameraFrame) -> float | None:
    """Abs-Rel in metres, as predicted, over all pixels that the sensor knows; one without a prediction counts as far away. None without a result."""
    if result is None:
        return None
    truth = truth.resized(*result.frame.size)
    predicted = np.clip(np.where(result.valid, result.depth, SCORED_RANGE[1]), *SCORED_RANGE)
    return metrics.depth_metrics(predicted, truth.depth, truth.depth_valid)['abs_rel']
