"""The pose of a frame by DeepV2D's learned motion module, in the terms of the tracker.

Z. Teed, J. Deng, "DeepV2D: Video to Depth with Differentiable Structure from Motion", ICLR 2020, section 3.2. The network's residual flow and confidences stand
in for optical flow and its consistency; a network that is shown measured flow corrects it and tells how far to trust it. After the module's own Gauss-Newton
iterations, the robust alignment of the tracker goes over the last correspondences: it takes in measured depth as well, and its inliers tell how far the pose
can be trusted.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_ros.engines.alignment import MIN_DEPTH, Alignment, AlignmentConfig, Matches, align, matches_along, points_on_grid
from depth_ros.engines.alternation import STRIDE, FeatureCache, at_maps, median_depth, scaled
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import View
from depth_ros.engines.known_flows import KnownFlows, along
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import FlowResult, resize_intrinsics
from depth_ros.geometry import se3
from depth_ros.geometry.gauss_newton import SolveStatus, relative_motion
from depth_ros.models import deepv2d_motion
from depth_ros.models.deepv2d import TYPICAL_DEPTH
from depth_ros.models.deepv2d_motion import MotionEstimate

_REMEMBERED = 12        # frames whose features, and pairs whose flow is kept: two keyframes and what else was asked lately
_DOUBT = 0.1            # confidence below which a correspondence counts as none
_LEAST = 1e-3           # of one axis beside the other


class LearnedMotion:
    """Aligns views with others that have depth. Features of the last frames, and flows if the module sees them, are kept by stamp."""

    def __init__(self, motion: deepv2d_motion.MotionModule, iterations: int = 3, flow: FlowEngine | None = None) -> None:
        """`flow`: what works out the flow that the module sees, as far as none is offered."""
        self.iterations = iterations
        self._motion = motion
        self._features = FeatureCache(_REMEMBERED)
        self._flows = KnownFlows(flow or FlowEngine(), _REMEMBERED)

    @property
    def sees_flow(self) -> bool:
        """Whether poses are found with the help of flow."""
        return self._motion.sees_flow

    def offer(self, flows: Iterable[FlowResult]) -> None:
        """Flows that somebody has worked out already; nothing is made of them if the module sees none."""
        if self.sees_flow:
            self._flows.offer(flows)

    def reset(self) -> None:
        """Forget all features and flows, as after a jump of the clock."""
        self._features.clear()
        self._flows.clear()

    @single_threaded()
    @torch.inference_mode()
    def align(self, view: View, references: Sequence[View], config: AlignmentConfig, near: bool = False) -> Alignment | None:
        """The pose of a view by those references that have depth, started from the one it has; None if none of them has.

        `near`: it is all but known, and one iteration will do; the depth of the view itself ties it to the references then too.
        """
        known = [r for r in references if _has_depth(r)]
        if not known:
            return None
        views, edges = _star(view, known, both=near)
        estimate, before, unit = self._estimate(views, edges, 1 if near else self.iterations)
        if not bool(estimate.solved.all()):
            return Alignment(view.T_odom_cam, 1e3 * np.eye(6), 0.0, 0, 0.0, SolveStatus.SINGULAR)
        T_first_cam = se3.inverse(scaled(estimate.T_cam_world[0, -1], 1 / unit)).double().numpy()
        start = replace(view, T_odom_cam=known[0].T_odom_cam @ T_first_cam)
        views[-1] = start
        found = [_matches(views[i], views[j], estimate, number, before[number], config) for number, (i, j) in enumerate(edges)]
        return align(start, found, config)

    @single_threaded()
    @torch.inference_mode()
    def matches(self, view: View, others: Sequence[View], config: AlignmentConfig) -> list[Matches]:
        """Correspondences of a view, whose pose is all but known, with each of the others that has depth; in both directions if it has depth itself."""
        known = [r for r in others if _has_depth(r)]
        if not known:
            return []
        views, edges = _star(view, known, both=True)
        estimate, before, _ = self._estimate(views, edges, 1)
        if not bool(estimate.solved.all()):
            return []
        return [_matches(views[i], views[j], estimate, number, before[number], config) for number, (i, j) in enumerate(edges)]

    def _estimate(self, views: Sequence[View], edges: Sequence[tuple[int, int]], iterations: int) -> tuple[MotionEstimate, Tensor, float]:
        """The module's estimate with all but the last view held, the motions (E, 4, 4) that its last correspondences are about, and its unit: what a length is there."""
        features = self._features.of([v.frame for v in views], self._motion.features)
        depth = torch.stack([torch.zeros(v.grey.shape) if v.depth is None else torch.from_numpy(np.where(v.depth.valid, v.depth.depth, 0)) for v in views])[None]
        depth = at_maps(depth, features.shape[-2:])
        unit = TYPICAL_DEPTH / median_depth(depth[0, 0])
        # The first view's camera is the world here: far from the origin of the odometry, float32 is too coarse.
        T_cam_world = torch.from_numpy(np.stack([np.linalg.inv(v.T_odom_cam) @ views[0].T_odom_cam for v in views]))
        T_cam_world = scaled(T_cam_world, unit).float()[None]
        K = resize_intrinsics(torch.from_numpy(views[0].frame.K).float(), 1 / STRIDE, 1 / STRIDE)[None]
        source, target = torch.tensor(edges).T
        measured = along([self._flows.between(views[i].frame, views[j].frame) for i, j in edges]) if self.sees_flow else None
        estimate = deepv2d_motion.align(self._motion, features, depth * unit, K, T_cam_world, (source, target), 'global', len(views) - 1, iterations, measured=measured)
        last = T_cam_world if iterations == 1 else estimate.iterations[-2].T_cam_world
        return estimate, scaled(relative_motion(last[0], source, target), 1 / unit), unit


def _has_depth(view: View) -> bool:
    return view.depth is not None and bool(view.depth.valid.any())


def _star(view: View, references: Sequence[View], both: bool) -> tuple[list[View], list[tuple[int, int]]]:
    """References and view, and the edges from each of them to the view; `both`: also back, where the view has depth."""
    edges = [(i, len(references)) for i in range(len(references))]
    if both and _has_depth(view):
        edges += [(j, i) for i, j in edges]
    return [*references, view], edges


def _matches(source: View, target: View, estimate: MotionEstimate, number: int, T_target_source: Tensor, config: AlignmentConfig) -> Matches:
    """What the last iteration said of an edge, about the motion T_target_source (4, 4), at the grid that the tracker uses."""
    said = estimate.iterations[-1]
    grid, points = points_on_grid(source, config)
    at = ((grid + 0.5) / STRIDE - 0.5).astype(np.float32)
    told = said.valid[0, number].numpy().astype(np.float32)
    share = cv2.remap(told, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Of the pixels around, those that nothing is told of do not count: they would pull towards no residual, which is the pose that it began with.
    residual, confidence = (cv2.remap(np.where(told[..., None] > 0, x[0, number].permute(1, 2, 0).numpy(), 0), at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                            / np.maximum(share, 0.5)[..., None] for x in (said.residual, said.confidence))
    valid = (share > 0.5) & np.isfinite(residual).all(-1) & np.isfinite(confidence).all(-1)
    T = T_target_source.numpy()
    ends = (points @ T[:3, :3].T + T[:3, 3]) @ target.frame.K.T.astype(np.float32)
    ahead = ends[..., :2] / np.maximum(ends[..., 2:], MIN_DEPTH) - grid + STRIDE * np.where(valid[..., None], residual, 0)
    sure = np.where(valid[..., None], np.clip(confidence, _LEAST, 1), _LEAST)
    return matches_along(source, target, ahead.astype(np.float32), sure.max(-1) * (valid & (sure.max(-1) > _DOUBT)), config.flow_noise ** 2 * sure.max(-1, keepdims=True) / sure, config)
