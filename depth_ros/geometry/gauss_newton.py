"""The Gauss-Newton layer: camera poses from dense correspondences, differentiable, with a status instead of an exception.

Source: Teed & Deng, "DeepV2D", section 3.2. Poses here are `T_cam_world`, the paper's G_i, and are updated on the left:
G <- exp(xi) G with xi = (translation, rotation). A directed edge i -> j carries points of frame i and the pixels at which frame j
should see them; its residual is e = target - pi(G_j G_i^-1 X), which is the paper's R - [pi(G'_ij X) - pi(G_ij X)] for
target = pi(G_ij X) + R. Every edge is first reduced to 6 x 6 normal equations of its own relative motion; the adjoint then carries them to the
two poses, so that keyframe form, global form and the tracker share one Jacobian. Intrinsics have no skew.
"""
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depth_ros.geometry import pinhole, se3

MAX_RESIDUAL = 250.0  # px: beyond it a correspondence is no evidence (global form of the paper)


class SolveStatus(enum.Enum):
    """Whether the linear system had a solution."""

    OK = "ok"
    SINGULAR = "singular"


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonal of H: absolute + relative * diag(H). DeepV2D uses 100 and 1e-4 at quarter resolution."""

    absolute: float = 100.0
    relative: float = 1e-4


@dataclass(frozen=True)
class Step:
    """One solved update."""

    xi: Tensor      # (..., n), zero where not solved
    solved: Tensor  # (...) bool

    @property
    def status(self) -> SolveStatus:
        """SINGULAR if any system of the batch was; synchronises the device."""
        return SolveStatus.OK if bool(self.solved.all()) else SolveStatus.SINGULAR


@dataclass(frozen=True)
class Edges:
    """Correspondences of E directed edges over N points in one batch."""

    source: Tensor   # (E,) int, index i of the pose whose frame holds the points
    target: Tensor   # (E,) int, index j of the pose whose frame sees them
    points: Tensor   # (..., E, N, 3) [m] in camera i
    pixels: Tensor   # (..., E, N, 2) [px] in image j
    weights: Tensor  # (..., E, N, 2) confidence per axis, zero where not valid
    K: Tensor        # (..., 3, 3) [px], or (..., E, 3, 3) one per edge

    def intrinsics(self) -> Tensor:
        """K (..., E or 1, 3, 3), ready to meet tensors that have an edge dimension."""
        return self.K if self.K.dim() == self.points.dim() else self.K[..., None, :, :]


class _CholeskySolve(torch.autograd.Function):
    """xi = H^-1 b with H's factor kept; backward is implicit: dL/db = H^-1 dL/dxi, dL/dH = -(H^-1 dL/dxi) xi^T."""

    @staticmethod
    def forward(ctx: Any, H: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        L, info = torch.linalg.cholesky_ex(H)
        xi = torch.cholesky_solve(b[..., None], L)[..., 0]
        solved = (info == 0) & torch.isfinite(xi).all(-1)
        xi = torch.where(solved[..., None], xi, 0.0)
        ctx.save_for_backward(L, xi, solved)
        ctx.mark_non_differentiable(solved)
        return xi, solved

    @staticmethod
    def backward(ctx: Any, grad_xi: Tensor, _grad_solved: Tensor) -> tuple[Tensor, Tensor]:
        L, xi, solved = ctx.saved_tensors
        grad_b = torch.cholesky_solve(grad_xi[..., None], L)[..., 0]
        grad_b = torch.where(solved[..., None], grad_b, 0.0)
        return -grad_b[..., :, None] * xi[..., None, :], grad_b


def solve_damped(H: Tensor, b: Tensor, damping: Damping = Damping(), clip: float = 1.0) -> Step:
    """Solve (H + damping) xi = b for H (..., n, n) and b (..., n) in float64; each component of xi is clipped to +-clip.

    A matrix that is not positive definite, or not finite, gives a zero step and `solved` False, never a NaN.
    """
    H64, b64 = H.double(), b.double()
    diagonal = damping.absolute + damping.relative * H64.diagonal(dim1=-2, dim2=-1)
    xi, solved = _CholeskySolve.apply(H64 + torch.diag_embed(diagonal), b64)
    return Step(xi.clamp(-clip, clip).to(b.dtype), solved)


def point_jacobian(points_cam: Tensor, K: Tensor) -> Tensor:
    """Derivative (..., 3, 6, N) of (u [px], v [px], z [m]) of exp(xi) X with respect to xi, of points (..., N, 3) [m] and K (..., 3, 3).

    It is the projection's Jacobian times [I | -[X]x]. Points that are not in front get zeros. The layout keeps N innermost, which is what the
    reduction to 6 x 6 reads.
    """
    X, Y, Z = points_cam.unbind(-1)
    in_front = pinhole.MIN_DEPTH < Z
    inverse_z = torch.where(in_front, 1.0 / torch.where(in_front, Z, 1.0), 0.0)
    x, y, fx, fy = X * inverse_z, Y * inverse_z, K[..., 0, 0, None], K[..., 1, 1, None]
    ones, zero = in_front.to(Z.dtype), torch.zeros_like(Z)
    xy = x * y
    u = [fx * inverse_z, zero, -fx * x * inverse_z, -fx * xy, fx * (ones + x * x), -fx * y]
    v = [zero, fy * inverse_z, -fy * y * inverse_z, -fy * (ones + y * y), fy * xy, fy * x]
    z = [zero, zero, ones, Y * ones, -X * ones, zero]
    return torch.stack(u + v + z, dim=-2).unflatten(-2, (3, 6))


def normal_equations(J: Tensor, e: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """H = J^T W J (..., 6, 6) and b = J^T W e (..., 6) of J (..., R, 6, N), residuals e and weights w (..., R, N)."""
    # One product with the residual as a seventh column: half the time of two.
    rows = torch.cat([J, e[..., None, :]], dim=-2)
    products = ((rows * w[..., None, :]) @ rows.mT).sum(-3)
    return products[..., :6, :6], products[..., :6, 6]


def relative_motion(T_cam_world: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """G_ij (..., E, 4, 4) = T_target_source of poses G (..., P, 4, 4) and indices (E,)."""
    return T_cam_world[..., target, :, :] @ se3.inverse(T_cam_world[..., source, :, :])


def assemble(H_edge: Tensor, b_edge: Tensor, T_target_source: Tensor, source: Tensor, target: Tensor, poses: int) -> tuple[Tensor, Tensor]:
    """One system H (..., 6P, 6P), b (..., 6P) over P poses from every edge's own (..., E, 6, 6) and (..., E, 6).

    The residual's derivative by the target's update is J, by the source's update -J Ad(G_ij).
    """
    Ad = se3.adjoint(T_target_source).to(H_edge.dtype)
    HAd = H_edge @ Ad
    blocks = torch.cat([H_edge, Ad.mT @ HAd, -HAd, -HAd.mT], dim=-3)
    index = torch.cat([target * poses + target, source * poses + source, target * poses + source, source * poses + target])
    batch = H_edge.shape[:-3]
    H = blocks.new_zeros(*batch, poses * poses, 6, 6).index_add(-3, index, blocks)
    H = H.unflatten(-3, (poses, poses)).transpose(-3, -2).reshape(*batch, 6 * poses, 6 * poses)
    b = torch.cat([b_edge, -(Ad.mT @ b_edge[..., None])[..., 0]], dim=-2)
    b = b.new_zeros(*batch, poses, 6).index_add(-2, torch.cat([target, source]), b)
    return H, b.flatten(-2)


def edge_equations(T_target_source: Tensor, edges: Edges, max_residual: float = MAX_RESIDUAL) -> tuple[Tensor, Tensor]:
    """Normal equations (..., E, 6, 6), (..., E, 6) of every edge about its relative motion (..., E, 4, 4)."""
    points, K = se3.transform(T_target_source, edges.points), edges.intrinsics()
    projected, in_front = pinhole.project(points[..., None, :, :], K)
    projected, in_front = projected[..., 0, :, :], in_front[..., 0, :]
    e = edges.pixels - projected
    near = in_front & (e.detach().abs().amax(-1) < max_residual)
    w = torch.where(near[..., None], edges.weights, 0.0)
    e = torch.where(near[..., None], e, 0.0)
    return normal_equations(point_jacobian(points, K)[..., :2, :, :], e.mT, w.mT)


def keyframe_form(T_target_source: Tensor, edges: Edges, steps: int = 2, damping: Damping = Damping(), clip: float = 1.0) -> tuple[Tensor, Step]:
    """Every relative motion (..., E, 4, 4) solved alone, its source (the keyframe) fixed; the last step tells the status."""
    for _ in range(steps):
        step = solve_damped(*edge_equations(T_target_source, edges), damping, clip)
        T_target_source = se3.exp(step.xi) @ T_target_source
    return T_target_source, step


def global_form(T_cam_world: Tensor, edges: Edges, fixed: int = 1, steps: int = 1, damping: Damping = Damping(), clip: float = 1.0) -> tuple[Tensor, Step]:
    """All poses (..., P, 4, 4) in one system, the first `fixed` ones held; the last step tells the status."""
    poses = T_cam_world.shape[-3]
    if not 0 < fixed < poses:
        raise ValueError(f"expected between 1 and {poses - 1} fixed poses of {poses}, got {fixed}")
    for _ in range(steps):
        motion = relative_motion(T_cam_world, edges.source, edges.target)
        H, b = assemble(*edge_equations(motion, edges), motion, edges.source, edges.target, poses)
        step = solve_damped(H[..., 6 * fixed:, 6 * fixed:], b[..., 6 * fixed:], damping, clip)
        moved = se3.exp(step.xi.unflatten(-1, (-1, 6))) @ T_cam_world[..., fixed:, :, :]
        T_cam_world = torch.cat([T_cam_world[..., :fixed, :, :], moved], dim=-3)
    return T_cam_world, step


def all_pairs(poses: int) -> tuple[Tensor, Tensor]:
    """Indices (E,) of source and target of all ordered pairs of different poses."""
    i, j = torch.meshgrid(torch.arange(poses), torch.arange(poses), indexing="ij")
    different = i != j
    return i[different], j[different]
