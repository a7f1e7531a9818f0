"""Laws of recipes: what a file may hold, and how the rate goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from depth_ros.learning import objectives, recipe
from depth_ros.learning.clip_batches import ClipBatches
from depth_ros.learning.clips import ClipData
from depth_ros.learning.pairs import PairData
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.sequence_pairs import sequence_splits
from depth_ros.models import registry


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / 'mine.yaml'
    path.write_text('model: global_local\nsteps: 100\nrate: 1.0e-3\nmodel_config: {pose_aware: true}\ndata: {width: 64}\n')
    return path


def test_a_file_decides_what_it_names_and_leaves_the_rest(written):
    read = recipe.read(written)
    assert (read.steps, read.rate, read.model_config, read.data) == (100, 1e-3, {'pose_aware': True}, {'width': 64})
    assert read.batch == Recipe().batch


def test_changes_win_over_the_file(written):
    changed = recipe.read(written, {'steps': 7, 'model_config.flow': False, 'data.height': 48})
    assert changed.steps == 7 and changed.model_config == {'pose_aware': True, 'flow': False} and changed.data == {'width': 64, 'height': 48}


@pytest.mark.parametrize('text, complaint', [
    ('ratee: 1.0e-3', "unknown key 'ratee': expected model, size, model_config, data, endless, objective"),
    ('rate: 1e-3', 'rate: expected float'),             # a string to YAML
    ('steps: 0', 'steps: expected at least 1'),
    ('schedule: exponential', 'schedule: expected one of constant, cosine, step'),
    ('zoom: 0.2', 'magnify: expected at least 1.25'),
    ('model_config: 3', 'model_config: expected keys and values'),
    ('- a list', 'expected keys and values, got list'),
    ('a: [', 'not YAML'),
])
def test_a_bad_file_is_refused_with_its_name_and_the_reason(tmp_path, text, complaint):
    path = tmp_path / 'bad.yaml'
    path.write_text(text + '\n')
    with pytest.raises(ValueError) as refused:
        recipe.read(path)
    assert str(path) in str(refused.value) and complaint in str(refused.value)


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'step'])
def test_the_rate_warms_up_and_never_exceeds_its_highest(schedule):
    rates = [Recipe(schedule=schedule, rate=2e-3, steps=1000, warm_up=100, final_rate=0.1).rate_at(step) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100]) and rates[0] == pytest.approx(2e-5) and rates[100] == pytest.approx(2e-3)
    assert max(rates) <= 2e-3 * (1 + 1e-12) and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(2e-3 if schedule == 'constant' else 2e-4, rel=1e-3)


def test_the_size_doubles_until_it_is_full():
    sizes = [Recipe(reduce=4, grow_at=0.75, steps=160).reduce_at(step) for step in range(160)]
    assert sizes == [4] * 120 + [2] * 30 + [1] * 10
    assert {Recipe(reduce=4, steps=160).reduce_at(step) for step in range(160)} == {4}
    assert (Recipe(reduce=4, grow_at=0.75, steps=160).last_reduce, Recipe(reduce=4, steps=160).last_reduce) == (1, 4)
    assert [Recipe(reduce=4, reduce_to=2, grow_at=0.5, steps=8).reduce_at(step) for step in range(8)] == [4] * 4 + [2] * 4


def test_what_differs_is_told_unless_it_does_not_change_what_is_learned():
    ours = Recipe(batch=8, device='cpu', threads=2, validate_every=10)
    assert ours.differences(Recipe()) == ['batch: 8 instead of 16']
    assert not Recipe(steps=10).differences(Recipe())
    assert not Recipe(steps=10, grow_at=0.5).differences(Recipe(grow_at=0.5))      # it is full from the beginning
    for changed in ({'schedule': 'cosine'}, {'reduce': 2, 'grow_at': 0.5}, {'predicted_from': 0.5}):
        assert Recipe(steps=10, **changed).differences(Recipe(**changed)) == ['steps: 10 instead of 94000']
    assert not Recipe(data={'sequence': 'x', 'strict': False}).differences(Recipe(data={'sequence': 'x'}))


def test_every_setting_but_the_nested_ones_is_described():
    described = set(recipe.settings.settings_of(Recipe))
    assert {f.name for f in dataclasses.fields(Recipe)} - described == {'model_config', 'data', 'rate_shares', 'start_parts'}


@pytest.mark.parametrize('path', sorted((Path(__file__).resolve().parents[1] / 'config' / 'train').glob('*.yaml')), ids=lambda path: path.stem)
def test_a_shipped_recipe_names_only_what_exists(path):
    shipped = recipe.read(path)
    registry.configuration(shipped.model, shipped.model_config)
    if 'sequence' in shipped.data:
        sequence_splits(shipped.data)
    else:
        recipe.configured(ClipData if objectives.kind(shipped).batches is ClipBatches else PairData, shipped.data)
    objectives.build(shipped)
