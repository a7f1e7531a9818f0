"""The Global-Local network: sizes, the bottleneck between its modules, and that every sample is on its own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from depth_ros.engines.inference import ExportedModel
from depth_ros.geometry import pinhole, two_view
from depth_ros.models import layers
from depth_ros.models.global_local import GlobalLocal, GlobalLocalConfig

SIZE = (24, 32)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(3)


class Pairs:
    """Random images, and the flow that a sideways motion makes of random depths, with some noise."""

    def __init__(self, count: int = 3, size: tuple[int, int] = SIZE):
        height, width = size
        self.image1, self.image2 = torch.rand(2, count, 3, height, width)
        self.K = torch.tensor([[0.9 * width, 0.0, width / 2], [0.0, 0.9 * width, height / 2], [0.0, 0.0, 1.0]]).expand(count, 3, 3)
        self.T_2_1 = torch.eye(4).repeat(count, 1, 1)
        self.T_2_1[:, :3, 3] = F.normalize(torch.randn(count, 3) * torch.tensor([1.0, 1.0, 0.2]), dim=1)
        z = 0.05 + 0.1 * torch.rand(count, height, width)
        ends, _ = pinhole.project(pinhole.unproject(1 / z, self.K) + self.T_2_1[:, None, None, :3, 3], self.K)
        self.flow = (ends - pinhole.pixel_grid(height, width)).permute(0, 3, 1, 2) + 0.1 * torch.randn(count, 2, height, width)


def network(**config) -> GlobalLocal:
    model = GlobalLocal(GlobalLocalConfig(**config)).eval()
    if config.get('pose_aware'):
        torch.nn.init.normal_(model.local.refiner.last.weight, std=0.02)      # past its start, where it only repeats the triangulation
    return model


def test_the_modules_have_the_published_sizes():
    model = network()
    assert model.local.generator.linear.out_features == 4 * 20 * 9 + 20 * 10 * 9 + 10 * 20 * 9 == 4320
    encoder = sum(9 * a * b + b for a, b in zip((8, 16, 32, 64, 128), (16, 32, 64, 128, 256))) + 9 * 256 * 6 + 6
    assert sum(p.numel() for p in model.global_module.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) == encoder + 4320 * 7 + 20 * 9 + 1


def test_generated_filters_are_convolutions_of_each_sample():
    x, banks = torch.randn(4, 4, *SIZE), [torch.randn(4, o, i, 3, 3) for o, i in ((20, 4), (10, 20), (20, 10))]
    together = layers.local_network(x, banks)
    for k in range(4):
        alone = x[k:k + 1]
        for bank in banks:
            alone = layers.leaky(F.conv2d(alone, bank[k], padding=1))
        torch.testing.assert_close(together[k:k + 1], alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('pose_aware', [False, True])
def test_a_sample_does_not_depend_on_its_neighbours(pose_aware):
    model, pairs = network(pose_aware=pose_aware), Pairs()
    together = model(*model.inputs(pairs))
    changed = [x.clone() for x in model.inputs(pairs)]
    for x in changed:
        x[1:] = x[1:].flip(0) * 1.5
    torch.testing.assert_close(model(*changed)[0], together[0])
    assert not torch.allclose(model(*changed)[1], together[1])


def test_with_g_held_the_local_module_does_not_see_the_images(monkeypatch):
    model, pairs = network(), Pairs()
    pairs.image1.requires_grad_()
    pairs.image2.requires_grad_()
    model(*model.inputs(pairs)).sum().backward()
    assert pairs.image1.grad.abs().max() > 0 and pairs.image2.grad.abs().max() > 0
    pairs.image1.grad = pairs.image2.grad = None
    pairs.flow.requires_grad_()
    global_parameters = model.global_parameters
    monkeypatch.setattr(model, 'global_parameters', lambda *seen: global_parameters(*seen).detach())
    model(*model.inputs(pairs)).sum().backward()
    assert pairs.image1.grad is None and pairs.image2.grad is None and pairs.flow.grad.abs().max() > 0


def test_the_untrained_network_starts_near_usual_inverse_depths():
    model, pairs = network(), Pairs(16, (96, 128))
    z = model(*model.inputs(pairs))
    assert 0.02 < z.quantile(0.01) and z.quantile(0.99) < 0.15 and 0.04 < z.median() < 0.06
    x = torch.cat([torch.randn(16, 2, *SIZE), layers.coordinates(torch.zeros(16, 2, *SIZE))], 1)
    assert 0.3 < layers.local_network(x, model.local.generator(torch.randn(16, 6))).square().mean().sqrt() < 3


def test_inverse_depth_stays_positive_and_in_use_bounded():
    model, pairs = network(), Pairs()
    for bias in (-200.0, 1e4):
        torch.nn.init.constant_(model.local.last.bias, bias)
        z = model(*model.inputs(pairs))
        assert (z > 0).all() and (z <= 10).all()


def test_the_pose_aware_variant_starts_at_triangulation():
    model, pairs = GlobalLocal(GlobalLocalConfig(pose_aware=True)), Pairs()
    found = two_view.triangulate_inverse_depth(pairs.flow.permute(0, 2, 3, 1), pairs.K, pairs.T_2_1)
    z = model(*model.inputs(pairs))[:, 0]
    usual = found.inverse_depth.clamp(min=0).flatten(1).quantile(0.5, dim=1)[:, None, None]
    believable = found.valid & (found.inverse_depth > 0.4 * usual) & (found.inverse_depth < 4 * usual)
    assert believable.float().mean() > 0.3
    torch.testing.assert_close(z[believable], found.inverse_depth[believable], rtol=1e-4, atol=0)


def test_the_pose_aware_variant_follows_the_length_of_the_baseline():
    model, pairs = network(pose_aware=True), Pairs()
    before = model(*model.inputs(pairs))
    pairs.T_2_1 = pairs.T_2_1.clone()
    pairs.T_2_1[:, :3, 3] *= 4
    torch.testing.assert_close(model(*model.inputs(pairs)), before / 4, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('pose_aware', [False, True])
def test_the_same_weights_serve_both_sizes(pose_aware):
    model, small = network(pose_aware=pose_aware), Pairs(2, (48, 64))
    large = Pairs(2, (96, 128))
    for name in ('image1', 'image2'):
        setattr(large, name, F.interpolate(getattr(small, name), scale_factor=2, mode='bilinear'))
    smooth = F.interpolate(F.avg_pool2d(small.flow, 16), size=(48, 64), mode='bilinear') + torch.tensor([3.0, 0.0])[:, None, None]
    small.flow, large.flow = smooth, 2 * F.interpolate(smooth, scale_factor=2, mode='bilinear')
    large.T_2_1 = small.T_2_1 = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).expand(2, 4, 4)
    model_small, model_large = (model(*model.inputs(p)) for p in (small, large))
    ratio = F.avg_pool2d(model_large, 2) / model_small
    assert 0.8 < ratio.median() < 1.25


@pytest.mark.parametrize('off', ['image_pair', 'coordinates', 'global_module', 'flow'])
def test_each_ablation_takes_away_what_it_says(off):
    model, pairs = network(**{off: False}), Pairs()
    inputs = [x.clone().requires_grad_() for x in model.inputs(pairs)]
    model(*inputs).sum().backward()
    image1, image2, flow = (x.grad is not None and bool(x.grad.abs().max() > 0) for x in inputs)
    assert (image1, image2, flow) == {'image_pair': (False, False, True), 'coordinates': (True, True, True), 'global_module': (False, False, True),
                                      'flow': (True, True, False)}[off]
    assert model.local.generator.shapes[0][1] == {'coordinates': 2, 'flow': 8}.get(off, 4)


@pytest.mark.parametrize('constant', [False, True])
def test_only_a_constant_channel_lets_g_speak_where_nothing_moves(constant):
    model, still = network(coordinates=False, constant=constant), torch.zeros(1, 2, *SIZE)
    one, other = (model(*torch.rand(2, 1, 3, *SIZE), still) for _ in range(2))
    assert torch.equal(one, other) != constant
    assert model.local.generator.shapes[0][1] == 2 + constant


def test_contradicting_settings_are_refused():
    with pytest.raises(ValueError, match='flow: expected True'):
        GlobalLocalConfig(pose_aware=True, flow=False)
    with pytest.raises(ValueError, match='pose_aware: expected bool'):
        GlobalLocalConfig(pose_aware=1)


def test_with_a_width_of_its_own_the_global_module_says_the_same_at_every_size():
    network = GlobalLocal(GlobalLocalConfig(global_width=32)).eval()
    image1, image2, flow = (torch.rand(2, channels, 24, 32, generator=torch.Generator().manual_seed(channels)) for channels in (3, 3, 2))
    at_width = network.global_parameters(image1, image2, flow)
    larger = [x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (image1, image2, 4 * flow)]
    assert torch.allclose(network.global_parameters(*larger), at_width, atol=1e-6)
    assert not torch.allclose(GlobalLocal().eval().global_parameters(*larger), at_width, atol=1e-3)


class Known(Pairs):
    """Pairs of which depth is known beforehand, but for the left third."""

    def __init__(self, count: int = 2, size: tuple[int, int] = SIZE):
        super().__init__(count, size)
        z = 0.05 + 0.1 * torch.rand(count, 1, *size)
        z[..., :size[1] // 3] = 0.0
        self.prior = torch.cat([z, 0.6 * (z > 0)], 1)


@pytest.mark.parametrize('size', [(192, 256), (240, 320), (190, 250), (75, 100)])
def test_depth_known_beforehand_keeps_its_detail_whatever_the_size(size):
    pairs, model = Known(size=size), GlobalLocal(GlobalLocalConfig(pose_aware=True, prior=True)).eval()
    inputs = model.inputs(pairs)
    step = {256: 2, 320: 1, 250: 2, 100: 1}[size[1]]
    assert inputs[0].shape[-2:] == inputs[4].shape[-2:] == (-(-size[0] // step), -(-size[1] // step))
    found, there = model(*inputs), pairs.prior[:, :1] > 0
    assert found.shape == (2, 1, *size) and torch.isfinite(found).all() and (found > 0).all()
    torch.testing.assert_close(found[there], pairs.prior[:, :1][there], rtol=1e-4, atol=0)      # untrained it changes nothing
    assert (found[~there] > 0).all() and found[~there].std() > 0       # triangulated
    moved = network(pose_aware=True, prior=True)
    assert not torch.allclose(moved(*moved.inputs(pairs))[there], found[there], rtol=1e-2)
    torch.testing.assert_close(moved(*(x[1:] for x in moved.inputs(pairs))), moved(*moved.inputs(pairs))[1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('variant', [{'global_width': 32, 'constant': True}, {'pose_aware': True, 'prior': True}], ids=['published', 'pose_aware'])
@pytest.mark.parametrize('size', [(240, 320), (190, 250), (75, 100)])
def test_the_graph_is_the_network_at_sizes_that_do_not_divide(variant, size):
    model = network(**variant)
    inputs = [x[:1] for x in model.inputs(Known(size=size))]
    exported = ExportedModel(model, tuple(inputs))
    assert exported.backend == 'onnxruntime' and exported.difference < 1e-4


def test_squares_that_stand_out_repeat_the_border():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert layers.pooled(x, 1) is x
    assert layers.pooled(x, 2)[0, 0].tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    assert layers.enlarged(layers.pooled(x, 2), 2, x).shape == x.shape
    flat = torch.ones(1, 1, 3, 5)
    assert torch.equal(layers.enlarged(layers.pooled(flat, 2), 2, flat), flat)


def test_the_global_module_leaves_out_what_does_not_fill_a_square():
    model = GlobalLocal(GlobalLocalConfig(global_width=32)).eval()
    image1, image2, flow = (torch.rand(1, channels, 51, 71) for channels in (3, 3, 2))
    whole = model.global_parameters(image1, image2, flow)
    for x in (image1, image2, flow):
        x[..., 50:, :] = x[..., 70:] = 9.0
    torch.testing.assert_close(model.global_parameters(image1, image2, flow), whole)
