"""Visual odometry on dense flow: every frame is aligned with two keyframes, and finds its way back when it was lost.

DeepV2D's tracking (SYSTEMS section 2) without its networks: flow and its consistency stand for the residual flow and confidence, sensor depth or
an estimate for the depth. A keyframe is what the pairing takes as a reference; measured, two keyframes beat keyframe and previous frame, whose short
baseline adds its bias to every step. The previous frame is asked only when the keyframes fail.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from depth_ros import settings
from depth_ros.engines.alignment import Alignment, AlignmentConfig, align, pair_matches
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap, Keyframes, View
from depth_ros.engines.pairing import PairingConfig, is_spent
from depth_ros.engines.relocaliser import Found, Relocaliser, expected_flow
from depth_ros.frames import R_BODY_OPTICAL, CameraFrame, FlowResult, ImagePair, Scale, TrackResult, TrackStatus
from depth_ros.geometry import se3
from depth_ros.geometry.gauss_newton import SolveStatus
from depth_ros.settings import setting

log = logging.getLogger(__name__)

UNKNOWN = 1e3 * np.eye(6)   # covariance of a pose that is not known
MIN_INLIERS = 60            # grid points
FOUND_SHARE = 0.5           # a place is recognised with half the usual overlap: on `kitchen` all such poses are within 8 cm, with less some are 20 cm off
FOUND_AGREEMENT = 0.6       # but most of what flow is consistent about must agree


@dataclass(frozen=True)
class TrackerConfig(AlignmentConfig):
    """Alignment, and what counts as lost."""

    min_inlier_ratio: float = setting(0.3, 'share of agreeing points below which a frame counts as lost', '', 0.01, 1.0)
    max_speed: float = setting(5.0, 'camera speed that is not believed', 'm/s', 0.1, 100.0)
    max_turn_rate: float = setting(12.0, 'camera turn rate that is not believed', 'rad/s', 0.1, 100.0)
    keyframe_displacement: float = setting(PairingConfig.displacement, 'median displacement that makes a keyframe when no pair comes from outside, as a share of the width', '', 0.005, 0.5)
    max_gap: float = setting(PairingConfig.max_gap, 'silence after which no motion is extrapolated', 's', 0.01, 60.0)
    max_keyframes: int = setting(30, 'keyframes remembered to find the way back by', '', 3, 1000)
    max_recent: int = setting(45, 'recent frames remembered', '', 2, 1000)


def level_start() -> np.ndarray:
    """T_odom_cam (4, 4) of a level optical frame that looks along +x of a z-up odom."""
    T = np.eye(4)
    T[:3, :3] = R_BODY_OPTICAL
    return T


class Tracker:
    """Steps through frames of one size, all at tracking size. Failure is a status; memory is bounded.

    `flows` holds what the last step had or computed, current -> keyframe and back, newest keyframe first, for others to use; the pose of
    each of their references is `pose_of(result.pair.reference.stamp)`. Sensor depth comes with the frames. Without a sensor, give the estimate of any
    remembered frame through `set_depth` as soon as there is one: alignment needs it at the keyframes. Until then the status is INITIALISING, and
    a caller that knows the pose (from two views, say) passes it to `step`.
    """

    def __init__(self, config: TrackerConfig = TrackerConfig(), flow: FlowEngine | None = None, T_odom_cam: np.ndarray | None = None) -> None:
        settings.check(config)
        self.config = config
        self.flows: tuple[FlowResult, ...] = ()
        self.keyframes = Keyframes(config.max_recent, config.max_keyframes)
        self._flow = flow or FlowEngine()
        self._pairing = PairingConfig(displacement=config.keyframe_displacement)
        self._relocaliser = Relocaliser()
        self.reset(T_odom_cam)

    def reset(self, T_odom_cam: np.ndarray | None = None) -> None:
        """Forget everything; the next frame starts at T_odom_cam (4, 4), level at the origin by default."""
        self.keyframes.clear()
        self.flows = ()
        self._T_odom_cam = level_start() if T_odom_cam is None else np.array(T_odom_cam, dtype=np.float64)
        self._velocity: np.ndarray | None = None    # (6,) twist [m/s, rad/s] along the camera's axes
        self._status = TrackStatus.INITIALISING
        self._tracked_any = False

    def pose_of(self, stamp: int) -> np.ndarray | None:
        """T_odom_cam (4, 4) of a remembered frame."""
        view = self.keyframes.find(stamp)
        return None if view is None else view.T_odom_cam

    def set_depth(self, stamp: int, depth: DepthMap) -> bool:
        """Give or replace a remembered frame's depth; False if the frame is no longer remembered."""
        view = self.keyframes.find(stamp)
        if view is None:
            return False
        if depth.depth.shape != view.grey.shape:
            raise ValueError(f'expected depth of shape {view.grey.shape}, got {depth.depth.shape}')
        view.depth = depth
        return True

    def step(self, frame: CameraFrame, bundle: FlowResult | None = None, T_odom_cam: np.ndarray | None = None) -> TrackResult:
        """Track a frame. `bundle`: its flow with a keyframe, if the flow node made one. `T_odom_cam`: take this pose instead of solving."""
        self.flows = ()
        view = self._view(frame, T_odom_cam)
        last = self.keyframes.last
        if last is not None and self._unrelated(last, frame):
            log.warning('tracking starts anew at its last pose: the clock jumped back or the camera changed')
            self.reset(self._T_odom_cam if T_odom_cam is None else T_odom_cam)
            last = None
        if last is None:
            return self._start(view, posed=T_odom_cam is not None)
        references = self._references(view, bundle)
        self.flows = tuple(self._flow_to(view, reference, bundle) for reference in references)
        if T_odom_cam is not None:
            return self._accept(view, np.zeros((6, 6)), 1.0)
        return self._track(view, references)

    def _view(self, frame: CameraFrame, T_odom_cam: np.ndarray | None) -> View:
        depth = None if frame.depth is None else DepthMap(frame.depth, frame.depth_valid)
        pose = self._T_odom_cam if T_odom_cam is None else np.array(T_odom_cam, dtype=np.float64)
        return View(frame, pose, depth)

    @staticmethod
    def _unrelated(last: View, frame: CameraFrame) -> bool:
        return frame.stamp <= last.stamp or frame.size != last.frame.size or not np.allclose(frame.K, last.frame.K)

    def _start(self, view: View, posed: bool = False) -> TrackResult:
        """Begin with this view as the only keyframe; `posed`: its pose was given."""
        self._T_odom_cam = view.T_odom_cam
        self.keyframes.remember(view)
        self.keyframes.promote(view)
        self._status = TrackStatus.OK if posed or view.depth is not None else TrackStatus.INITIALISING
        return self._result(view, np.zeros((6, 6)), 1.0, is_keyframe=True)

    def _references(self, view: View, bundle: FlowResult | None) -> list[View]:
        """The two keyframes to align with, newest first; the bundle's reference becomes one as soon as it is used."""
        if bundle is not None and self._usable(view, bundle):
            reference = self.keyframes.find(bundle.pair.reference.stamp)
            if not self.keyframes.is_key(reference.stamp):
                self.keyframes.promote(reference)
        return self.keyframes.newest(2)

    def _usable(self, view: View, bundle: FlowResult) -> bool:
        """Whether a bundle belongs to this frame and a reference that has a pose, at this size."""
        return (bundle.pair.current.stamp == view.stamp and bundle.flow.shape[:2] == view.grey.shape
                and self.keyframes.find(bundle.pair.reference.stamp) is not None)

    def _flow_to(self, view: View, reference: View, bundle: FlowResult | None) -> FlowResult:
        """The flow of a pair: the bundle's if it is of this pair, else computed."""
        if bundle is not None and self._usable(view, bundle) and bundle.pair.reference.stamp == reference.stamp:
            return bundle
        return self._flow.step(ImagePair(view.frame, reference.frame))

    def _track(self, view: View, references: Sequence[View]) -> TrackResult:
        if all(v.depth is None for v in (view, *references)):
            self._status = TrackStatus.INITIALISING
            self.keyframes.remember(view)
            return self._result(view, UNKNOWN, 0.0)
        found = self._align(view, list(zip(references, self.flows, strict=True)))
        if self._trusted(found, view):
            return self._accept_found(view, found)
        last = self.keyframes.last
        if all(last is not v for v in references) and self._status is TrackStatus.OK:   # the keyframes may just be out of view
            result = self._flow.step(ImagePair(view.frame, last.frame))
            found = self._align(view, [(last, result)])
            if self._trusted(found, view):
                self.keyframes.promote(view)
                return self._accept_found(view, found)
        return self._recover(view)

    def _align(self, view: View, pairs: Sequence[tuple[View, FlowResult]], start: np.ndarray | None = None) -> Alignment:
        start = self._predict(view) if start is None else start
        given = [m for reference, result in pairs for m in pair_matches(view, reference, result, self.config)]
        return align(view, start, given, self.config)

    def _predict(self, view: View) -> np.ndarray:
        """T_odom_cam at constant velocity; the last one after a gap, or when there is no velocity."""
        elapsed = self._elapsed(view)
        if self._velocity is None or self._status is not TrackStatus.OK or elapsed > self.config.max_gap:
            return self._T_odom_cam
        return self._T_odom_cam @ se3.exp(torch.from_numpy(elapsed * self._velocity)).numpy()

    def _velocity_to(self, view: View) -> np.ndarray:
        """Twist (6,) [m/s, rad/s] of the motion from the last frame."""
        T_last_view = np.linalg.inv(self.keyframes.last.T_odom_cam) @ view.T_odom_cam
        return se3.log(torch.from_numpy(T_last_view)).numpy() / self._elapsed(view)

    def _elapsed(self, view: View) -> float:
        return 1e-9 * (view.stamp - self.keyframes.last.stamp)

    def _supported(self, found: Alignment, share: float = 1.0) -> bool:
        """Whether an alignment is solved and enough points agree, with a share of the usual ratio."""
        return (found.status is SolveStatus.OK and found.inliers >= MIN_INLIERS
                and found.inlier_ratio >= share * self.config.min_inlier_ratio)

    def _trusted(self, found: Alignment, view: View) -> bool:
        """Whether an alignment is supported and a motion that a camera can make in the time."""
        config = self.config
        if not self._supported(found):
            return False
        T = np.linalg.inv(self._T_odom_cam) @ found.T_odom_cam
        angle = np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1))
        elapsed = self._elapsed(view)
        return np.linalg.norm(T[:3, 3]) <= config.max_speed * elapsed and angle <= config.max_turn_rate * elapsed

    def _accept_found(self, view: View, found: Alignment) -> TrackResult:
        view.T_odom_cam = found.T_odom_cam
        return self._accept(view, found.covariance, found.inlier_ratio)

    def _accept(self, view: View, covariance: np.ndarray, inlier_ratio: float) -> TrackResult:
        """Take a pose as the current one, and the view as a keyframe if the newest is spent."""
        self._velocity = self._velocity_to(view) if self._status is TrackStatus.OK else None
        self._T_odom_cam, self._status, self._tracked_any = view.T_odom_cam, TrackStatus.OK, True
        self.keyframes.remember(view)
        if self.flows and is_spent(self.flows[0], self._pairing):      # the pairing judges alike: its next reference is this frame
            self.keyframes.promote(view)
        return self._result(view, covariance, inlier_ratio, self.keyframes.is_key(view.stamp))

    def _recover(self, view: View) -> TrackResult:
        """Look for the pose among the keyframes; LOST with the last trusted one if that fails."""
        if not self._tracked_any and view.depth is not None:    # nothing is lost yet: a blank or dark start
            self.reset(self._T_odom_cam)
            return self._start(view)
        found = self._relocaliser.find(view, self.keyframes)
        if found is not None:
            result = self._flow_around(view, found)
            refined = self._align(view, [(found.keyframe, result)], found.T_odom_cam)
            if self._supported(refined, FOUND_SHARE) and refined.agreement >= FOUND_AGREEMENT:
                log.info('relocalised with %d matches', found.inliers)
                return self._resume(view, found.keyframe, refined, result)
        if self._status is not TrackStatus.LOST:
            log.warning('tracking lost at %d ns', view.stamp)
        self._status, self._velocity = TrackStatus.LOST, None
        return self._result(view, UNKNOWN, 0.0)

    def _flow_around(self, view: View, found: Found) -> FlowResult:
        """Flow between a view and the keyframe it was found by, started from the pose found: their motion may be large."""
        T_key_cam = np.linalg.inv(found.keyframe.T_odom_cam) @ found.T_odom_cam
        initial = expected_flow(view, found.keyframe, T_key_cam), expected_flow(found.keyframe, view, np.linalg.inv(T_key_cam))
        return self._flow.step(ImagePair(view.frame, found.keyframe.frame), initial)

    def _resume(self, view: View, keyframe: View, found: Alignment, result: FlowResult) -> TrackResult:
        """Go on from a keyframe that was recognised; it and the view are the newest keyframes then."""
        self.flows = (result,)
        self.keyframes.promote(keyframe)
        view.T_odom_cam = found.T_odom_cam
        self._status = TrackStatus.LOST     # so that no velocity comes from the jump
        self.keyframes.promote(view)
        return self._accept(view, found.covariance, found.inlier_ratio)

    def _result(self, view: View, covariance: np.ndarray, inlier_ratio: float, is_keyframe: bool = False) -> TrackResult:
        known = [v.depth for v in (view, *self.keyframes.newest(2)) if v.depth is not None]
        scale = Scale.FREE if any(d.scale is Scale.FREE for d in known) or not known else Scale.METRIC
        return TrackResult(view.stamp, self._T_odom_cam.copy(), covariance, inlier_ratio, self._status, scale, is_keyframe)
