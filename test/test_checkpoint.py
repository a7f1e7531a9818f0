"""Checkpoints: what is saved comes back bit for bit, and what is wrong with one is said."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.torch
import torch

from depth_ros.models import checkpoint, registry

NAME = 'global_local'
RECORD = {'steps': 7, 'scores': {'abs_rel': 0.25}}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return registry.build(NAME, {'coordinates': False})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def altered(model: torch.nn.Module, tensors: dict | None = None, metadata: dict[str, str] | None = None) -> bytes:
    """A checkpoint with other tensors (None: left out) or metadata."""
    noted = {'format': checkpoint.FORMAT, 'model': NAME, 'config': json.dumps({'coordinates': False}), 'record': '{}', **(metadata or {})}
    state = {**model.state_dict(), **(tensors or {})}
    return safetensors.torch.save({k: v for k, v in state.items() if v is not None}, noted)


def test_what_is_saved_comes_back_bit_for_bit(model, tmp_path):
    path = tmp_path / 'sub' / 'a.safetensors'
    checkpoint.save(path, NAME, model, RECORD)
    loaded = checkpoint.load(path, expect=NAME)
    assert same(loaded.model, model) and loaded.model.config == model.config
    assert (loaded.name, loaded.record, loaded.model.training) == (NAME, RECORD, False)
    assert same(checkpoint.from_bytes(path.read_bytes()).model, model)
    assert [p.name for p in path.parent.iterdir()] == ['a.safetensors']


def test_half_precision_halves_the_file_and_costs_little(model, tmp_path):
    full, half = (checkpoint.to_bytes(NAME, model, RECORD, dtype) for dtype in ('fp32', 'fp16'))
    assert len(half) < 0.51 * len(full)
    for name, value in checkpoint.from_bytes(half).model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-7)


def test_loading_leaves_the_random_numbers_alone(model):
    blob = checkpoint.to_bytes(NAME, model, RECORD)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checkpoint.from_bytes(blob)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('reason, tensors, metadata', [
    ('expected a .depth_ros network 1., got .depth_ros network 0.', {}, {'format': 'depth_ros network 0'}),
    ('expected weights of global_local, got those of dispnet', {}, {'model': 'dispnet'}),
    ("no setting 'depth': expected pose_aware, prior, image_pair", {}, {'config': '{"depth": 3}'}),
    ('coordinates: expected bool, got 3', {}, {'config': '{"coordinates": 3}'}),
    ('cannot make its network', {}, {'config': '[1]'}),
    ('cannot make its network', {}, {'record': '{'}),
    (r'expected a record of keys and values, got \[1\]', {}, {'record': '[1]'}),
    ('it lacks: local.last.bias', {'local.last.bias': None}, {}),
    ('it has besides: more', {'more': torch.zeros(2)}, {}),
    (r'local.last.bias \(2,\) float32 instead of \(1,\) float32', {'local.last.bias': torch.zeros(2)}, {}),
    (r'local.last.bias \(1,\) int64 instead of \(1,\) float32', {'local.last.bias': torch.zeros(1, dtype=torch.int64)}, {}),
    ('not finite: local.last.bias', {'local.last.bias': torch.full((1,), torch.nan)}, {}),
    ('not finite: local.last.bias', {'local.last.bias': torch.full((1,), torch.inf)}, {}),
    (r'2, 2\) float32 instead of \(3960, 6\).*', {'local.generator.linear.weight': torch.zeros(2, 2), 'local.last.weight': None}, {}),
])
def test_a_wrong_checkpoint_is_refused_with_file_and_reason(model, tmp_path, reason, tensors, metadata):
    path = tmp_path / 'b.safetensors'
    path.write_bytes(altered(model, tensors, metadata))
    with pytest.raises(ValueError, match=f'{re.escape(str(path))}: .*{reason}'):
        checkpoint.load(path, expect=NAME)
    with pytest.raises(ValueError, match=reason):
        checkpoint.from_bytes(path.read_bytes(), expect=NAME)


def test_an_unknown_network_is_refused_with_the_known_ones(model):
    with pytest.raises(ValueError, match=r'expected one of the models global_local.*, got .resnet.'):
        checkpoint.from_bytes(altered(model, metadata={'model': 'resnet'}))
    with pytest.raises(ValueError, match='expected one of the models'):
        registry.build('resnet')


@pytest.mark.parametrize('content', [b'', b'\x00', b'\xff' * 64, b'PK\x03\x04 a pickle in a zip', bytes(8) + b'{}'])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / 'c.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='c.safetensors'):
        checkpoint.load(path)


def test_a_cut_file_is_refused(model, tmp_path):
    path = tmp_path / 'd.safetensors'
    path.write_bytes(checkpoint.to_bytes(NAME, model, RECORD)[:-100])
    with pytest.raises(ValueError, match='d.safetensors: not a safetensors file'):
        checkpoint.load(path)


def test_weights_that_are_not_finite_are_not_saved(model, tmp_path):
    path = tmp_path / 'e.safetensors'
    checkpoint.save(path, NAME, model, RECORD)
    before = path.read_bytes()
    with torch.no_grad():
        model.local.last.bias.fill_(1e6)                # too large for fp16 alone
    with pytest.raises(ValueError, match='global_local: weights are not finite in fp16: local.last.bias'):
        checkpoint.save(path, NAME, model, RECORD, dtype='fp16')
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match='expected a global_local network to store, got a Linear'):
        checkpoint.save(path, NAME, torch.nn.Linear(1, 1), RECORD)
    with pytest.raises(ValueError, match='dtype: expected one of fp32, fp16'):
        checkpoint.save(path, NAME, model, RECORD, dtype='fp8')
