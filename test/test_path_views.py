"""Views with a stereo partner and a laser: disparity, agreement of the images, agreement of ranges with depth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pair_support import few_surfaces

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import warp_by_flow
from depth_ros.learning.path_views import Laser, path_views
from depth_ros.learning.scenes import SceneData

DATA = SceneData(seed=8, width=96, height=72, flow_width=96, flow_height=72, sensor=0.0, shapes=0.0)
BASELINE = 0.1
ANGLES = np.linspace(-0.5, 0.5, 41)
# Level with the camera and 5 cm below it: x forward is the camera's z, z up is its -y.
T_CAM_LASER = np.array([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.05], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope='module')
def paths():
    with few_surfaces():
        yield [p for _, p in zip(range(3), path_views(DATA, 'validation', 0, BASELINE, Laser(T_CAM_LASER, ANGLES)))]


def test_disparity_is_focal_length_times_baseline_over_depth(paths):
    for path in paths:
        assert path.images.shape == path.partners.shape == (4, 72, 96, 3) and path.disparity.shape == path.seen.shape == (4, 72, 96)
        np.testing.assert_allclose(path.disparity, path.K[0, 0] * BASELINE / path.depth, rtol=1e-3, atol=1e-3)


def test_the_partner_shows_the_same_at_the_disparity(paths):
    for path in paths:
        left, right = (torch.from_numpy(images).movedim(-1, 1).float() / 255.0 for images in (path.images, path.partners))
        flow = torch.stack([-torch.from_numpy(path.disparity), torch.zeros(4, 72, 96)], -1)
        warped, _ = warp_by_flow(right, flow)
        off, unmoved = ((other - left).abs().mean(1)[torch.from_numpy(path.seen)] for other in (warped, right))
        assert off.median() < 0.01 and off.mean() < 0.6 * unmoved.mean()
        columns = np.arange(96) - path.disparity
        assert not path.seen[columns < -0.01].any() and 0.5 < path.seen.mean() < 1.0


def test_ranges_agree_with_depth(paths):
    """A hit, brought into the camera, lies where the depth image says, but for pixels at edges."""
    compared = 0
    for path in paths:
        assert path.ranges.shape == (4, 41)
        for ranges, depth in zip(path.ranges, path.depth):
            hits = np.isfinite(ranges)
            points = np.stack([ranges * np.cos(ANGLES), ranges * np.sin(ANGLES), 0.0 * ranges], 1)[hits]
            cam = se3.transform(torch.from_numpy(T_CAM_LASER), torch.from_numpy(points))
            pixels, in_front = pinhole.project(cam[None], torch.from_numpy(path.K).double())
            u, v = pixels[0].round().long().T
            inside = in_front[0] & (u >= 0) & (u < 96) & (v >= 0) & (v < 72)
            relative = depth[v[inside], u[inside]] / cam[inside, 2].numpy() - 1.0
            compared += len(relative)
            assert np.median(np.abs(relative)) < 0.02
    assert compared > 200


def test_partner_and_laser_come_on_request_only(paths):
    bare = next(path_views(DATA, 'validation', 0))
    assert bare.partners is None and bare.disparity is None and bare.seen is None and bare.ranges is None
    np.testing.assert_allclose(bare.depth, paths[0].depth, rtol=1e-5)
    assert math.isclose(np.linalg.det(bare.T_world_cam[0][:3, :3]), 1.0, rel_tol=1e-9)
    with pytest.raises(ValueError, match='baseline of at least 0 m, got -1'):
        path_views(DATA, 'validation', 0, -1)
