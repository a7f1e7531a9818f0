"""Camera tracking and dense depth in one engine: DeepV2D's alternation of motion and depth, with its networks or without.

Z. Teed, J. Deng, "DeepV2D: Video to Depth with Differentiable Structure from Motion", ICLR 2020.

Motion comes from dense Gauss-Newton on flow (tracker), or on what the learned motion module says (learned_motion). Depth is the sensor's, or that of a recursive
filter on triangulated flow (depth_filter); now and then that of a plane sweep (sweep), or of the learned depth module (learned_depth) fused with the filter's, while tracking goes on with
the filter's. Without a sensor the first two views with enough parallax start it, and the unit of length is the median depth seen then, until range hits tell the metre.
"""
from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from depth_ros import settings
from depth_ros.engines.depth_filter import DepthFilter, DepthFilterConfig, InverseDepth, Reference
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap
from depth_ros.engines.known_flows import reverse
from depth_ros.engines.late_hits import LateHits
from depth_ros.engines.learned_depth import LearnedDepth, LearnedSettings, load
from depth_ros.engines.learned_motion import LearnedMotion
from depth_ros.engines.pairing import Pairing, PairingConfig, observed_motion
from depth_ros.engines.scale import MetricScale, MetricScaleConfig, ScaledPath
from depth_ros.engines.slam_window import FlowPairs, SlamWindow, SlamWindowConfig
from depth_ros.engines.sweep import Sweeper, SweepSettings
from depth_ros.engines.threads import single_threaded
from depth_ros.engines.tracker import UNKNOWN, Tracker, level_start
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, ImagePair, Scale, TrackResult, TrackStatus, unusable
from depth_ros.geometry.two_view import TwoViewStatus, essential_from_flow
from depth_ros.models.deepv2d import DeepV2D
from depth_ros.settings import setting

log = logging.getLogger(__name__)

_TRACKED_SIGMA = 0.4            # relative standard deviation up to which depth is tracked against
_EXACT = 0.01                   # a deviation of learned depth that leaves nothing to fuse it with
_CARRIED_TRUST = 5.0            # measured on a recorded sequence: less lets the scale drift, more lets noise into the poses


@dataclass(frozen=True)
class DeepV2DConfig(SlamWindowConfig, DepthFilterConfig, MetricScaleConfig, SweepSettings, LearnedSettings):
    """What moves, what measures, at which size."""

    motion: str = setting('flow', 'where motion comes from: dense alignment on optical flow, or on what the learned motion module says', choices=('flow', 'learned'))
    depth: str = setting('auto', 'where depth comes from: the sensor, a filter on flow, now and then a plane sweep, or the learned depth module fused with the filter; '
                         'auto: the sensor as soon as there is one, else flow', choices=('auto', 'sensor', 'flow', 'sweep', 'learned'))
    window: bool = setting(False, 'refine the poses of the last keyframes, and of frames between them, together; needs sensor depth, so it cannot go with depth flow, sweep or learned, '
                           'and with auto waits for the sensor')
    width: int = setting(320, 'image width that tracking and depth work at', 'px', 64, 1920, while_active=False)
    height: int = setting(240, 'image height that tracking and depth work at', 'px', 48, 1200, while_active=False)
    hits_offset: float = setting(0.1, 'longest time between range hits, which may come late, and the tracked image nearest to them', 's', 0.0, 1.0)
    bootstrap_parallax: float = setting(0.02, 'median parallax that starts tracking without a depth sensor, as a share of the width', '', 0.003, 0.2)


def is_learned(config: DeepV2DConfig) -> bool:
    """Whether the networks are needed."""
    return 'learned' in (config.motion, config.depth)


class EngineResult(NamedTuple):
    """What a step gave; `depth` is None where there is none (yet)."""

    track: TrackResult
    depth: DepthResult | None


class DeepV2DEngine:
    """Steps through the frames of one camera. Bad input gives a status, and `reason` says what is wrong ('' when all is well).

    The depth of a sweep or of the learned module takes as long as many frames. A caller that asked for it to be deferred finds it as `later` after the step that it
    is due in, to be called in any thread, one at a time; it gives None where nothing can be said, and `depth_reason` tells why.
    """

    def __init__(self, config: DeepV2DConfig = DeepV2DConfig(), deferred: bool = False, network: DeepV2D | None = None) -> None:
        """`deferred`: leave the depth of a sweep or of the learned module to the caller, as `later`. `network`: what `load` gave for the weights, if the caller has it.

        Raises ValueError for settings that do not go together and, naming the file, for weights that cannot be used.
        """
        settings.check(config)
        if config.window and config.depth not in ('auto', 'sensor'):
            raise ValueError(f'window: true needs sensor depth, but depth is {config.depth}')
        if is_learned(config):
            network = network or load(config.weights)
        self.config = config
        self.reason = ''
        self.later: Callable[[], DepthResult | None] | None = None
        self._deferred = deferred
        self._published = level_start()
        self._says_it_waits = config.window
        self._flow = FlowEngine()
        learned = LearnedMotion(network.motion, config.learned_iterations, self._flow) if config.motion == 'learned' else None
        self._tracker = Tracker(config, self._flow, learned=learned)
        self._flow_pairs = FlowPairs(self._flow)
        self._window = SlamWindow(learned or self._flow_pairs, config) if config.window else None
        self._keyframe_depth = LearnedDepth(network, config) if config.depth == 'learned' else Sweeper(config)
        self._filter = DepthFilter(config)
        self._scale = MetricScale(config)
        self._hits = LateHits(config.hits_offset, config.max_gap)
        self._path = ScaledPath()
        self._start = Pairing(PairingConfig(displacement=0.2, overlap=0.4, max_age=3.0))
        self.reset()

    def reset(self, keep_pose: bool = False) -> None:
        """Forget what was seen; start at the last pose if `keep_pose`, else level at the origin."""
        pose = self._published.copy() if keep_pose else level_start()
        self._started = False
        self._previous: tuple[CameraFrame, np.ndarray] | None = None
        self._published = pose                      # in the frame and unit that results have
        self._camera: tuple[int, tuple[int, int], np.ndarray] | None = None     # stamp, size and K of the last frame
        self._source: str | None = None             # of depth; never `auto`
        self._count = 0
        self._tracker.reset(pose)
        if self._window is not None:
            self._window.reset()
        self._filter.reset()
        self._keyframe_depth.reset()
        self._scale.reset()
        self._hits.clear()
        self._path.reset()
        self._start.reset()

    @property
    def scale_restarts(self) -> int:
        """How often, since the last reset, lengths in metres were found to have been wrong: nothing made of them fits what comes."""
        return self._scale.restarts

    @property
    def depth_reason(self) -> str:
        """Why the last work on a keyframe's depth gave none; '' if it did."""
        return self._keyframe_depth.reason

    def put_hits(self, stamp: int, hits: np.ndarray) -> None:
        """Take in range hits (h, w) [m], 0 where none, as the camera saw them at a stamp [ns], be it in the past: the next step learns the scale from them."""
        self._hits.put(stamp, hits)

    @single_threaded()
    def step(self, frame: CameraFrame, bundle: FlowResult | None = None, T_odom_cam: np.ndarray | None = None,
             hits: np.ndarray | None = None) -> EngineResult:
        """Track a frame and estimate its depth.

        `bundle`: its flow with an earlier frame, if the flow node made one. `T_odom_cam`: take this pose (4, 4) [m] instead of tracking. `hits`: sparse
        depth (h, w) [m] of the frame, 0 where nothing was hit, at any size, which tells the scale; `put_hits` takes those of earlier frames.
        """
        self.reason, self.later = unusable(frame), None
        if self.reason:
            return EngineResult(self._failed(frame), None)
        self._check_stream(frame)
        small = frame.resized(self.config.width, self.config.height)
        if self._source == 'sensor':
            return self._step_sensor(small, bundle, T_odom_cam)
        return self._step_colour(replace(small, depth=None, depth_valid=None), bundle, T_odom_cam, hits)

    def _check_stream(self, frame: CameraFrame) -> None:
        """Start anew at the last pose when the clock jumps back, the camera becomes another one, or the sensor's first depth comes."""
        source = self.config.depth
        if source == 'auto':
            source = 'flow' if frame.depth is None and self._source != 'sensor' else 'sensor'
            if source == 'flow' and self._says_it_waits:
                log.info('window: true waits for sensor depth')
                self._says_it_waits = False
        if self._camera is not None:
            stamp, size, K = self._camera
            changed = size != frame.size or not np.allclose(K, frame.K)
            why = 'the camera changed' if changed else 'the clock jumped back' if frame.stamp <= stamp else 'sensor depth has come' if source != self._source else ''
            if why:
                log.warning('tracking and depth start anew at the last pose: %s', why)
                self.reset(keep_pose=True)
        self._camera, self._source = (frame.stamp, frame.size, frame.K), source

    def _failed(self, frame: CameraFrame) -> TrackResult:
        status = TrackStatus.LOST if self._started else TrackStatus.INITIALISING
        return TrackResult(frame.stamp, self._published.copy(), UNKNOWN.copy(), 0.0, status, self._unit(given=self._started and self._source == 'sensor'))

    def _step_sensor(self, small: CameraFrame, bundle: FlowResult | None, T_odom_cam: np.ndarray | None) -> EngineResult:
        track = self._tracker.step(small, bundle, T_odom_cam)
        if self._window is not None and T_odom_cam is None and track.status is TrackStatus.OK:
            track = self._refined(small, track)
        self._published = track.T_odom_cam
        self._started = self._started or track.status is TrackStatus.OK
        if small.depth is None or not small.depth_valid.any():
            self.reason = 'no sensor depth came with the image'
            return EngineResult(track, None)
        confidence = small.depth_valid.astype(np.float32)
        return EngineResult(track, DepthResult(small, small.depth, small.depth_valid, confidence, Scale.METRIC))

    def _refined(self, small: CameraFrame, track: TrackResult) -> TrackResult:
        """Take a tracked frame into the window; a keyframe's pose after all of the window moved together."""
        if self.config.motion == 'flow':
            self._flow_pairs.offer(self._tracker.flows)
        update = self._window.add(small, self._tracker.keyframes.last.depth, track.T_odom_cam, track.is_keyframe)
        if update.status is TrackStatus.LOST:       # the tracker knows better: it begins anew with the next frame
            self._window.reset()
        return replace(track, T_odom_cam=self._tracker.correct(update.poses).copy()) if update.is_keyframe else track

    def _step_colour(self, small: CameraFrame, bundle: FlowResult | None, T_odom_cam: np.ndarray | None, hits: np.ndarray | None) -> EngineResult:
        if T_odom_cam is None and not self._started:
            bundle, T_odom_cam = self._bootstrap(small)
            if T_odom_cam is None:
                return EngineResult(TrackResult(small.stamp, self._published.copy(), UNKNOWN.copy(), 0.0, TrackStatus.INITIALISING, Scale.FREE), None)
            given = False
        else:
            given = T_odom_cam is not None
        track = self._tracker.step(small, bundle, T_odom_cam)
        self._started = True
        if track.status is not TrackStatus.OK and not given:
            self._filter.reset()
            self._previous = None
            self.reason = 'tracking is lost: the image fits no remembered place'
            return EngineResult(replace(track, T_odom_cam=self._published.copy(), scale=self._unit(given)), None)
        T_odom_cam, estimate = self._estimate(small, track.T_odom_cam, given)
        track = replace(track, T_odom_cam=T_odom_cam)
        if estimate is not None:
            self._tracker.set_depth(small.stamp, _depth_map(estimate))
        elif given:
            self.reason = 'not enough parallax for depth yet'
        if hits is not None:
            self.put_hits(small.stamp, hits)
        return self._in_metres(small, track, estimate, given)

    def _bootstrap(self, small: CameraFrame) -> tuple[FlowResult | None, np.ndarray | None]:
        """Flow to the first view and the pose of this one, once the two have parallax; the median depth is then 1 unit."""
        pair = self._start.pair(small)
        if pair is None:
            self._begin_at(small)
            return None, None
        result = self._flow.step(pair)
        if observed_motion(result).displacement > self.config.bootstrap_parallax / 4:  # looking for parallax is slow; rotation can hide part of it, as in orbiting
            T_ref_cur = self._two_views(result)
            if T_ref_cur is not None:
                return result, self._published @ T_ref_cur
        self.reason = 'not enough parallax yet to start: move the camera sideways'
        if self._start.update(result):
            self._begin_at(small)
        return None, None

    def _two_views(self, result: FlowResult) -> np.ndarray | None:
        """The pose T_ref_cur (4, 4) of a pair with enough parallax, the median depth being 1; gives the tracker the reference's depth."""
        pair = result.pair
        found = essential_from_flow(result.flow, pair.current.K, result.valid)
        if found.status is not TwoViewStatus.OK or found.parallax <= self.config.bootstrap_parallax * pair.current.size[0]:
            return None
        T_ref_cur = found.T_ref_cur.copy()
        estimate = DepthFilter(self.config).step(pair.current, [Reference(result, T_ref_cur)])
        if estimate is None:
            return None
        T_ref_cur[:3, 3] *= np.median(estimate.value)
        first = DepthFilter(self.config).step(pair.reference, [Reference(reverse(result), np.linalg.inv(T_ref_cur))])
        if first is None:
            return None
        self._tracker.set_depth(pair.reference.stamp, _depth_map(first))
        return T_ref_cur

    def _begin_at(self, small: CameraFrame) -> None:
        self._tracker.reset(self._published)
        self._tracker.step(small)
        self.reason = 'waiting for a second view: move the camera sideways'

    def _estimate(self, small: CameraFrame, T_odom_cam: np.ndarray, given: bool) -> tuple[np.ndarray, InverseDepth | None]:
        """One step of the filter, with the flows that tracking had anyway and one to the previous frame; refines the pose unless it was given."""
        tracker = self._tracker
        pairs = [(flow, tracker.keyframes.find(flow.pair.reference.stamp)) for flow in tracker.flows]
        carried = None
        if self._previous is not None:
            before, T_odom_before = self._previous
            known = [flow for flow, view in pairs if view.stamp == before.stamp]
            flow = known[0] if known else self._flow.step(ImagePair(small, before))
            carried = self._filter.carry(flow.flow, np.linalg.inv(T_odom_before) @ T_odom_cam, small.K)
        if carried is not None and not given:
            T_odom_cam = tracker.refine(_depth_map(carried, _CARRIED_TRUST))     # what holds the scale from keyframe to keyframe
        self._previous = small, T_odom_cam
        self._keyframe_depth.remember(small, T_odom_cam)
        references = [Reference(flow, np.linalg.inv(view.T_odom_cam) @ T_odom_cam) for flow, view in pairs]
        return T_odom_cam, self._filter.step(small, references, carried)

    def _in_metres(self, small: CameraFrame, track: TrackResult, estimate: InverseDepth | None, given: bool) -> EngineResult:
        if given:
            self._published = track.T_odom_cam
            return EngineResult(replace(track, scale=Scale.METRIC), self._depth_result(small, estimate, 1.0, Scale.METRIC))
        if estimate is not None:
            self._hits.remember(small, track.T_odom_cam, estimate)
            for then, late in self._hits.compared(self._scale.factor):
                self._scale.update(then.depth, self._filter.confidence(then) >= 0.5, late)
        factor, unit = self._scale.factor or 1.0, self._unit(given)
        if self._scale.factor is None:
            self.reason = 'the scale is free: no range hits have told it'
        self._published = self._path.pose(track.T_odom_cam, factor)
        track = replace(track, T_odom_cam=self._published.copy(), covariance=_scaled(track.covariance, factor), scale=unit)
        return EngineResult(track, self._depth_result(small, estimate, factor, unit))

    def _unit(self, given: bool) -> Scale:
        return Scale.METRIC if given or self._scale.factor is not None else Scale.FREE

    def _depth_result(self, small: CameraFrame, estimate: InverseDepth | None, factor: float, unit: Scale) -> DepthResult | None:
        """The filter's depth, or that of a sweep or the network if it is time for one and it is not deferred, times `factor`, which makes it of that unit."""
        self._count += 1
        if estimate is None:
            return None
        if self._source == 'flow':
            everywhere = np.ones(estimate.value.shape, bool)
            return _in_unit(DepthResult(small, estimate.depth, everywhere, self._filter.confidence(estimate), Scale.FREE), factor, unit)
        if (self._count - 1) % self.config.sweep_every:
            return None
        work = self._keyframe_depth.later(float(np.median(estimate.value)))
        if work is None:
            return None
        fuses = self._source == 'learned' and self.config.learned_deviation >= _EXACT
        fuse = partial(_fused, self._filter, estimate, self.config.learned_deviation) if fuses else None
        self.later = partial(_worked_out, work, fuse, factor, unit)
        if self._deferred:
            return None
        depth, self.later = self.later(), None
        self.reason = self.reason or self.depth_reason
        return depth


def _worked_out(work: Callable[[], DepthResult | None], fuse: Callable[[DepthResult], DepthResult] | None, factor: float, unit: Scale) -> DepthResult | None:
    """What a sweep or the network gives, fused if it is to be, times `factor`."""
    depth = work()
    if depth is None:
        return None
    return _in_unit(depth if fuse is None else fuse(depth), factor, unit)


def _fused(with_filter: DepthFilter, estimate: InverseDepth, deviation: float, depth: DepthResult) -> DepthResult:
    """Depth of that relative standard deviation where it is fully confident, as one more measurement of the filter's estimate.

    Its confidence is the filter's, too: what only the network tells is little sure, and enters no map.
    """
    value, information = (cv2.resize(a, depth.frame.size) for a in (estimate.value, estimate.information))
    there = depth.valid & (depth.depth > 0) & (depth.depth < np.inf)
    inverse = np.divide(1.0, depth.depth, out=value.copy(), where=there)
    measured = InverseDepth(inverse, np.where(there, depth.confidence / (np.float32(deviation) * inverse) ** 2, np.float32(0.0)))
    fused = with_filter.fused(measured, InverseDepth(value, information))
    return replace(depth, depth=fused.depth, valid=np.ones(value.shape, bool), confidence=with_filter.confidence(fused))


def _in_unit(depth: DepthResult, factor: float, unit: Scale) -> DepthResult:
    """Depth times `factor`, which makes it of that unit."""
    return replace(depth, depth=depth.depth * np.float32(factor), scale=unit)


def _depth_map(estimate: InverseDepth, trust: float = 1.0) -> DepthMap:
    """The estimate for the tracker; a higher `trust` divides its standard deviation."""
    relative, depth = estimate.relative_sigma, estimate.depth
    return DepthMap(depth, relative < _TRACKED_SIGMA, relative * depth / np.float32(trust), Scale.FREE)


def _scaled(covariance: np.ndarray, factor: float) -> np.ndarray:
    """Covariance (6, 6) of (translation, rotation) when lengths are multiplied by `factor`."""
    unit = np.diag([factor] * 3 + [1.0] * 3)
    return unit @ covariance @ unit
