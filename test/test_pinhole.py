"""Laws of the pinhole camera."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from depth_ros.frames import resize_intrinsics
from depth_ros.geometry import pinhole

K = torch.tensor([[52.0, 0.3, 19.3], [0.0, 54.0, 14.6], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_pixel_grid_counts_columns_then_rows_from_zero() -> None:
    grid = pinhole.pixel_grid(3, 5, like=torch.zeros(1, dtype=torch.float64))
    assert grid.shape == (3, 5, 2) and grid.dtype == torch.float64
    assert grid[2, 4].tolist() == [4.0, 2.0] and grid[0, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_project_of_unproject_is_the_pixel_grid(batch: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    depth = 0.5 + 5 * torch.rand(*batch, 30, 40, generator=g, dtype=torch.float64)
    intrinsics = K.expand(*batch, 3, 3)
    points = pinhole.unproject(depth, intrinsics)
    pixels, in_front = pinhole.project(points, intrinsics)
    torch.testing.assert_close(points[..., 2], depth)
    torch.testing.assert_close(pixels, pinhole.pixel_grid(30, 40, like=depth).expand_as(pixels))
    assert in_front.all()


def test_project_agrees_with_opencv() -> None:
    g = torch.Generator().manual_seed(1)
    points = torch.randn(6, 7, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 0.0, 5.0])
    camera = K.clone()
    camera[0, 1] = 0.0                                     # OpenCV knows no skew
    expected, _ = cv2.projectPoints(points.reshape(-1, 3).numpy(), np.zeros(3), np.zeros(3), camera.numpy(), None)
    np.testing.assert_allclose(pinhole.project(points, camera)[0].reshape(-1, 2).numpy(), expected[:, 0], atol=1e-9)


def test_points_behind_or_in_the_camera_are_masked_with_finite_pixels_and_gradients() -> None:
    points = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, -2.0], [1.0, 1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    pixels, in_front = pinhole.project(points, K)
    assert in_front.tolist() == [[False, False, True]]
    pixels.sum().backward()
    assert torch.isfinite(pixels).all() and torch.isfinite(points.grad).all()


def test_apply_to_grid_is_the_product_at_every_pixel() -> None:
    M = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid = pinhole.pixel_grid(4, 6, like=M)
    homogeneous = torch.cat([grid, torch.ones(4, 6, 1, dtype=M.dtype)], dim=-1)
    torch.testing.assert_close(pinhole.apply_to_grid(M, 4, 6), torch.einsum("bij,hwj->bhwi", M, homogeneous))


def test_a_resized_camera_sees_a_point_where_the_resized_image_has_it() -> None:
    # A pixel is an area: its edges, half a pixel from the centres, scale exactly.
    points = torch.tensor([[[0.3, -0.2, 2.0], [-0.5, 0.4, 1.5]]], dtype=torch.float64)
    small = pinhole.project(points, resize_intrinsics(K, 0.4, 0.25))[0]
    full = pinhole.project(points, K)[0]
    torch.testing.assert_close(small + 0.5, (full + 0.5) * torch.tensor([0.4, 0.25], dtype=torch.float64))


def test_resizing_composes_inverts_and_agrees_between_numpy_and_torch() -> None:
    there_and_back = resize_intrinsics(resize_intrinsics(K, 0.5, 0.3), 2.0, 1 / 0.3)
    torch.testing.assert_close(there_and_back, K)
    resized = resize_intrinsics(K.numpy(), 0.5, 0.3)
    assert isinstance(resized, np.ndarray)
    np.testing.assert_allclose(resized, resize_intrinsics(K, 0.5, 0.3).numpy())
    assert resize_intrinsics(K.expand(2, 3, 3), 0.5, 0.5).shape == (2, 3, 3)


def test_resizing_an_image_by_areas_moves_a_blob_as_the_intrinsics_say() -> None:
    v, u = np.mgrid[:48, :64]
    blob = np.exp(-((u - 40.2) ** 2 + (v - 21.7) ** 2) / 30.0)
    small = cv2.resize(blob, (16, 12), interpolation=cv2.INTER_AREA)
    v, u = np.mgrid[:12, :16]
    centre = np.array([(small * u).sum(), (small * v).sum()]) / small.sum()
    at = resize_intrinsics(np.array([[1.0, 0, 40.2], [0, 1.0, 21.7], [0, 0, 1]]), 0.25, 0.25)
    np.testing.assert_allclose(centre, at[:2, 2], atol=1e-3)


def test_the_inverse_of_intrinsics_is_exact_and_differentiable():
    K = torch.tensor([[[500.0, 1.5, 320.0], [0.0, 480.0, 250.0], [0.0, 0.0, 1.0]], [[100.0, 0.0, 60.0], [0.0, 110.0, 40.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(pinhole.inverse(K), torch.linalg.inv(K), rtol=1e-12, atol=1e-15)
    focal = torch.tensor([500.0, 480.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: pinhole.inverse(torch.cat([f, torch.ones(1, dtype=f.dtype)]).diag()), (focal,))


def test_planes_of_a_grid_are_its_components():
    M = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.stack(pinhole.planes_of_grid(M, 5, 7), -1), pinhole.apply_to_grid(M, 5, 7))
