"""Paths of cameras: free of obstacles, smooth, as hands and wheels move; scenes and sensors that depend on their generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from depth_ros.geometry import se3
from depth_ros.learning import camera_paths, synthetic
from depth_ros.learning.furnishing import furnished_room, shapes_room
from depth_ros.learning.materials import random_palette
from depth_ros.learning.sensor import exposed


@pytest.fixture(scope='module')
def palette():
    return random_palette(1, 4)


@pytest.fixture(scope='module', params=[furnished_room, shapes_room])
def scene(request, palette):
    return request.param(np.random.default_rng(4), palette)


def test_scenes_follow_from_the_generator(palette):
    for make in (furnished_room, shapes_room):
        first, again, other = (make(np.random.default_rng(seed), palette) for seed in (1, 1, 2))
        assert first.kinds == again.kinds and torch.equal(first.T_world_self, again.T_world_self) and torch.equal(first.materials, again.materials)
        assert first.kinds != other.kinds
        assert first.kinds.count(synthetic.ROOM) == 1 and {synthetic.BOX, synthetic.SPHERE, synthetic.CYLINDER} <= set(first.kinds)
        assert (first.half > 0.0).all() and first.materials.min() >= 0 and first.materials.max() < 4


def test_cameras_start_in_free_air(scene):
    starts = camera_paths.starts(scene, np.random.default_rng(5))
    assert len(starts) == camera_paths.PATHS
    for start in starts:
        assert start.depth.min() > 0.3 and np.isfinite(start.depth).all()
        place = torch.tensor(start.T_world_cam[:3, 3], dtype=torch.float32)
        for kind, T, half in zip(scene.kinds, scene.T_world_self[0], scene.half[0]):
            inside = bool((se3.transform(se3.inverse(T), place).abs() < half).all())
            assert inside == (kind == synthetic.ROOM) or not inside
        room = scene.kinds.index(synthetic.ROOM)
        assert (se3.transform(se3.inverse(scene.T_world_self[0, room]), place).abs() < scene.half[0, room]).all()


def test_a_path_into_something_is_not_free(scene):
    start = camera_paths.starts(scene, np.random.default_rng(5))[0].T_world_cam
    inside, before = start.copy(), start.copy()
    box = scene.kinds.index(synthetic.BOX)
    inside[:3, 3] = scene.T_world_self[0, box, :3, 3].numpy()
    ray = synthetic.Rays(*torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1, 1))
    ahead = float(synthetic.cast(scene, torch.tensor(start, dtype=torch.float32)[None], ray).distance)
    before[:3, 3] += (ahead - 0.1) * start[:3, 2]
    assert camera_paths.is_free(scene, start[None])
    for wrong in (inside, before):
        assert not camera_paths.is_free(scene, np.stack([start, wrong]))


def test_wheels_turn_about_the_vertical_and_roll_along():
    start = camera_paths.Start(np.eye(4), np.full(10, 2.0), wheels=True)
    for seed in range(20):
        poses = camera_paths.smooth_path(start, np.random.default_rng(seed))
        assert poses.shape == (camera_paths.VIEWS, 4, 4)
        total = np.linalg.inv(poses[0]) @ poses[-1]
        axis = np.abs(Rotation.from_matrix(total[:3, :3]).as_rotvec())
        assert axis[1] > 0.9 * np.linalg.norm(axis) or np.linalg.norm(axis) < 0.02


def test_paths_are_smooth_and_of_many_kinds():
    """Steps of a path are alike in length and direction; over many paths motion goes all ways, and turns and moves by the wanted sizes."""
    rng, steps, baselines, ratios = np.random.default_rng(0), [], [], []
    for _ in range(200):
        poses = camera_paths.smooth_path(camera_paths.Start(np.eye(4), np.full(10, 2.0), wheels=False), rng)
        moved = [np.linalg.inv(a) @ b for a, b in zip(poses, poses[1:])]
        way = np.array([T[:3, 3] for T in moved])
        length = np.linalg.norm(way, axis=1)
        assert length.max() < 3.0 * length.min() + 0.02
        steps.append(way[0] / length[0])
        baselines.append(np.linalg.norm((np.linalg.inv(poses[0]) @ poses[2])[:3, 3]))
        ratios.append(Rotation.from_matrix(moved[0][:3, :3]).magnitude() / (length[0] / 2.0))
    assert (np.abs(steps).mean(0) > 0.25).all() and np.abs(np.mean(steps, 0)).max() < 0.15
    assert 0.05 < np.median(baselines) < 0.2 and np.min(baselines) > 0.01 and np.max(baselines) < 1.0
    assert 0.3 < np.median(ratios) < 3.0 and np.percentile(ratios, 90) > 2.0


def test_the_sensor_keeps_what_it_should():
    """Strength 0 changes nothing; else views of a path share exposure and colour, differ by noise, and the generator decides all."""
    images = np.random.default_rng(1).integers(60, 190, (3, 24, 32, 3), dtype=np.uint8)
    assert exposed(images, 0.0, np.random.default_rng(0)) is images
    first, again, other = (exposed(np.stack([images[0]] * 3), 1.0, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    means = first.mean((1, 2)) / first.mean((1, 2))[:1]
    assert np.abs(means - 1.0).max() < 0.2 and not np.array_equal(first[0], first[1])


def test_blended_edges_change_edges_alone(scene):
    start = camera_paths.starts(scene, np.random.default_rng(5))[0]
    T = torch.tensor(start.T_world_cam, dtype=torch.float32)[None]
    K = torch.tensor([[52.5, 0.0, 31.5], [0.0, 52.5, 23.5], [0.0, 0.0, 1.0]])
    fine, quick = (synthetic.render(scene, T, K, 48, 64, fine=f) for f in (True, False))
    assert torch.equal(fine.depth, quick.depth)
    off = (fine.image.int() - quick.image.int()).abs().amax(-1)
    hits = synthetic.cast(scene, T, synthetic.camera_rays(K, 48, 64), K)
    assert not off[~synthetic._edges(hits.primitive)].any()


def test_cameras_of_a_batch_may_differ(scene):
    """Rendered together, each with its own K, they see what they see alone."""
    starts = camera_paths.starts(scene, np.random.default_rng(5))[:2]
    T = torch.tensor(np.stack([s.T_world_cam for s in starts]), dtype=torch.float32)
    K = torch.tensor([[[52.5, 0.0, 31.5], [0.0, 52.5, 23.5], [0.0, 0.0, 1.0]], [[70.0, 0.0, 30.0], [0.0, 60.0, 22.0], [0.0, 0.0, 1.0]]])
    both = synthetic.render(scene, T, K, 48, 64)
    for i in range(2):
        alone = synthetic.render(scene, T[i:i + 1], K[i], 48, 64)
        torch.testing.assert_close(both.depth[i], alone.depth[0])
        assert ((both.image[i].int() - alone.image[0].int()).abs() > 1).float().mean() < 1e-3


@pytest.mark.parametrize('device', ['cpu', *['cuda'] * torch.cuda.is_available()])
def test_every_device_sees_the_same_each_time(scene, device):
    start = camera_paths.starts(scene, np.random.default_rng(5))[0]
    T = torch.tensor(start.T_world_cam, dtype=torch.float32)[None]
    K = torch.tensor([[52.5, 0.0, 31.5], [0.0, 52.5, 23.5], [0.0, 0.0, 1.0]])
    here = synthetic.render(scene, T, K, 48, 64, fine=False)
    there = synthetic.render(scene.to(device), T.to(device), K.to(device), 48, 64, fine=False)
    torch.testing.assert_close(there.depth.cpu(), here.depth, rtol=1e-4, atol=1e-4)
    assert ((there.image.cpu().int() - here.image.int()).abs() > 2).float().mean() < 1e-2
