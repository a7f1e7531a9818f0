"""Laws of the alignment: what the network says is followed exactly, both forms agree, and no input gives a pose that is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from depth_ros.geometry import gauss_newton, se3
from depth_ros.geometry.gauss_newton import Damping
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.geometry.warp import induced_flow
from depth_ros.models.deepv2d import LIVE
from depth_ros.models.deepv2d_motion import MotionModule, align, damping_for, keyframe_edges

pytestmark = pytest.mark.usefixtures('one_thread')
HEIGHT, WIDTH, FRAMES = 18, 24, 3
ALONE = replace(LIVE, measured_flow=False, motion_reach=3)      # finds correspondences by itself
CHANNELS = ALONE.motion_features + 9         # with the grey patches
K = torch.tensor([[[20.0, 0.0, 11.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]])
LIGHT = Damping(1e-6, 0.0)


class Oracle(nn.Module):
    """A network whose features are pixel coordinates, so that it can tell exactly how far each warped pixel is from where it should have been taken."""

    sees_flow = False

    def __init__(self, wanted: Tensor) -> None:
        super().__init__()
        self.wanted = wanted        # (E, h, w, 2) [px]

    def forward(self, features_i: Tensor, warped_j: Tensor) -> tuple[Tensor, Tensor]:
        return self.wanted.movedim(-1, 1) - warped_j, torch.ones_like(warped_j)


def scene(frames: int = FRAMES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Depths (1, N, h, w) of a far wall with bumps, and true poses (1, N, 4, 4)."""
    g = torch.Generator().manual_seed(seed)
    depth = 2.0 + torch.rand(1, frames, HEIGHT, WIDTH, generator=g)
    T = se3.exp(0.03 * torch.randn(1, frames, 6, generator=g))
    T[:, 0] = torch.eye(4)
    return depth, T


def coordinates(frames: int = FRAMES) -> Tensor:
    return pixel_grid(HEIGHT, WIDTH).movedim(-1, 0).expand(1, frames, 2, HEIGHT, WIDTH)


def where(depth: Tensor, T: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """True pixels (E, h, w, 2)."""
    flow, _ = induced_flow(depth[:, edges[0]], K[:, None], gauss_newton.relative_motion(T, *edges))
    return (flow + pixel_grid(HEIGHT, WIDTH))[0]


@pytest.fixture(scope='module')
def alone() -> MotionModule:
    torch.manual_seed(0)
    return MotionModule(ALONE).eval()


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_poses_follow_what_the_network_says(form):
    depth, truth = scene()
    edges = keyframe_edges(FRAMES) if form == 'keyframe' else gauss_newton.all_pairs(FRAMES)
    start = torch.eye(4).expand(1, FRAMES, 4, 4)
    found = align(Oracle(where(depth, truth, edges)), coordinates(), depth, K, start, edges, form, iterations=4, damping=LIGHT)
    torch.testing.assert_close(found.T_cam_world, truth, atol=1e-4, rtol=0)
    assert found.solved.all() and len(found.iterations) == 4
    torch.testing.assert_close(found.iterations[-1].T_cam_world, found.T_cam_world)


def test_the_keyframe_form_needs_no_depth_but_the_keyframes():
    depth, truth = scene()
    edges = keyframe_edges(FRAMES)
    network, start = Oracle(where(depth, truth, edges)), torch.eye(4).expand(1, FRAMES, 4, 4)
    depth[:, 1:] = torch.nan
    found = align(network, coordinates(), depth, K, start, edges, iterations=4, damping=LIGHT)
    torch.testing.assert_close(found.T_cam_world, truth, atol=1e-4, rtol=0)


def test_the_keyframe_stays_wherever_it_is():
    """The same frames in another world: relative motions are the same."""
    depth, truth = scene()
    edges, other = keyframe_edges(FRAMES), se3.exp(torch.tensor([0.4, -0.2, 0.3, 0.2, -0.5, 0.1]))
    network, start = Oracle(where(depth, truth, edges)), torch.eye(4).expand(1, FRAMES, 4, 4)
    here = align(network, coordinates(), depth, K, start, edges).T_cam_world
    there = align(network, coordinates(), depth, K, start @ other, edges).T_cam_world
    assert torch.equal(there[:, 0], (start @ other)[:, 0])
    torch.testing.assert_close(there, here @ other, atol=1e-5, rtol=0)


def test_fixed_poses_are_not_touched(alone):
    depth, truth = scene(4)
    features = alone.features(torch.rand(4, 3, 4 * HEIGHT, 4 * WIDTH, generator=torch.Generator().manual_seed(1)))[None]
    with torch.inference_mode():
        found = align(alone, features, depth, K, truth, gauss_newton.all_pairs(4), 'global', fixed=2)
    assert torch.equal(found.T_cam_world[:, :2], truth[:, :2]) and not torch.equal(found.T_cam_world[:, 2:], truth[:, 2:])


def test_every_iteration_teaches_the_network_on_its_own(alone):
    depth, truth = scene()
    features = alone.features(torch.rand(FRAMES, 3, 4 * HEIGHT, 4 * WIDTH, generator=torch.Generator().manual_seed(2)))[None]
    found = align(alone, features, depth, K, torch.eye(4).expand(1, FRAMES, 4, 4), keyframe_edges(FRAMES))
    for iteration in found.iterations:
        gradients = torch.autograd.grad((iteration.T_cam_world - truth).square().sum(), (alone.flow.residual.weight, alone.embed.weight), retain_graph=True)
        assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)
    last, = torch.autograd.grad(found.iterations[1].T_cam_world.sum(), found.iterations[0].residual, retain_graph=True, allow_unused=True)
    assert last is None


def test_unknown_depth_and_what_leaves_the_image_have_no_weight():
    depth, truth = scene()
    depth[:, :, : HEIGHT // 2] = 0.0
    edges = keyframe_edges(FRAMES)
    wanted = where(depth, truth, edges)
    wanted[:, : HEIGHT // 2] = 1e4
    start = torch.eye(4).repeat(1, FRAMES, 1, 1)
    found = align(Oracle(wanted), coordinates(), depth, K, start, edges, iterations=5, damping=LIGHT)
    assert not found.iterations[0].valid[:, :, : HEIGHT // 2].any()
    torch.testing.assert_close(found.T_cam_world, truth, atol=1e-4, rtol=0)


def spoiled() -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Features, depth, K and poses, one of them bad."""
    depth, truth = scene()
    features = torch.randn(1, FRAMES, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    bad_pose = truth.clone()
    bad_pose[0, 1] = torch.nan
    bad_features = features.clone()
    bad_features[:, 1] = torch.inf
    away = truth.clone()
    away[0, 1:, 2, 3] = -100.0
    return {'no depth': (features, torch.zeros_like(depth), K, truth), 'NaN depth': (features, torch.full_like(depth, torch.nan), K, truth),
            'focal length 0': (features, depth, torch.diag(torch.tensor([0.0, 0.0, 1.0]))[None], truth), 'NaN K': (features, depth, K * torch.nan, truth),
            'NaN pose': (features, depth, K, bad_pose), 'infinite features': (bad_features, depth, K, truth), 'behind': (features, depth, K, away)}


@pytest.mark.parametrize('form', ['keyframe', 'global'])
@pytest.mark.parametrize('what', sorted(spoiled()))
def test_no_input_gives_a_pose_that_is_not_finite(alone, what, form):
    features, depth, intrinsics, T = spoiled()[what]
    edges = keyframe_edges(FRAMES) if form == 'keyframe' else gauss_newton.all_pairs(FRAMES)
    with torch.inference_mode():
        found = align(alone, features, depth, intrinsics, T, edges, form)
    assert torch.isfinite(found.T_cam_world).all()
    if what in ('no depth', 'NaN depth', 'focal length 0', 'NaN K', 'NaN pose'):
        assert not found.solved.any()


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_a_view_that_nothing_ties_is_told_among_good_ones(form):
    depth, truth = scene(4)
    edges = keyframe_edges(4) if form == 'keyframe' else gauss_newton.all_pairs(4)
    start = torch.eye(4).repeat(1, 4, 1, 1)
    network = Oracle(where(depth, truth, edges))
    start[:, 2, 0, 3] = 50.0
    found = align(network, coordinates(4), depth, K, start, edges, form, iterations=4, damping=LIGHT)
    assert not found.solved.any() and found.tied.tolist() == [[True, True, False, True]]
    torch.testing.assert_close(found.T_cam_world[:, [0, 1, 3]], truth[:, [0, 1, 3]], atol=1e-4, rtol=0)


def test_views_that_are_tied_to_each_other_alone_are_not_tied():
    depth, truth = scene(4)
    edges = gauss_newton.all_pairs(4)
    start = truth.clone()
    start[:, 2:, 0, 3] += 50.0      # both far away, side by side
    found = align(Oracle(where(depth, truth, edges)), coordinates(4), depth, K, start, edges, 'global', damping=LIGHT)
    assert not found.solved.any() and found.tied.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_geometry_keeps_its_precision_where_networks_run_in_half(form):
    depth, truth = scene()
    edges = keyframe_edges(FRAMES) if form == 'keyframe' else gauss_newton.all_pairs(FRAMES)
    network, start = Oracle(where(depth, truth, edges)), torch.eye(4).expand(1, FRAMES, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert (K @ torch.linalg.inv(K)).dtype == torch.bfloat16
        found = align(network, coordinates(), depth, K, start, edges, form, iterations=4, damping=LIGHT)
    usual = align(network, coordinates(), depth, K, start, edges, form, iterations=4, damping=LIGHT)
    torch.testing.assert_close(found.T_cam_world, usual.T_cam_world, atol=1e-6, rtol=0)
    for half, full in zip(found.iterations, usual.iterations, strict=True):
        torch.testing.assert_close(half.pixels, full.pixels, atol=1e-3, rtol=0)


def test_what_a_network_says_in_half_precision_is_followed_in_full(alone):
    depth, _ = scene()
    start = torch.eye(4).expand(1, FRAMES, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        features = alone.features(torch.rand(FRAMES, 3, 4 * HEIGHT, 4 * WIDTH, generator=torch.Generator().manual_seed(1)))[None]
        found = align(alone, features, depth, K, start, keyframe_edges(FRAMES))
    assert {x.dtype for step in found.iterations for x in (step.T_cam_world, step.residual, step.confidence, step.pixels)} == {torch.float32}
    assert torch.isfinite(found.T_cam_world).all() and found.solved.all()


def test_samples_of_a_batch_do_not_touch_each_other(alone):
    features = torch.randn(2, FRAMES, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
    (depth, T), (other, S) = scene(), scene(seed=1)
    depth, T = torch.cat([depth, other]), torch.cat([T, S])
    with torch.inference_mode():
        both = align(alone, features, depth, K.expand(2, 3, 3), T, keyframe_edges(FRAMES)).T_cam_world
        alone = torch.cat([align(alone, features[i:i + 1], depth[i:i + 1], K, T[i:i + 1], keyframe_edges(FRAMES)).T_cam_world for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)


def test_damping_goes_with_the_number_of_pixels():
    assert damping_for(120, 160).absolute == 100.0 and damping_for(60, 80).absolute == 25.0


def test_wrong_edges_and_forms_are_told(alone):
    depth, T = scene()
    features = torch.zeros(1, FRAMES, CHANNELS, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match='keyframe, global'):
        align(alone, features, depth, K, T, keyframe_edges(FRAMES), 'local')
    with pytest.raises(ValueError, match='one edge from frame 0'):
        align(alone, features, depth, K, T, (torch.tensor([0, 0]), torch.tensor([1, 1])))
    with pytest.raises(ValueError, match='at least one edge'):
        align(alone, features, depth, K, T, (torch.tensor([1]), torch.tensor([2])))
    with pytest.raises(ValueError, match='without a pose network'):
        alone.initial_motion(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match='fixed poses'):
        align(MotionModule(ALONE), features, depth, K, T, gauss_newton.all_pairs(FRAMES), 'global', fixed=3)
