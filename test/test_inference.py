"""Exported graphs: the same numbers as torch, new weights without a new export, and torch wherever a graph cannot be had."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from depth_ros.engines import inference
from depth_ros.engines.inference import ExportedModel, InferenceConfig


class Generated(nn.Module):
    """Filters that depend on the input, a normalisation and two outputs: what exporters stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.1))
        self.linear = nn.Linear(8, 5 * 3 * 9)
        self.last = nn.Conv2d(5, 1, 3, padding=1)

    def forward(self, image, other):
        g = self.encode(image).mean((2, 3))
        bank = self.linear(g).view(-1, 5, 3, 3, 3)
        batch, channels, height, width = other.shape
        x = F.conv2d(other.reshape(1, -1, height, width), bank.flatten(0, 1), padding=1, groups=batch).view(batch, 5, height, width)
        return F.softplus(self.last(F.leaky_relu(x, 0.1))), g


class Normalised(nn.Module):
    """Batch normalisation, which the exporter merges into the convolution: the weights lose their names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.norm(self.conv(image))


def made(kind, seed):
    torch.manual_seed(seed)
    module = kind().eval()
    with torch.no_grad():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return module


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(1, 3, 24, 32, generator=generator) for _ in range(count))


@pytest.mark.parametrize(('kind', 'count'), [(Generated, 2), (Normalised, 1)])
def test_a_graph_gives_what_torch_gives(kind, count):
    module = made(kind, 1)
    model = ExportedModel(module, images(count, 0))
    assert model.backend == 'onnxruntime' and model.difference < 1e-5
    inputs = images(count, 7)
    with torch.inference_mode():
        expected = module(*inputs)
    for a, b in zip(model(*inputs), expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('kind', 'count'), [(Generated, 2), (Normalised, 1)])
@pytest.mark.parametrize('backend', ['onnxruntime', 'torch'])
def test_renewed_runs_the_new_weights_and_leaves_the_old_ones(kind, count, backend):
    old, new = made(kind, 1), made(kind, 2)
    inputs = images(count, 3)
    before = ExportedModel(old, inputs, InferenceConfig(backend))
    kept = [t.clone() for t in before(*inputs)]
    after = before.renewed(new)
    assert after.backend == before.backend == backend
    with torch.inference_mode():
        expected = new(*inputs)
    torch.testing.assert_close(after(*inputs)[0], expected[0] if isinstance(expected, tuple) else expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before(*inputs), kept))
    assert (after(*inputs)[0] - kept[0]).abs().max() > 1e-2


def test_new_weights_need_no_new_export(monkeypatch):
    model = ExportedModel(made(Generated, 1), images(2, 0))
    monkeypatch.setattr(inference, '_graph_of', lambda *_: pytest.fail('exported again'))
    assert model.renewed(made(Generated, 2)).backend == 'onnxruntime'


def test_a_wrong_graph_is_not_used(monkeypatch, caplog):
    graph = inference._graph_of(made(Generated, 2), images(2, 0))
    monkeypatch.setattr(inference, '_graph_of', lambda *_: graph)
    with caplog.at_level(logging.WARNING):
        model = ExportedModel(made(Generated, 1), images(2, 0))
    assert model.backend == 'torch' and model.difference > inference.TOLERANCE and 'deviates' in caplog.text


class Biased(nn.Module):
    """The image and a constant."""

    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([bias]))

    def forward(self, image):
        return image + self.bias


def test_one_large_value_does_not_hide_that_the_usual_ones_are_wrong(monkeypatch):
    image = 1.0 + images(1, 0)[0]
    image[0, 0, 0, 0] = 1e4
    assert ExportedModel(Biased(0.0), (image,)).backend == 'onnxruntime'
    graph = inference._graph_of(Biased(0.2), (image,))
    monkeypatch.setattr(inference, '_graph_of', lambda *_: graph)
    model = ExportedModel(Biased(0.0), (image,))
    assert model.backend == 'torch' and 0.05 < model.difference < 0.2


def test_without_the_runtime_torch_runs_it_and_says_so_once(monkeypatch, caplog):
    find = inference.importlib.util.find_spec
    monkeypatch.setattr(inference.importlib.util, 'find_spec', lambda name: None if name == 'onnxruntime' else find(name))
    monkeypatch.setattr(inference, '_warned', set())
    with caplog.at_level(logging.WARNING):
        models = [ExportedModel(made(Generated, 1), images(2, 0)) for _ in range(2)]
    assert {m.backend for m in models} == {'torch'}
    assert [r.getMessage() for r in caplog.records] == ['onnxruntime not installed: torch runs the networks, more slowly']


def test_a_network_that_gives_nan_is_refused():
    module = made(Generated, 1)
    with torch.no_grad():
        module.last.bias.fill_(float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        ExportedModel(module, images(2, 0))


def test_other_shapes_are_refused():
    model = ExportedModel(made(Generated, 1), images(2, 0))
    with pytest.raises(ValueError, match=r'expected inputs of .*\(1, 3, 24, 32\).*got .*\(1, 3, 24, 16\)'):
        model(*(i[..., :16] for i in images(2, 0)))


def test_it_keeps_to_its_thread_and_leaves_torch_as_it_was():
    torch_threads, threads = torch.get_num_threads(), set(threading.enumerate())
    model = ExportedModel(made(Generated, 1), images(2, 0), InferenceConfig(threads=1))
    model(*images(2, 0))
    assert torch.get_num_threads() == torch_threads and set(threading.enumerate()) <= threads
    options = model._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
