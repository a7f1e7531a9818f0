"""Pairs without an end: what a step's batch depends on, and what stays behind."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial

import pytest
import torch
from pair_support import identical

from depth_ros.apps.train import flow_function
from depth_ros.learning import scenes
from depth_ros.learning.synthetic_pairs import EndlessData, SyntheticPairs

make_flow = partial(flow_function, 'dis')
DATA = EndlessData(seed=3, width=32, height=24, flow_width=32, flow_height=24, round=4, ahead=1, workers=0)


@pytest.fixture(autouse=True)
def few_surfaces(monkeypatch, tmp_path):
    """Painting many takes longer than these tests; what is written goes where it can be seen."""
    monkeypatch.setattr(scenes, '_PALETTE', 3)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    scenes._palette.cache_clear()
    yield
    scenes._palette.cache_clear()


def test_a_pair_depends_on_seed_and_index_alone(tmp_path):
    """Also when they are asked for in another order, and after a restart; later rounds show other scenes; nothing stays on the disk."""
    with SyntheticPairs(DATA, make_flow, 8) as source:
        batches = [source.batch([2 * step, 2 * step + 1]) for step in (0, 1, 2)]
        assert identical(source.batch([2, 3]), batches[1])
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    with SyntheticPairs(DATA, make_flow, 8) as again:
        assert identical(again.batch([4, 5]), batches[2])
    assert batches[0].image1.shape == (2, 3, 24, 32)
    assert min((a - b).abs().mean() for a in torch.cat([batches[0].image1, batches[1].image1]) for b in batches[2].image1) > 0.01
    shown = torch.cat([batches[0].T_2_1, batches[1].T_2_1])
    assert min((a - b).abs().max() for i, a in enumerate(shown) for b in shown[:i]) > 1e-4       # a round shows each of its pairs once


def test_a_batch_may_reach_into_the_next_round():
    with SyntheticPairs(DATA, make_flow, 8) as source:
        across, before, after = source.batch([3, 4]), source.batch([3]), source.batch([4])
    assert identical(across.pick([0]), before)
    assert identical(across.pick([1]), after)


def test_another_process_renders_the_same(monkeypatch):
    monkeypatch.undo()      # the process has all surfaces
    scenes._palette.cache_clear()
    with SyntheticPairs(replace(DATA, workers=1, ahead=1), make_flow, 8) as there:
        batch = there.batch([0, 1])
    with SyntheticPairs(DATA, make_flow, 8) as here:
        assert identical(here.batch([0, 1]), batch)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match='train, validation, test'):
        SyntheticPairs(DATA, make_flow, 8, 'all')
    with pytest.raises(ValueError, match='round: expected at least 1'):
        SyntheticPairs(replace(DATA, round=0), make_flow, 8)


def test_an_error_where_pairs_are_rendered_arrives(tmp_path):
    with SyntheticPairs(replace(DATA, photographs=str(tmp_path)), make_flow, 8) as source, pytest.raises(ValueError, match='expected a folder with photographs'):
        source.batch([0, 1])
