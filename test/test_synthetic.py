"""The renderer against the geometry that it stands for: reprojection, colour constancy, flow, scans, determinism; and the sample that it makes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sequence_support import assert_identical
from torch.nn import functional as F

from depth_ros.geometry import pinhole, se3, warp
from depth_ros.learning import lighting, materials, sample, synthetic
from depth_ros.learning.sequences import ColourEvent, ScanEvent
from depth_ros.learning.tum import open_sequence

WIDTH, HEIGHT = 160, 120
SETTINGS = sample.SampleSettings()


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """The images are small: threads that share an operation would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def scene() -> synthetic.Scene:
    return sample.sample_scene(SETTINGS.seed)


@pytest.fixture(scope='module')
def K() -> torch.Tensor:
    return torch.tensor([[131.0, 0.0, 79.5], [0.0, 131.0, 59.5], [0.0, 0.0, 1.0]])


@pytest.fixture(scope='module')
def poses() -> torch.Tensor:
    return torch.tensor(sample.camera_poses(SETTINGS), dtype=torch.float32)


@pytest.fixture(scope='module')
def views(scene, K, poses) -> synthetic.Rendering:
    """Frames 90 and 100."""
    return synthetic.render(scene, poses[[90, 100]], K, HEIGHT, WIDTH)


def blank(kinds, poses_, halves) -> synthetic.Scene:
    """A scene without any picture on it."""
    count = len(kinds)
    textures = materials.Textures(torch.full((1, materials.TILE, materials.TILE, 3), 0.5), [1.0])
    return synthetic.Scene(tuple(kinds), torch.stack(poses_)[None], torch.tensor([halves]), torch.zeros(1, count, 6, dtype=torch.int64), textures)


def test_depth_is_where_the_ray_meets_the_surface(scene, K, poses):
    """Every point lies on the boundary of one primitive, within its own frame, whatever way it was found."""
    rays = synthetic.camera_rays(K, HEIGHT, WIDTH)
    hits = synthetic.cast(scene, poses[[30]], rays, K)
    world = se3.transform(poses[30], pinhole.unproject(hits.distance[0], K))
    nearest = torch.full((HEIGHT, WIDTH), torch.inf)
    for kind, T, half in zip(scene.kinds, scene.T_world_self[0], scene.half[0]):
        p = se3.transform(se3.inverse(T), world)
        if kind == synthetic.SPHERE:
            off = (p.norm(dim=-1) - half[0]).abs()
        elif kind == synthetic.CYLINDER:
            off = torch.maximum(p[..., :2].norm(dim=-1) - half[0], p[..., 2].abs() - half[2]).abs()
        else:
            off = (p.abs() - half).amax(-1).abs()
        nearest = torch.minimum(nearest, off)
    assert nearest.max() < 1e-5


def test_nothing_stands_between_the_camera_and_what_it_sees(scene, K, poses):
    """Points a little before the surface lie inside the room and in no other primitive."""
    depth = synthetic.render(scene, poses[[30]], K, HEIGHT, WIDTH).depth[0]
    for share in (0.1, 0.35, 0.6, 0.85, 0.999):
        world = se3.transform(poses[30], pinhole.unproject(share * depth, K))
        for kind, T, half in zip(scene.kinds, scene.T_world_self[0], scene.half[0]):
            p = se3.transform(se3.inverse(T), world)
            if kind == synthetic.ROOM:
                assert (p.abs() < half + 1e-5).all()
            elif kind == synthetic.BOX:
                assert not (p.abs() < half - 1e-4).all(-1).any()
            else:
                r = p.norm(dim=-1) if kind == synthetic.SPHERE else p[..., :2].norm(dim=-1)
                assert not ((r < half[0] - 1e-4) & (p[..., 2].abs() < half[2] - 1e-4)).any()


def test_windows_change_nothing(scene, K, poses):
    rays = synthetic.camera_rays(K, HEIGHT, WIDTH)
    quick, thorough = (synthetic.cast(scene, poses[::60], rays, k) for k in (K, None))
    assert torch.equal(quick.distance, thorough.distance) and torch.equal(quick.primitive, thorough.primitive)


def test_depth_of_one_view_is_that_of_another(scene, K, poses, views):
    """What both see, reprojected with the poses, lies where the other says, as far as its pixels let one tell."""
    T_b_a = se3.inverse(poses[100]) @ poses[90]
    moved, visible = synthetic.flow(scene, views.depth[:1], poses[[90]], poses[[100]], K)
    there, inside = warp.warp_by_flow(1.0 / views.depth[1:, None], moved)
    expected = se3.transform(T_b_a, pinhole.unproject(views.depth[0], K))[..., 2]
    smooth = visible[0] & inside[0] & ~_near_edges(views.depth[0])
    off = (there[0, 0] * expected - 1.0).abs()[smooth]      # inverse depth is linear on a plane
    assert visible.float().mean() > 0.6
    assert off.median() < 1e-5 and off.quantile(0.9) < 5e-4 and (off < 0.02).float().mean() > 0.99


def test_colour_of_one_view_is_that_of_another(scene, K, poses, views):
    moved, visible = synthetic.flow(scene, views.depth[:1], poses[[90]], poses[[100]], K)
    images = views.image.movedim(-1, 1).float() / 255.0
    warped, _ = warp.warp_by_flow(images[1:], moved)
    seen = visible[0] & ~_near_edges(views.depth[0])
    off = (warped - images[:1]).abs().mean(1)[0]
    unmoved = (images[1] - images[0]).abs().mean(0)
    assert off[seen].mean() < 0.02 and off[seen].mean() < 0.3 * unmoved[seen].mean()


def _near_edges(depth: torch.Tensor) -> torch.Tensor:
    """Pixels with a jump of inverse depth among their neighbours."""
    inverse = 1.0 / depth[None, None]
    return (F.max_pool2d(inverse, 5, 1, 2) + F.max_pool2d(-inverse, 5, 1, 2))[0, 0] > 0.06


def test_flow_is_the_projection_of_depth_and_motion(scene, K, poses, views):
    moved, visible = synthetic.flow(scene, views.depth[:1], poses[[90]], poses[[100]], K)
    rng = np.random.default_rng(0)
    Kn, a, b = K.double().numpy(), poses[90].double().numpy(), poses[100].double().numpy()
    for v, u in zip(rng.integers(0, HEIGHT, 200), rng.integers(0, WIDTH, 200)):
        point = float(views.depth[0, v, u]) * np.linalg.inv(Kn) @ [u, v, 1.0]
        q = Kn @ np.linalg.solve(b, a @ [*point, 1.0])[:3]
        np.testing.assert_allclose(moved[0, v, u], q[:2] / q[2] - [u, v], atol=2e-3)
        inside = 0 <= q[0] / q[2] <= WIDTH - 1 and 0 <= q[1] / q[2] <= HEIGHT - 1
        assert inside or not visible[0, v, u]


def test_what_a_box_hides_is_not_visible():
    """A small box before a wall, seen from two places: the shadow on the wall has the place and width that similar triangles give."""
    wall, box = torch.eye(4), torch.eye(4)
    wall[2, 3], box[2, 3] = 4.5, 2.0
    scene = blank([synthetic.BOX, synthetic.BOX], [wall, box], [[9.0, 9.0, 0.5], [0.2, 9.0, 1e-3]])
    K = torch.tensor([[100.0, 0.0, 99.5], [0.0, 100.0, 0.0], [0.0, 0.0, 1.0]])
    T = torch.eye(4).repeat(2, 1, 1)
    T[1, 0, 3] = 0.5
    depth = synthetic.cast(scene, T[:1], synthetic.camera_rays(K, 1, 200), K).distance
    _, visible = synthetic.flow(scene, depth, T[:1], T[1:], K)
    u = (torch.arange(200) - 99.5) / 100.0      # slopes of the rays
    x_wall, on_wall = 4.0 * u, depth[0, 0] > 3.0
    hidden = on_wall & ((((x_wall - 0.5) / 4.0 * 1.999) + 0.5).abs() < 0.2)
    leaves = ((x_wall - 0.5) / 4.0 * 100.0 + 99.5 < 0) | ((x_wall - 0.5) / 4.0 * 100.0 + 99.5 > 199)
    assert 5 < hidden.sum() < 15 and (depth[0, 0] < 3.0).sum() == 20
    assert torch.equal(visible[0, 0][on_wall], ~(hidden | leaves)[on_wall])


def test_the_same_pose_sees_no_flow(scene, K, poses, views):
    moved, visible = synthetic.flow(scene, views.depth[:1], poses[[90]], poses[[90]], K)
    assert moved.abs().max() < 1e-3 and visible[:, 1:-1, 1:-1].float().mean() > 0.999


def test_a_scan_measures_the_walls():
    """In an empty room, turned and tilted about nothing, a ray's range follows from the wall that it meets first."""
    room = torch.eye(4)
    room[:3, 3] = torch.tensor([0.3, -0.2, 1.0])
    scene = blank([synthetic.ROOM], [room], [[3.0, 2.0, 1.0]])
    yaw, x, y = 0.4, 1.1, 0.5
    T = torch.eye(4)
    T[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    T[:3, 3] = torch.tensor([x, y, 0.7])
    angles = torch.linspace(-math.pi, math.pi, 181)
    ranges = synthetic.scan(scene, T[None], angles)[0]
    for angle, found in zip(angles.tolist(), ranges.tolist()):
        dx, dy = math.cos(yaw + angle), math.sin(yaw + angle)
        wanted = min(((3.3 if dx > 0 else -2.7) - x) / dx, ((1.8 if dy > 0 else -2.2) - y) / dy)
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_scan_of_round_things():
    """Towards the axis of a cylinder and the centre of a sphere the range is the distance less the radius; beside them nothing is met."""
    sphere, cylinder = torch.eye(4), torch.eye(4)
    sphere[0, 3], cylinder[1, 3] = 3.0, 2.0
    scene = blank([synthetic.SPHERE, synthetic.CYLINDER], [sphere, cylinder], [[0.5] * 3, [0.25, 0.25, 1.0]])
    reach = math.asin(0.5 / 3.0)
    ranges = synthetic.scan(scene, torch.eye(4)[None], torch.tensor([0.0, reach * 0.999, reach * 1.001, math.pi / 2, math.pi]))[0]
    assert ranges[[0, 3]].tolist() == pytest.approx([2.5, 1.75], rel=1e-6)
    assert ranges[1] == pytest.approx(math.sqrt(3.0 ** 2 - 0.5 ** 2), rel=2e-2) and torch.isinf(ranges[[2, 4]]).all()


def test_scenes_of_a_batch_do_not_mix(scene, K, poses):
    """Two different rooms rendered together are the two rendered alone."""
    other = replace(scene, half=scene.half * torch.tensor([1.0, 1.0, 0.9]), materials=(scene.materials + 1) % len(materials.NAMES))
    both = replace(scene, **{name: torch.cat([getattr(scene, name), getattr(other, name)]) for name in ('T_world_self', 'half', 'materials')})
    together = synthetic.render(both, poses[[10, 200]], K, HEIGHT, WIDTH)
    for i, (alone, frame) in enumerate(((scene, 10), (other, 200))):
        single = synthetic.render(alone, poses[[frame]], K, HEIGHT, WIDTH)
        assert torch.equal(together.depth[i], single.depth[0])
        assert (together.image[i].int() - single.image[0].int()).abs().max() <= 1


def glossy(scene: synthetic.Scene, mirror: float, shade: float | None = None) -> synthetic.Scene:
    """The scene with everything as glossy as can be, and a lamp; `shade`: all of it of one brightness in an even light."""
    tiles = torch.rand(len(materials.NAMES), materials.TILE, materials.TILE, 3, generator=torch.Generator().manual_seed(4))
    lights = replace(scene.lights, lamps=torch.tensor([[[0.5, -0.5, 2.0, 0.5]]]))
    if shade is not None:
        tiles, lights = torch.full_like(tiles, shade), lighting.sunlight(torch.zeros(0, 3), torch.zeros(0), 1.0)
    return replace(scene, textures=materials.Textures(tiles, [2.0] * len(tiles), [1.0] * len(tiles), mirror), lights=lights)


@pytest.mark.parametrize('strength', [0.05, 0.3])
def test_a_mirror_shows_what_a_camera_behind_it_sees(scene, K, poses, strength):
    """As if the wall were a window, and the camera and its rays lay reflected behind it; the more so, the more slanted the view."""
    views = poses[[30, 120]]
    rays = synthetic.camera_rays(K, HEIGHT, WIDTH)
    hits, shown = synthetic.cast(scene, views, rays, K), glossy(scene, strength)
    shiny, dull = (synthetic.colours(shown, views, rays, hits, K[:1, 0], mirror) for mirror in (True, False))
    room = scene.kinds.index(synthetic.ROOM)
    T_room, half = scene.T_world_self[0, room], scene.half[0, room]
    inside = se3.transform(se3.inverse(T_room) @ views, pinhole.unproject(hits.distance, K))
    direction = torch.nn.functional.normalize(pinhole.unproject(torch.ones(HEIGHT, WIDTH), K), dim=-1) @ (se3.inverse(T_room) @ views)[:, :3, :3].mT[:, None]
    compared = 0
    for axis in range(3):
        for side in (-1.0, 1.0):
            on_wall = (hits.primitive == room) & ((inside[..., axis] - side * half[axis]).abs() < 1e-4)
            reflection = torch.eye(4)
            reflection[axis, axis], reflection[axis, 3] = -1.0, 2.0 * side * half[axis]
            behind = T_room @ reflection @ se3.inverse(T_room) @ views
            seen = synthetic.cast(scene, behind, rays._replace(nearest=hits.distance * 1.001))
            image = synthetic.colours(shown, behind, rays, seen, K[:1, 0], mirror=False)
            share = strength + (1.0 - strength) * (1.0 - direction[..., axis].abs()) ** 5
            off = (shiny - torch.lerp(dull, image, share[:, None])).abs().amax(1)[on_wall]
            compared += on_wall.sum()
            assert on_wall.sum() == 0 or (off < 2e-3).float().mean() > 0.98        # rounding takes some edges for what is beside them
    assert compared > 0.2 * hits.primitive.numel() and (shiny - dull).abs().mean() > 0.1 * strength


def test_a_mirror_ball_shows_what_its_normal_sends_the_ray_to():
    """In a box whose walls have a shade each: which wall is seen where follows from reflection at the sphere alone."""
    ball, room = torch.eye(4), torch.eye(4)
    ball[2, 3] = 3.0
    shades = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9])       # of the six walls, and of the ball
    textures = materials.Textures(shades[:, None, None, None].expand(-1, materials.TILE, materials.TILE, 3), [1.0] * 7, [0.0] * 6 + [1.0], 0.5)
    scene = synthetic.Scene((synthetic.ROOM, synthetic.SPHERE), torch.stack([room, ball])[None], torch.tensor([[[4.0, 3.0, 5.0], [0.8] * 3]]),
                            torch.stack([torch.arange(6), torch.full((6,), 6)])[None], textures, lighting.sunlight(torch.zeros(0, 3), torch.zeros(0), 1.0))
    K = torch.tensor([[200.0, 0.0, 79.5], [0.0, 200.0, 59.5], [0.0, 0.0, 1.0]])
    image = synthetic.render(scene, torch.eye(4)[None], K, HEIGHT, WIDTH, fine=False).image[0, ..., 0].numpy() / 255.0
    agreed, walls = [], set()
    for v in range(0, HEIGHT, 3):
        for u in range(0, WIDTH, 3):
            d = np.array([(u - 79.5) / 200.0, (v - 59.5) / 200.0, 1.0])
            b, c = d @ [0.0, 0.0, 3.0], 9.0 - 0.8 ** 2
            if b * b - d @ d * c > 0.05:       # not at the rim
                t = (b - math.sqrt(b * b - d @ d * c)) / (d @ d)
                n = (t * d - [0.0, 0.0, 3.0]) / 0.8
                cosine, away = -d @ n / np.linalg.norm(d), d - 2.0 * (d @ n) * n
                reach = (np.sign(away) * [4.0, 3.0, 5.0] - t * d) / away
                wall = int(reach.argmin())
                share = 0.5 + 0.5 * (1.0 - cosine) ** 5
                walls.add((wall, away[wall] > 0))
                agreed.append(abs((1.0 - share) * 0.9 + share * shades[2 * wall + (away[wall] > 0)].item() - image[v, u]) < 0.01)
    assert len(agreed) > 100 and np.mean(agreed) > 0.95 and len(walls) == 6


def test_mirrors_of_a_batch_do_not_mix(scene, poses):
    """Two rooms seen by two cameras of different focal lengths."""
    other = replace(scene, half=scene.half * torch.tensor([1.0, 1.0, 0.9]), materials=(scene.materials + 1) % len(materials.NAMES))
    shown = glossy(scene, 0.3)
    both = replace(shown, **{name: torch.cat([getattr(scene, name), getattr(other, name)]) for name in ('T_world_self', 'half', 'materials')})
    K = torch.tensor([[[focal, 0.0, 79.5], [0.0, focal, 59.5], [0.0, 0.0, 1.0]] for focal in (60.0, 400.0)])
    together = synthetic.render(both, poses[[10, 200]], K, HEIGHT, WIDTH, fine=False)
    for i, (alone, frame) in enumerate(((scene, 10), (other, 200))):
        single = synthetic.render(replace(alone, textures=shown.textures, lights=shown.lights), poses[[frame]], K[i], HEIGHT, WIDTH, fine=False)
        assert (together.image[i].int() - single.image[0].int()).abs().max() <= 1


def test_whatever_mirrors_shows_a_world_of_one_shade_as_that(scene, K, poses):
    """No mirrored ray is lost, on round things and flat ones."""
    plain = synthetic.render(glossy(scene, 0.5, 0.4), poses[::60], K, HEIGHT, WIDTH)
    assert (plain.image.int() - 102).abs().max() <= 1


def test_rays_of_a_mirror_are_no_image(scene, K, poses):
    rays = synthetic.camera_rays(K, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match='rays of an image'):
        synthetic.cast(scene, poses[[30]], rays._replace(origin=tuple(torch.zeros(1, 1, 1) for _ in range(3))), K)


def test_a_tile_is_sampled_at_its_texels_and_repeats():
    tiles = torch.rand(2, materials.TILE, materials.TILE, 3, generator=torch.Generator().manual_seed(0))
    textures = materials.Textures(tiles, [1.0, 2.0])
    rows, columns = torch.tensor([0, 17, materials.TILE - 1]), torch.tensor([materials.TILE - 1, 3, 0])
    u, v = (columns + 0.5) / materials.TILE, -(rows + 0.5) / materials.TILE
    for turns in (0.0, 1.0, -2.0):
        found = textures.sample(torch.ones(3, dtype=torch.int64), 2.0 * (u + turns), 2.0 * (v - turns), torch.full((3,), 1e-4))
        torch.testing.assert_close(found, tiles[1, rows, columns].T, atol=2e-3, rtol=0.0)
    far = textures.sample(torch.zeros(3, dtype=torch.int64), u, v, torch.full((3,), 10.0))
    torch.testing.assert_close(far, tiles[0].mean((0, 1))[:, None].expand(3, 3), atol=0.03, rtol=0.0)


def test_the_seed_decides_everything():
    tiny = replace(SETTINGS, frames=3, width=64, height=48, focal=52.5)
    first, again = (list(sample.sample_events(tiny)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert_identical(a, b)
    other = next(e for e in sample.sample_events(replace(tiny, seed=8)) if isinstance(e, ColourEvent))
    assert (other.image != next(e for e in first if isinstance(e, ColourEvent)).image).mean() > 0.5


@pytest.fixture
def tiny_sample(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    settings = replace(SETTINGS, frames=7, width=64, height=48, focal=52.5)
    return settings, sample.sample_folder(settings)


def test_the_sample_is_a_folder_like_any_other(tiny_sample):
    settings, folder = tiny_sample
    sequence = open_sequence(folder)
    assert len(sequence) == 7 and sequence.size == (64, 48)
    assert (np.diff(sequence.colour_stamps) - 1e9 / 30).max() <= 1.0
    np.testing.assert_allclose(sequence.ground_truth.T_world_cam, sample.camera_poses(settings), atol=1e-9)
    frame = sequence[3]
    exact = synthetic.render(sample.sample_scene(settings.seed), torch.tensor(sequence.ground_truth.T_world_cam[3:4], dtype=torch.float32),
                             torch.tensor(sequence.K, dtype=torch.float32), 48, 64)
    assert frame.depth_valid.all()
    np.testing.assert_allclose(frame.depth, exact.depth[0].numpy(), atol=1.1e-4)     # half a unit of the 16-bit image
    assert np.abs(frame.image.astype(int) - exact.image[0].numpy()).mean() < 4        # JPEG


def test_the_samples_scans_agree_with_its_depth(tiny_sample):
    """Hits of the laser, brought into the camera by the recorded mount, lie where the depth image says, wherever both see the same."""
    settings, folder = tiny_sample
    sequence = open_sequence(folder)
    assert [s.stamp for s in sequence.scans] == sequence.colour_stamps[::3].tolist()
    frames = {f.stamp: f for f in sequence}
    compared = 0
    for scan in sequence.scans:
        angles = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
        assert angles[-1] == pytest.approx(scan.angle_max, abs=1e-5)
        hits = np.isfinite(scan.ranges)
        laser = scan.ranges[hits, None] * np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], 1)[hits]
        cam = laser @ sequence.mount.T_cam_laser[:3, :3].T + sequence.mount.T_cam_laser[:3, 3]
        ahead = cam[cam[:, 2] > 0.1]
        uv = np.rint((ahead @ sequence.K.T)[:, :2] / ahead[:, 2:]).astype(int)
        inside = ((uv >= 0) & (uv < (64, 48))).all(1)
        seen = frames[scan.stamp].depth[uv[inside, 1], uv[inside, 0]]
        relative = seen / ahead[inside, 2] - 1.0
        compared += inside.sum()
        assert (relative < 0.08).mean() > 0.95               # the camera does not see through what the laser met, but for coarse pixels at edges
        assert np.median(np.abs(relative)) < 0.02
    assert compared > 30


def test_the_cache_is_made_once_and_never_half(tiny_sample, monkeypatch):
    settings, folder = tiny_sample
    monkeypatch.setattr(sample, 'write_sample', lambda *_: pytest.fail('rendered again'))
    assert sample.sample_folder(settings) == folder

    def broken(partial, _):
        partial.mkdir()
        (partial / 'rgb.txt').write_text('half')
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, 'write_sample', broken)
    with pytest.raises(KeyboardInterrupt):
        sample.sample_folder(replace(settings, seed=99))
    assert list(folder.parent.glob('*sample-*')) == [folder]


def test_other_samples_stay_in_the_cache_and_what_a_killed_program_left_goes(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(sample, 'write_sample', lambda partial, _: partial.mkdir())
    first = sample.sample_folder(replace(SETTINGS, seed=1))
    left = first.parent / f'.{first.name}.k1ll3d' / first.name
    left.mkdir(parents=True)
    second = sample.sample_folder(replace(SETTINGS, seed=2))
    assert {p.name for p in first.parent.iterdir()} == {first.name, second.name, '.sample.lock'}


def test_the_way_of_the_robot_is_that_of_a_robot():
    """At least 10 s at 30 Hz, level within a degree, soft, at about 0.4 m/s, and nearer than the sensor's limits to nothing."""
    T = sample.camera_poses(SETTINGS)
    step = np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1) * SETTINGS.rate
    assert len(T) >= 301 and 0.3 < np.median(step) < 0.5 and step[0] < 0.05 and np.abs(np.diff(step)).max() < 0.05
    body = sample.body_poses(SETTINGS)
    assert body[:, 2, 2].min() > math.cos(math.radians(1.0))
    depth = depth_along('room')
    assert depth.min() > 0.5 and depth.max() < 6.6


def depth_along(room):
    """[m] of views all along the way through a room."""
    K = torch.tensor(sample.sample_matrix(SETTINGS), dtype=torch.float32) / 8.0
    K[2, 2] = 1.0
    T = torch.tensor(sample.camera_poses(SETTINGS)[::20], dtype=torch.float32)
    return synthetic.cast(sample.sample_scene(SETTINGS.seed, room), T, synthetic.camera_rays(K, 60, 80), K).distance


def test_the_other_rooms_are_far_wider_and_far_fuller_and_leave_the_robot_its_way():
    room, hall, store = (depth_along(name) for name in ('room', 'hall', 'store'))
    assert min(hall.min(), store.min()) > 0.4 and hall.max() < 12.0
    assert hall.quantile(0.75) > 1.2 * room.quantile(0.75) and store.median() < 0.7 * room.median()
    with pytest.raises(ValueError, match='attic.*room, hall, store'):
        sample.sample_scene(SETTINGS.seed, 'attic')


def test_the_first_room_is_found_where_it_was_before_there_were_others(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    rendered = []
    monkeypatch.setattr(sample, 'write_sample', lambda folder, settings: (rendered.append(settings.room), folder.mkdir()))
    names = [sample.sample_folder(replace(SETTINGS, room=room, frames=311)).name for room in ('room', 'hall')]
    before = {name: value for name, value in asdict(replace(SETTINGS, frames=311)).items() if name != 'room'}
    assert rendered == ['room', 'hall'] and names[0] == f'sample-{hashlib.sha256(json.dumps([sample._FORMAT, before], sort_keys=True).encode()).hexdigest()[:12]}' != names[1]


def test_scans_follow_the_conventions():
    events = [e for e in sample.sample_events(replace(SETTINGS, frames=1, width=32, height=24, focal=26.0, laser_range=(1.2, 3.0))) if isinstance(e, ScanEvent)]
    ranges = events[0].scan.ranges
    assert ranges.dtype == np.float32 and len(events) == 1
    measured = ranges[np.isfinite(ranges)]
    assert ((measured >= np.float32(1.2)) & (measured <= 3.0)).all() and len(measured) > 20
    assert np.isneginf(ranges).any() and np.isposinf(ranges).any()
