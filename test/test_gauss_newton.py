"""Laws of the Gauss-Newton layer: known motions come back, gradients are right, SciPy agrees, and failure is a status."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch

from depth_ros.geometry import gauss_newton, pinhole, se3
from depth_ros.geometry.gauss_newton import Damping, Edges, SolveStatus

K = torch.tensor([[260.0, 0.0, 159.5], [0.0, 255.0, 119.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
LIGHT = Damping(absolute=1e-9, relative=0.0)
SOLVERS = {"keyframe": gauss_newton.keyframe_form, "global": gauss_newton.global_form}
UNCALIBRATED = {"keyframe": gauss_newton.uncalibrated_keyframe_form, "global": gauss_newton.uncalibrated_global_form}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(edges: int, points: int, seed: int = 0) -> torch.Tensor:
    """Points (E, N, 3) that fill the view of a camera, 1 to 4 m away."""
    uniform = torch.rand(edges, points, 3, dtype=torch.float64, generator=generator(seed))
    pixels = uniform[..., :2] * torch.tensor([320.0, 240.0], dtype=torch.float64)
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1) @ torch.linalg.inv(K).mT
    return rays * (1 + 3 * uniform[..., 2:])


def seen_by(T_target_source: torch.Tensor, points: torch.Tensor, K: torch.Tensor = K) -> torch.Tensor:
    """Pixels (E, N, 2) of points (E, N, 3), by the textbook formula."""
    p = (T_target_source[:, None, :3, :3] @ points[..., None])[..., 0] + T_target_source[:, None, :3, 3]
    return torch.stack([K[0, 0] * p[..., 0] / p[..., 2] + K[0, 2], K[1, 1] * p[..., 1] / p[..., 2] + K[1, 2]], dim=-1)


def random_poses(count: int, size: float, seed: int = 1) -> torch.Tensor:
    return se3.exp(size * torch.randn(count, 6, dtype=torch.float64, generator=generator(seed)))


def graph(poses: int, points: int = 60, seed: int = 2, size: float = 0.05) -> tuple[torch.Tensor, Edges]:
    """True poses (P, 4, 4), the first at identity, and noise-free edges between all of them; `size`: of the motions [m, rad]."""
    T = torch.cat([torch.eye(4, dtype=torch.float64)[None], random_poses(poses - 1, size, seed)])
    source, target = gauss_newton.all_pairs(poses)
    X = random_points(len(source), points, seed)
    pixels = seen_by(gauss_newton.relative_motion(T, source, target), X)
    return T, Edges(source, target, X, pixels, torch.ones_like(pixels), K)


def test_point_jacobian_is_the_numeric_one():
    X = random_points(1, 5)[0]

    def uvz(xi: torch.Tensor) -> torch.Tensor:
        moved = se3.transform(se3.exp(xi), X)
        return torch.cat([pinhole.project(moved[None], K)[0][0], moved[:, 2:]], dim=-1)  # (N, 3)

    numeric = torch.autograd.functional.jacobian(uvz, torch.zeros(6, dtype=torch.float64))  # (N, 3, 6)
    torch.testing.assert_close(gauss_newton.point_jacobian(X, K), numeric.permute(1, 2, 0))


def test_keyframe_form_recovers_each_motion():
    truth, X = random_poses(3, 0.1), random_points(3, 200)
    pixels = seen_by(truth, X)
    edges = Edges(torch.zeros(3, dtype=torch.long), torch.arange(3), X, pixels, torch.ones_like(pixels), K)
    found, step = gauss_newton.keyframe_form(torch.eye(4, dtype=torch.float64).expand(3, 4, 4), edges, steps=8, damping=LIGHT)
    assert step.status is SolveStatus.OK
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)


def test_global_form_recovers_all_poses():
    truth, edges = graph(4)
    start = truth.clone()
    start[1:] = random_poses(3, 0.05, seed=5) @ truth[1:]
    found, step = gauss_newton.global_form(start, edges, fixed=1, steps=8, damping=LIGHT)
    assert step.status is SolveStatus.OK
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)
    assert torch.equal(found[0], truth[0])


def test_global_form_agrees_with_scipy_on_noisy_edges():
    truth, edges = graph(3, points=30)
    noise = torch.randn(edges.pixels.shape, dtype=torch.float64, generator=generator(3))
    weights = torch.rand(edges.pixels.shape, dtype=torch.float64, generator=generator(4))
    edges = Edges(edges.source, edges.target, edges.points, edges.pixels + noise, weights, K)
    found, _ = gauss_newton.global_form(truth, edges, fixed=1, steps=10, damping=LIGHT)

    def residuals(xi: np.ndarray) -> np.ndarray:
        moved = se3.exp(torch.from_numpy(xi).reshape(2, 6)) @ truth[1:]
        T = torch.cat([truth[:1], moved])
        e = edges.pixels - seen_by(T[edges.target] @ torch.linalg.inv(T[edges.source]), edges.points)
        return (e * weights.sqrt()).flatten().numpy()

    solution = scipy.optimize.least_squares(residuals, np.zeros(12), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    expected = se3.exp(torch.from_numpy(solution.x).reshape(2, 6)) @ truth[1:]
    torch.testing.assert_close(found[1:], expected, atol=1e-7, rtol=0)


def test_solve_gradient_is_implicit_differentiation():
    A = torch.randn(2, 6, 6, dtype=torch.float64, generator=generator())
    H = (A @ A.mT + torch.eye(6, dtype=torch.float64)).requires_grad_()
    b = torch.randn(2, 6, dtype=torch.float64, generator=generator(1)).requires_grad_()
    symmetric = lambda H, b: gauss_newton.solve_damped((H + H.mT) / 2, b, Damping(0.1, 0.01), clip=100.0).xi  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, (H, b))


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("form", ["keyframe", "global"])
def test_layer_gradient(form: str, calibrated: bool):
    """With respect to everything that goes in: pixels, weights, points, intrinsics and poses."""
    _, edges = graph(3, points=6 if calibrated else 20, size=0.05 if calibrated else 0.2)
    start = random_poses(3, 0.02, seed=7)

    def solve(pixels: torch.Tensor, weights: torch.Tensor, points: torch.Tensor, K: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = Edges(edges.source, edges.target, points, pixels, weights, K)
        poses = start if form == "global" else start[given.source]
        if calibrated:
            return SOLVERS[form](poses, given)[:1]
        found = UNCALIBRATED[form](poses, given, steps=2)
        assert found.step.status is SolveStatus.OK
        return found.poses, found.K

    inputs = [t.clone().requires_grad_() for t in (edges.pixels + 0.5, edges.weights, edges.points, K, start)]
    assert torch.autograd.gradcheck(solve, inputs, fast_mode=True)


def test_batch_solves_each_graph_alone():
    truth, edges = graph(3)
    other, second = graph(3, seed=9)
    both = Edges(edges.source, edges.target, *(torch.stack(pair) for pair in (
        (edges.points, second.points), (edges.pixels, second.pixels), (edges.weights, second.weights))), K.expand(2, 3, 3))
    found, _ = gauss_newton.global_form(torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4), both, steps=10, damping=LIGHT)
    torch.testing.assert_close(found, torch.stack([truth, other]), atol=1e-6, rtol=0)


def test_singular_system_is_a_status_and_a_zero_step():
    H = torch.stack([torch.zeros(6, 6), torch.eye(6), torch.full((6, 6), torch.nan)])
    step = gauss_newton.solve_damped(H, torch.ones(3, 6), Damping(0.0, 0.0))
    assert step.solved.tolist() == [False, True, False]
    assert step.status is SolveStatus.SINGULAR
    assert torch.equal(step.xi, torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 6))


def test_unsolved_system_has_zero_gradient():
    H, b = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True), torch.ones(6, dtype=torch.float64, requires_grad=True)
    gauss_newton.solve_damped(H, b, Damping(0.0, 0.0)).xi.sum().backward()
    assert not H.grad.any() and not b.grad.any()


def test_weightless_points_do_not_count():
    truth, edges = graph(2)
    spoiled = edges.pixels.clone()
    spoiled[:, ::3] += 30.0
    weights = torch.ones_like(spoiled)
    weights[:, ::3] = 0.0
    found, _ = gauss_newton.global_form(truth, Edges(edges.source, edges.target, edges.points, spoiled, weights, K), steps=4, damping=LIGHT)
    torch.testing.assert_close(found, truth, atol=1e-9, rtol=0)


def test_step_is_clipped():
    step = gauss_newton.solve_damped(torch.eye(6), torch.full((6,), 50.0), Damping(0.0, 0.0), clip=1.0)
    assert torch.equal(step.xi, torch.ones(6))


def zoomed(edges: Edges, factor: float) -> Edges:
    """The same pixels and depths as they look to who believes in a focal length longer by a factor."""
    points = edges.points * torch.tensor([1 / factor, 1 / factor, 1.0], dtype=torch.float64)
    stretch = torch.tensor([[factor, 1.0, 1.0], [1.0, factor, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    return replace(edges, points=points, K=edges.K * stretch)


def star(count: int, size: float, points: int = 200) -> tuple[torch.Tensor, Edges]:
    """True motions (E, 4, 4) from one keyframe and its noise-free edges."""
    truth, X = random_poses(count, size), random_points(1, points).expand(count, -1, -1)
    pixels = seen_by(truth, X)
    return truth, Edges(torch.zeros(count, dtype=torch.long), torch.arange(count), X, pixels, torch.ones_like(pixels), K)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_uncalibrated_keyframe_form_recovers_focal_length_and_motions(factor: float):
    truth, edges = star(3, 0.15)
    found = gauss_newton.uncalibrated_keyframe_form(torch.eye(4, dtype=torch.float64).expand(3, 4, 4), zoomed(edges, factor), steps=12, damping=LIGHT, focal_damping=LIGHT)
    assert found.step.status is SolveStatus.OK
    torch.testing.assert_close(found.K, K, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.poses, truth, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_uncalibrated_global_form_recovers_focal_length_and_poses(factor: float):
    truth, edges = graph(4, size=0.1)
    start = torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
    found = gauss_newton.uncalibrated_global_form(start, zoomed(edges, factor), steps=12, damping=LIGHT, focal_damping=LIGHT)
    assert found.step.status is SolveStatus.OK
    torch.testing.assert_close(found.K, K, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.poses, truth, atol=1e-6, rtol=0)


def test_usual_damping_still_leads_to_the_focal_length():
    truth, edges = star(3, 0.15, points=1000)
    found = gauss_newton.uncalibrated_keyframe_form(torch.eye(4, dtype=torch.float64).expand(3, 4, 4), zoomed(edges, 1.2), steps=20)
    torch.testing.assert_close(found.K, K, rtol=1e-3, atol=0)


def test_uncalibrated_form_agrees_with_scipy_on_noisy_edges():
    truth, edges = graph(3, points=100, size=0.15)
    noise = torch.randn(edges.pixels.shape, dtype=torch.float64, generator=generator(3))
    weights = torch.rand(edges.pixels.shape, dtype=torch.float64, generator=generator(4))
    edges = replace(edges, pixels=edges.pixels + noise, weights=weights)
    found = gauss_newton.uncalibrated_global_form(truth, edges, steps=25, damping=LIGHT, focal_damping=LIGHT)

    def residuals(x: np.ndarray) -> np.ndarray:
        T = torch.cat([truth[:1], se3.exp(torch.from_numpy(x[:12]).reshape(2, 6)) @ truth[1:]])
        given = zoomed(edges, float(np.exp(x[12])))
        e = edges.pixels - seen_by(T[edges.target] @ torch.linalg.inv(T[edges.source]), given.points, given.K)
        return (e * weights.sqrt()).flatten().numpy()

    solution = scipy.optimize.least_squares(residuals, np.zeros(13), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    torch.testing.assert_close(found.K, zoomed(edges, float(np.exp(solution.x[12]))).K, rtol=1e-7, atol=0)
    expected = se3.exp(torch.from_numpy(solution.x[:12]).reshape(2, 6)) @ truth[1:]
    torch.testing.assert_close(found.poses[1:], expected, atol=1e-7, rtol=0)


def shifted(x: float, y: float, z: float, turn: float = 0.0) -> torch.Tensor:
    """Motions (1, 4, 4): a translation and a turn about the optical axis."""
    return se3.exp(torch.tensor([[x, y, z, 0.0, 0.0, turn]], dtype=torch.float64))


def sideways_along_a_wall() -> torch.Tensor:
    """Seen far and straight on, a turn is a shift: what is left to tell them apart is less than nothing, for noise."""
    return se3.exp(torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.004, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(("motion", "wall"), [(shifted(0.0, 0.0, 0.0), False), (shifted(0.3, -0.1, 0.2), False), (shifted(0.0, 0.0, 0.1, 0.3), False),
                                              (shifted(0.3, 0.0, 0.0), True), (sideways_along_a_wall(), True)],
                         ids=["at rest", "pure translation", "about the optical axis", "along a wall", "slightly turned along a wall"])
def test_unobservable_focal_length_is_a_status_and_stays(motion: torch.Tensor, wall: bool):
    X = random_points(1, 200)
    if wall:
        X = 3.0 * X / X[..., 2:]
    pixels = seen_by(motion, X)
    edges = zoomed(Edges(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), X, pixels, torch.ones_like(pixels), K), 1.2)
    found = gauss_newton.uncalibrated_keyframe_form(torch.eye(4, dtype=torch.float64)[None], edges, steps=10, damping=LIGHT, focal_damping=LIGHT)
    assert found.step.status is SolveStatus.UNOBSERVABLE
    assert torch.equal(found.K, edges.K) and torch.isfinite(found.poses).all()
    assert found.step.solved.all() and found.step.xi.abs().max() < 0.1


def test_nothing_seen_leaves_poses_and_focal_length():
    truth, edges = star(2, 0.1)
    found = gauss_newton.uncalibrated_keyframe_form(truth, replace(edges, weights=torch.zeros_like(edges.weights)), steps=3)
    assert found.step.status is SolveStatus.UNOBSERVABLE
    assert torch.equal(found.K, K) and torch.equal(found.poses, truth)


def test_focal_lengths_of_a_batch_are_found_each_alone():
    truth, edges = star(3, 0.15)
    given = [zoomed(edges, factor) for factor in (0.8, 1.2)]
    both = replace(edges, **{name: torch.stack([getattr(one, name) for one in given]) for name in ("points", "pixels", "weights", "K")})
    start = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    found = gauss_newton.uncalibrated_keyframe_form(start, both, steps=12, damping=LIGHT, focal_damping=LIGHT)
    torch.testing.assert_close(found.K, K.expand(2, 3, 3), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.poses, truth.expand(2, 3, 4, 4), atol=1e-6, rtol=0)


def test_one_step_moves_the_focal_length_by_a_bounded_share():
    _, edges = star(3, 0.15)
    found = gauss_newton.uncalibrated_keyframe_form(torch.eye(4, dtype=torch.float64).expand(3, 4, 4), zoomed(edges, 8.0), steps=1, damping=LIGHT, focal_damping=LIGHT)
    assert abs(float(torch.log(found.K[0, 0] / (8 * K[0, 0])))) <= gauss_newton.MAX_FOCAL_STEP + 1e-9
