"""Metric depth of image pairs from their flow and an odometry: what the pose-aware network begins with, and what an online learner is guided by away from the range hits."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from depth_ros.engines.depth_filter import DepthFilter, DepthFilterConfig, InverseDepth, Reference, filled, half, halved, upper_median
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, Scale, resize_intrinsics
from depth_ros.geometry.warp import induced_flow

_SHARE = 0.75               # of a pair's size, that is worked at: 0.0969 on a real sequence either way, in two thirds of the time; at half the size 0.1011
_FARTHEST_EDGE = 3          # [px] of that size, as filter_edge_reach: 0.0956, where 7 as in tracking gives 0.0969 and takes a tenth longer
_LONGEST = 1_000_000_000    # [ns] from one pair to the next over which depth is carried
_FARTHEST = 0.25            # of the usual depth, that the camera moves meanwhile
_NEW = 0.1                  # of the distance to a reference, that the camera moves before another look at that tells as much as the first


class FlowGuide:
    """The recursive filter of depth from flow (engines/depth_filter) on pairs that come now and then. It carries its estimate along where the motion since the last pair is known.

    Carried it is along the flow that the pair's own triangulation predicts. From one pair to the next the camera moves less than from a pair's reference to its current image, so
    what triangulation errs by moves pixels less than flow errs; measuring flow anew gives the same depth on a real sequence and takes half as long again.
    At half the size, as triangulation is worked out, of the three quarters that all is worked at.
    """

    def __init__(self, config: DepthFilterConfig = DepthFilterConfig(filter_edge_reach=_FARTHEST_EDGE)) -> None:
        self._filter = DepthFilter(config)
        self._previous: tuple[CameraFrame, np.ndarray, int] | None = None       # with the stamp [ns] of its reference

    def reset(self) -> None:
        """Forget the last pair, as after a jump of the clock or of the odometry."""
        self._filter.reset()
        self._previous = None

    @single_threaded()
    def step(self, result: FlowResult, T_ref_cur: np.ndarray | None, T_odom_cam: np.ndarray | None = None) -> DepthResult | None:
        """Depth of a pair's current image, of motion T_ref_cur (4, 4) [m] and at pose T_odom_cam (4, 4) [m]; None where the motion is not known or tells nothing."""
        whole = result.pair.current
        if T_ref_cur is None or not np.isfinite(T_ref_cur).all():
            self.reset()
            return None
        result = result.resized(*(max(2, round(_SHARE * extent)) for extent in whole.size))
        frame = result.pair.current
        references = [Reference(result, T_ref_cur)]
        measured = self._filter.measure(frame, references)
        carried = None if T_odom_cam is None else self._carried(frame, T_odom_cam, measured)
        if carried is not None and measured is not None:
            measured = self._new(measured, result.pair.reference.stamp, T_ref_cur, T_odom_cam)
        self._previous = None if T_odom_cam is None else (frame, T_odom_cam, result.pair.reference.stamp)
        estimate = self._filter.update(frame, references, measured, carried)
        if estimate is None:
            return None
        inverse, confidence = (cv2.resize(a, whole.size) for a in (estimate.value, self._filter.confidence(estimate)))
        return DepthResult(whole, 1 / inverse, np.ones(inverse.shape, bool), confidence, Scale.METRIC)

    def _new(self, measured: InverseDepth, reference: int, T_ref_cur: np.ndarray, T_odom_cam: np.ndarray) -> InverseDepth:
        """What is measured, as far as it is new: a camera at rest sees the same errors again and again, and would grow sure of them."""
        _, T_odom_before, reference_before = self._previous
        if reference != reference_before:
            return measured
        moved = np.linalg.norm(T_odom_cam[:3, 3] - T_odom_before[:3, 3])
        share = min(1.0, moved / (_NEW * max(np.linalg.norm(T_ref_cur[:3, 3]), 1e-9)))
        return replace(measured, information=measured.information * np.float32(share))

    def _carried(self, frame: CameraFrame, T_odom_cam: np.ndarray, measured: InverseDepth | None) -> InverseDepth | None:
        if self._previous is None or self._filter.estimate is None:
            return None
        before, T_odom_before, _ = self._previous
        T_before_cur = np.linalg.inv(T_odom_before) @ T_odom_cam
        moved = np.linalg.norm(T_before_cur[:3, 3]) * upper_median(self._filter.estimate.value[2::4, 2::4])
        if before.size != frame.size or not 0 < frame.stamp - before.stamp <= _LONGEST or moved > _FARTHEST:
            return None
        value = half(self._filter.estimate.value) if measured is None else filled(halved(measured))
        scale = np.array(value.shape[::-1]) / frame.size
        depth, K, T = (torch.from_numpy(np.asarray(a, np.float32)) for a in (1 / value, resize_intrinsics(frame.K, *scale), T_before_cur))
        flow = cv2.resize(induced_flow(depth, K, T)[0].numpy(), frame.size) / scale.astype(np.float32)
        return self._filter.carry(flow, T_before_cur, frame.K)


def prior_of(guide: DepthResult | None, length: float, size: tuple[int, int]) -> np.ndarray:
    """Depth from flow as networks begin with it, (H, W, 2) float32 of size (width, height): inverse depth in units of 1 / length [m], 0 where none, and confidence."""
    if guide is None:
        return np.zeros((size[1], size[0], 2), np.float32)
    there = guide.valid & (guide.depth > 0) & (guide.depth < np.inf)
    if guide.frame.size == size and there.all():
        return np.stack([np.float32(length) / guide.depth, guide.confidence], -1)
    inverse = np.divide(np.float32(length), guide.depth, out=np.zeros(there.shape, np.float32), where=there)
    planes = np.stack([inverse, np.where(there, guide.confidence, np.float32(0.0)), there], -1).astype(np.float32)
    if guide.frame.size != size:
        planes = cv2.resize(planes, size, interpolation=cv2.INTER_AREA)
    return np.divide(planes[..., :2], planes[..., 2:], out=np.zeros_like(planes[..., :2]), where=planes[..., 2:] > 0)
