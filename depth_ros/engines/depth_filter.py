"""Dense depth of a moving camera by a recursive filter on inverse depth.

Each frame triangulates its flow to earlier frames, weighs it by what texture, parallax, forward-backward consistency and epipolar distance make it worth,
and fuses it with the estimate carried over from the previous frame. Fusion of inverse depths by information follows semi-dense odometry (J. Engel, J. Sturm,
D. Cremers, ICCV 2013, section 2.4). Pixels beside a depth edge then take the depth of its other side where the reference image says so, and depth flows
from sure pixels to unsure ones of like colour (D. Min et al., "Fast global image smoothing based on weighted least squares", TIP 2014).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from scipy.linalg import solveh_banded

from depth_ros import settings
from depth_ros.engines.flow import grey
from depth_ros.frames import CameraFrame, FlowResult, pixel_grid, resize_intrinsics
from depth_ros.geometry import two_view
from depth_ros.settings import setting

_TINY = 1e-9
_NEAR_FAR = 0.1, 10.0   # inverse depths are kept within these multiples of their median
_LARGEST_ERROR = 1e3    # [px] of flow, where it ends outside
_BELIEVABLE = 1e-4, 1e4 # medians of inverse depth, whatever the unit: wild flow must not overflow
_UNTOLD = 1e-6          # weight of the median where smoothing knows nothing at all
_FILL_SPREAD, _FILL_REACH, _FILL_SHARE = 0.16, 4.0, 0.2     # of the median, of what is measured about its surroundings; [px] of these; their weight
_SWEEPS = 3             # of smoothing, each over the rows and over the columns
_TEXTURE_WINDOW = 5     # half-size [px] over which gradients tell how well flow is held: about a DIS patch
_EDGE_REACH = 3         # [px] from which a pixel takes another depth, beside filter_edge_reach
_EDGE_WINDOW = 5        # [px] over which photometric differences are averaged
_EDGE_CAP = 20          # grey levels of difference that count as no agreement at all
_EDGE_MARGIN, _EDGE_NOISE = 0.02, 0.5       # share of the difference, and grey levels, by which another depth must be better
_EDGE_STEP = 1.1        # ratio of depths that makes an edge
_EDGE_TRUST = 0.3       # of the information, kept by a pixel that changed its depth


@dataclass(frozen=True)
class DepthFilterConfig:
    """Noise of the filter. Inverse depths are judged relative to their median, so that the scale may be free."""

    filter_flow_noise: float = setting(0.2, 'standard deviation of good flow in triangulation', 'px', 0.01, 10.0)
    filter_doubt: float = setting(3.0, 'how many times its forward-backward error and epipolar distance add to the noise of flow', '', 0.0, 100.0)
    filter_max_inconsistency: float = setting(5.0, 'forward-backward error from which flow is not triangulated', 'px', 0.1, 50.0)
    filter_gate: float = setting(1.7, 'standard deviations of disagreement that halve the weight of a measurement', '', 0.1, 100.0)
    filter_forgetting: float = setting(0.03, 'standard deviation that the estimate gains in a frame that moves the image, as a share of the median inverse depth',
                                       '', 0.0, 10.0)
    filter_smoothness: float = setting(0.16, 'standard deviation of depth about its smooth fit, as a share of the median inverse depth; smaller is smoother',
                                       '', 0.001, 10.0)
    filter_texture: float = setting(2.0, 'image gradient at which texture and noise of the image have equal shares in the precision of flow along it', 'grey levels/px', 0.0, 100.0)
    filter_reach: float = setting(20.0, 'distance over which depth flows between pixels of one colour', 'px', 1.0, 500.0)
    filter_edge: float = setting(4.0, 'difference of colour, of 255, that cuts the ties between neighbours to a third', '', 0.1, 255.0)
    filter_edge_reach: int = setting(7, 'longest distance from which a pixel beside an edge takes another depth: what a patch of the flow smears', 'px', 3, 30)
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

        `references` are triangulated, and the first, which is to be the nearest in view, settles edges; `carried` is what `carry` made of the last estimate (None: begin anew).
        """
        return self.update(frame, references, self.measure(frame, references), carried)

    def update(self, frame: CameraFrame, references: Sequence[Reference], measured: InverseDepth | None, carried: InverseDepth | None) -> InverseDepth | None:
        """The second half of `step`, for who has use of what `measure` gave."""
        moved = _moved(references)
        fused = self.fused(measured, carried)
        if fused is None:
            self.estimate = None
            return None
        usual = _median(fused.value, fused.information)
        fused = replace(fused, value=np.where(fused.information > 0, fused.value, usual).astype(np.float32))
        self.estimate = self._smooth(sharpen(fused, frame, moved[0], self.config.filter_edge_reach) if moved else fused, frame.image)
        return self.estimate

    def confidence(self, estimate: InverseDepth) -> np.ndarray:
        """(H, W) float32 in [0, 1], a half where the relative standard deviation is filter_confident."""
        return (1 / (1 + (estimate.relative_sigma / self.config.filter_confident) ** 2)).astype(np.float32)

    def carry(self, flow: np.ndarray, T_prev_cur: np.ndarray, K: np.ndarray) -> InverseDepth | None:
        """The last estimate at the current frame's pixels: fetched along the flow (H, W, 2) [px] to the previous frame, moved by the pose, less sure by one frame."""
        if self.estimate is None:
            return None
        height, width = self.estimate.value.shape
        at = flow + pixel_grid(width, height)
        both = cv2.merge([self.estimate.value, self.estimate.information])
        value, information = cv2.split(cv2.remap(both, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))
        T_cur_prev = np.linalg.inv(T_prev_cur)
        # z of the ray at each fetched pixel in the current frame, for a point at unit depth; inverse depth w there becomes w / (z + w t_z)
        to_z = (T_cur_prev[2, :3] @ np.linalg.inv(K)).astype(np.float32)
        z = to_z[0] * at[..., 0] + to_z[1] * at[..., 1] + to_z[2]
        ratio = z + value * np.float32(T_cur_prev[2, 3])
        information = np.where((ratio > 0.1) & (value > 0), information * ratio ** 2, 0)
        value = np.maximum(value, _TINY) / np.maximum(ratio, 0.1)
        moved = min(1.0, float(upper_median(np.abs(flow[2::4, 2::4]))))      # nothing is lost to warping while the camera rests
        forgetting = (moved * self.config.filter_forgetting * _median(value, information)) ** 2
        return InverseDepth(value, (information / (1 + forgetting * information)).astype(np.float32))

    def measure(self, frame: CameraFrame, references: Sequence[Reference]) -> InverseDepth | None:
        """Triangulate every reference and fuse the results; where they contradict each other all lose weight. None where nothing can be told.

        Worked out at half size: the flow is that of patches and no finer, and it takes a quarter of the time.
        """
        moved = _moved(references)
        if not moved:
            return None
        config = self.config
        value, information, epipolar = _triangulate(moved, frame, config.filter_texture)
        error = np.stack([half(np.minimum(r.flow.error, _LARGEST_ERROR)) for r in moved])
        usable = (value > 0) & (error < config.filter_max_inconsistency)
        doubt = np.where(usable, error * error + epipolar * epipolar, 1)
        information = usable * information / (config.filter_flow_noise ** 2 + config.filter_doubt ** 2 * doubt)
        total = information.sum(0)
        if not total.any():
            return None
        value = _bounded(np.where(usable, value, 0), information)
        mean = (value * information).sum(0) / np.maximum(total, _TINY)
        chi = (information * (value - mean) ** 2).sum(0)
        # the errors of one image's flows are alike (the same texture, the same blur), so references share their evidence
        total = total / len(moved) / (1 + chi / config.filter_gate ** 2)
        known, weighed = (cv2.resize(a, frame.size) for a in (total, total * mean))
        return InverseDepth(weighed / np.maximum(known, _TINY), known)

    def fused(self, measured: InverseDepth | None, carried: InverseDepth | None) -> InverseDepth | None:
        """Mean weighted by information; a measurement that contradicts what is carried on loses weight. The estimate stays as it is."""
        if measured is None or carried is None:
            return measured or carried
        variance = 1 / np.maximum(carried.information, _TINY) + 1 / np.maximum(measured.information, _TINY)
        distance = (carried.value - measured.value) ** 2 / variance
        new = measured.information / (1 + distance / self.config.filter_gate ** 2)
        total = carried.information + new
        value = (carried.value * carried.information + measured.value * new) / np.maximum(total, _TINY)
        return InverseDepth(np.where(total > 0, value, carried.value), total)

    def _smooth(self, estimate: InverseDepth, image: np.ndarray) -> InverseDepth:
        """Draw each pixel towards what the pixels around it of like colour say, the more the less is known of it."""
        value, information = estimate.value.astype(np.float32), estimate.information.astype(np.float32)
        middle = _median(value, information)
        weight = information * np.float32((self.config.filter_smoothness * middle) ** 2)    # 1 where as sure as its surroundings
        known, weighed = half(weight) + np.float32(_UNTOLD), half(weight * value) + np.float32(_UNTOLD) * middle
        fit = smooth_along_colour(weighed / known, known, half(image), self.config.filter_reach / 2, self.config.filter_edge)
        value = (value * weight + cv2.resize(fit, value.shape[::-1])) / (weight + 1)
        return InverseDepth(np.clip(value, _NEAR_FAR[0] * middle, _NEAR_FAR[1] * middle), information)


def _moved(references: Sequence[Reference]) -> list[Reference]:
    """Those with a baseline."""
    return [r for r in references if np.linalg.norm(r.T_ref_cur[:3, 3]) > _TINY]


def filled(measured: InverseDepth) -> np.ndarray:
    """Inverse depth (H, W) float32 everywhere: what was measured, where it is little sure drawn towards the mean of what is around it. In a hundredth of the time of smoothing."""
    middle = _median(measured.value, measured.information)
    weight = (measured.information * np.float32((_FILL_SPREAD * middle) ** 2)).astype(np.float32)
    around, known = (cv2.GaussianBlur(a, (0, 0), _FILL_REACH) for a in (weight * measured.value, weight))
    return (weight * measured.value + _FILL_SHARE * around + _UNTOLD * middle) / (weight + _FILL_SHARE * known + _UNTOLD)


def halved(estimate: InverseDepth) -> InverseDepth:
    """At half the size, by the means of what is known."""
    information, weighed = half(estimate.information), half(estimate.value * estimate.information)
    return InverseDepth(np.where(information > 0, weighed / np.maximum(information, _TINY), half(estimate.value)), information)


def sharpen(estimate: InverseDepth, frame: CameraFrame, reference: Reference, reach: int) -> InverseDepth:
    """Give a pixel the farthest or nearest inverse depth within a few pixels, or within `reach` [px], instead of its own where the reference image agrees clearly better with that.

    The patches of flow carry a near surface's motion beyond its edge; the true depth of such pixels stands a few pixels away. One reference near in view
    judges better than several: what a farther one does not see, it judges wrongly.
    """
    own = estimate.value.astype(np.float32)
    squares = [np.ones((2 * distance + 1,) * 2, np.uint8) for distance in sorted({_EDGE_REACH, reach})]
    candidates = own, *(shift(own, square) for square in squares for shift in (cv2.erode, cv2.dilate))
    costs = _photometric_costs(candidates, frame, reference)
    value, best = own, (1 - _EDGE_MARGIN) * costs[0] - _EDGE_NOISE
    for candidate, cost in zip(candidates[1:], costs[1:]):
        better = (cost < best) & (np.maximum(candidate, own) > _EDGE_STEP * np.minimum(candidate, own))
        value, best = np.where(better, candidate, value), np.where(better, cost, best)
    return InverseDepth(value, np.where(value == own, estimate.information, _EDGE_TRUST * estimate.information).astype(np.float32))


def _photometric_costs(candidates: Sequence[np.ndarray], frame: CameraFrame, reference: Reference) -> list[np.ndarray]:
    """Difference (H, W) [grey levels] that each inverse depth (H, W) leaves between a frame and its reference, capped, mean over a window."""
    u, v = (np.arange(extent, dtype=np.float32) for extent in frame.size)
    guide, image = grey(frame.image), grey(reference.flow.pair.reference.image)
    turn = (frame.K @ reference.T_ref_cur[:3, :3] @ np.linalg.inv(frame.K)).astype(np.float32)
    shift = (frame.K @ reference.T_ref_cur[:3, 3]).astype(np.float32)
    at_infinity = [row[0] * u + (row[1] * v + row[2])[:, None] for row in turn]
    costs = []
    for candidate in candidates:
        x, y, z = (a + b * candidate for a, b in zip(at_infinity, shift))
        scale = 1 / np.maximum(z, np.float32(1e-3))
        seen = cv2.remap(image, x * scale, y * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        costs.append(cv2.boxFilter(cv2.min(cv2.absdiff(seen, guide), _EDGE_CAP), cv2.CV_32F, (_EDGE_WINDOW,) * 2))
    return costs


def smooth_along_colour(x: np.ndarray, weight: np.ndarray, image: np.ndarray, reach: float, edge: float) -> np.ndarray:
    """x (H, W), known by weight (H, W), spread over about `reach` [px] between pixels of like colour in image (H, W, 3) uint8; all float32.

    Minimises the weighted squares of changes between neighbours, along rows and columns by turns with ties that weaken (Min et al., TIP 2014, algorithm 1);
    `edge` is the difference of colour, of 255, that cuts a tie to a third. Weights are spread alike, and divided by, as in that paper's section IV-B.
    """
    ties = np.exp(-np.arange(256) / edge).astype(np.float32)
    across, down = (ties[_largest(cv2.absdiff(after, before))] for after, before in ((image[:, 1:], image[:, :-1]), (image[1:], image[:-1])))
    across, down = np.pad(across, ((0, 0), (0, 1))), np.pad(down.T, ((0, 0), (0, 1)))
    both = np.stack([x * weight, weight])
    for sweep in range(_SWEEPS):
        strength = np.float32(1.5 * 4 ** (_SWEEPS - 1 - sweep) / (4 ** _SWEEPS - 1) * reach ** 2)
        both = _spread(_spread(both, strength * across).transpose(0, 2, 1), strength * down).transpose(0, 2, 1)
    return both[0] / both[1]


def _largest(image: np.ndarray) -> np.ndarray:
    """The largest of its three channels (H, W)."""
    first, second, third = cv2.split(image)
    return cv2.max(cv2.max(first, second), third)


def _spread(x: np.ndarray, tie: np.ndarray) -> np.ndarray:
    """Minimiser y (C, h, w) of (y - x)^2 + tie (y - its right neighbour)^2, tie (h, w) being 0 in the last column: one tridiagonal system for all rows."""
    tie = tie.ravel()
    diagonal = 1 + tie
    diagonal[1:] += tie[:-1]
    solved = solveh_banded(np.stack([diagonal, -tie]), x.reshape(len(x), -1).T, lower=True, overwrite_ab=True, check_finite=False)
    return solved.T.reshape(x.shape)


def half(a: np.ndarray) -> np.ndarray:
    """An image or map at half its size, rounded down."""
    return cv2.resize(a, (a.shape[1] // 2, a.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _triangulate(references: Sequence[Reference], frame: CameraFrame, texture: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse depth [1/m], its information if flow that texture holds well had a variance of 1 px^2, and epipolar distance [px] of each reference, (V, h, w) of half size."""
    width, height = frame.size
    x, y = (width // 2) / width, (height // 2) / height
    flow = torch.from_numpy(np.stack([half(r.flow.flow) for r in references]) * np.array([x, y], np.float32))
    T = torch.from_numpy(np.stack([r.T_ref_cur for r in references])).to(flow)
    with torch.inference_mode():
        found = two_view.triangulate_inverse_depth(flow, torch.from_numpy(resize_intrinsics(frame.K, x, y)).to(flow), T,
                                                   torch.from_numpy(flow_precision(frame.image, texture)))
    return found.inverse_depth.numpy(), found.information.numpy() / y ** 2, found.epipolar.numpy() / y


def flow_precision(image: np.ndarray, texture: float) -> np.ndarray:
    """Precision (h, w, 3) of flow at half size, as xx, xy and yy; at most 1 in any direction, and 1/2 where the gradient that way is `texture` [grey levels/px].

    Flow is held across the gradients of a patch and slides along them: the inverse of 1 + texture^2 S^-1 with the structure tensor S
    (E. Simoncelli, E. Adelson, D. Heeger, "Probability distributions of optical flow", CVPR 1991, equation 7).
    """
    shade = grey(image)
    u, v = (cv2.Sobel(shade, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    xx, xy, yy = (cv2.boxFilter(half(product), -1, (_TEXTURE_WINDOW,) * 2) for product in (u * u, u * v, v * v))
    noise = np.float32(max(texture * texture, _TINY))
    determinant = (xx + noise) * (yy + noise) - xy * xy
    return np.stack([xx * (yy + noise) - xy * xy, noise * xy, yy * (xx + noise) - xy * xy], -1) / determinant[..., None]


def _median(value: np.ndarray, information: np.ndarray) -> np.float32:
    """Median of the better known half of every fourth pixel and row; 1 if nothing is known."""
    value, information = value[2::4, 2::4], information[2::4, 2::4]
    known = information > 0
    if not known.any():
        return np.float32(1)
    return np.float32(np.clip(upper_median(value[known & (information >= upper_median(information[known]))]), *_BELIEVABLE))


def upper_median(values: np.ndarray) -> float:
    """The median, of an even number the upper one: of some thousand in a fifth of the time of np.median."""
    values = values.ravel()
    return np.partition(values, len(values) // 2)[len(values) // 2]


def _bounded(value: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Triangulated inverse depths (V, H, W) within the multiples of their median that are believed."""
    middle = _median(value.reshape(-1, value.shape[-1]), information.reshape(-1, value.shape[-1]))
    return np.clip(value, _NEAR_FAR[0] * middle, _NEAR_FAR[1] * middle)
