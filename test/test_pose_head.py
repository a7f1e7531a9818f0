"""Reading the motion from the global parameters: the four ways to train it, and its errors."""

from __future__ import annotations

import math

import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.models import registry
from depth_ros.models.pose_head import PoseHead, PoseHeadConfig, motion_errors, motion_vector, pose_l1

SIZE = (24, 32)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(2)


def motions(count: int) -> torch.Tensor:
    """Rotations of about 10 degrees, translations of norm 1."""
    T = se3.exp(torch.cat([torch.randn(count, 3), 0.15 * torch.randn(count, 3)], 1))
    return se3.from_rotation_translation(T[:, :3, :3], torch.nn.functional.normalize(T[:, :3, 3], dim=1))


def pair(count: int) -> tuple[torch.Tensor, ...]:
    return *torch.rand(2, count, 3, *SIZE), torch.randn(count, 2, *SIZE)


@pytest.mark.parametrize('width, head', [(20, 6 * 20 + 20 + 20 * 20 + 20 + 20 * 6 + 6), (256, 6 * 256 + 256 + 256 * 256 + 256 + 256 * 6 + 6)])
def test_the_head_has_the_published_size(width, head):
    assert sum(p.numel() for p in PoseHead(PoseHeadConfig(width=width)).head.parameters()) == head


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('pretrained', [False, True])
def test_each_variant_trains_what_it_should(full, pretrained):
    depth = registry.build('global_local')
    model = registry.build('pose_head', {'full': full})
    if pretrained:
        model.take(depth)
        images = pair(2)
        torch.testing.assert_close(model.encoder.global_parameters(*images), depth.global_parameters(*images))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    pose_l1(model(*pair(4)), motions(4)).backward()
    optimiser.step()
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == ({'encoder', 'head'} if full else {'head'})


def test_a_module_that_sees_something_else_is_refused():
    wrong = [registry.build('global_local', config) for config in ({'global_module': False}, {'flow': False}, {'image_pair': False}, {'global_width': 16})]
    for model in (*wrong, registry.build('small_enc_dec')):
        with pytest.raises(ValueError, match='expected a network with a global module that sees flow'):
            PoseHead().take(model)


def test_a_module_that_sees_every_pair_at_one_size_is_taken_by_a_head_that_does_so():
    depth, head = registry.build('global_local', {'global_width': 16}), PoseHead(PoseHeadConfig(global_width=16))
    head.take(depth)
    images = pair(2)
    torch.testing.assert_close(head.encoder.global_parameters(*images), depth.global_parameters(*images))


def test_motion_is_what_the_vector_says():
    true, model = motions(5), PoseHead()
    model.forward = lambda *pair: motion_vector(true) * torch.tensor([1, 1, 1, 3, 3, 3])     # a length that only the direction of which counts
    torch.testing.assert_close(model.motion(*pair(5)), true, atol=1e-5, rtol=0)
    assert pose_l1(motion_vector(true), true) == 0


def test_errors_are_the_angles_by_which_a_motion_is_turned():
    true = motions(4)
    turn = se3.exp(torch.tensor([0.0, 0, 0, 0, 0, math.radians(7)]))
    rotation, translation = motion_errors(torch.cat([true[:2] @ turn, true[2:]]), true)
    torch.testing.assert_close(rotation, torch.tensor([7.0, 7.0, 0.0, 0.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(translation, torch.zeros(4), atol=0.05, rtol=0)
    opposite = true.clone()
    opposite[:, :3, 3] *= -1
    torch.testing.assert_close(motion_errors(opposite, true)[1], torch.full((4,), 180.0), atol=0.05, rtol=0)


def test_the_head_learns_a_motion_that_the_flow_shows():
    model = PoseHead(PoseHeadConfig(full=True))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        images, true = pair(8), motions(8)
        flow = 3 * true[:, :2, 3, None, None] + 0.1 * images[2]
        loss = pose_l1(model(*images[:2], flow), se3.from_rotation_translation(torch.eye(3).expand(8, 3, 3), true[:, :3, 3]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])
