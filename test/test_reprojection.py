"""Laws of forward-warped depth: identity, inverse, the nearest surface, bounds, the renderer's truth; and of filling and agreement."""
from __future__ import annotations

import math

import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.geometry.reprojection import agreement, fill_holes, reproject_depth
from depth_ros.learning import synthetic
from depth_ros.learning.sample import sample_scene

HEIGHT, WIDTH = 60, 80
K = torch.tensor([[65.0, 0.0, 39.5], [0.0, 64.0, 29.5], [0.0, 0.0, 1.0]])

pytestmark = pytest.mark.usefixtures('one_thread')


def random_depth(batch: int = 2, seed: int = 0) -> torch.Tensor:
    depth = 1.0 + 3.0 * torch.rand(batch, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    depth[:, 10:20, 30:50] = 0.0
    return depth


def shift(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> torch.Tensor:
    return se3.exp(torch.tensor([x, y, z, 0.0, 0.0, 0.0]))


def views() -> tuple[torch.Tensor, torch.Tensor]:
    """Exact depth (2, H, W) of two cameras in the sample's room, 15 cm and 4 degrees apart, and their poses T_world_cam (2, 4, 4)."""
    first = torch.eye(4)
    first[:3, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    first[:3, 3] = torch.tensor([-1.6, -1.2, 0.9])
    T = torch.stack([first, first @ se3.exp(torch.tensor([0.12, 0.03, -0.08, 0.02, -0.06, 0.01]))])
    return synthetic.render(sample_scene(7), T, K, HEIGHT, WIDTH, fine=False).depth, T


def test_no_motion_changes_nothing():
    depth = random_depth()
    assert torch.equal(reproject_depth(depth, K, torch.eye(4)), depth)


def test_unknown_depth_of_any_kind_stays_unknown():
    depth = random_depth(1)
    spoiled = depth.clone()
    spoiled[:, 0, :4] = torch.tensor([math.nan, math.inf, -1.0, 0.0])
    depth[:, 0, :4] = 0.0
    assert torch.equal(reproject_depth(spoiled, K, torch.eye(4)), depth)


def test_whole_pixels_of_shift_move_a_wall_by_them_and_back():
    wall = torch.full((1, HEIGHT, WIDTH), 2.0)
    T = shift(x=2.0 * 7 / 65.0)     # seven pixels to the right at two metres
    moved = reproject_depth(wall, K, T)
    assert torch.equal(moved[..., 7:], wall[..., 7:]) and not moved[..., :7].any()
    back = reproject_depth(moved, K, se3.inverse(T))
    assert torch.equal(back[..., :-7], wall[..., :-7]) and not back[..., -7:].any()


def test_there_and_back_again_is_where_it_was():
    depth, T = views()
    T_b_a = se3.inverse(T[1:]) @ T[:1]
    back = reproject_depth(reproject_depth(depth[:1], K, T_b_a), K, se3.inverse(T_b_a))
    known = back > 0
    assert known.float().mean() > 0.5
    assert ((back - depth[:1]).abs() < 0.03 * depth[:1])[known].float().mean() > 0.95


def test_the_nearest_surface_wins():
    depth = torch.full((1, HEIGHT, WIDTH), 4.0)
    depth[:, 20:40, 20:40] = 2.0
    T = shift(x=2.0 * 10 / 65.0)    # near things move by ten pixels, far ones by five: both want columns 30 to 49
    moved = reproject_depth(depth, K, T)
    assert torch.equal(moved[:, 20:40, 30:50], torch.full((1, 20, 20), 2.0))
    assert not moved[:, 20:40, 25:30].any()     # what the near thing hid, nobody saw


def test_points_behind_or_outside_are_dropped():
    depth = random_depth()
    assert not reproject_depth(depth, K, shift(z=-10.0)).any()
    assert not reproject_depth(depth, K, shift(x=100.0)).any()
    assert not reproject_depth(depth, K, shift(x=1e30)).any()
    half = reproject_depth(depth, K, shift(z=-2.0))      # some are behind now
    assert torch.isfinite(half).all() and (half >= 0).all() and half.any() and half.max() <= depth.max() - 2.0 + 1e-5


def test_each_of_a_batch_has_its_own_motion_camera_and_the_size_asked_for():
    depth, T = random_depth(2), torch.stack([shift(x=0.2), shift(z=0.3)])
    cameras, K_target = torch.stack([K, 1.1 * K]), torch.tensor([[30.0, 0.0, 20.0], [0.0, 30.0, 15.0], [0.0, 0.0, 1.0]])
    cameras[1, 2, 2] = 1.0
    both = reproject_depth(depth, cameras, T, K_target, (31, 41))
    assert both.shape == (2, 31, 41)
    for i in range(2):
        assert torch.equal(both[i:i + 1], reproject_depth(depth[i:i + 1], cameras[i], T[i], K_target, (31, 41)))


def test_it_agrees_with_what_the_renderer_sees_from_there():
    depth, T = views()
    moved = fill_holes(reproject_depth(depth[:1], K, se3.inverse(T[1:]) @ T[:1]))
    known = moved > 0
    assert known.float().mean() > 0.8
    assert ((moved - depth[1:]).abs() < 0.03 * depth[1:])[known].float().mean() > 0.95


def test_small_holes_take_one_of_their_neighbours_and_known_pixels_stay():
    depth = random_depth()
    known = depth > 0
    cracked = depth.clone()
    cracked[:, ::7, ::5] = 0.0
    filled = fill_holes(cracked)
    assert torch.equal(filled[cracked > 0], cracked[cracked > 0])
    row, column = 35, 40
    assert cracked[0, row, column] == 0
    around = depth[0, row - 1:row + 2, column - 1:column + 2].flatten().tolist()
    assert filled[0, row, column].item() in [v for i, v in enumerate(around) if i != 4]
    assert (filled[:, ::7, ::5][known[:, ::7, ::5]] > 0).float().mean() > 0.95
    assert not filled[:, 13:17, 33:47].any()     # the middle of the large one


def test_a_hole_on_an_edge_gets_no_depth_between_the_two_sides():
    depth = torch.full((1, HEIGHT, WIDTH), 1.0)
    depth[..., 40:] = 3.0
    depth[:, :, 39:41] = 0.0
    assert set(fill_holes(depth).unique().tolist()) == {1.0, 3.0}


def test_an_image_that_knows_nothing_stays_as_it_is():
    assert not fill_holes(torch.zeros(1, 4, 5)).any()


def test_views_of_one_scene_agree_and_a_flying_point_is_denied():
    depth, T = views()
    T_b_a = se3.inverse(T[1:]) @ T[:1]
    confirmed, denied = agreement(depth[:1], K, T_b_a, depth[1:], K, 0.05)
    assert confirmed.float().mean() > 0.6 and denied.float().mean() < 0.03 and not (confirmed & denied).any()
    flying = depth[:1].clone()
    flying[:, 30, 20:60:2] *= 0.7
    confirmed_now, denied_now = agreement(flying, K, T_b_a, depth[1:], K, 0.05)
    changed = flying != depth[:1]
    assert not confirmed_now[changed & confirmed].any() and denied_now[changed & confirmed].float().mean() > 0.9
    assert torch.equal(confirmed_now[~changed], confirmed[~changed])


def test_what_the_other_cannot_see_it_neither_confirms_nor_denies():
    depth = torch.full((1, HEIGHT, WIDTH), 4.0)
    other = torch.full((1, HEIGHT, WIDTH), 2.0)
    other[:, :, 40:] = 0.0
    for T in (torch.eye(4), shift(x=100.0), shift(z=-10.0)):
        assert not any(mask.any() for mask in agreement(depth, K, T, other, K, 0.02))
