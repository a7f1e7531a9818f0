"""Laws of sampling, induced flow and consistency."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from depth_ros.geometry import pinhole
from depth_ros.geometry import se3
from depth_ros.geometry import warp

K = torch.tensor([[52.0, 0.0, 19.3], [0.0, 54.0, 14.6], [0.0, 0.0, 1.0]], dtype=torch.float64)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def motion(scale: float = 0.1, seed: int = 0) -> torch.Tensor:
    return se3.exp(scale * (2 * rand(6, seed=seed) - 1))


def test_sampling_at_the_grid_is_the_image() -> None:
    image = rand(2, 3, 11, 17)
    grid = pinhole.pixel_grid(11, 17, like=image).expand(2, -1, -1, -1)
    values, inside = warp.sample(image, grid)
    torch.testing.assert_close(values, image)
    assert inside.all()


def test_sampling_agrees_with_opencv_inside() -> None:
    image = rand(1, 1, 20, 30, seed=1).float()
    pixels = rand(1, 9, 8, 2, seed=2).float() * torch.tensor([29.0, 19.0])
    expected = cv2.remap(image[0, 0].numpy(), pixels[0].numpy(), None, cv2.INTER_LINEAR)
    values, inside = warp.sample(image, pixels)
    assert inside.all()
    np.testing.assert_allclose(values[0, 0].numpy(), expected, atol=0.04)     # OpenCV interpolates in steps of 1/32 px


def test_an_affine_image_is_sampled_exactly() -> None:
    grid = pinhole.pixel_grid(20, 30, like=K)
    pixels = rand(1, 6, 5, 2, seed=3) * torch.tensor([29.0, 19.0])
    values, _ = warp.sample((3 * grid[..., 0] - 2 * grid[..., 1] + 1)[None, None], pixels)
    torch.testing.assert_close(values[0, 0], 3 * pixels[0, ..., 0] - 2 * pixels[0, ..., 1] + 1)


def test_inside_ends_at_the_outer_pixel_centres() -> None:
    pixels = torch.tensor([[[[0.0, 0.0], [9.0, 4.0], [-0.01, 2.0], [9.01, 2.0], [3.0, 4.01], [float("nan"), 1.0]]]], dtype=torch.float64)
    values, inside = warp.sample(rand(1, 1, 5, 10), pixels)
    assert inside[0, 0].tolist() == [True, True, False, False, False, False]
    assert torch.isfinite(values[..., :5]).all()


def test_sampling_a_single_column_or_row_is_defined() -> None:
    values, inside = warp.sample(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 2))
    assert values.item() == 1.0 and inside.item()


def test_induced_flow_is_transform_and_projection() -> None:
    depth, T = 1 + rand(2, 30, 40), torch.stack([motion(seed=1), motion(seed=2)])
    flow, valid = warp.induced_flow(depth, K, T)
    pixels, _ = pinhole.project(se3.transform(T, pinhole.unproject(depth, K)), K)
    torch.testing.assert_close(flow + pinhole.pixel_grid(30, 40, like=K), pixels)
    assert valid.all()


def test_no_motion_induces_no_flow_and_pure_rotation_a_flow_without_depth() -> None:
    depth = 1 + rand(30, 40)
    flow, _ = warp.induced_flow(depth, K, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(flow, torch.zeros_like(flow), atol=1e-12, rtol=0)
    T = motion()
    T[:3, 3] = 0
    torch.testing.assert_close(warp.induced_flow(depth, K, T)[0], warp.induced_flow(7 * depth, K, T)[0])


def test_missing_depth_and_points_behind_are_masked_with_finite_gradients() -> None:
    depth = torch.full((4, 5), 2.0, dtype=torch.float64)
    depth[0, 0], depth[0, 1], depth[0, 2] = 0.0, float("nan"), 0.4
    depth.requires_grad_()
    T = torch.eye(4, dtype=torch.float64)
    T[2, 3] = -1.0                                             # one metre forward: what was at 0.4 m is behind now
    T.requires_grad_()
    flow, valid = warp.induced_flow(depth, K, T)
    assert valid[0].tolist() == [False, False, False, True, True] and valid[1:].all()
    flow.square().sum().backward()
    assert torch.isfinite(flow).all() and torch.isfinite(depth.grad).all() and torch.isfinite(T.grad).all()


def test_induced_flow_gradients_are_the_numeric_ones() -> None:
    depth = (1 + rand(3, 4)).requires_grad_()
    xi = (0.1 * rand(6, seed=5)).requires_grad_()
    camera = K.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda d, k, x: warp.induced_flow(d, k, se3.exp(x))[0], (depth, camera, xi))


def test_warping_by_the_induced_flow_brings_the_reference_onto_the_current_image() -> None:
    # A plane painted with a smooth pattern: both views can be written down in closed form.
    def pattern(points: torch.Tensor) -> torch.Tensor:
        return torch.sin(6 * points[..., 0]) + torch.cos(5 * points[..., 1])

    depth = torch.full((30, 40), 2.0, dtype=torch.float64)
    T_ref_cur = se3.exp(torch.tensor([0.1, -0.05, 0.0, 0.0, 0.0, 0.1], dtype=torch.float64))   # the plane stays at z = 2
    current = pattern(pinhole.unproject(depth, K))
    reference = pattern(se3.transform(se3.inverse(T_ref_cur), pinhole.unproject(depth, K)))
    flow, valid = warp.induced_flow(depth, K, T_ref_cur)
    warped, inside = warp.warp_by_flow(reference[None, None], flow[None])
    error = (warped[0, 0] - current).abs()[inside[0] & valid]
    assert inside.float().mean() > 0.7
    assert error.max() < 0.01 * (current - reference).abs().max()


@pytest.mark.parametrize("batch", [(), (2,)])
def test_forward_backward_error_is_zero_for_a_translation_and_counts_what_is_added(batch: tuple[int, ...]) -> None:
    flow = torch.tensor([3.0, -2.0], dtype=torch.float64).expand(*batch, 12, 16, 2)
    error, inside = warp.forward_backward_error(flow, -flow)
    assert error.shape == inside.shape == (*batch, 12, 16)
    torch.testing.assert_close(error, torch.zeros_like(error), atol=1e-12, rtol=0)
    grid = pinhole.pixel_grid(12, 16)
    assert torch.equal(inside, ((grid[..., 0] <= 12) & (grid[..., 1] >= 2)).expand_as(inside))
    offset = torch.tensor([0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(warp.forward_backward_error(flow, offset - flow)[0], torch.full_like(error, 0.5))


def test_true_flows_of_a_scene_are_consistent() -> None:
    T_ref_cur = se3.exp(torch.tensor([0.1, -0.05, 0.0, 0.0, 0.0, 0.05], dtype=torch.float64))
    depth = torch.full((30, 40), 2.0, dtype=torch.float64)
    forward, _ = warp.induced_flow(depth, K, T_ref_cur)
    backward, _ = warp.induced_flow(depth, K, se3.inverse(T_ref_cur))
    error, inside = warp.forward_backward_error(forward, backward)
    assert inside.float().mean() > 0.7 and error[inside].max() < 1e-9
