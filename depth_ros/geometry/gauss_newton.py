"""The Gauss-Newton layer: camera poses from dense correspondences, differentiable, with a status instead of an exception.

Source: Teed & Deng, "DeepV2D", section 3.2. Poses here are `T_cam_world`, the paper's G_i, and are updated on the left:
G <- exp(xi) G with xi = (translation, rotation). A directed edge i -> j carries points of frame i and the pixels at which frame j
should see them; its residual is e = target - pi(G_j G_i^-1 X), which is the paper's R - [pi(G'_ij X) - pi(G_ij X)] for
target = pi(G_ij X) + R. Every edge is first reduced to 6 x 6 normal equations of its own relative motion; the adjoint then carries them to the
two poses, so that keyframe form and global form share one Jacobian. The tracker has the same equations in NumPy (engines/alignment), which a test holds to these.
Intrinsics have no skew.

Both forms also come uncalibrated: the logarithm of one focal length, by which fx and fy of all frames are scaled together, is solved jointly with the poses.
Points were lifted through the same focal length, so their x and y shrink as it grows. It shows only where cameras turn about another axis than the optical
one; a pure translation trades it exactly for the sideways part of the motion.
"""
from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from depth_ros.geometry import pinhole, se3

MAX_RESIDUAL = 250.0  # px: beyond it a correspondence is no evidence (global form of the paper)


class SolveStatus(enum.Enum):
    """Whether the linear system had a solution."""

    OK = "ok"
    SINGULAR = "singular"
    UNOBSERVABLE = "unobservable"   # solved for the poses, but nothing tells the focal length, which was left as it is


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonal of H: absolute + relative * diag(H). DeepV2D uses 100 and 1e-4 at quarter resolution."""

    absolute: float | Tensor = 100.0    # (n,) where the unknowns differ
    relative: float | Tensor = 1e-4


FOCAL_DAMPING = Damping(absolute=100.0, relative=1e-3)
MAX_FOCAL_STEP = 0.3    # of the logarithm: farther, the linearisation means nothing
# Information [px^2] that correspondences must hold about the logarithm of the focal length beside the poses: 100 tells it to 10 % by one pixel of error.
MIN_FOCAL_INFORMATION = 100.0
_MIN_FOCAL_SHARE = 1e-5     # of what the focal length changes, beyond what poses could change as well; less is rounding


@dataclass(frozen=True)
class Step:
    """One solved update."""

    xi: Tensor      # (..., n), zero where not solved
    solved: Tensor  # (...) bool
    observable: Tensor | None = None    # (...) bool, of the focal length; None where it was not asked for

    @property
    def status(self) -> SolveStatus:
        """SINGULAR if any system of the batch was, else UNOBSERVABLE if any focal length was; synchronises the device."""
        if not bool(self.solved.all()):
            return SolveStatus.SINGULAR
        return SolveStatus.OK if self.observable is None or bool(self.observable.all()) else SolveStatus.UNOBSERVABLE


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


@dataclass(frozen=True)
class Uncalibrated:
    """What the uncalibrated forms found."""

    poses: Tensor   # (..., P or E, 4, 4), what the form updates
    K: Tensor       # like the edges' K, its focal lengths scaled; batched where the poses are
    step: Step      # the last one; the logarithm of the focal length comes last in xi


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


def solve_damped(H: Tensor, b: Tensor, damping: Damping = Damping(), clip: float | Tensor = 1.0) -> Step:
    """Solve (H + damping) xi = b for H (..., n, n) and b (..., n) in float64; each component of xi is clipped to +-clip, (n,) where they differ.

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
    """H = J^T W J (..., n, n) and b = J^T W e (..., n) of J (..., R, n, N), residuals e and weights w (..., R, N)."""
    # One product with the residual as one more column: half the time of two.
    rows = torch.cat([J, e[..., None, :]], dim=-2)
    products = ((rows * w[..., None, :]) @ rows.mT).sum(-3)
    return products[..., :-1, :-1], products[..., :-1, -1]


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
    return H, _to_poses(b_edge, Ad, source, target, poses)


def _to_poses(b_edge: Tensor, Ad: Tensor, source: Tensor, target: Tensor, poses: int) -> Tensor:
    """Sums (..., 6P) over the poses of what every edge has (..., E, 6) about its own motion, whose adjoint is Ad (..., E, 6, 6)."""
    b = torch.cat([b_edge, -(Ad.mT @ b_edge[..., None])[..., 0]], dim=-2)
    return b.new_zeros(*b.shape[:-2], poses, 6).index_add(-2, torch.cat([target, source]), b).flatten(-2)


def edge_equations(T_target_source: Tensor, edges: Edges, max_residual: float = MAX_RESIDUAL) -> tuple[Tensor, Tensor]:
    """Normal equations (..., E, 6, 6), (..., E, 6) of every edge about its relative motion (..., E, 4, 4)."""
    J, e, w = _linearise(T_target_source, edges, max_residual)
    return normal_equations(J, e, w)


def focal_equations(T_target_source: Tensor, edges: Edges, max_residual: float = MAX_RESIDUAL) -> tuple[Tensor, Tensor]:
    """Normal equations (..., E, 7, 7), (..., E, 7) of every edge about its relative motion and, last, the logarithm of the common focal length."""
    J, e, w = _linearise(T_target_source, edges, max_residual)
    # Growing, it spreads the image of the moved point, and draws the point itself, which was lifted through it, towards the axis.
    spread = _pixels(T_target_source, edges)[0] - edges.intrinsics()[..., None, :2, 2]
    drawn = -edges.points[..., :2] @ T_target_source[..., :3, :2].mT
    by_focal = spread.mT + (J[..., :3, :] * drawn.mT[..., None, :, :]).sum(-2)
    return normal_equations(torch.cat([J, by_focal[..., None, :]], dim=-2), e, w)


def _linearise(T_target_source: Tensor, edges: Edges, max_residual: float) -> tuple[Tensor, Tensor, Tensor]:
    """Jacobian (..., E, 2, 6, N), residual and weight (..., E, 2, N) of every edge about its relative motion (..., E, 4, 4)."""
    projected, in_front, points = _pixels(T_target_source, edges)
    e = edges.pixels - projected
    near = in_front & (e.detach().abs().amax(-1) < max_residual)
    w = torch.where(near[..., None], edges.weights, 0.0)
    e = torch.where(near[..., None], e, 0.0)
    return point_jacobian(points, edges.intrinsics())[..., :2, :, :], e.mT, w.mT


def _pixels(T_target_source: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (..., E, N, 2) of every edge's moved points, the mask (..., E, N) of those in front, and the moved points (..., E, N, 3)."""
    points = se3.transform(T_target_source, edges.points)
    projected, in_front = pinhole.project(points[..., None, :, :], edges.intrinsics())
    return projected[..., 0, :, :], in_front[..., 0, :], points


def keyframe_form(T_target_source: Tensor, edges: Edges, steps: int = 2, damping: Damping = Damping(), clip: float = 1.0) -> tuple[Tensor, Step]:
    """Every relative motion (..., E, 4, 4) solved alone, its source (the keyframe) fixed; the last step tells the status."""
    for _ in range(steps):
        step = solve_damped(*edge_equations(T_target_source, edges), damping, clip)
        T_target_source = se3.exp(step.xi) @ T_target_source
    return T_target_source, step


def global_form(T_cam_world: Tensor, edges: Edges, fixed: int = 1, steps: int = 1, damping: Damping = Damping(), clip: float = 1.0) -> tuple[Tensor, Step]:
    """All poses (..., P, 4, 4) in one system, the first `fixed` ones held; the last step tells the status."""
    poses = _count_poses(T_cam_world, fixed)
    for _ in range(steps):
        motion = relative_motion(T_cam_world, edges.source, edges.target)
        H, b = assemble(*edge_equations(motion, edges), motion, edges.source, edges.target, poses)
        step = solve_damped(H[..., 6 * fixed:, 6 * fixed:], b[..., 6 * fixed:], damping, clip)
        T_cam_world = _moved(T_cam_world, step.xi, fixed)
    return T_cam_world, step


def _count_poses(T_cam_world: Tensor, fixed: int) -> int:
    poses = T_cam_world.shape[-3]
    if not 0 < fixed < poses:
        raise ValueError(f"expected between 1 and {poses - 1} fixed poses of {poses}, got {fixed}")
    return poses


def _moved(T_cam_world: Tensor, xi: Tensor, fixed: int) -> Tensor:
    """Poses (..., P, 4, 4) after the update xi (..., 6 (P - fixed)) of all but the first ones."""
    moved = se3.exp(xi.unflatten(-1, (-1, 6))) @ T_cam_world[..., fixed:, :, :]
    return torch.cat([T_cam_world[..., :fixed, :, :], moved], dim=-3)


def uncalibrated_keyframe_form(T_target_source: Tensor, edges: Edges, steps: int = 2, damping: Damping = Damping(),
                               focal_damping: Damping = FOCAL_DAMPING, clip: float = 1.0) -> Uncalibrated:
    """Relative motions (..., E, 4, 4), their source (the keyframe) fixed, and one focal length that all edges share."""
    keyframe = torch.eye(4, dtype=T_target_source.dtype, device=T_target_source.device).expand(*T_target_source.shape[:-3], 1, 4, 4)
    targets = torch.arange(1, T_target_source.shape[-3] + 1, device=edges.target.device)
    star = replace(edges, source=torch.zeros_like(targets), target=targets)
    found = uncalibrated_global_form(torch.cat([keyframe, T_target_source], dim=-3), star, 1, steps, damping, focal_damping, clip)
    return replace(found, poses=found.poses[..., 1:, :, :])


def uncalibrated_global_form(T_cam_world: Tensor, edges: Edges, fixed: int = 1, steps: int = 1, damping: Damping = Damping(),
                             focal_damping: Damping = FOCAL_DAMPING, clip: float = 1.0) -> Uncalibrated:
    """All poses (..., P, 4, 4), the first `fixed` ones held, and the focal length of all frames in one system.

    `edges.points` were lifted through `edges.K`. Where a step finds the focal length unobservable it keeps it and solves for the poses.
    """
    poses = _count_poses(T_cam_world, fixed)
    limits = torch.full((6 * (poses - fixed) + 1,), clip, dtype=torch.float64, device=T_cam_world.device)
    limits[-1] = MAX_FOCAL_STEP
    for _ in range(steps):
        H, b = _focal_system(T_cam_world, edges, fixed)
        H, b, observable = _without_unobservable(H, b)
        step = replace(solve_damped(H, b, _joined(damping, focal_damping, limits), limits), observable=observable)
        T_cam_world = _moved(T_cam_world, step.xi[..., :-1], fixed)
        edges = _refocused(edges, step.xi[..., -1])
    return Uncalibrated(T_cam_world, edges.K, step)


def _focal_system(T_cam_world: Tensor, edges: Edges, fixed: int) -> tuple[Tensor, Tensor]:
    """The system H (..., n, n), b (..., n) of n = 6 (P - fixed) + 1 unknowns, the logarithm of the focal length last."""
    poses, motion = T_cam_world.shape[-3], relative_motion(T_cam_world, edges.source, edges.target)
    H_edge, b_edge = focal_equations(motion, edges)
    H, b = assemble(H_edge[..., :6, :6], b_edge[..., :6], motion, edges.source, edges.target, poses)
    coupling = _to_poses(H_edge[..., :6, 6], se3.adjoint(motion).to(H.dtype), edges.source, edges.target, poses)[..., 6 * fixed:, None]
    H = torch.cat([H[..., 6 * fixed:, 6 * fixed:], coupling], dim=-1)
    last = torch.cat([coupling.mT, H_edge[..., 6, 6].sum(-1)[..., None, None]], dim=-1)
    return torch.cat([H, last], dim=-2), torch.cat([b[..., 6 * fixed:], b_edge[..., 6].sum(-1, keepdim=True)], dim=-1)


def _without_unobservable(H: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The system with the last unknown, the focal length, cut off from the rest where nothing tells it, and the mask (...) of where something does."""
    with torch.no_grad():
        H64 = H.double()
        rest, coupling, alone = H64[..., :-1, :-1], H64[..., :-1, -1:], H64[..., -1, -1]
        L, info = torch.linalg.cholesky_ex(rest + torch.diag_embed(1e-9 + 1e-10 * rest.diagonal(dim1=-2, dim2=-1)))
        information = alone - (coupling * torch.cholesky_solve(coupling, L)).sum((-2, -1))
        observable = (info == 0) & (information > MIN_FOCAL_INFORMATION) & (information > _MIN_FOCAL_SHARE * alone)
    kept = torch.ones_like(b, dtype=torch.bool)
    kept[..., -1] = observable
    return torch.where(kept[..., None, :] & kept[..., :, None], H, 0.0), torch.where(kept, b, 0.0), observable


def _joined(poses: Damping, focal: Damping, like: Tensor) -> Damping:
    """The damping of all unknowns (n,), that of the focal length last."""
    def values(every: float | Tensor, last: float | Tensor) -> Tensor:
        joined = torch.ones_like(like) * every
        joined[-1] = last
        return joined

    return Damping(values(poses.absolute, focal.absolute), values(poses.relative, focal.relative))


def _refocused(edges: Edges, log_scale: Tensor) -> Edges:
    """The edges with focal lengths scaled by exp(log_scale (...)), and their points lifted through them."""
    scale = log_scale.exp()
    points = edges.points * torch.stack([1 / scale, 1 / scale, torch.ones_like(scale)], dim=-1)[..., None, None, :]
    if edges.K.dim() == edges.points.dim():
        scale = scale[..., None]
    one = torch.ones_like(scale)
    factors = torch.stack([scale, one, one, one, scale, one, one, one, one], dim=-1).unflatten(-1, (3, 3))
    return replace(edges, points=points, K=edges.K * factors)


def all_pairs(poses: int) -> tuple[Tensor, Tensor]:
    """Indices (E,) of source and target of all ordered pairs of different poses."""
    i, j = torch.meshgrid(torch.arange(poses), torch.arange(poses), indexing="ij")
    different = i != j
    return i[different], j[different]
