"""Rigid transforms as plain tuples (translation xyz, quaternion xyzw): TF trees are small, so Python floats beat arrays."""
from __future__ import annotations

import math

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Rigid = tuple[Vector, Quaternion]

IDENTITY: Rigid = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton product a b."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz)


def rotate(q: Quaternion, v: Vector) -> Vector:
    """v turned by the unit quaternion q."""
    x, y, z, _ = multiply(multiply(q, (*v, 0.0)), (-q[0], -q[1], -q[2], q[3]))
    return (x, y, z)


def compose(T_a_b: Rigid, T_b_c: Rigid) -> Rigid:
    """T_a_c."""
    (ta, qa), (tb, qb) = T_a_b, T_b_c
    turned = rotate(qa, tb)
    return ((ta[0] + turned[0], ta[1] + turned[1], ta[2] + turned[2]), multiply(qa, qb))


def inverse(T_a_b: Rigid) -> Rigid:
    """T_b_a."""
    t, (x, y, z, w) = T_a_b
    back = (-x, -y, -z, w)
    tx, ty, tz = rotate(back, t)
    return ((-tx, -ty, -tz), back)


def interpolate(a: Rigid, b: Rigid, ratio: float) -> Rigid:
    """From a (ratio 0) to b (ratio 1): translation along the line, rotation along the shorter arc at constant rate."""
    (ta, qa), (tb, qb) = a, b
    translation = tuple(p + ratio * (q - p) for p, q in zip(ta, tb))
    cosine = sum(p * q for p, q in zip(qa, qb))
    sign = -1.0 if cosine < 0.0 else 1.0    # q and -q are one rotation: take the near one
    angle = math.acos(min(1.0, abs(cosine)))
    if angle < 1e-6:
        wa, wb = 1.0 - ratio, ratio
    else:
        wa, wb = math.sin((1.0 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle)
    blend = tuple(wa * p + sign * wb * q for p, q in zip(qa, qb))
    norm = math.sqrt(sum(p * p for p in blend))
    return translation, tuple(p / norm for p in blend)
