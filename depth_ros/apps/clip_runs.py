"""A short clip, a keyframe and views around it, through DeepV2D's networks, through a plane sweep, and through the tracker that lives on flow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from depth_ros.engines.alternation import Alternation, AlternationConfig, AlternationResult, AlternationStatus
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.engines.keyframes import DepthMap
from depth_ros.engines.sweep import Sweeper, SweepSettings
from depth_ros.frames import CameraFrame, TrackStatus
from depth_ros.geometry import se3
from depth_ros.learning import clip_augmentation, metrics, pose_metrics
from depth_ros.learning.clips import ClipBatch, ClipStore, clip_batch, middle_first
from depth_ros.learning.sequence_clips import SequenceClipData, sequence_clips
from depth_ros.models.deepv2d import DeepV2D
from depth_ros.settings import settings_of

_TENTH = 100_000_000    # [ns] between the frames of a clip, as the tracker is told: within what it follows
_LOOKS, _SETTLED = 5, 0.03      # times that depth is looked at anew at given poses, until its median changes by no more than so much
_PASSES = 2             # times that the tracker sees every view, for in a video it would see those between, too


@dataclass(frozen=True)
class Trial:
    """One clip that is put to the test, with its truth."""

    number: int
    frames: tuple[CameraFrame, ...]     # keyframe first
    depth: np.ndarray                   # (H, W) [m] of the keyframe, 0 where not valid
    T_view_key: np.ndarray              # (V, 4, 4) [m]

    def of_views(self, chosen: Sequence[int]) -> Trial:
        """The same with some of the views only, which count from 0."""
        return replace(self, frames=(self.frames[0], *(self.frames[1 + view] for view in chosen)), T_view_key=self.T_view_key[list(chosen)])

    def at_focal(self, factor: float) -> Trial:
        """The same with a calibration whose focal length is wrong by a factor."""
        K = self.frames[0].K.copy()
        K[[0, 1], [0, 1]] *= factor
        return replace(self, frames=tuple(replace(frame, K=K) for frame in self.frames))


@dataclass(frozen=True)
class Found:
    """What some way gave for a clip; None where it gave nothing."""

    depth: np.ndarray | None = None             # (H, W) of the keyframe, 0 where not known
    T_view_key: np.ndarray | None = None        # (V, 4, 4), in the unit of depth if there is one
    confidence: np.ndarray | None = None        # (H, W) in [0, 1]
    focal: float | None = None                  # [px]
    focal_deviation: float | None = None        # of its logarithm, if flow told it
    views: tuple[int, ...] = ()                 # of the trial, which poses are of; () for all

    def scores(self, trial: Trial) -> dict[str, float]:
        """Metrics of what there is, after a match of the free unit: depth by its median, translations by the factor that fits them all best."""
        told: dict[str, float] = {}
        valid = np.zeros(trial.depth.shape, bool) if self.depth is None else (trial.depth > 0) & (self.depth > 0)
        if valid.any():
            told |= metrics.depth_metrics(self.depth * metrics.median_scale(self.depth, trial.depth, valid), trial.depth, valid)
        if self.T_view_key is not None:
            found, true = torch.from_numpy(self.T_view_key), torch.from_numpy(trial.T_view_key)
            matched = pose_metrics.rescaled(found, pose_metrics.length_factor(found, true))
            told |= metrics.mean_metrics(pose_metrics.pose_metrics(matched, true))
        return told


def synthetic(store: ClipStore, count: int, reduce: int = 1) -> Iterator[Trial]:
    """The first clips of a store, at 1 / reduce of their size."""
    for number in range(min(count, len(store))):
        key, *others = middle_first(store.views)
        yield _trial(number, clip_augmentation.reduce(store.batch([number], [_drawn(number, key, others)]), reduce))


def recorded(spec: SequenceClipData, count: int) -> Iterator[Trial]:
    """The first clips of a recorded sequence, whose keyframe is the last view."""
    for number, found in enumerate(itertools.islice(sequence_clips(spec), count)):
        yield _trial(number, clip_batch([found.clip], [_drawn(number, spec.views, range(spec.views))]))


def _drawn(number: int, key: int, others: Sequence[int]) -> list[int]:
    """The keyframe, and the others in an order drawn for each clip, so that the first few are not nearer or farther than the rest."""
    return [key, *np.random.default_rng(number).permutation(others).tolist()]


def _trial(number: int, batch: ClipBatch) -> Trial:
    images = (255.0 * batch.images[0]).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    stamps = (1 + number * len(images) + np.arange(len(images))) * _TENTH      # no two images are of the same time: features are kept by stamp
    frames = tuple(CameraFrame(int(stamp), 'camera', image, batch.K[0].double().numpy()) for stamp, image in zip(stamps, images))
    T = batch.T_cam_world[0].double()
    return Trial(number, frames, torch.where(batch.valid[0, 0], batch.depth[0, 0], 0.0).numpy(), (T[1:] @ se3.inverse(T[:1])).numpy())


class Runner:
    """DeepV2D's networks on clips; whatever is asked of a clip, the features of its images and the flow between them are worked out once."""

    def __init__(self, network: DeepV2D, config: AlternationConfig, device: torch.device | str = 'cpu') -> None:
        self.config = config
        self._network, self._device = network, device
        first = Alternation(network, config, device)
        self._seen = first.motion_features, first.depth_features, first.flows

    def rounds(self, trial: Trial, **changes: object) -> list[Found]:
        """What there is after each round, from nothing known to the end or to where nothing is found any more; `changes` of the configuration."""
        config = replace(self.config, **changes)
        found: list[Found] = []
        last: AlternationResult | None = None
        for number in range(1, config.rounds + 1):
            if config.form == 'global' or last is None:        # the depths of all frames, which that form goes on with, are not told
                last = self._with(replace(config, rounds=number)).run(trial.frames)
            else:
                frames = [replace(frame, K=last.K) for frame in trial.frames]
                unknown = config.uncalibrated and last.focal_deviation is None
                turn = self._with(replace(config, rounds=1, uncalibrated=unknown)).run(frames, DepthMap(last.depth, last.depth > 0), last.T_view_key)
                last = replace(turn, focal_deviation=last.focal_deviation)
            if last.status is not AlternationStatus.OK:
                break
            found.append(_told(last))
        return found

    def at_poses(self, trial: Trial, T_view_key: np.ndarray) -> Found:
        """Depth by given poses, which stay as they are. The usual depth, in their unit, is what looking at them a few times tells."""
        alone = self._with(replace(self.config, rounds=1, min_parallax=0.0, uncalibrated=False))
        expected = None
        for _ in range(_LOOKS):
            found = alone.run(trial.frames, T_view_key=T_view_key, expected_depth=expected)
            if found.status is not AlternationStatus.OK:
                return Found()
            before, expected = expected, float(np.median(found.depth))
            if before is not None and abs(expected / before - 1.0) < _SETTLED:
                break
        return _told(found)

    def _with(self, config: AlternationConfig) -> Alternation:
        """The same networks and what they remember, run otherwise."""
        other = Alternation(self._network, config, self._device)
        other.motion_features, other.depth_features, other.flows = self._seen
        return other


def swept(trial: Trial, T_view_key: np.ndarray, usual_depth: float) -> Found:
    """Depth by a plane sweep at given poses, from planes about a usual depth in their unit."""
    width = trial.frames[0].size[0]
    usual = SweepSettings()
    sweeper = Sweeper(replace(usual, sweep_width=max(width * usual.sweep_width // usual.sweep_fine_width, 64), sweep_fine_width=width))
    for frame, T in zip(trial.frames[1:], np.linalg.inv(T_view_key)):
        sweeper.remember(frame, T)
    sweeper.remember(trial.frames[0], np.eye(4))
    result = sweeper.step(1.0 / usual_depth)
    return Found(result.depth, T_view_key, result.confidence)


def tracked(trial: Trial) -> Found:
    """Poses by the tracker on optical flow and the depth that it makes of it, of those views that it does not lose; nothing if it does not start.

    It starts with the keyframe and the first view that has parallax to it, however little, and then sees every view, as often as _PASSES says.
    """
    key, *views = trial.frames
    least = settings_of(DeepV2DConfig)['bootstrap_parallax'].low
    engine = DeepV2DEngine(DeepV2DConfig(motion='flow', depth='flow', width=key.size[0], height=key.size[1], bootstrap_parallax=least))
    stamps = iter(range(1, 1 + (2 + _PASSES) * len(trial.frames)))

    def step(frame: CameraFrame) -> np.ndarray | None:
        track = engine.step(replace(frame, stamp=_TENTH * next(stamps))).track
        return track.T_odom_cam if track.status is TrackStatus.OK else None

    for first in views:
        engine.reset()
        origin = engine.step(replace(key, stamp=_TENTH * next(stamps))).track.T_odom_cam
        if step(first) is not None:
            break
    else:
        return Found()
    found: dict[int, np.ndarray] = {}
    for _ in range(_PASSES):
        found |= {number: T for number, view in enumerate(views) if (T := step(view)) is not None}
    if not found:
        return Found()
    chosen = tuple(sorted(found))
    return Found(T_view_key=np.linalg.inv(np.stack([found[number] for number in chosen])) @ origin, views=chosen)


def _told(result: AlternationResult) -> Found:
    return Found(result.depth, result.T_view_key, result.confidence, float(result.K[0, 0]), result.focal_deviation)


def unmoved(views: Sequence[CameraFrame]) -> np.ndarray:
    """T_view_key (V, 4, 4) of views that are taken to stand where the keyframe stands."""
    return np.tile(np.eye(4), (len(views), 1, 1))
