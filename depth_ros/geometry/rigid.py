"""Rigid motions as NumPy arrays, for what happens with every image: at the size of a few motions a call of torch costs more than its arithmetic (se3 is for what learns).

A vector (..., 6) is (translation [m], rotation [rad]); `T_a_b` takes points from b to a.
"""
from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def from_vector(vector: np.ndarray) -> np.ndarray:
    """Motion (4, 4) of that translation and rotation vector (6,). Unlike se3.exp it moves along a line: alike to first order, which is what an update or a velocity means."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(vector[3:]).as_matrix()
    T[:3, 3] = vector[:3]
    return T


def to_vector(T: np.ndarray) -> np.ndarray:
    """Translation and rotation vector (6,), of at most half a turn, of a motion (4, 4)."""
    return np.concatenate([T[:3, 3], Rotation.from_matrix(T[:3, :3]).as_rotvec()])


def inverse(T: np.ndarray) -> np.ndarray:
    """T_b_a (..., 4, 4) of T_a_b (..., 4, 4), by transposition."""
    result = np.zeros_like(T)
    R_t = np.swapaxes(T[..., :3, :3], -1, -2)
    result[..., :3, :3], result[..., :3, 3:], result[..., 3, 3] = R_t, -R_t @ T[..., :3, 3:], 1
    return result


def adjoint(T: np.ndarray) -> np.ndarray:
    """Matrix (..., 6, 6) that carries small motions (..., 6) of frame b, by which T_a_b (..., 4, 4) is multiplied on the right, to those of frame a (se3.adjoint)."""
    R, (x, y, z) = T[..., :3, :3], np.moveaxis(T[..., :3, 3], -1, 0)
    hat = np.zeros_like(R)
    hat[..., 0, 1], hat[..., 0, 2], hat[..., 1, 2] = -z, y, -x
    hat[..., 1, 0], hat[..., 2, 0], hat[..., 2, 1] = z, -y, x
    result = np.zeros((*T.shape[:-2], 6, 6), T.dtype)
    result[..., :3, :3] = result[..., 3:, 3:] = R
    result[..., :3, 3:] = hat @ R
    return result
