"""Two views joined by flow: inverse depth by triangulation, relative pose from the essential matrix.

A pixel p of the current image at inverse depth w is seen in the reference at the homogeneous pixel a + w b with
a = K R K^-1 p, b = K t and T_ref_cur = (R, t) (Hartley and Zisserman, Multiple View Geometry, section 9.6).
"""
from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_ros.geometry import pinhole

_TINY = 1e-12
_COMMON = 50                # pixels that two triangulations must have in common to be compared


@dataclass(frozen=True)
class Triangulation:
    """What flow and motion say about each pixel of the current image."""

    inverse_depth: Tensor   # (..., H, W) [1/m], signed: not positive where the flow contradicts the motion; 0 without parallax
    information: Tensor     # (..., H, W) [1/variance of inverse depth], by the flow's precision; 0 where nothing is known
    parallax: Tensor        # (..., H, W) [px m]: shift in the reference for one unit of inverse depth
    epipolar: Tensor        # (..., H, W) [px]: distance from the flow's end to the pixel's epipolar line
    derotated: Tensor       # (..., H, W, 2) [px]: the flow less what the rotation alone makes
    valid: Tensor           # (..., H, W) bool: positive, in front of the reference, with parallax


def triangulate_inverse_depth(flow: Tensor, K: Tensor, T_ref_cur: Tensor, precision: Tensor | None = None) -> Triangulation:
    """Inverse depth (..., H, W) [1/m] of flow (..., H, W, 2) [px] current -> reference with K (..., 3, 3), T_ref_cur (..., 4, 4) [m].

    The point of the pixel's ray whose image in the reference is nearest to the flow's end, in closed form: the error in pixels is a linear one over
    the point's depth ratio (Hartley and Sturm, "Triangulation", section 5.2), which of two views scales both sides alike. `precision` (..., H, W, 3) [1/px^2]:
    xx, xy and yy of the inverse covariance of the flow, by which nearness is then measured; the identity if not given.
    """
    height, width = flow.shape[-3:-1]
    u, v = flow.unbind(-1)
    finite = torch.isfinite(u) & torch.isfinite(v)
    ax, ay, az = pinhole.planes_of_grid(K @ T_ref_cur[..., :3, :3] @ pinhole.inverse(K), height, width)
    bx, by, bz = (K @ T_ref_cur[..., :3, 3:])[..., None].unbind(-3)     # (..., 1, 1) each
    columns, rows = (torch.arange(n, dtype=flow.dtype, device=flow.device) for n in (width, height))
    end_x, end_y = torch.where(finite, u, 0.0) + columns, torch.where(finite, v, 0.0) + rows[:, None]
    towards_x, towards_y = bx - end_x * bz, by - end_y * bz             # image motion of the end with inverse depth, times depth ratio
    offset_x, offset_y = end_x * az - ax, end_y * az - ay
    weighed_x, weighed_y = (towards_x, towards_y) if precision is None else _apply_symmetric(precision, towards_x, towards_y)
    power = weighed_x * towards_x + weighed_y * towards_y
    known = finite & (power > _TINY)
    inverse_depth = torch.where(known, (weighed_x * offset_x + weighed_y * offset_y) / torch.where(known, power, 1.0), 0.0)
    ratio = az + inverse_depth * bz
    in_front = ratio > pinhole.MIN_DEPTH
    scale = torch.where(in_front, 1.0 / torch.where(in_front, ratio, 1.0), 0.0)
    parallax = (towards_x * towards_x + towards_y * towards_y).clamp(min=_TINY).sqrt() * scale
    z = torch.where(az > pinhole.MIN_DEPTH, az, 1.0)
    turned_x, turned_y = end_x - ax / z, end_y - ay / z                 # the flow less that of the rotation
    line = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    return Triangulation(inverse_depth, torch.where(known, power * scale * scale, 0.0), parallax, _epipolar_distance(line, end_x, end_y, turned_x, turned_y),
                         torch.stack([turned_x, turned_y], -1), known & in_front & (inverse_depth > 0))


def _apply_symmetric(matrix: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Products of symmetric matrices (..., 3), given as xx, xy and yy, with vectors of these components (...)."""
    xx, xy, yy = matrix.unbind(-1)
    return xx * x + xy * y, xy * x + yy * y


def _epipolar_distance(line: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, turned_x: Tensor, turned_y: Tensor) -> Tensor:
    """Distance (...) [px] of pixels (x, y) to homogeneous lines; where there is no line, how far they are turned away from where a point at infinity would be."""
    squared = line[0] * line[0] + line[1] * line[1]
    is_line = squared > _TINY
    along = (line[0] * x + line[1] * y + line[2]).abs() / torch.where(is_line, squared, 1.0).sqrt()
    apart = turned_x * turned_x + turned_y * turned_y
    return torch.where(is_line, along, torch.where(apart > 0, apart, 1.0).sqrt() * (apart > 0))


class TwoViewStatus(enum.Enum):
    """Whether two views determine their relative pose."""

    OK = "ok"
    DEGENERATE = "degenerate"    # too few matches, or a rotation explains them: no direction of translation


@dataclass(frozen=True)
class RelativePose:
    """Relative pose up to scale."""

    T_ref_cur: np.ndarray    # (4, 4) float64, unit translation when OK; when DEGENERATE the best rotation and no translation
    inliers: np.ndarray      # (H, W) bool: pixels that agree with T_ref_cur
    parallax: float          # [px] median length of the flow that no rotation explains
    status: TwoViewStatus


@dataclass(frozen=True)
class TwoViewConfig:
    """Bounds for essential_from_flow."""

    max_matches: int = 2000        # pixels used, spread evenly over the valid ones
    min_matches: int = 50
    threshold: float = 1.0         # [px] Sampson distance of an inlier
    min_inlier_ratio: float = 0.3
    min_parallax: float = 1.0      # [px] median parallax below which no direction is trusted
    min_parallax_to_noise: float = 4.0   # the same as a multiple of the median Sampson distance
    iterations: int = 10
    seed: int = 0


def essential_from_flow(flow: np.ndarray, K: np.ndarray, valid: np.ndarray, config: TwoViewConfig = TwoViewConfig()) -> RelativePose:
    """Relative pose from flow (H, W, 2) [px] current -> reference where valid (H, W), one K (3, 3): RANSAC, then Sampson refinement.

    Five-point hypotheses by OpenCV (Nister, PAMI 2004), then Gauss-Newton on rotation and direction with a robust Sampson error.
    """
    height, width = flow.shape[:2]
    pixels, ends = _picked(flow, valid, config)
    if len(pixels) < config.min_matches:
        return RelativePose(np.eye(4), np.zeros((height, width), bool), 0.0, TwoViewStatus.DEGENERATE)
    focal = 0.5 * (K[0, 0] + K[1, 1])
    x_cur, x_ref = _bearings(pixels, K), _bearings(ends, K)
    R_only, residual = _fit_rotation(x_cur, x_ref, config.threshold / focal, config.iterations)
    R, t = _fit_essential(x_cur, x_ref, R_only, config, focal)
    agree = np.abs(_sampson(R, t, x_cur, x_ref)[0]) * focal < config.threshold
    parallax = float(np.median(residual[agree])) * focal if agree.any() else 0.0
    noise = float(np.median(np.abs(_sampson(R, t, x_cur, x_ref)[0]))) * focal
    grid = pinhole.pixel_grid(height, width).numpy().reshape(-1, 2)
    everything, ends = _bearings(grid, K), _bearings(grid + np.nan_to_num(flow, posinf=0.0, neginf=0.0).reshape(-1, 2), K)
    enough = agree.sum() >= max(config.min_matches, config.min_inlier_ratio * len(pixels))
    if enough and parallax > max(config.min_parallax, config.min_parallax_to_noise * noise):
        T, error, status = _pose(R, t), np.abs(_sampson(R, t, everything, ends)[0]), TwoViewStatus.OK
    else:
        T, error, status = _pose(R_only, np.zeros(3)), _rotation_residual(R_only, everything, ends), TwoViewStatus.DEGENERATE
    inliers = valid & (error * focal < config.threshold).reshape(height, width)
    return RelativePose(T, inliers, parallax, status)


def pair_at(T_ref_cur: np.ndarray, flow: np.ndarray, K: np.ndarray, valid: np.ndarray, config: TwoViewConfig = TwoViewConfig()) -> RelativePose:
    """What flow (H, W, 2) [px] current -> reference, where valid (H, W), says of a pose (4, 4) that is known from elsewhere; its translation brought to length 1, or to none where it is not seen."""
    R, t = (np.asarray(part, np.float64) for part in (T_ref_cur[:3, :3], T_ref_cur[:3, 3]))
    length = float(np.linalg.norm(t))
    t = t / max(length, _TINY)
    focal = 0.5 * (K[0, 0] + K[1, 1])
    grid = pinhole.pixel_grid(*valid.shape).numpy().reshape(-1, 2)
    x_cur, x_ref = _bearings(grid, K), _bearings(grid + np.nan_to_num(flow, posinf=0.0, neginf=0.0).reshape(-1, 2), K)
    error = (np.abs(_sampson(R, t, x_cur, x_ref)[0]) * focal).reshape(valid.shape)
    turned = (_rotation_residual(R, x_cur, x_ref) * focal).reshape(valid.shape)
    valid = valid & np.isfinite(flow).all(-1)
    inliers = valid & (error < config.threshold)
    parallax = float(np.median(turned[inliers])) if length > 0 and inliers.sum() >= max(config.min_matches, config.min_inlier_ratio * valid.sum()) else 0.0
    if parallax > 0 and parallax > max(config.min_parallax, config.min_parallax_to_noise * float(np.median(error[inliers]))):
        return RelativePose(_pose(R, t), inliers, parallax, TwoViewStatus.OK)
    return RelativePose(_pose(R, np.zeros(3)), valid & (turned < config.threshold), parallax, TwoViewStatus.DEGENERATE)


def at_one_scale(pairs: Sequence[RelativePose], flows: Sequence[np.ndarray], K: np.ndarray, inverse_depth: np.ndarray | None = None,
                 usual: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
    """Poses (V, 4, 4) of pairs with one current view, whose flows (H, W, 2) [px] triangulate the same inverse depths, and those (H, W), 0 where not known.

    If they are not given they are those of the pair with most parallax, and their median `usual`; None if no pair has any. A pose that cannot be compared is left without translation.
    """
    poses = np.stack([pair.T_ref_cur for pair in pairs])
    for i in sorted(range(len(pairs)), key=lambda i: -pairs[i].parallax * pairs[i].inliers.sum()):
        told = triangulate_inverse_depth(torch.from_numpy(flows[i]).double(), torch.from_numpy(K), torch.from_numpy(poses[i]))
        inverse = np.where(told.valid.numpy() & pairs[i].inliers, told.inverse_depth.numpy(), 0.0)
        both = (inverse > 0) & (True if inverse_depth is None else inverse_depth > 0)
        if pairs[i].status is not TwoViewStatus.OK or both.sum() < _COMMON:
            poses[i, :3, 3] = 0.0       # of no known length
            continue
        factor = np.median(inverse[both]) / usual if inverse_depth is None else np.median(inverse[both] / inverse_depth[both])
        poses[i, :3, 3] *= factor
        inverse_depth = inverse / factor if inverse_depth is None else inverse_depth
    return poses, inverse_depth


def _picked(flow: np.ndarray, valid: np.ndarray, config: TwoViewConfig) -> tuple[np.ndarray, np.ndarray]:
    """At most max_matches of the valid pixels (N, 2), spread evenly, and where flow (H, W, 2) leads from them."""
    v, u = np.nonzero(valid & np.isfinite(flow).all(-1))
    if len(u) > config.max_matches:
        picked = np.sort(np.random.default_rng(config.seed).choice(len(u), config.max_matches, replace=False))
        u, v = u[picked], v[picked]
    pixels = np.stack([u, v], -1).astype(np.float64)
    return pixels, pixels + flow[v, u]


def _bearings(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Rays (N, 3) with z = 1 through pixels (N, 2)."""
    return np.pad(pixels.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0) @ np.linalg.inv(K).T


def _pose(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(4, 4) of a rotation (3, 3) and a translation (3,)."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def _rotation_residual(R: np.ndarray, x_cur: np.ndarray, x_ref: np.ndarray) -> np.ndarray:
    """Distance (N,) on the normalised image plane between rotated rays (N, 3) and where they were seen."""
    y = x_cur @ R.T
    return np.linalg.norm(y[:, :2] / np.maximum(y[:, 2:], pinhole.MIN_DEPTH) - x_ref[:, :2], axis=1)


def _fit_rotation(x_cur: np.ndarray, x_ref: np.ndarray, scale: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation R_ref_cur that best explains the rays alone, and its residuals (N,): Kabsch, reweighted towards the least absolute error."""
    a = x_cur / np.linalg.norm(x_cur, axis=1, keepdims=True)
    b = x_ref / np.linalg.norm(x_ref, axis=1, keepdims=True)
    weight = np.ones(len(a))
    for _ in range(iterations):
        U, _, Vt = np.linalg.svd((weight[:, None] * b).T @ a)
        R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
        residual = _rotation_residual(R, x_cur, x_ref)
        weight = 1.0 / np.maximum(residual, 0.1 * scale)
    return R, residual


def _fit_essential(x_cur: np.ndarray, x_ref: np.ndarray, R_only: np.ndarray, config: TwoViewConfig, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and unit direction (3,) of T_ref_cur from rays (N, 3); meaningless where no translation is seen.

    With little parallax the error has several valleys (sideways, forwards); so it is followed from the five-point hypothesis
    and from each axis, and the lowest end is taken. Of E's two rotations the one near R_only is meant: the other is half a turn off.
    """
    threshold = config.threshold / focal
    a, b = np.ascontiguousarray(x_cur[:, :2]), np.ascontiguousarray(x_ref[:, :2])
    starts = [(R_only, axis) for axis in np.eye(3)]
    E, _ = cv2.findEssentialMat(a, b, np.eye(3), method=cv2.USAC_DEFAULT, prob=0.999, threshold=threshold)
    if E is not None and E.shape[0] >= 3:
        R_1, R_2, t = cv2.decomposeEssentialMat(E[:3])
        starts.append((max(R_1, R_2, key=lambda R: np.trace(R_only.T @ R)), t[:, 0]))
    ends = [_refine(R, t, x_cur, x_ref, threshold, config.iterations) for R, t in starts]
    R, t = min(ends, key=lambda end: np.log1p((2 * _sampson(*end, x_cur, x_ref)[0] / threshold) ** 2).sum())
    return R, t * _side(R, t, x_cur, x_ref, threshold)


def _side(R: np.ndarray, t: np.ndarray, x_cur: np.ndarray, x_ref: np.ndarray, threshold: float) -> float:
    """+1 if more of the inliers lie in front of the cameras with t than with -t, else -1."""
    y = x_cur @ R.T
    moves = t[:2] - x_ref[:, :2] * t[2]
    shift = x_ref[:, :2] * y[:, 2:] - y[:, :2]
    inlier = np.abs(_sampson(R, t, x_cur, x_ref)[0]) < threshold
    return 1.0 if np.sign((moves * shift).sum(1))[inlier].sum() >= 0 else -1.0


def _sampson(R: np.ndarray, t: np.ndarray, x_cur: np.ndarray, x_ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed Sampson distance (N,) on the normalised plane and its Jacobian (N, 6) by (omega, t), R <- exp(omega) R.

    The denominator is held fixed, as in iteratively reweighted least squares (Hartley and Zisserman, section 11.4.3).
    """
    y = x_cur @ R.T
    line_ref, line_cur = np.cross(t, y), np.cross(x_ref, t) @ R
    scale = np.sqrt((line_ref[:, :2] ** 2).sum(1) + (line_cur[:, :2] ** 2).sum(1)).clip(min=_TINY)
    by_rotation = np.cross(y, np.cross(x_ref, t))
    by_translation = np.cross(y, x_ref)
    return (x_ref * line_ref).sum(1) / scale, np.concatenate([by_rotation, by_translation], 1) / scale[:, None]


def _refine(R: np.ndarray, t: np.ndarray, x_cur: np.ndarray, x_ref: np.ndarray, scale: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton on rotation and direction for the robust (Cauchy) sum of Sampson distances."""
    for _ in range(iterations):
        residual, jacobian = _sampson(R, t, x_cur, x_ref)
        tangent = np.linalg.svd(t[None])[2][1:].T                      # (3, 2): the directions in which a unit vector can move
        J = np.concatenate([jacobian[:, :3], jacobian[:, 3:] @ tangent], 1)
        weighted = J / (1 + (2 * residual / scale) ** 2)[:, None]
        H = weighted.T @ J
        step = -np.linalg.solve(H + 1e-9 * np.trace(H) * np.eye(5) + _TINY * np.eye(5), weighted.T @ residual)
        R = cv2.Rodrigues(step[:3])[0] @ R
        t = t + tangent @ step[3:]
        t = t / np.linalg.norm(t)
    return R, t
