"""A sliding window of keyframes whose poses are refined together.

Z. Teed, J. Deng, "DeepV2D: Video to Depth with Differentiable Structure from Motion", ICLR 2020, section 4.2: of the 8 frames of a window the first 3 are held and
the other 5 updated in one system, then the window moves on by one. Here they are keyframes, chosen by distance and overlap, so that the window spans seconds, and
the frames between them may take part, each tied to the keyframes before it. It does not look for poses by itself: it refines those of a tracker, on
correspondences of the learned motion module or of optical flow. They are worked out once, when a frame comes.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from depth_ros import settings
from depth_ros.engines.alignment import Alignment, AlignmentConfig, Matches, align_together, pair_matches, points_on_grid
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap, Keyframes, View, apart
from depth_ros.engines.known_flows import KnownFlows
from depth_ros.engines.relocaliser import Relocaliser
from depth_ros.engines.tracker import FOUND_AGREEMENT, FOUND_SHARE, MIN_INLIERS, UNKNOWN, TrackerConfig
from depth_ros.frames import CameraFrame, FlowResult, TrackStatus
from depth_ros.geometry.gauss_newton import SolveStatus
from depth_ros.geometry.reprojection import fill_holes, reproject_depth
from depth_ros.settings import setting

log = logging.getLogger(__name__)

_KNOWN = 8                  # pairs whose flow is kept: those of the newest frame
_MOST_BETWEEN = 16          # frames between keyframes for each keyframe of the window
_REPROJECTED_SIGMA = 0.05   # standard deviation of a depth that another view lent, as a share of it, where that view's own is not larger


@dataclass(frozen=True)
class SlamWindowConfig(TrackerConfig):
    """Length of the window, and what it is made of."""

    window_frames: int = setting(8, 'keyframes whose poses hang together', '', 2, 100)
    window_fixed: int = setting(3, 'oldest of them whose poses are held; the newest never is', '', 1, 99)
    window_reach: int = setting(2, 'earlier keyframes that each one is compared with', '', 1, 20)
    window_between: int = setting(3, 'of the frames between keyframes every so-manieth takes part too; 0: none', '', 0, 100)


@dataclass(frozen=True)
class KeyframeChoice:
    """When a frame shows enough that the last keyframe does not, for callers that do not choose by themselves."""

    motion: float = setting(0.12, 'motion of the camera that makes a keyframe, a radian counting as two metres', 'm', 0.0, 100.0)
    overlap: float = setting(0.75, 'share of a frame in view of the last keyframe below which it becomes one', '', 0.0, 1.0)


class PairSource(Protocol):
    """Finds out where views see the same points."""

    def matches(self, view: View, others: Sequence[View], config: AlignmentConfig) -> list[Matches]:
        """Matches of a view with others, in one or both directions; all poses are near the truth."""

    def reset(self) -> None:
        """Forget everything."""


class FlowPairs:
    """Optical flow, as far as nobody has worked it out already."""

    def __init__(self, flow: FlowEngine | None = None) -> None:
        self._flows = KnownFlows(flow or FlowEngine(), _KNOWN)

    def reset(self) -> None:
        """Forget everything."""
        self._flows.clear()

    def offer(self, flows: Sequence[FlowResult]) -> None:
        """Flows that somebody worked out already, such as `Tracker.flows`."""
        self._flows.offer(flows)

    def matches(self, view: View, others: Sequence[View], config: AlignmentConfig) -> list[Matches]:
        """Matches with each of the others, in each direction whose source has depth."""
        return [m for other in others for m in pair_matches(view, other, self._flows.between(view.frame, other.frame), config)]


@dataclass(frozen=True)
class WindowUpdate:
    """What became of a frame, and of the poses that were refined with it."""

    poses: dict[int, np.ndarray]    # T_odom_cam (4, 4) by stamp, the frame's own among them unless it is lost; those that did not move are not here
    status: TrackStatus             # LOST: nothing of the window agrees with the frame, and no remembered place looks like it
    inlier_ratio: float             # [0, 1] of the frame
    is_keyframe: bool
    relocalised: bool = False       # the frame was recognised, and the window begins anew around the place


class SlamWindow:
    """Refines poses. `pairs` is what finds correspondences: FlowPairs, or engines.learned_motion.LearnedMotion(network.motion).

    Call `add` with every tracked frame, all at one size and in the order of their stamps; give the poses that come back to the tracker (`Tracker.correct`), which
    then goes on from there. Keyframes cost a solution, other frames only their correspondences. Memory is bounded by the length of the window and `max_keyframes`.
    """

    def __init__(self, pairs: PairSource, config: SlamWindowConfig = SlamWindowConfig(), choice: KeyframeChoice = KeyframeChoice()) -> None:
        settings.check(config)
        settings.check(choice)
        self.config, self.choice = config, choice
        self._pairs = pairs
        self._relocaliser = Relocaliser()
        self._places = Keyframes(config.window_frames, config.max_keyframes)
        self._forget()

    def __len__(self) -> int:
        """Keyframes in the window."""
        return len(self._members)

    def reset(self) -> None:
        """Forget everything."""
        self._forget()
        self._places.clear()
        self._pairs.reset()

    def add(self, frame: CameraFrame, depth: DepthMap | None, T_odom_cam: np.ndarray, is_keyframe: bool | None = None) -> WindowUpdate:
        """Take in a frame at the pose T_odom_cam (4, 4) that a tracker gave it, and refine the window if it is a keyframe.

        `depth`: the sensor's or an estimate; without, a keyframe borrows that of the last one. `is_keyframe`: whether it is one, if the caller knows; else distance and
        overlap tell.
        """
        view = View(frame, np.array(T_odom_cam, dtype=np.float64), depth)
        if self._members and self._unrelated(view):
            log.warning('the window begins anew: the clock jumped back or the camera changed')
            self.reset()
        if not self._members:
            self._keep(view)
            return _unchanged(view, is_keyframe=True)
        is_key = self._is_new(view) if is_keyframe is None else is_keyframe
        self._since += 1
        if not is_key and (not self.config.window_between or self._since % self.config.window_between):
            return _unchanged(view)
        if view.depth is None and is_key:
            view.depth = self._borrowed(view)
        self._found[view.stamp] = self._pairs.matches(view, self._members[-self.config.window_reach:], self.config)
        if is_key:
            return self._refine(view)
        self._between.append(view)
        self._trim()
        return _unchanged(view)

    def _forget(self) -> None:
        self._members: list[View] = []              # keyframes, oldest first
        self._between: list[View] = []              # frames between them that take part, oldest first
        self._found: dict[int, list[Matches]] = {}  # of each of both with keyframes before it, by stamp
        self._since = 0                             # frames since the last keyframe

    def _unrelated(self, view: View) -> bool:
        last = self._members[-1]
        newest = self._between[-1] if self._between else last
        return view.stamp <= max(last.stamp, newest.stamp) or view.frame.size != last.frame.size or not np.allclose(view.frame.K, last.frame.K)

    def _is_new(self, view: View) -> bool:
        """Whether a view shows enough that the last keyframe does not."""
        last = self._members[-1]
        return apart(last.T_odom_cam, view.T_odom_cam) >= self.choice.motion or overlap(view, last, self.config) < self.choice.overlap

    def _keep(self, view: View) -> None:
        """Make a view the newest keyframe; the oldest of too many leaves the window."""
        self._members.append(view)
        self._places.promote(view)
        self._since = 0
        self._trim()

    def _trim(self) -> None:
        """Let go of what is too old or too much."""
        del self._members[:-self.config.window_frames], self._between[:-_MOST_BETWEEN * self.config.window_frames]
        held = self._members[min(self.config.window_fixed, len(self._members)) - 1].stamp
        self._between = [v for v in self._between if v.stamp > held]       # the others are tied to poses that are held
        kept = {v.stamp for v in (*self._members, *self._between)}
        self._found = {stamp: found for stamp, found in self._found.items() if stamp in kept}

    def _refine(self, view: View) -> WindowUpdate:
        """Solve for the window with a new keyframe."""
        members = [*self._members, view][-self.config.window_frames:]
        fixed = min(self.config.window_fixed, len(members) - 1)
        free = [view, *members[fixed:-1], *(v for v in self._between if v.stamp > members[fixed - 1].stamp)]
        found = self._align(members[:fixed], free)
        if not self._supported(found[0]):
            return self._recover(view)
        poses = {}
        for member, its in zip(free, found, strict=True):
            if self._supported(its):
                member.T_odom_cam = poses[member.stamp] = its.T_odom_cam
        self._keep(view)
        return WindowUpdate(poses, TrackStatus.OK, found[0].inlier_ratio, is_keyframe=True)

    def _align(self, held: Sequence[View], free: Sequence[View]) -> list[Alignment]:
        """The poses of the free views by all matches among them and with those held."""
        known, moving = {id(v) for v in (*held, *free)}, {id(v) for v in free}
        given = [m for found in self._found.values() for m in found
                 if {id(m.source), id(m.target)} <= known and not moving.isdisjoint({id(m.source), id(m.target)})]
        if not given:
            return [Alignment(v.T_odom_cam, UNKNOWN, 0.0, 0, 0.0, SolveStatus.SINGULAR) for v in free]
        return align_together(free, given, self.config)

    def _supported(self, found: Alignment, share: float = 1.0) -> bool:
        return found.status is SolveStatus.OK and found.inliers >= MIN_INLIERS and found.inlier_ratio >= share * self.config.min_inlier_ratio

    def _recover(self, view: View) -> WindowUpdate:
        """Look for a place among the keyframes that are remembered, and begin the window anew there."""
        place = self._relocaliser.find(view, self._places)
        if place is not None:
            view.T_odom_cam = place.T_odom_cam
            self._found[view.stamp] = self._pairs.matches(view, [place.keyframe], self.config)
            found = self._align([place.keyframe], [view])[0]
            if self._supported(found, FOUND_SHARE) and found.agreement >= FOUND_AGREEMENT:
                log.info('the window begins anew at a known place, by %d matches', place.inliers)
                view.T_odom_cam = found.T_odom_cam
                self._members, self._between = [place.keyframe], []
                self._keep(view)
                return WindowUpdate({view.stamp: view.T_odom_cam}, TrackStatus.OK, found.inlier_ratio, is_keyframe=True, relocalised=True)
        self._found.pop(view.stamp, None)
        return WindowUpdate({}, TrackStatus.LOST, 0.0, is_keyframe=False)

    def _borrowed(self, view: View) -> DepthMap | None:
        """Depth of a view as the newest keyframe saw it; None if that has none either."""
        lender = next((member for member in reversed(self._members) if member.depth is not None), None)
        return None if lender is None else lent_depth(lender, view)


def _unchanged(view: View, is_keyframe: bool = False) -> WindowUpdate:
    return WindowUpdate({view.stamp: view.T_odom_cam}, TrackStatus.OK, 1.0, is_keyframe)


def lent_depth(lender: View, view: View) -> DepthMap:
    """Depth of a view from that of another one: reprojected, nearest surface first, small holes filled."""
    T_view_lender = np.linalg.inv(view.T_odom_cam) @ lender.T_odom_cam
    given = np.where(lender.depth.valid, lender.depth.depth, 0)
    arguments = (torch.from_numpy(np.asarray(a, np.float32)) for a in (given[None], lender.frame.K, T_view_lender, view.frame.K))
    depth = fill_holes(reproject_depth(*arguments, view.grey.shape))[0].numpy()
    share = _REPROJECTED_SIGMA
    if lender.depth.sigma is not None and lender.depth.valid.any():
        share = max(share, float(np.median((lender.depth.sigma / np.maximum(lender.depth.depth, 1e-9))[lender.depth.valid])))
    return DepthMap(depth, depth > 0, np.float32(share) * depth, lender.depth.scale)


def overlap(view: View, other: View, config: AlignmentConfig) -> float:
    """Share of what a view sees that lies inside the image of another one; 1 where the view has no depth, for nothing tells."""
    if view.depth is None or not view.depth.valid.any():
        return 1.0
    grid, points = points_on_grid(view, config)
    columns, rows = np.rint(grid).astype(np.intp).transpose(2, 0, 1)
    T = np.linalg.inv(other.T_odom_cam) @ view.T_odom_cam
    homogeneous = (points[view.depth.valid[rows, columns]] @ T[:3, :3].T + T[:3, 3]) @ other.frame.K.T
    pixels = homogeneous[:, :2] / np.maximum(homogeneous[:, 2:], 1e-6)
    seen = (homogeneous[:, 2] > 1e-6) & ((pixels > -0.5) & (pixels < np.array(other.frame.size) - 0.5)).all(1)
    return float(seen.mean()) if len(seen) else 1.0
