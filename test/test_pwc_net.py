"""Laws of PWC-Net: its parts are what the paper says, it learns, and weights that others publish load or are refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pwc_support import author_file, published, shifted_pairs, texture

from depth_ros.engines.inference import ExportedModel
from depth_ros.geometry.warp import warp_by_flow
from depth_ros.learning.losses import pyramid_flow
from depth_ros.models import checkpoint, pwc_weights, registry
from depth_ros.models.pwc_net import PwcNet, PwcNetConfig, cost_volume


@pytest.fixture(scope='module')
def full() -> PwcNet:
    torch.manual_seed(0)
    return PwcNet().eval()


@pytest.fixture(scope='module')
def small() -> PwcNet:
    torch.manual_seed(1)
    return PwcNet(PwcNetConfig(share=0.25)).eval()


def test_cost_volume_is_that_of_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 6, 7, generator=g, dtype=torch.float64), torch.randn(2, 5, 6, 7, generator=g, dtype=torch.float64)
    found = cost_volume(a, b, reach=2)
    assert found.shape == (2, 25, 6, 7)
    for n, dy, dx, y, x in ((n, dy, dx, y, x) for n in range(2) for dy in range(-2, 3) for dx in range(-2, 3) for y in range(6) for x in range(7)):
        inside = 0 <= y + dy < 6 and 0 <= x + dx < 7
        expected = sum(float(a[n, c, y, x] * b[n, c, y + dy, x + dx]) for c in range(5)) / 5 if inside else 0.0
        assert float(found[n, (dy + 2) * 5 + dx + 2, y, x]) == pytest.approx(expected, abs=1e-12)


def test_warping_by_the_exact_flow_leaves_the_cost_volume_largest_at_no_displacement():
    """Features of unit length agree with themselves best, once the second image's are brought onto the first's."""
    image1, image2, flow = shifted_pairs(48, 64, [(3, -2)])
    first, second = (torch.nn.functional.normalize(image - 0.5, dim=1) for image in (image1, image2))
    warped, inside = warp_by_flow(second, flow.movedim(1, -1))
    assert cost_volume(first, warped)[:, 40][inside].mean() == pytest.approx(1 / 3, abs=1e-6)
    before, after = (cost_volume(first, other)[..., 10:-10, 10:-10].mean((0, 2, 3)).argmax() for other in (second, warped))
    assert (int(before), int(after)) == ((-2 + 4) * 9 + 3 + 4, 40)


def test_it_has_as_many_parameters_as_the_published_network(full):
    assert sum(p.numel() for p in full.parameters()) == 9_374_274


@pytest.mark.parametrize('size', [(64, 128), (90, 120)])
def test_flow_has_the_size_of_the_images_and_is_the_same_both_ways(small, size):
    image1, image2 = texture(*size, seed=1), texture(*size, seed=2)
    with torch.inference_mode():
        forward, backward = small(image1, image2), small(image2, image1)
        both = small.both_ways(image1, image2)
        levels = small.levels(image1, image2)
    assert forward.shape == (1, 2, *size)
    torch.testing.assert_close(both, torch.cat([forward, backward]), atol=1e-4, rtol=1e-4)
    assert [tuple(level.shape[-2:]) for level in levels] == [(2 ** i * (-(-size[0] // 64)), 2 ** i * 2) for i in range(5)]


class Features(torch.nn.Module):
    """The coarsest features alone: the whole network takes long to export."""

    def __init__(self, network: PwcNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network._features(images)[-1]


def test_an_exported_graph_rounds_sizes_up_as_well(small):
    """It divides whole numbers towards zero, not down."""
    exported = ExportedModel(Features(small), (texture(90, 120, seed=1),))
    assert exported.backend == 'onnxruntime' and exported.difference < 1e-3


def test_samples_of_a_batch_do_not_touch_each_other(small):
    image1, image2 = torch.cat([texture(64, 64, 3), texture(64, 64, 4)]), torch.cat([texture(64, 64, 5), texture(64, 64, 6)])
    with torch.inference_mode():
        together = small(image1, image2)
        alone = torch.cat([small(image1[i:i + 1], image2[i:i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_loss_is_zero_for_the_truth_knows_nothing_of_what_is_not_valid_and_does_not_depend_on_the_size():
    losses = []
    for size in (64, 128):
        flow = torch.full((2, 2, size, size), 3.0)
        valid = torch.ones(2, 1, size, size, dtype=torch.bool)
        valid[..., : size // 2] = False
        truth = [flow[..., :size >> level, :size >> level].clone() for level in (6, 5, 4, 3, 2)]
        flow[..., : size // 2] = torch.nan
        assert float(pyramid_flow(truth, flow, valid)) < 1e-2
        losses.append(float(pyramid_flow([level + torch.tensor([0.0, 2.0])[:, None, None] for level in truth], flow, valid)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Half of the pixels are off by 2 px; weights count relative to the finest level's, and a level has a quarter of the pixels of the next.
    assert losses[0] == pytest.approx(0.5 * 2.0 * (1 + 2 / 4 + 4 / 16 + 16 / 64 + 64 / 256), rel=1e-3)


def test_every_weight_gets_a_gradient():
    torch.manual_seed(2)
    model = PwcNet(PwcNetConfig(share=0.25))
    image1, image2, flow = shifted_pairs(128, 128, [(4, 2), (-6, 3)])
    pyramid_flow(model.levels(image1, image2), flow, torch.ones_like(flow[:, :1], dtype=torch.bool)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0]
    assert not without


def test_some_steps_of_training_lower_the_error():
    torch.manual_seed(3)
    model = PwcNet(PwcNetConfig(share=0.25))
    image1, image2, flow = shifted_pairs(64, 64, [(6, 0), (-5, 4)])
    seen = torch.ones_like(flow[:, :1], dtype=torch.bool)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def error() -> float:
        with torch.no_grad():
            return float((model(image1, image2) - flow).norm(dim=1).mean())

    before = error()
    for _ in range(30):
        optimiser.zero_grad()
        pyramid_flow(model.levels(image1, image2), flow, seen).backward()
        optimiser.step()
    assert error() < 0.5 * before


def test_it_is_stored_and_found_by_its_name(small, tmp_path: Path):
    checkpoint.save(tmp_path / 'pwc.safetensors', 'pwc_net', small, {'steps': 0}, dtype='fp16')
    loaded = checkpoint.load(tmp_path / 'pwc.safetensors', expect='pwc_net').model
    image1, image2 = texture(64, 64, 1), texture(64, 64, 2)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image1, image2), small(image1, image2), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match='share'):
        registry.build('pwc_net', {'share': 3.0})


@pytest.mark.parametrize('wrapped', [True, False])
def test_the_authors_weights_load(full, tmp_path: Path, wrapped: bool):
    same(pwc_weights.load(author_file(tmp_path / 'pwc_net.pth.tar', full, wrapped)), full)


@pytest.mark.parametrize('prefix', ['module', 'net'])
def test_the_weights_of_niklaus_load(full, tmp_path: Path, prefix: str):
    torch.save(published(full, pwc_weights.niklaus_names(prefix)), tmp_path / 'network-default.pytorch')
    same(pwc_weights.load(tmp_path / 'network-default.pytorch'), full)


def same(loaded: PwcNet, model: PwcNet) -> None:
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_names_are_the_published_ones():
    """A few that the two releases are known to have, in every part of the network."""
    authors, niklaus = (names() for names in (pwc_weights.author_names, pwc_weights.niklaus_names))
    for ours, one, other in (('pyramid.0.0.0', 'conv1a.0', 'moduleExtractor.moduleOne.0'), ('pyramid.2.1.0', 'conv3aa.0', 'moduleExtractor.moduleThr.2'),
                             ('pyramid.5.0.0', 'conv6aa.0', 'moduleExtractor.moduleSix.0'), ('decoders.0.convs.4.0', 'conv6_4.0', 'moduleSix.moduleFiv.0'),
                             ('decoders.4.predict', 'predict_flow2', 'moduleTwo.moduleSix.0'), ('decoders.0.up_flow', 'deconv6', 'moduleFiv.moduleUpflow'),
                             ('decoders.3.up_features', 'upfeat3', 'moduleTwo.moduleUpfeat'), ('context.0.0', 'dc_conv1.0', 'moduleRefiner.moduleMain.0'),
                             ('context.6', 'dc_conv7', 'moduleRefiner.moduleMain.12')):
        assert (authors[ours], niklaus[ours]) == (one, other)


def test_missing_and_unknown_names_are_told(full, tmp_path: Path):
    tensors = published(full, pwc_weights.author_names())
    tensors['conv7a.0.weight'] = tensors.pop('conv3aa.0.weight')
    torch.save(tensors, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=re.escape('it lacks: conv3aa.0.weight; it has besides: conv7a.0.weight')) as told:
        pwc_weights.load(tmp_path / 'other.pth')
    assert 'other.pth' in str(told.value)


def test_tensors_of_another_shape_are_told(full, tmp_path: Path):
    tensors = published(full, pwc_weights.niklaus_names())
    tensors['moduleSix.moduleOne.0.weight'] = torch.zeros(3, 3)
    torch.save(tensors, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=re.escape('decoders.0.convs.0.0.weight (3, 3)')):
        pwc_weights.load(tmp_path / 'other.pth')


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('sprung'),)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'conv1a.0.weight': Trap()}, 'trap.pth')
    with pytest.raises(ValueError, match='trap.pth: cannot be read as weights'):
        pwc_weights.load('trap.pth')
    assert not Path('sprung').exists()


@pytest.mark.parametrize('content', [b'', b'no weights at all'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(ValueError, match='x.pth: cannot be read as weights'):
        pwc_weights.load(tmp_path / 'x.pth')
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='expected tensors by name, got list'):
        pwc_weights.load(tmp_path / 'list.pth')
