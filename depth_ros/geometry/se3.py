"""Rigid motions: exponential and logarithm of SE(3), adjoint, inverse; smooth at zero and at half a turn.

A twist `xi` is (translation, rotation): xi[..., :3] in metres, xi[..., 3:] in radians. `T_a_b` takes points from b to a.
Equations: J. Sola, J. Deray, D. Atchuthan, "A micro Lie theory for state estimation in robotics", appendices B and D.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import factorial

import torch
from torch import Tensor
from torch.nn import functional as F

# Taylor coefficients in s = angle^2. Below the thresholds the closed forms lose digits to cancellation, and have no
# gradient at zero; with so many terms the series are exact to double precision there.
_SERIES_BELOW = 0.5
# sin(x) / x, (1 - cos(x)) / x^2 and (x - sin(x)) / x^3, side by side: at the size of one motion, the calls are what costs
_EXP_SERIES = torch.tensor([[(-1) ** k / factorial(2 * k + n) for n in (1, 2, 3)] for k in range(9)], dtype=torch.float64)
_COT_SERIES_BELOW = 0.1                                            # (1 - x/2 cot(x/2)) / x^2: Bernoulli numbers / (2k)!
_COT_REST = [1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000]
_ATAN_SERIES_BELOW = 1e-2
_ATAN = [(-1) ** k / (2 * k + 1) for k in range(9)]                # atan(x) / x


def _polynomial(x: Tensor, coefficients: Sequence[float | Tensor]) -> Tensor:
    """Evaluate sum of c_k x^k by Horner's rule; coefficients (n,) for several polynomials, broadcast against x (..., 1)."""
    result = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        result = result * x + c
    return result


def _rotation_coefficients(squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(x)/x, (1-cos x)/x^2 and (x-sin x)/x^3 of s = x^2, any shape; smooth at 0."""
    small = squared < _SERIES_BELOW
    near = torch.where(small, squared, 0.0)    # each branch sees only its own domain, so that no NaN gradient leaks
    far = torch.where(small, 1.0, squared)
    x = far.sqrt()
    sin, cos = torch.sin(x), torch.cos(x)
    series = _polynomial(near[..., None], list(_EXP_SERIES.to(near)))
    closed = torch.stack([sin / x, (1 - cos) / far, (x - sin) / (x * far)], dim=-1)
    return torch.where(small[..., None], series, closed).unbind(-1)


def hat(v: Tensor) -> Tensor:
    """Cross-product matrix (..., 3, 3) of vectors (..., 3): hat(a) @ b = a x b."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))


def from_rotation_translation(rotation: Tensor, translation: Tensor) -> Tensor:
    """Assemble (..., 4, 4) from rotations (..., 3, 3) and translations (..., 3) [m]."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1.0
    return torch.cat([top, bottom], dim=-2)


def exp(xi: Tensor) -> Tensor:
    """Rigid motion (..., 4, 4) of the twist xi (..., 6) = (translation [m], rotation [rad]) (Sola et al., eq. 172)."""
    rho, phi = xi[..., :3], xi[..., 3:]
    a, b, c = (k[..., None, None] for k in _rotation_coefficients((phi * phi).sum(-1)))
    W = hat(phi)
    W2 = W @ W
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    V = eye + b * W + c * W2
    return from_rotation_translation(eye + a * W + b * W2, (V @ rho[..., None])[..., 0])


def log(T: Tensor) -> Tensor:
    """Twist (..., 6) = (translation [m], rotation [rad], at most pi) whose exp is T (..., 4, 4) (Sola et al., eq. 173)."""
    phi = _rotation_vector(_quaternion(T[..., :3, :3]))
    squared = (phi * phi).sum(-1)
    small = squared < _COT_SERIES_BELOW
    far = torch.where(small, 1.0, squared)
    half = far.sqrt() / 2
    d = torch.where(small, _polynomial(torch.where(small, squared, 0.0), _COT_REST),
                    (1 - half * torch.cos(half) / torch.sin(half)) / far)
    t = T[..., :3, 3]
    cross = torch.linalg.cross(phi, t)
    return torch.cat([t - cross / 2 + d[..., None] * torch.linalg.cross(phi, cross), phi], dim=-1)


def inverse(T: Tensor) -> Tensor:
    """T_b_a (..., 4, 4) of T_a_b (..., 4, 4), by transposition: exact for rotations, cheaper than a general inverse."""
    R_t = T[..., :3, :3].mT
    return from_rotation_translation(R_t, -(R_t @ T[..., :3, 3:])[..., 0])


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Points (..., 3) of frame b in frame a [m], T_a_b (..., 4, 4); batch dimensions of T stand before those of points.

    T (B, 4, 4) moves points (B, H, W, 3): missing dimensions are put between, so T (4, 4) moves any points.
    """
    between = points.dim() - 1 - (T.dim() - 2)
    if between < 0:
        raise ValueError(f"points {tuple(points.shape)} have fewer batch dimensions than transforms {tuple(T.shape)}")
    T = T.reshape(T.shape[:-2] + (1,) * max(between - 1, 0) + T.shape[-2:])
    if between == 0:
        return (T[..., :3, :3] @ points[..., None])[..., 0] + T[..., :3, 3]
    return points @ T[..., :3, :3].mT + T[..., None, :3, 3]


def adjoint(T: Tensor) -> Tensor:
    """Matrix (..., 6, 6) with T exp(xi) = exp(adjoint(T) xi) T for twists in (translation, rotation) order."""
    R, t = T[..., :3, :3], T[..., :3, 3]
    top = torch.cat([R, hat(t) @ R], dim=-1)
    bottom = torch.cat([torch.zeros_like(R), R], dim=-1)
    return torch.cat([top, bottom], dim=-2)


def _quaternion(R: Tensor) -> Tensor:
    """Unit quaternion (..., 4) x, y, z, w of rotations (..., 3, 3).

    4 q q^T is linear in R. Its row with the largest diagonal entry is at least 2 long and parallel to q, so normalising
    that row needs no square root or division near zero, at any angle.
    """
    xx, yy, zz = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    xy, yz, zx = R[..., 1, 0] + R[..., 0, 1], R[..., 2, 1] + R[..., 1, 2], R[..., 0, 2] + R[..., 2, 0]
    wx, wy, wz = R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]
    rows = torch.stack([1 + xx - yy - zz, xy, zx, wx,
                        xy, 1 - xx + yy - zz, yz, wy,
                        zx, yz, 1 - xx - yy + zz, wz,
                        wx, wy, wz, 1 + xx + yy + zz], dim=-1).unflatten(-1, (4, 4))
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(rows, best[..., None, None], dim=-2)[..., 0, :]
    q = F.normalize(row, dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def _rotation_vector(quaternion: Tensor) -> Tensor:
    """Rotation vector (..., 3) [rad] of unit quaternions (..., 4) x, y, z, w with w >= 0; smooth at the identity."""
    v, w = quaternion[..., :3], quaternion[..., 3]
    squared = (v * v).sum(-1)
    small = squared < _ATAN_SERIES_BELOW
    n = torch.where(small, 1.0, squared).sqrt()
    w_near = torch.where(small, w, 1.0)
    near = _polynomial(torch.where(small, squared, 0.0) / (w_near * w_near), _ATAN) / w_near
    return v * (2 * torch.where(small, near, torch.atan2(n, w) / n))[..., None]
