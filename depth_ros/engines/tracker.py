"""Visual odometry on dense flow: every frame is aligned with two keyframes (with a depth sensor, one can do), and finds its way back when it was lost.

The tracking of DeepV2D (Z. Teed, J. Deng, "DeepV2D: Video to Depth with Differentiable Structure from Motion", ICLR 2020, section 3.2) without its
networks: flow and its consistency stand for the residual flow and confidence, sensor depth or an estimate for the depth. A keyframe is what the pairing
takes as a reference; measured, two keyframes beat keyframe and previous frame, whose short baseline adds its bias to every step. The previous frame is
asked only when the keyframes fail.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from depth_ros import settings
from depth_ros.engines.alignment import Alignment, AlignmentConfig, align, expected_flow, pair_matches
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap, Keyframes, View
from depth_ros.engines.pairing import PairingConfig, is_spent
from depth_ros.engines.relocaliser import Relocaliser
from depth_ros.frames import R_BODY_OPTICAL, CameraFrame, FlowResult, ImagePair, Scale, TrackResult, TrackStatus
from depth_ros.geometry import rigid
from depth_ros.geometry.gauss_newton import SolveStatus
from depth_ros.settings import setting

if TYPE_CHECKING:
    from depth_ros.engines.learned_motion import LearnedMotion

log = logging.getLogger(__name__)

UNKNOWN = 1e3 * np.eye(6)   # covariance of a pose that is not known
MIN_INLIERS = 60            # grid points
ROUGH_STEPS = 2             # Gauss-Newton steps that put a start for flow near enough
FOUND_SHARE = 0.5           # a place is recognised with half the usual overlap: on a recorded sequence all such poses are within 8 cm, with less some are 20 cm off
FOUND_AGREEMENT = 0.6       # but most of what flow is consistent about must agree


@dataclass(frozen=True)
class TrackerConfig(AlignmentConfig):
    """Alignment, and what counts as lost."""

    min_inlier_ratio: float = setting(0.3, 'share of agreeing points below which a frame counts as lost', '', 0.01, 1.0)
    max_speed: float = setting(5.0, 'camera speed that is not believed; while the scale is free, also in median depths of the view a second', 'm/s', 0.1, 100.0)
    max_turn_rate: float = setting(12.0, 'camera turn rate that is not believed', 'rad/s', 0.1, 100.0)
    keyframe_displacement: float = setting(PairingConfig.displacement, 'median displacement that makes a keyframe when no pair comes from outside, as a share of the width', '', 0.005, 0.5)
    keyframe_max_age: float = setting(PairingConfig.max_age, 'age from which a keyframe that the image moved from is spent; as `max_age` of the pairs', 's', 0.01, 60.0)
    max_gap: float = setting(PairingConfig.max_gap, 'silence after which no motion is extrapolated', 's', 0.01, 60.0)
    sensor_keyframes: int = setting(2, 'keyframes that a frame with sensor depth is aligned with; with one, no flow is found beside that of the pairs, where keyframes are spent as those are: three quarters of the time, and a relative pose error 2 to 14 % larger', '', 1, 2)
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

    def __init__(self, config: TrackerConfig = TrackerConfig(), flow: FlowEngine | None = None, T_odom_cam: np.ndarray | None = None,
                 learned: LearnedMotion | None = None) -> None:
        """`learned`: takes the place of flow in finding poses, or finds them with its help; flow still tells when a keyframe is spent."""
        settings.check(config)
        self.config = config
        self.flows: tuple[FlowResult, ...] = ()
        self.keyframes = Keyframes(config.max_recent, config.max_keyframes)
        self._flow = flow or FlowEngine()
        self._learned = learned
        self._pairing = PairingConfig(displacement=config.keyframe_displacement, max_age=config.keyframe_max_age)
        self._relocaliser = Relocaliser()
        self.reset(T_odom_cam)

    def reset(self, T_odom_cam: np.ndarray | None = None) -> None:
        """Forget everything; the next frame starts at T_odom_cam (4, 4), level at the origin by default."""
        self.keyframes.clear()
        self.flows = ()
        if self._learned is not None:
            self._learned.reset()
        self._T_odom_cam = level_start() if T_odom_cam is None else np.array(T_odom_cam, dtype=np.float64)
        self._before: View | None = None            # the frame before the last, where the motion between them is known
        self._velocity: np.ndarray | None = None    # (6,) [m/s, rad/s] along the camera's axes
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
        last = self.keyframes.last
        if last is not None and self._unrelated(last, frame):
            log.warning('tracking starts anew at its last pose: the clock jumped back or the camera changed')
            self.reset(self._T_odom_cam)
        view = self._view(frame, T_odom_cam)
        if self.keyframes.last is None:
            return self._start(view, posed=T_odom_cam is not None)
        references = self._references(view, bundle)
        if T_odom_cam is not None:
            self.flows = self._flows_to(view, references, bundle, posed=True)
            return self._accept(view, np.zeros((6, 6)), 1.0)
        return self._track(view, references, bundle)

    def refine(self, depth: DepthMap) -> np.ndarray:
        """Align the last tracked frame once more, now that it has depth of its own; its T_odom_cam (4, 4), which stands if the new one cannot be trusted."""
        view = self.keyframes.last
        view.depth = depth
        found = self._align(view, [(self.keyframes.find(flow.pair.reference.stamp), flow) for flow in self.flows], near=True)
        if self._supported(found) and (self._before is None or self._possible(self._before, view.stamp, found.T_odom_cam)):
            view.T_odom_cam = found.T_odom_cam
            self._settle(view)
        return view.T_odom_cam

    def correct(self, poses: Mapping[int, np.ndarray]) -> np.ndarray:
        """Take better poses (4, 4) of remembered frames, by stamp; frames since then move along. The pose of the last frame, from which tracking goes on."""
        moved = np.eye(4)       # from where a frame was to where it is, of the last one that was corrected
        for view in self.keyframes.views:
            if view.stamp in poses:
                moved = poses[view.stamp] @ np.linalg.inv(view.T_odom_cam)
                view.T_odom_cam = poses[view.stamp]
            else:
                view.T_odom_cam = moved @ view.T_odom_cam
        if self._status is TrackStatus.OK:
            self._settle(self.keyframes.last)
        return self._T_odom_cam

    def _view(self, frame: CameraFrame, T_odom_cam: np.ndarray | None) -> View:
        """The frame at the pose given, else at the one predicted."""
        depth = None if frame.depth is None else DepthMap(frame.depth, frame.depth_valid)
        return View(frame, self._predict(frame.stamp) if T_odom_cam is None else np.array(T_odom_cam, dtype=np.float64), depth)

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
        """The keyframes to align with, newest first; the bundle's reference becomes one as soon as it is used."""
        if bundle is not None and self._usable(view, bundle):
            reference = self.keyframes.find(bundle.pair.reference.stamp)
            if not self.keyframes.is_key(reference.stamp):
                self.keyframes.promote(reference)
        return self.keyframes.newest(2 if view.depth is None else self.config.sensor_keyframes)

    def _usable(self, view: View, bundle: FlowResult) -> bool:
        """Whether a bundle belongs to this frame and a reference that has a pose, at this size."""
        return (bundle.pair.current.stamp == view.stamp and bundle.flow.shape[:2] == view.grey.shape
                and self.keyframes.find(bundle.pair.reference.stamp) is not None)

    def _flows_to(self, view: View, references: Sequence[View], bundle: FlowResult | None, posed: bool) -> tuple[FlowResult, ...]:
        """The flow to each keyframe. The older one is far away: its flow starts from the pose given, or else, without a depth sensor, from what the newer one's flow tells.

        With a sensor that gains nothing for half the time of a frame again. Never from a mere prediction: what DIS starts from it also keeps where it sees nothing, and images of noise would be found to agree.
        """
        newest, *older = references
        first, known = self._flow_to(view, newest, bundle, expected=posed), posed
        if older and not posed and view.depth is None:
            roughly = _align_on_flow(view, [(newest, first)], replace(self.config, steps=ROUGH_STEPS))
            known = self._trusted(roughly, view)
            if known:
                view.T_odom_cam = roughly.T_odom_cam
        return first, *(self._flow_to(view, reference, bundle, expected=known) for reference in older)

    def _flow_to(self, view: View, reference: View, bundle: FlowResult | None = None, expected: bool = False) -> FlowResult:
        """The flow of a pair: the bundle's if it is of this pair, else computed; `expected`: started from what the two poses make expect."""
        if bundle is not None and self._usable(view, bundle) and bundle.pair.reference.stamp == reference.stamp:
            return bundle
        start = (expected_flow(view, reference), expected_flow(reference, view)) if expected else (None, None)
        return self._flow.step(ImagePair(view.frame, reference.frame), None if start[0] is None else start)

    def _track(self, view: View, references: Sequence[View], bundle: FlowResult | None) -> TrackResult:
        found = self._align_with(view, references, bundle)
        if found is None:
            self._status = TrackStatus.INITIALISING
            self.keyframes.remember(view)
            return self._result(view, UNKNOWN, 0.0)
        if self._trusted(found, view):
            return self._accept_found(view, found)
        last = self.keyframes.last
        if all(last is not v for v in references) and self._status is TrackStatus.OK:   # the keyframes may just be out of view
            result = self._flow_to(view, last)
            found = self._align(view, [(last, result)])
            if self._trusted(found, view):
                self.flows = (result,)
                self.keyframes.promote(view)
                return self._accept_found(view, found)
        return self._recover(view)

    def _align_with(self, view: View, references: Sequence[View], bundle: FlowResult | None) -> Alignment | None:
        """The pose of a view by the keyframes, None if none of them has depth; `flows` are then those to them.

        Learned motion that sees no flow comes first: its pose is where flow starts from, and without a pose there is none. With a sensor only the newest keyframe's is asked for.
        """
        if self._learned is None or self._learned.sees_flow:
            self.flows = self._flows_to(view, references, bundle, posed=False)
            return self._align(view, list(zip(references, self.flows, strict=True)))
        found = self._learned.align(view, references, self.config)
        self.flows = ()
        if self._trusted(found, view):
            view.T_odom_cam = found.T_odom_cam
            self.flows = self._flows_to(view, references[:1] if view.depth is not None else references, bundle, posed=True)
        return found

    def _align(self, view: View, pairs: Sequence[tuple[View, FlowResult]], config: AlignmentConfig | None = None, near: bool = False) -> Alignment | None:
        """The pose of a view by its flow to others, started from the pose it has; None if none of them has depth. `near`: that pose is all but right."""
        config = config or self.config
        if self._learned is not None:
            self._learned.offer(flow for _, flow in pairs)
            return self._learned.align(view, [reference for reference, _ in pairs], config, near)
        return _align_on_flow(view, pairs, config)

    def _predict(self, stamp: int) -> np.ndarray:
        """T_odom_cam at constant velocity; the last one after a gap, or when there is no velocity."""
        if self._velocity is None:
            return self._T_odom_cam
        elapsed = 1e-9 * (stamp - self.keyframes.last.stamp)
        if elapsed > self.config.max_gap:
            return self._T_odom_cam
        return self._T_odom_cam @ rigid.from_vector(elapsed * self._velocity)

    def _supported(self, found: Alignment | None, share: float = 1.0) -> bool:
        """Whether an alignment is solved and enough points agree, with a share of the usual ratio."""
        return (found is not None and found.status is SolveStatus.OK and found.inliers >= MIN_INLIERS
                and found.inlier_ratio >= share * self.config.min_inlier_ratio)

    def _trusted(self, found: Alignment | None, view: View) -> bool:
        """Whether an alignment is supported and a motion that a camera can make in the time."""
        return self._supported(found) and self._possible(self.keyframes.last, view.stamp, found.T_odom_cam)

    def _possible(self, before: View, stamp: int, T_odom_cam: np.ndarray) -> bool:
        """Whether a camera can have moved from a frame to this pose by this time."""
        T = np.linalg.inv(before.T_odom_cam) @ T_odom_cam
        angle = np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1))
        elapsed = 1e-9 * (stamp - before.stamp)
        return bool(np.linalg.norm(T[:3, 3]) <= self.config.max_speed * _unit(before) * elapsed and angle <= self.config.max_turn_rate * elapsed)

    def _accept_found(self, view: View, found: Alignment) -> TrackResult:
        view.T_odom_cam = found.T_odom_cam
        return self._accept(view, found.covariance, found.inlier_ratio)

    def _accept(self, view: View, covariance: np.ndarray, inlier_ratio: float) -> TrackResult:
        """Take a pose as the current one, and the view as a keyframe if the newest is spent."""
        self._before = self.keyframes.last if self._status is TrackStatus.OK else None
        self._settle(view)
        self._status, self._tracked_any = TrackStatus.OK, True
        self.keyframes.remember(view)
        if self.flows and is_spent(self.flows[0], self._pairing):      # the pairing judges alike: its next reference is this frame
            self.keyframes.promote(view)
        return self._result(view, covariance, inlier_ratio, self.keyframes.is_key(view.stamp))

    def _settle(self, view: View) -> None:
        """Go on from a view's pose, and at the velocity that brought the camera there."""
        self._T_odom_cam = view.T_odom_cam
        if self._before is None:
            self._velocity = None
            return
        T_before_view = np.linalg.inv(self._before.T_odom_cam) @ view.T_odom_cam
        self._velocity = 1e9 * rigid.to_vector(T_before_view) / (view.stamp - self._before.stamp)

    def _recover(self, view: View) -> TrackResult:
        """Look for the pose among the keyframes; LOST with the last trusted one if that fails."""
        if not self._tracked_any and view.depth is not None:    # nothing is lost yet: a blank or dark start
            self.reset(self._T_odom_cam)
            return self._start(view)
        found = self._relocaliser.find(view, self.keyframes)
        if found is not None:
            view.T_odom_cam = found.T_odom_cam
            result = self._flow_to(view, found.keyframe, expected=True)
            refined = self._align(view, [(found.keyframe, result)])
            if self._supported(refined, FOUND_SHARE) and refined.agreement >= FOUND_AGREEMENT:
                log.info('relocalised with %d matches', found.inliers)
                return self._resume(view, found.keyframe, refined, result)
        if self._status is not TrackStatus.LOST:
            log.warning('tracking lost at %d ns', view.stamp)
        self._status, self._velocity = TrackStatus.LOST, None
        return self._result(view, UNKNOWN, 0.0)

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


def _unit(view: View) -> float:
    """What stands for the metre before a view whose scale is free: its median depth, if that is above 1, the first view's; who starts close to a thing may go fast later."""
    if view.depth is None or view.depth.scale is Scale.METRIC:
        return 1.0
    depth = view.depth.depth[4::8, 4::8][view.depth.valid[4::8, 4::8]]
    return max(1.0, float(np.median(depth))) if depth.size else 1.0


def _align_on_flow(view: View, pairs: Sequence[tuple[View, FlowResult]], config: AlignmentConfig) -> Alignment | None:
    """The pose of a view by its flow to others alone; None if none of them has depth."""
    given = [m for reference, result in pairs for m in pair_matches(view, reference, result, config)]
    return align(view, given, config) if given else None
