"""Laws of rigid motions, against SciPy and by numeric gradients."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.linalg import logm
from scipy.spatial.transform import Rotation

from depth_ros.geometry import se3

ANGLES = [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.05, 0.3, 0.7, 0.71, 1.5, 3.0, np.pi - 1e-3, np.pi - 1e-6, np.pi - 1e-9]


def twists(n: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """n random twists (n, 6) for each angle in ANGLES, stacked."""
    g = torch.Generator().manual_seed(seed)
    xi = torch.randn(len(ANGLES), n, 6, generator=g, dtype=torch.float64)
    xi[..., 3:] *= torch.tensor(ANGLES, dtype=torch.float64)[:, None, None] / xi[..., 3:].norm(dim=-1, keepdim=True)
    return xi.flatten(0, 1).to(dtype)


def as_algebra(xi: torch.Tensor) -> torch.Tensor:
    """The (4, 4) matrix of a twist (6,), whose matrix exponential defines se3.exp."""
    M = torch.zeros(4, 4, dtype=xi.dtype)
    M[:3, :3], M[:3, 3] = se3.hat(xi[3:]), xi[:3]
    return M


def test_exp_is_the_matrix_exponential() -> None:
    for xi in twists(4):
        np.testing.assert_allclose(se3.exp(xi).numpy(), expm(as_algebra(xi).numpy()), atol=1e-13)


def test_log_is_the_matrix_logarithm() -> None:
    for xi in twists(2, seed=1):
        if 1e-3 < xi[3:].norm() < 3.1:      # SciPy's own logarithm loses digits beyond
            expected = torch.from_numpy(np.real(logm(se3.exp(xi).numpy())))
            torch.testing.assert_close(as_algebra(se3.log(se3.exp(xi))), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 2e-3)])
def test_exp_of_log_is_the_motion(dtype: torch.dtype, tolerance: float) -> None:
    T = se3.exp(twists(dtype=dtype))
    again = se3.exp(se3.log(T))
    assert again.dtype == dtype
    torch.testing.assert_close(again, T, atol=tolerance, rtol=0)


def test_log_of_exp_is_the_twist_up_to_just_before_half_a_turn() -> None:
    xi = twists(seed=2)
    xi = xi[xi[:, 3:].norm(dim=-1) < np.pi - 1e-7]
    torch.testing.assert_close(se3.log(se3.exp(xi)), xi, atol=1e-12, rtol=0)


def test_log_at_exactly_half_a_turn_reproduces_the_rotation() -> None:
    for axis in torch.eye(3, dtype=torch.float64).tolist() + [[0.6, 0.8, 0.0], [-0.6, 0.0, 0.8], [-2 / 3, -1 / 3, 2 / 3]]:
        n = torch.tensor(axis, dtype=torch.float64)
        T = torch.eye(4, dtype=torch.float64)
        T[:3, :3] = 2 * torch.outer(n, n) - torch.eye(3, dtype=torch.float64)
        xi = se3.log(T)
        assert abs(xi[3:].norm() - np.pi) < 1e-12
        torch.testing.assert_close(se3.exp(xi), T, atol=1e-12, rtol=0)


def test_rotations_agree_with_scipy() -> None:
    T = se3.exp(twists(16, seed=3))
    theirs = Rotation.from_matrix(T[:, :3, :3].numpy())
    np.testing.assert_allclose(se3.log(T)[:, 3:].numpy(), theirs.as_rotvec(), atol=1e-9)


def test_inverse_and_adjoint_laws() -> None:
    T = se3.exp(twists(8, seed=6))
    xi = 0.3 * twists(8, seed=7)
    torch.testing.assert_close(se3.inverse(T) @ T, torch.eye(4, dtype=T.dtype).expand_as(T), atol=1e-12, rtol=0)
    torch.testing.assert_close(T @ se3.exp(xi), se3.exp((se3.adjoint(T) @ xi[..., None])[..., 0]) @ T, atol=1e-10, rtol=0)


def test_transform_matches_homogeneous_multiplication_for_every_batch_shape() -> None:
    g = torch.Generator().manual_seed(8)
    T = se3.exp(torch.randn(2, 6, generator=g, dtype=torch.float64))
    points = torch.randn(2, 5, 7, 3, generator=g, dtype=torch.float64)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    expected = torch.einsum("bij,bhwj->bhwi", T, homogeneous)[..., :3]
    torch.testing.assert_close(se3.transform(T, points), expected)
    torch.testing.assert_close(se3.transform(T[0], points)[0], expected[0])
    torch.testing.assert_close(se3.transform(T, points[:, 0, 0]), expected[:, 0, 0])
    torch.testing.assert_close(se3.transform(T[1], points[1, 0, 0]), expected[1, 0, 0])
    with pytest.raises(ValueError, match="batch dimensions"):
        se3.transform(T, points[0, 0, 0])


def test_hat_is_the_cross_product() -> None:
    a, b = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    torch.testing.assert_close((se3.hat(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.1, 0.707, 2.0, 3.1])
def test_gradients_are_the_numeric_ones(angle: float) -> None:
    xi = torch.tensor([0.4, -1.2, 0.3, 0.64, -0.48, 0.6], dtype=torch.float64)
    xi[3:] *= angle
    assert torch.autograd.gradcheck(se3.exp, xi.clone().requires_grad_())
    assert torch.autograd.gradcheck(se3.log, se3.exp(xi).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: se3.log(se3.exp(x)), xi.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_at_the_identity_is_the_identity(dtype: torch.dtype) -> None:
    jacobian = torch.autograd.functional.jacobian(lambda x: se3.log(se3.exp(x)), torch.zeros(6, dtype=dtype))
    torch.testing.assert_close(jacobian, torch.eye(6, dtype=dtype))
