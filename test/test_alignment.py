"""Laws of the alignment that tracking is made of: it is the Gauss-Newton layer's problem, it finds known motions, and bad numbers give a status."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from depth_ros.engines import alignment
from depth_ros.engines.alignment import AlignmentConfig, Matches, align, align_together
from depth_ros.engines.keyframes import View
from depth_ros.frames import CameraFrame
from depth_ros.geometry import gauss_newton, rigid, se3
from depth_ros.geometry.gauss_newton import SolveStatus

K = np.array([[200.0, 0.0, 128.0], [0.0, 210.0, 96.0], [0.0, 0.0, 1.0]])
POINTS = 300
PATIENT = AlignmentConfig(steps=20)


def view(stamp: int, T_odom_cam: np.ndarray) -> View:
    return View(CameraFrame(stamp, 'camera', np.zeros((192, 256, 3), np.uint8), K), T_odom_cam, None)


def poses(count: int, seed: int, size: float = 0.05) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rigid.from_vector(size * rng.standard_normal(6)) for _ in range(count)]


def seen(source: View, target: View, T_source: np.ndarray, T_target: np.ndarray, seed: int, noise: float = 0.0, depth: bool = True) -> Matches:
    """What a target at a true pose sees of points in front of a source at its own; the views say where they are believed to be."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(-1, 1, (POINTS, 2)), rng.uniform(1.5, 4, (POINTS, 1))], 1)
    moved = points @ (T := np.linalg.inv(T_target) @ T_source)[:3, :3].T + T[:3, 3]
    pixels = moved @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:] + noise * rng.standard_normal((POINTS, 2))
    information = np.full(POINTS, 1e4 if depth else 0.0)
    arrays = points, pixels, rng.uniform(0.2, 1, POINTS), rng.uniform(0.05, 0.2, (POINTS, 2)), moved[:, 2], information
    return Matches(source, target, *(a.astype(np.float32) for a in arrays), candidates=POINTS)


def weights(u: torch.Tensor, v: torch.Tensor, z: torch.Tensor, in_front: torch.Tensor, m: Matches) -> torch.Tensor:
    """Cauchy weights (3, N), of points in front: of the distance in the image, relative to each axis' variance, and of the difference of depth."""
    confidence, variance, information = (torch.from_numpy(a).double() for a in (m.confidence, m.flow_variance, m.depth_information))
    confidence = confidence * in_front
    flow = confidence[:, None] / (variance + ((u * u + v * v) / alignment.FLOW_CAUCHY ** 2)[:, None])
    return torch.stack([flow[:, 0], flow[:, 1], confidence * information / (1 + z * z * information / alignment.DEPTH_CAUCHY ** 2)])


def test_its_equations_are_those_of_the_gauss_newton_layer():
    truth = poses(3, 0)
    views = [view(i, T) for i, T in enumerate(poses(3, 1))]
    edges = [(0, 1), (1, 0), (2, 1), (1, 2)]
    given = [seen(views[i], views[j], truth[i], truth[j], 10 * i + j, noise=0.5) for i, j in edges]
    for m in given:
        m.points[:20, 2] *= -1      # behind the camera, where nothing is evidence
    source, target = (np.array(side) for side in zip(*edges))
    T_cam_odom = rigid.inverse(np.stack([v.T_odom_cam for v in views]))
    H, b = alignment._System(given, source, target, AlignmentConfig()).equations(T_cam_odom, held=1)

    T, ends = torch.from_numpy(T_cam_odom), (torch.from_numpy(source), torch.from_numpy(target))
    motion, intrinsics = gauss_newton.relative_motion(T, *ends), torch.from_numpy(K)
    of_edges = []
    for m, G in zip(given, motion):
        moved = se3.transform(G, torch.from_numpy(m.points).double())
        projected = moved @ intrinsics.mT
        u, v = (torch.from_numpy(m.pixels) - projected[:, :2] / projected[:, 2:]).unbind(-1)
        z = torch.from_numpy(m.depth) - moved[:, 2]
        of_edges.append(gauss_newton.normal_equations(gauss_newton.point_jacobian(moved, intrinsics), torch.stack([u, v, z]), weights(u, v, z, moved[:, 2] > 0, m)))
    H_layer, b_layer = gauss_newton.assemble(*(torch.stack(side) for side in zip(*of_edges)), motion, *ends, len(views))
    np.testing.assert_allclose(H, H_layer[6:, 6:].numpy(), rtol=1e-4, atol=1e-4 * float(H_layer.abs().max()))
    np.testing.assert_allclose(b, b_layer[6:].numpy(), rtol=1e-3, atol=1e-4 * float(b_layer.abs().max()))


@pytest.mark.parametrize('depth', (True, False))
def test_a_known_motion_is_found_from_exact_matches(depth):
    truth = poses(2, 3)
    views = [view(0, truth[0]), view(1, truth[0])]
    found = align(views[1], [seen(*views, *truth, 5, depth=depth), seen(*views[::-1], *truth[::-1], 6, depth=depth)], PATIENT)
    assert found.status is SolveStatus.OK and found.inliers == POINTS and found.agreement == 1.0
    np.testing.assert_allclose(found.T_odom_cam, truth[1], atol=2e-5)
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_views_are_found_together_and_a_third_of_wild_matches_does_not_matter():
    truth = poses(3, 7)
    views = [view(0, truth[0]), view(1, truth[0]), view(2, truth[0])]
    given = [seen(views[i], views[j], truth[i], truth[j], 10 * i + j) for i in range(3) for j in range(3) if i != j]
    wild = np.random.default_rng(8)
    given = [replace(m, pixels=np.where(wild.random((POINTS, 1)) < 0.3, wild.uniform(0, 256, (POINTS, 2)), m.pixels).astype(np.float32)) for m in given]
    found = align_together(views[1:], given, PATIENT)
    for one, T in zip(found, truth[1:]):
        np.testing.assert_allclose(one.T_odom_cam, T, atol=2e-3)
        assert one.status is SolveStatus.OK and 0.6 < one.inlier_ratio < 0.8


def test_a_view_without_matches_stays():
    truth = poses(3, 9)
    views = [view(i, T) for i, T in enumerate(truth)]
    lonely = align_together(views[1:], [seen(views[0], views[1], truth[0], truth[1], 4)], PATIENT)[1]
    np.testing.assert_allclose(lonely.T_odom_cam, truth[2], atol=1e-12)
    assert lonely.inliers == 0 and lonely.inlier_ratio == 0.0


@pytest.mark.parametrize('bad', (np.nan, np.inf))
def test_numbers_that_are_none_give_a_status_and_a_finite_pose(bad):
    truth = poses(2, 11)
    views = [view(i, T) for i, T in enumerate(truth)]
    m = seen(*views, *truth, 1)
    found = align(views[1], [replace(m, points=np.full_like(m.points, bad))], AlignmentConfig())
    assert found.status is SolveStatus.SINGULAR and np.isfinite(found.T_odom_cam).all()


def test_motions_agree_with_those_that_learn():
    rng = np.random.default_rng(14)
    T = np.stack(poses(4, 13, size=0.8))
    np.testing.assert_allclose(rigid.inverse(T), se3.inverse(torch.from_numpy(T)).numpy(), atol=1e-12)
    np.testing.assert_allclose(rigid.adjoint(T), se3.adjoint(torch.from_numpy(T)).numpy(), atol=1e-12)
    small = 1e-4 * rng.standard_normal(6)
    np.testing.assert_allclose(rigid.from_vector(small), se3.exp(torch.from_numpy(small)).numpy(), atol=1e-7)
    vector = rng.standard_normal(6)
    np.testing.assert_allclose(rigid.to_vector(rigid.from_vector(vector)), vector, atol=1e-12)
    np.testing.assert_allclose(rigid.to_vector(rigid.from_vector(vector) @ T[0])[3:], se3.log(torch.from_numpy(rigid.from_vector(vector) @ T[0])).numpy()[3:], atol=1e-9)
