"""Align one frame with remembered ones by robust Gauss-Newton on dense flow and, where both have it, depth.

The residuals are those of geometry.gauss_newton (DeepV2D's layer) with a third row: the depth measured where the flow ends, against the
depth of the moved point. Iteratively reweighted with Cauchy weights. In NumPy: every image waits for it, nothing is learned through it, and at a
thousand points a frame torch's calls cost more than their arithmetic.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from depth_ros.engines.keyframes import DepthMap, View
from depth_ros.frames import FlowResult, consistency_error, pixel_grid, resize_intrinsics
from depth_ros.geometry import rigid
from depth_ros.geometry.gauss_newton import Damping, SolveStatus
from depth_ros.geometry.warp import induced_flow
from depth_ros.settings import setting

MIN_DEPTH = 0.01            # [m] nearer depth is not trusted. No sensor sees so near; but where the scale is free, what comes later may be a small share of the first view's depth
FLOW_CAUCHY = 1.0           # of the flow's noise: beyond it a residual loses weight
DEPTH_CAUCHY = 2.8          # of the depth's noise
DAMPING = Damping(absolute=1e-3, relative=1e-6)     # weights are inverse variances, so this is far weaker than any real evidence
EXPECTED_STRIDE = 8         # px
_LONGEST_STEP = 0.5         # [m, rad] a component
_STILL = 1e-5               # a step that ends the alignment
CORRELATION = 24            # px over which the errors of flow agree: the covariance must not count such points as independent


@dataclass(frozen=True)
class AlignmentConfig:
    """Weights and effort of the alignment."""

    grid_stride: int = setting(8, 'distance between the pixels that tracking uses', 'px', 1, 32)
    steps: int = setting(3, 'most Gauss-Newton steps a frame', '', 1, 50)
    flow_noise: float = setting(0.3, 'standard deviation of good flow', 'px', 0.01, 10.0)
    max_inconsistency: float = setting(2.0, 'forward-backward error from which flow is ignored', 'px', 0.1, 20.0)
    depth_noise: float = setting(0.0014, 'standard deviation of sensor depth at 1 m; grows with its square', 'm', 1e-5, 1.0)
    depth_noise_floor: float = setting(0.0007, 'smallest standard deviation of sensor depth', 'm', 0.0, 1.0)
    min_texture: float = setting(0.5, 'image gradient below which flow is ignored', 'grey levels/px', 0.0, 100.0)
    max_residual: float = setting(3.0, 'largest distance of an inlier from where its motion puts it', 'px', 0.1, 50.0)

    def sensor_sigma(self, depth: np.ndarray) -> np.ndarray:
        """Standard deviation [m] of a structured-light sensor's depth [m], any shape."""
        return self.depth_noise_floor + self.depth_noise * depth * depth


@dataclass(frozen=True)
class Matches:
    """Grid points of a source view with depth and where flow finds them in a target view; N points, float32."""

    source: View
    target: View
    points: np.ndarray              # (N, 3) [m], source camera
    pixels: np.ndarray              # (N, 2) [px], target image
    confidence: np.ndarray          # (N,) [0, 1], 0 where not valid
    flow_variance: np.ndarray       # (N, 2) [px^2] along u and v
    depth: np.ndarray               # (N,) [m] measured by the target at pixels
    depth_information: np.ndarray   # (N,) [1/m^2], 0 where the target measured none
    candidates: int                 # points that have depth and texture, whatever their flow


@dataclass(frozen=True)
class Alignment:
    """The pose found, and how far it can be trusted."""

    T_odom_cam: np.ndarray      # (4, 4)
    covariance: np.ndarray      # (6, 6) of (translation [m], rotation [rad]), camera frame
    inlier_ratio: float         # of the best pair's candidates
    inliers: int
    agreement: float            # share of inliers among the consistent matches, all pairs
    status: SolveStatus


def matches(source: View, target: View, forward: np.ndarray, backward: np.ndarray, config: AlignmentConfig) -> Matches | None:
    """Matches along flow `forward` (H, W, 2) source -> target, checked against `backward`; None without depth in the source."""
    if source.depth is None:
        return None
    at = grid_slice(config.grid_stride)
    ahead = forward[at]
    error = consistency_error(ahead, backward, points_on_grid(source, config)[0])
    return matches_along(source, target, ahead, np.where(error < config.max_inconsistency, 1 / (1 + (error / 0.5) ** 2), 0), np.float32(config.flow_noise ** 2), config)


def matches_along(source: View, target: View, ahead: np.ndarray, confidence: np.ndarray, variance: np.ndarray, config: AlignmentConfig) -> Matches:
    """Matches along flow `ahead` (h, w, 2) of the grid's pixels, whoever found it, with its confidence (h, w) in [0, 1] and variance (..., 2) or one for all [px^2]."""
    grid, points = points_on_grid(source, config)
    at = grid_slice(config.grid_stride)
    depth, ends = source.depth.depth[at], grid + ahead
    usable = source.depth.valid[at] & (depth > MIN_DEPTH) & (source.texture[at] > config.min_texture)
    # Texture at both ends: flow into a blank image is consistent, and means nothing.
    textured = cv2.remap(target.texture, ends, None, cv2.INTER_NEAREST) > config.min_texture
    parallax = source.frame.K[0, 0] * np.linalg.norm(source.T_odom_cam[:3, 3] - target.T_odom_cam[:3, 3])
    sigma = config.sensor_sigma(depth) if source.depth.sigma is None else source.depth.sigma[at]
    variance = np.broadcast_to(variance, ends.shape) + ((parallax * sigma / np.maximum(depth, MIN_DEPTH) ** 2) ** 2)[..., None]
    seen, information = _depth_at(target.depth, ends, config)
    flat = [np.asarray(a, np.float32).reshape(-1, *a.shape[2:]) for a in (points, ends, np.where(usable & textured, confidence, 0), variance, seen, information)]
    return Matches(source, target, *flat, candidates=int(usable.sum()))


def pair_matches(current: View, reference: View, result: FlowResult, config: AlignmentConfig) -> list[Matches]:
    """Matches of a pair in each direction whose source has depth."""
    both = (matches(current, reference, result.flow, result.backward, config), matches(reference, current, result.backward, result.flow, config))
    return [m for m in both if m is not None]


def align(current: View, given: Sequence[Matches], config: AlignmentConfig) -> Alignment:
    """The pose of `current` that agrees best with matches from it and to it, started from the one it has; all other poses stay."""
    return align_together([current], given, config)[0]


@np.errstate(invalid='ignore', over='ignore')     # what is no number ends as a status
def align_together(free: Sequence[View], given: Sequence[Matches], config: AlignmentConfig) -> list[Alignment]:
    """The poses of some views that together agree best with matches among them and with others, started from those they have; all other poses stay.

    Every view is judged by its own matches. One that has none keeps its pose, with no inliers.
    """
    ours = {id(v) for v in free}
    others = list({id(v): v for m in given for v in (m.source, m.target) if id(v) not in ours}.values())
    index = {id(v): i for i, v in enumerate((*others, *free))}
    source, target = (np.array([index[id(v)] for v in views]) for views in ([m.source for m in given], [m.target for m in given]))
    poses = rigid.inverse(np.stack([v.T_odom_cam for v in (*others, *free)]))
    system, held = _System(given, source, target, config), len(others)
    for _ in range(config.steps):
        H, b = system.equations(poses, held)
        step, status = _solve(H, b)
        poses[held:] = [rigid.from_vector(xi) @ T for xi, T in zip(step.reshape(-1, 6), poses[held:])]
        if np.abs(step).max() < _STILL:
            break
    covariance = system.covariance(H)
    return [system.judge(poses[held + i], covariance[6 * i:6 * i + 6, 6 * i:6 * i + 6], (source == held + i) | (target == held + i), status) for i in range(len(free))]


def expected_flow(source: View, target: View) -> np.ndarray | None:
    """Flow (H, W, 2) float32 [px] source -> target that their poses and depth make expect, a start for DIS; None where neither has depth.

    Worked out on a coarse grid, for DIS begins no finer; the median depth stands where there is none.
    """
    known = next((v.depth for v in (source, target) if v.depth is not None and v.depth.valid.any()), None)
    if known is None:
        return None
    width, height = source.frame.size
    size = max(1, width // EXPECTED_STRIDE), max(1, height // EXPECTED_STRIDE)
    small, valid = (cv2.resize(a, size, interpolation=cv2.INTER_NEAREST) for a in (known.depth, known.valid.astype(np.uint8)))
    middle = np.median(small[valid > 0]) if valid.any() else np.median(known.depth[known.valid])
    depth = np.where(valid > 0, small, middle) if known is source.depth else np.full_like(small, middle)
    scale = size[0] / width, size[1] / height
    T_target_source = np.linalg.inv(target.T_odom_cam) @ source.T_odom_cam
    arguments = depth, resize_intrinsics(source.frame.K, *scale), T_target_source
    flow, _ = induced_flow(*(torch.from_numpy(np.asarray(a, np.float32)) for a in arguments))
    return cv2.resize(flow.numpy() / np.float32(scale), (width, height))


class _System:
    """The stacked matches of one alignment, with what their last linearisation found."""

    def __init__(self, given: Sequence[Matches], source: np.ndarray, target: np.ndarray, config: AlignmentConfig) -> None:
        """`source`, `target` (E,): the poses that each edge is between."""
        self.config, self._source, self._target = config, source, target
        self._candidates = np.array([m.candidates for m in given])
        K = np.stack([m.target.frame.K for m in given]).astype(np.float32)
        self._fx, self._fy, self._cx, self._cy = (K[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
        self._points, self._pixels, self._variance = (np.stack([getattr(m, name).T for m in given]) for name in ('points', 'pixels', 'flow_variance'))     # (E, 3 or 2, N)
        self._confidence, self._depth, self._information = (np.stack([getattr(m, name) for m in given]) for name in ('confidence', 'depth', 'depth_information'))
        self._evidence = 2 * self._confidence.sum() + (self._confidence * (self._information > 0)).sum()
        self._rows = np.zeros((len(given), 7, *self._points.shape[1:]), np.float32)     # derivatives by the six unknowns, and the residual, of u, v and z
        self._rows[:, 2, 2] = 1

    def equations(self, poses: np.ndarray, held: int) -> tuple[np.ndarray, np.ndarray]:
        """Normal equations (6F, 6F), (6F,) of poses T_cam_odom (P, 4, 4), all but the first `held` ones free."""
        motion = poses[self._target] @ rigid.inverse(poses[self._source])
        products = self._linearise(motion).astype(np.float64)
        edges = np.arange(len(motion))
        share = np.zeros((len(motion), len(poses), 6, 6))       # of each pose's update in the relative motion's: I of the target's, -Ad(G_ij) of the source's
        share[edges, self._target] = np.eye(6)
        share[edges, self._source] -= rigid.adjoint(motion)
        free = share[:, held:].transpose(0, 2, 1, 3).reshape(len(motion), 6, -1)
        stacked = free.reshape(-1, free.shape[-1])
        return stacked.T @ (products[:, :6, :6] @ free).reshape(stacked.shape), stacked.T @ products[:, :6, 6].ravel()

    def _linearise(self, T_target_source: np.ndarray) -> np.ndarray:
        """J^T W J (E, 7, 7) about relative motions (E, 4, 4), the residual being the last column of J."""
        T = T_target_source.astype(np.float32)
        X, Y, Z = (T[:, :3, :3] @ self._points + T[:, :3, 3:]).transpose(1, 0, 2)
        in_front = Z > MIN_DEPTH
        inverse_z = 1 / np.maximum(Z, np.float32(MIN_DEPTH))
        x, y, along_x, along_y = X * inverse_z, Y * inverse_z, self._fx * inverse_z, self._fy * inverse_z
        u, v, z = self._pixels[:, 0] - (self._fx * x + self._cx), self._pixels[:, 1] - (self._fy * y + self._cy), self._depth - Z
        self._squared_residual = u * u + v * v
        weights = np.empty((len(T), 3, Z.shape[1]), np.float32)
        sure = self._confidence * in_front
        weights[:, :2] = sure[:, None] / (self._variance + (self._squared_residual / np.float32(FLOW_CAUCHY ** 2))[:, None])
        weights[:, 2] = sure * self._information / (1 + z * z * self._information / np.float32(DEPTH_CAUCHY ** 2))
        rows, xy = self._rows, x * y
        rows[:, 0, 0], rows[:, 2, 0] = along_x, -along_x * x
        rows[:, 3, 0], rows[:, 4, 0], rows[:, 5, 0], rows[:, 6, 0] = -self._fx * xy, self._fx * (1 + x * x), -self._fx * y, u
        rows[:, 1, 1], rows[:, 2, 1] = along_y, -along_y * y
        rows[:, 3, 1], rows[:, 4, 1], rows[:, 5, 1], rows[:, 6, 1] = -self._fy * (1 + y * y), self._fy * xy, self._fy * x, v
        rows[:, 3, 2], rows[:, 4, 2], rows[:, 6, 2] = Y, -X, z
        products = (rows * weights[:, None]).reshape(len(T), 7, -1) @ rows.reshape(len(T), 7, -1).transpose(0, 2, 1)
        self._squared_error = float(products[:, 6, 6].sum())
        return products

    def covariance(self, H: np.ndarray) -> np.ndarray:
        """Of the unknowns (n, n): the inverse of the information H (n, n), scaled by the residual variance."""
        alike = max(1.0, (CORRELATION / self.config.grid_stride) ** 2)
        variance = alike * self._squared_error / max(float(self._evidence), 1.0)
        return variance * np.linalg.inv(H + DAMPING.absolute * np.eye(len(H)))

    def judge(self, T_cam_odom: np.ndarray, covariance: np.ndarray, own: np.ndarray, status: SolveStatus) -> Alignment:
        """The result for a view whose matches are its `own` (E,) bool."""
        if not own.any():
            return Alignment(_inverse_orthonormalised(T_cam_odom), covariance, 0.0, 0, 0.0, status)
        consistent = self._confidence[own] > 0
        inlier = consistent & (self._squared_residual[own] < self.config.max_residual ** 2)
        counts = inlier.sum(-1)
        ratio = (counts / np.maximum(self._candidates[own], 1)).max()
        agreement = float(counts.sum() / max(consistent.sum(), 1))
        finite = np.isfinite(T_cam_odom).all() and np.isfinite(covariance).all()
        T_odom_cam = _inverse_orthonormalised(T_cam_odom) if finite else T_cam_odom.copy()
        return Alignment(T_odom_cam, covariance, float(ratio), int(counts.max()), agreement, status if finite else SolveStatus.SINGULAR)


def _solve(H: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, SolveStatus]:
    """The update (n,) of H (n, n) and b (n,), damped and clipped; none where they tell nothing, as gauss_newton.solve_damped has it."""
    try:
        step = cho_solve(cho_factor(H + np.diag(DAMPING.absolute + DAMPING.relative * H.diagonal())), b)
    except (LinAlgError, ValueError):       # not positive definite, not finite
        return np.zeros_like(b), SolveStatus.SINGULAR
    return np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), SolveStatus.OK


def _inverse_orthonormalised(T: np.ndarray) -> np.ndarray:
    """Inverse (4, 4) of a rigid motion T (4, 4), with the nearest rotation: poses are chained, and rounding would make them rotations less and less."""
    left, _, right = np.linalg.svd(T[:3, :3])
    inverse = np.eye(4)
    inverse[:3, :3] = (left @ right).T
    inverse[:3, 3] = -inverse[:3, :3] @ T[:3, 3]
    return inverse


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int], K: tuple[float, ...], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid pixels (h, w, 2) and the rays (h, w, 3) with z = 1 through them."""
    grid = pixel_grid(*size, stride, stride // 2)
    ones = np.ones_like(grid[..., :1])
    return grid, (np.concatenate([grid, ones], axis=-1) @ np.linalg.inv(np.array(K).reshape(3, 3)).T).astype(np.float32)


def points_on_grid(view: View, config: AlignmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """The grid's pixels (h, w, 2) and the points (h, w, 3) [m] that a view with depth sees there; the view's own depth tells where they mean something."""
    grid, rays = _grid(view.frame.size, tuple(view.frame.K.ravel()), config.grid_stride)
    return grid, view.depth.depth[grid_slice(config.grid_stride)][..., None] * rays


def grid_slice(stride: int) -> tuple[slice, slice]:
    """Where the grid's pixels lie in an image."""
    return (slice(stride // 2, None, stride),) * 2


def _depth_at(depth_map: DepthMap | None, pixels: np.ndarray, config: AlignmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Depth [m] nearest to pixels (h, w, 2) and its information [1/m^2], 0 where there is none."""
    if depth_map is None:
        return np.zeros(pixels.shape[:2], np.float32), np.zeros(pixels.shape[:2], np.float32)
    depth, valid = (cv2.remap(a, pixels, None, cv2.INTER_NEAREST) for a in (depth_map.depth, depth_map.valid.view(np.uint8)))
    sigma = config.sensor_sigma(depth) if depth_map.sigma is None else cv2.remap(depth_map.sigma, pixels, None, cv2.INTER_NEAREST)
    present = (valid > 0) & (depth > MIN_DEPTH) & (sigma > 0)
    return depth, np.where(present, 1 / np.where(present, sigma, 1) ** 2, 0)
