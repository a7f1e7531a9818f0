"""Light: Lambert's cosine, lamps that fade, mirrors that show spots where reflection sends the ray, each camera with its own scene's light."""

from __future__ import annotations

import math

import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.learning.lighting import Lights, lights_together, sunlight

UP = [torch.zeros(1), torch.zeros(1), torch.ones(1)]
FIRST = torch.zeros(1, dtype=torch.int64)


def lights(lamps=(), spots=(), ambient=0.0) -> Lights:
    return Lights(torch.tensor([ambient]), torch.zeros(1, 0, 4), torch.tensor(lamps).reshape(1, -1, 4), torch.tensor(spots).reshape(1, -1, 5))


def planes(*rows) -> list[torch.Tensor]:
    return list(torch.tensor(rows, dtype=torch.float32).T)


@pytest.mark.parametrize('angle', [0.0, 0.6, 1.2, 1.7, 3.0])
def test_a_far_light_falls_by_the_cosine(angle):
    sun = sunlight(torch.tensor([[0.0, 3.0 * math.sin(angle), 3.0 * math.cos(angle)]]), torch.tensor([0.7]), 0.2)
    for point in planes([0.0, 0.0, 0.0]), planes([5.0, -3.0, 2.0]):
        assert sun.diffuse(FIRST, point, UP).item() == pytest.approx(0.2 + 0.7 * max(math.cos(angle), 0.0), abs=1e-6)


def test_a_lamp_fades_with_distance_and_lights_one_side():
    lamp = lights([[0.0, 0.0, 2.0, 1.0]])
    below = [lamp.diffuse(FIRST, planes([0.0, 0.0, 2.0 - distance]), UP).item() for distance in (0.5, 1.0, 2.5, 5.0)]
    assert all(a > b > 0.0 for a, b in zip(below, below[1:])) and below[2] == pytest.approx(0.5)
    assert lamp.diffuse(FIRST, planes([0.0, 0.0, 3.0]), UP).item() == 0.0


def test_a_mirror_shows_what_lies_where_the_ray_is_sent():
    """A ray that falls in at 45 degrees leaves at 45 degrees; the sharper the spot, the less is seen beside it."""
    ray = planes([2.0, 0.0, -2.0])
    ahead, beside = ([math.cos(a), 0.0, math.sin(a)] for a in (math.pi / 4, math.pi / 4 + 0.3))
    for sharpness in (5.0, 50.0):
        assert lights(spots=[[*ahead, sharpness, 1.5]]).mirrored(FIRST, ray, UP).item() == pytest.approx(1.5, rel=1e-5)
    soft, sharp = (lights(spots=[[*beside, sharpness, 1.5]]).mirrored(FIRST, ray, UP).item() for sharpness in (5.0, 50.0))
    assert 1.5 > soft > 2.0 * sharp > 0.0


def test_light_does_not_depend_on_the_camera_that_sees_it():
    generator = torch.Generator().manual_seed(0)
    world = lights([[1.0, -2.0, 2.5, 0.8]], [[0.6, 0.0, 0.8, 7.0, 1.0]], 0.3)
    T = se3.exp(torch.randn(5, 6, generator=generator))
    points, normals, rays = torch.randn(3, 20, 3, generator=generator)
    normals = torch.nn.functional.normalize(normals, dim=1)
    here = torch.zeros(20, dtype=torch.int64)
    wanted = world.diffuse(here, planes(*points.tolist()), planes(*normals.tolist())), world.mirrored(here, planes(*rays.tolist()), planes(*normals.tolist()))
    seen = world.seen_from(T)
    for camera, back in enumerate(se3.inverse(T)):
        turned = [list((v @ back[:3, :3].T).T) for v in (normals, rays)]
        moved = list(se3.transform(back, points).T)
        found = seen.diffuse(here + camera, moved, turned[0]), seen.mirrored(here + camera, turned[1], turned[0])
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_lights_of_many_scenes_are_those_of_each():
    """Also where one has fewer lamps and spots than another."""
    few, many = lights([[0.0, 0.0, 2.0, 1.0]], ambient=0.1), lights([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 0.5]], [[0.0, 0.0, 1.0, 9.0, 1.0]], 0.2)
    both = lights_together([few, many])
    point, ray = planes([0.3, 0.2, 0.1]), planes([0.1, 0.2, -1.0])
    for scene, alone in enumerate((few, many)):
        assert torch.equal(both.diffuse(FIRST + scene, point, UP), alone.diffuse(FIRST, point, UP))
        assert torch.equal(both.mirrored(FIRST + scene, ray, UP), alone.mirrored(FIRST, ray, UP))
        assert torch.equal(both.pick(torch.tensor([scene, scene])).diffuse(FIRST + 1, point, UP), alone.diffuse(FIRST, point, UP))
