"""The networks that Global-Local is compared with: the papers' sizes, and the one interface of all."""

from __future__ import annotations

import math

import pytest
import torch

from depth_ros.models import registry

NAMES = ['eigen', 'dispnet', 'fcrn', 'small_enc_dec', 'unsupervised']
SMALL, FULL = (96, 128), (192, 256)


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(0)
    return {name: registry.build(name).eval() for name in NAMES}


def pair(count: int, size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    image1, image2 = torch.rand(2, count, 3, *size, generator=generator)
    return image1, image2, 5 * torch.randn(count, 2, *size, generator=generator)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convolutions(module: torch.nn.Module) -> list[tuple[int, int, int]]:
    return [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in module.modules() if isinstance(m, torch.nn.Conv2d)]


@pytest.mark.parametrize('name', NAMES)
def test_inverse_depth_comes_at_the_size_of_the_image(networks, name):
    for count, size in ((2, SMALL), (1, FULL)):
        with torch.inference_mode():
            z = networks[name](*pair(count, size))
        assert z.shape == (count, 1, *size) and (z > 0).all() and (z <= 10).all()


@pytest.mark.parametrize('name', NAMES)
def test_a_training_starts_near_usual_inverse_depths(name):
    torch.manual_seed(0)
    with torch.inference_mode():
        z = registry.build(name)(*pair(2, SMALL))
    assert z.quantile(0.01) > 0.01 and z.quantile(0.99) < 0.2


@pytest.mark.parametrize('name', NAMES)
def test_samples_are_apart_and_everything_is_looked_at(networks, name):
    inputs = [x.requires_grad_() for x in pair(2, SMALL)]
    networks[name](*inputs)[0].sum().backward()
    for x in inputs:
        assert x.grad[0].abs().max() > 0 and x.grad[1].abs().max() == 0


@pytest.mark.parametrize('name', NAMES)
def test_every_weight_learns(name):
    torch.manual_seed(0)
    model = registry.build(name)
    images = pair(2, SMALL)
    depth = model(*images).sum()
    motion = model.motion(*images)[:, :3].sum() if name == 'unsupervised' else 0.0
    (depth + motion).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_fcrn_is_a_resnet_50_with_up_projections(networks):
    fcrn = networks['fcrn']
    assert parameters(fcrn.encoder) == 23_508_032 + 5 * 64 * 49             # ResNet-50 without its classifier, and five more input channels
    up = sum(2 * 25 * a * b + 9 * b * b + 6 * b for a, b in ((1024, 512), (512, 256), (256, 128), (128, 64)))
    assert parameters(fcrn.decoder) == 2048 * 1024 + 2 * 1024 + up
    assert abs(parameters(fcrn) - 63.6e6) < 1e5                             # as its paper's table 1 has it


def test_dispnet_has_the_published_layers(networks):
    encoder = convolutions(networks['dispnet'].encoder)
    assert encoder == [(64, 7, 2), (128, 5, 2), (256, 5, 2), (256, 3, 1), (512, 3, 2), (512, 3, 1), (512, 3, 2), (512, 3, 1), (1024, 3, 2), (1024, 3, 1)]
    assert [(m.out_channels, m.kernel_size[0]) for m in networks['dispnet'].upwards] == [(c, 4) for c in (512, 256, 128, 64, 32)]
    assert len(networks['dispnet'].predictions) == 6


def test_eigen_has_the_published_layers(networks):
    eigen = networks['eigen']
    assert convolutions(eigen.features) == [(96, 11, 4), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1)]
    assert convolutions(eigen.fine) + convolutions(eigen.refine) == [(63, 9, 2), (64, 5, 1), (1, 5, 1)]
    with torch.inference_mode():
        assert eigen.features(torch.zeros(1, 8, *FULL)).shape[-2:] == eigen.CELLS
    assert eigen.COARSE == (FULL[0] // 4, FULL[1] // 4)


def test_the_small_encoder_decoder_is_about_as_large_as_global_local(networks):
    small = networks['small_enc_dec']
    assert convolutions(small.encoder) == [(16, 7, 2), (32, 5, 2), (54, 3, 2), (128, 3, 2)]
    assert [c for c, _, _ in convolutions(small.decoder)] == [128, 64, 32, 16]
    assert 0.7 < parameters(small) / parameters(registry.build('global_local')) < 1.3


def test_the_unsupervised_motion_is_rigid_with_unit_translation(networks):
    with torch.inference_mode():
        T = networks['unsupervised'].motion(*pair(3, SMALL))
    R, t = T[:, :3, :3], T[:, :3, 3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(t.norm(dim=1), torch.ones(3))
    assert (torch.linalg.det(R) > 0).all() and torch.equal(T[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(3, 4))
    angle = torch.arccos(((R.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert (angle < math.radians(60)).all()
