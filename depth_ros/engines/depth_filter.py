"""Dense depth of a moving camera by a recursive filter on inverse depth.

Each frame triangulates its flow to earlier frames, weighs it by parallax, forward-backward consistency and epipolar distance, fuses it with the
estimate carried over from the previous frame, and smooths along the image's edges. Fusion of inverse depths by information follows semi-dense
odometry (J. Engel, J. Sturm, D. Cremers, ICCV 2013, section 2.4); the smoothing is a guided filter (K. He, J. Sun, X. Tang, PAMI 2013) whose local
fits are weighted by information, so that depth flows from sure pixels to unsure ones of like colour.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from depth_ros import settings
from depth_ros.engines.flow import grey, pixel_grid
from depth_ros.frames import CameraFrame, FlowResult, resize_intrinsics
from depth_ros.geometry import two_view
from depth_ros.settings import setting

_TINY = 1e-9
_NEAR_FAR = 0.1, 10.0   # inverse depths are kept within these multiples of their median
_BELIEVABLE = 1e-4, 1e4 # medians of inverse depth, whatever the unit: wild flow must not overflow
_EDGE_REACH = 7         # [px] from which a pixel takes another depth: about what a DIS patch smears
_EDGE_WINDOW = 5        # [px] over which photometric differences are averaged
_EDGE_CAP = 0.15        # grey difference that counts as no agreement at all
_EDGE_MARGIN, _EDGE_NOISE = 0.03, 0.003     # share of the difference, and difference, by which another depth must be better
_EDGE_STEP = 1.1        # ratio of depths that makes an edge
_EDGE_TRUST = 0.3       # of the information, kept by a pixel that changed its depth


@dataclass(frozen=True)
class DepthFilterConfig:
    """Noise of the filter. Inverse depths are judged relative to their median, so that the scale may be free."""

    filter_flow_noise: float = setting(0.2, 'standard deviation of good flow in triangulation', 'px', 0.01, 10.0)
    filter_doubt: float = setting(3.0, 'how many times its forward-backward error and epipolar distance add to the noise of flow', '', 0.0, 100.0)
    filter_max_inconsistency: float = setting(5.0, 'forward-backward error from which flow is not triangulated', 'px', 0.1, 50.0)
    filter_gate: float = setting(1.7, 'standard deviations of disagreement that halve the weight of a measurement', '', 0.1, 100.0)
    filter_forgetting: float = setting(0.05, 'standard deviation that the estimate gains in a frame that moves the image, as a share of the median inverse depth',
                                       '', 0.0, 10.0)
    filter_radius: int = setting(10, 'radius of the smoothing window', 'px', 1, 200)
    filter_edge: float = setting(0.055, 'grey deviation, in [0, 1], that smoothing respects as an edge', '', 0.001, 1.0)
    filter_smoothness: float = setting(0.13, 'standard deviation of depth about its smooth fit, as a share of the median inverse depth; smaller is smoother',
                                       '', 0.001, 10.0)
    filter_confident: float = setting(0.15, 'relative standard deviation at which confidence is a half', '', 0.001, 1.0)


@dataclass(frozen=True)
class Reference:
    """Flow of the current frame with an earlier one whose pose is known."""

    flow: FlowResult
    T_ref_cur: np.ndarray       # (4, 4)


@dataclass(frozen=True)
class InverseDepth:
    """Inverse depth of a frame and what it is worth; dense, for smoothing fills what was not measured."""

    value: np.ndarray           # (H, W) float32 [1/m], positive
    information: np.ndarray     # (H, W) float32 [m^2], inverse variance; 0 where nothing was measured

    @property
    def depth(self) -> np.ndarray:
        """(H, W) float32 [m]."""
        return 1 / self.value

    @property
    def relative_sigma(self) -> np.ndarray:
        """Standard deviation as a share of the value (H, W), of depth as of its inverse; at most 1."""
        return 1 / np.maximum(np.sqrt(self.information) * self.value, 1)


class DepthFilter:
    """Keeps the estimate of the last frame. All frames must have one size."""

    def __init__(self, config: DepthFilterConfig = DepthFilterConfig()) -> None:
        settings.check(config)
        self.config = config
        self.estimate: InverseDepth | None = None

    def reset(self) -> None:
        """Forget the estimate."""
        self.estimate = None

    def step(self, frame: CameraFrame, references: Sequence[Reference], carried: InverseDepth | None = None) -> InverseDepth | None:
        """Estimate a frame's inverse depth; None as long as nothing was ever measured.

        `references` are triangulated; `carried` is what `carry` made of the last estimate (None: begin anew).
        """
        moved = [r for r in references if np.linalg.norm(r.T_ref_cur[:3, 3]) > _TINY]
        fused = self._fuse(self._measure(moved, frame.K), carried)
        if fused is None:
            self.estimate = None
        else:   # twice: smoothing wants true edges, and blurs them
            self.estimate = sharpen(self._smooth(sharpen(fused, frame, moved), frame.image), frame, moved)
        return self.estimate

    def carry(self, previous: Reference, K: np.ndarray) -> InverseDepth | None:
        """The last estimate at the current frame's pixels: fetched along the flow to the previous frame, moved by the pose, less sure by one frame."""
        if self.estimate is None:
            return None
        height, width = self.estimate.value.shape
        at = previous.flow.flow + pixel_grid(width, height)
        value, information = (cv2.remap(a, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) for a in (self.estimate.value, self.estimate.information))
        T_cur_prev = np.linalg.inv(previous.T_ref_cur)
        # z of the ray at each fetched pixel in the current frame, for a point at unit depth; inverse depth w there becomes w / (z + w t_z)
        to_z = (T_cur_prev[2, :3] @ np.linalg.inv(K)).astype(np.float32)
        z = to_z[0] * at[..., 0] + to_z[1] * at[..., 1] + to_z[2]
        ratio = z + value * np.float32(T_cur_prev[2, 3])
        information = np.where((ratio > 0.1) & (value > 0), information * ratio ** 2, 0)
        value = np.maximum(value, _TINY) / np.maximum(ratio, 0.1)
        moved = min(1.0, float(np.median(np.abs(previous.flow.flow[2::4, 2::4]))))      # nothing is lost to warping while the camera rests
        forgetting = (moved * self.config.filter_forgetting * _median(value, information)) ** 2
        return InverseDepth(value, (information / (1 + forgetting * information)).astype(np.float32))

    def _measure(self, moved: Sequence[Reference], K: np.ndarray) -> InverseDepth | None:
        """Triangulate every reference and fuse the results; where they contradict each other all lose weight."""
        if not moved:
            return None
        value, parallax, epipolar = _triangulate(moved, K)
        error = np.stack([r.flow.error for r in moved])
        config = self.config
        usable = (value > 0) & (parallax > 0) & (error < config.filter_max_inconsistency)
        doubt = np.where(usable, error * error + epipolar * epipolar, 1)
        information = usable * parallax ** 2 / (config.filter_flow_noise ** 2 + config.filter_doubt ** 2 * doubt)
        total = information.sum(0)
        if not total.any():
            return None
        value = _bounded(np.where(usable, value, 0), information)
        mean = (value * information).sum(0) / np.maximum(total, _TINY)
        chi = (information * (value - mean) ** 2).sum(0)
        # the errors of one image's flows are alike (the same texture, the same blur), so references share their evidence
        return InverseDepth(mean, total / len(moved) / (1 + chi / config.filter_gate ** 2))

    def _fuse(self, measured: InverseDepth | None, carried: InverseDepth | None) -> InverseDepth | None:
        """Mean weighted by information; a measurement that contradicts what is carried on loses weight."""
        if measured is None or carried is None:
            return measured or carried
        variance = 1 / np.maximum(carried.information, _TINY) + 1 / np.maximum(measured.information, _TINY)
        distance = (carried.value - measured.value) ** 2 / variance
        new = measured.information / (1 + distance / self.config.filter_gate ** 2)
        total = carried.information + new
        return InverseDepth((carried.value * carried.information + measured.value * new) / np.maximum(total, _TINY), total)

    def _smooth(self, estimate: InverseDepth, image: np.ndarray) -> InverseDepth:
        """Draw each pixel towards a fit that is affine in the image's grey within a window, the more the less is known of it."""
        guide = _grey(image)
        value, weight = estimate.value.astype(np.float32), estimate.information.astype(np.float32)
        middle = _median(value, weight)
        pull = np.float32(1 / (self.config.filter_smoothness * middle) ** 2)
        fit = weighted_guided_filter(value, weight / pull, guide, self.config.filter_radius, self.config.filter_edge)
        value = (value * weight + fit * pull) / (weight + pull)
        return InverseDepth(np.clip(value, _NEAR_FAR[0] * middle, _NEAR_FAR[1] * middle), weight)



def sharpen(estimate: InverseDepth, frame: CameraFrame, references: Sequence[Reference]) -> InverseDepth:
    """Give a pixel the farthest or nearest inverse depth around it instead of its own where the reference images agree clearly better with that.

    The patches of flow carry a near surface's motion beyond its edge; the true depth of such pixels stands a few pixels away.
    """
    if not references:
        return estimate
    own = estimate.value.astype(np.float32)
    around = np.ones((2 * _EDGE_REACH + 1,) * 2, np.uint8)
    candidates = own, cv2.erode(own, around), cv2.dilate(own, around)
    costs = _photometric_costs(candidates, frame, references[:2])
    value, best = own, (1 - _EDGE_MARGIN) * costs[0] - _EDGE_NOISE
    for candidate, cost in zip(candidates[1:], costs[1:]):
        better = (cost < best) & (np.maximum(candidate, own) > _EDGE_STEP * np.minimum(candidate, own))
        value, best = np.where(better, candidate, value), np.where(better, cost, best)
    return InverseDepth(value, np.where(value == own, estimate.information, _EDGE_TRUST * estimate.information).astype(np.float32))


def _photometric_costs(candidates: Sequence[np.ndarray], frame: CameraFrame, references: Sequence[Reference]) -> list[np.ndarray]:
    """Grey difference (H, W), in [0, 1], that each inverse depth (H, W) leaves between a frame and its references, capped, mean over a window."""
    pixels = pixel_grid(*frame.size)
    guide = _grey(frame.image)
    costs = [np.zeros_like(guide) for _ in candidates]
    for reference in references:
        image = _grey(reference.flow.pair.reference.image)
        turn = (frame.K @ reference.T_ref_cur[:3, :3] @ np.linalg.inv(frame.K)).astype(np.float32)
        shift = (frame.K @ reference.T_ref_cur[:3, 3]).astype(np.float32)
        at_infinity = [row[0] * pixels[..., 0] + row[1] * pixels[..., 1] + row[2] for row in turn]
        for candidate, cost in zip(candidates, costs):
            x, y, z = (a + b * candidate for a, b in zip(at_infinity, shift))
            scale = 1 / np.maximum(z, np.float32(1e-3))
            seen = cv2.remap(image, x * scale, y * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            cost += np.minimum(np.abs(seen - guide), np.float32(_EDGE_CAP)) / np.float32(len(references))
    return [cv2.boxFilter(cost, -1, (_EDGE_WINDOW,) * 2) for cost in costs]


def weighted_guided_filter(x: np.ndarray, weight: np.ndarray, guide: np.ndarray, radius: int, edge: float) -> np.ndarray:
    """x (H, W) as a locally affine function of guide (H, W), fitted by weight (H, W) in windows of 2 radius + 1; all float32."""
    def box(a: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(a, -1, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)
    total = box(weight) + np.float32(1e-6)
    mean_guide, mean_x = box(weight * guide) / total, box(weight * x) / total
    variance = np.maximum(box(weight * guide * guide) / total - mean_guide * mean_guide, 0)
    slope = (box(weight * guide * x) / total - mean_guide * mean_x) / (variance + np.float32(edge * edge))
    offset = mean_x - slope * mean_guide
    return (box(total * slope) * guide + box(total * offset)) / box(total)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    return grey(image).astype(np.float32) / np.float32(255)


def _triangulate(references: Sequence[Reference], K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse depth [1/m], parallax [px m] and epipolar distance [px] of each reference, (V, H, W).

    Worked out at half size: the flow is that of patches and no finer, and it takes a quarter of the time.
    """
    height, width = references[0].flow.flow.shape[:2]
    small = width // 2, height // 2
    x, y = small[0] / width, small[1] / height
    shrink = np.array([x, y], np.float32)
    flow = torch.from_numpy(np.stack([cv2.resize(r.flow.flow, small, interpolation=cv2.INTER_AREA) * shrink for r in references]))
    T = torch.from_numpy(np.stack([r.T_ref_cur for r in references])).to(flow)
    with torch.inference_mode():
        found = two_view.triangulate_inverse_depth(flow, torch.from_numpy(resize_intrinsics(K, x, y)).to(flow), T)
    parts = found.inverse_depth, found.parallax / y, found.epipolar / y
    return tuple(np.stack([cv2.resize(a, (width, height)) for a in part.numpy()]) for part in parts)


def _median(value: np.ndarray, information: np.ndarray) -> np.float32:
    """Median of the better known half of every fourth pixel and row; 1 if nothing is known."""
    value, information = value[2::4, 2::4], information[2::4, 2::4]
    known = information > 0
    if not known.any():
        return np.float32(1)
    return np.float32(np.clip(np.median(value[known & (information >= np.median(information[known]))]), *_BELIEVABLE))


def _bounded(value: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Triangulated inverse depths (V, H, W) within the multiples of their median that are believed."""
    middle = _median(value.reshape(-1, value.shape[-1]), information.reshape(-1, value.shape[-1]))
    return np.clip(value, _NEAR_FAR[0] * middle, _NEAR_FAR[1] * middle)
