"""Laws of the comparison: what is trained, what is not repeated, and what is written."""

from __future__ import annotations

import argparse
import json
import threading
from dataclasses import replace

import pytest
import torch
from pair_support import MemoryStore, wavy_pairs

from depth_ros.apps import compare, learning_curves, studies
from depth_ros.apps.bench import Bench, with_flow_error
from depth_ros.apps.study_report import Table
from depth_ros.learning.shards import locked
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.trainer import HISTORY, Data
from depth_ros.models import checkpoint, registry, unsupervised
from depth_ros.models.baselines import BaselineConfig, SmallEncDec

COMMON = Recipe(steps=2, batch=4, rate=1e-3, device='cpu', validate_every=2, best_by='abs_inv')


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    """Two steps of small networks: the large ones would only take longer."""
    torch.set_num_threads(1)
    for name in ('eigen', 'dispnet', 'fcrn'):
        monkeypatch.setitem(registry.MODELS, name, (BaselineConfig, SmallEncDec))
    monkeypatch.setattr(studies, 'FLOW_SHARE', 0.1)
    monkeypatch.setattr(unsupervised, '_ENCODER', ((8, 3), (8, 3)))
    data = Data(MemoryStore(wavy_pairs(8, seed=1)), MemoryStore(wavy_pairs(4, seed=2)))
    return Bench(data, MemoryStore(wavy_pairs(6, seed=3)), COMMON, 1, tmp_path)


def test_flow_errors_scale_from_none_to_the_estimators_and_beyond():
    pairs = wavy_pairs(2)
    pairs.flow = pairs.flow + 1.0
    ends = [(with_flow_error(pairs, share).flow - pairs.exact_flow)[pairs.valid.expand_as(pairs.flow)].mean() for share in (0.0, 1.0, 2.0)]
    assert torch.allclose(torch.stack(ends), torch.tensor([0.0, 1.0, 2.0]), atol=1e-5)


# ---------------------------------------------------------------- the bench

def test_a_network_is_trained_once_for_all_studies_and_scored_once(bench, monkeypatch):
    first = bench.score(bench.train('global_local', 0))
    monkeypatch.setattr('depth_ros.learning.trainer.Trainer.run', lambda *_: pytest.fail('it was trained again'))
    monkeypatch.setattr('depth_ros.learning.objectives.InverseDepth.scores', lambda *_: pytest.fail('it was scored again'))
    assert bench.score(bench.train('global_local', 0)) == first


def test_networks_see_the_same_pairs_in_the_same_order(bench):
    from depth_ros.learning.batches import Batches

    store = MemoryStore(wavy_pairs(8))
    recipes = [bench.train(name, 0, model=name).recipe for name in ('global_local', 'small_enc_dec')]
    drawn = [Batches(store, recipe).of_step(1) for recipe in recipes]
    assert torch.equal(drawn[0].pairs.image1, drawn[1].pairs.image1) and torch.equal(drawn[0].supervised, drawn[1].supervised)


def test_scores_of_another_length_of_training_are_not_taken(bench):
    trained = bench.train('global_local', 0)
    bench.score(trained)
    longer = Bench(bench._data, bench._test, replace(COMMON, steps=3), 1, bench._out)
    calls = []
    longer.score_prediction('global_local-0', lambda pairs: calls.append(1) or torch.full_like(pairs.inverse_depth, 0.1))
    assert calls


def test_networks_that_grow_are_scored_at_the_size_that_they_grew_to(bench, tmp_path):
    grown = Bench(bench._data, bench._test, replace(COMMON, reduce=2, grow_at=0.5), 1, tmp_path / 'grown')
    seen = []
    grown.score_prediction('some', lambda pairs: seen.append(pairs.inverse_depth.shape) or torch.full_like(pairs.inverse_depth, 0.1))
    height, width = bench._test.size
    assert {tuple(shape[-2:]) for shape in seen} == {(height, width)} and grown.pixels == height * width
    assert grown.dataset_mean.inverse_depth.shape[-2:] == (height, width)
    trained = grown.train('global_local', 0)
    assert grown.score(trained)['abs_rel'] > 0 and [entry['reduce'] for entry in json.loads((grown.runs / trained.name / HISTORY).read_text())['history']] == [1]
    with pytest.raises(ValueError, match='steps: 4 instead of 2'):      # it would have grown later
        Bench(bench._data, bench._test, replace(grown.common, steps=4), 1, tmp_path / 'grown').train('global_local', 0)


def test_what_is_said_of_our_network_is_not_said_of_its_rivals(bench, tmp_path):
    ours = Bench(bench._data, bench._test, replace(COMMON, model_config={'constant': True}), 1, tmp_path / 'ours')
    assert ours.train('without_flow', 0, model_config={'flow': False}).recipe.model_config == {'constant': True, 'flow': False}
    assert ours.train('small_enc_dec', 0, model='small_enc_dec').recipe.model_config == {}


def test_a_comparison_at_a_constant_rate_is_prolonged_as_if_it_had_been_longer_from_the_start(bench, tmp_path):
    def network(steps: int, out: str) -> dict[str, torch.Tensor]:
        common = replace(COMMON, steps=steps, ema=0.9, checkpoint_every=2)
        return Bench(bench._data, bench._test, common, 1, tmp_path / out).train('global_local', 0).network.state_dict()

    network(2, 'prolonged')
    prolonged, direct = network(4, 'prolonged'), network(4, 'direct')
    assert all(torch.equal(prolonged[name], direct[name]) for name in direct)


def test_a_network_that_another_command_trains_is_waited_for(bench):
    folder = bench.runs / 'global_local-0'
    folder.parent.mkdir(parents=True)
    found = []
    with locked(folder, wait=True):
        other = threading.Thread(target=lambda: found.append(bench.train('global_local', 0)), daemon=True)
        other.start()
        other.join(0.5)
        assert not folder.exists()      # nothing is written while it waits
    other.join(60)
    assert found and (folder / HISTORY).exists()


def test_only_the_networks_that_are_asked_for_take_part(bench, tmp_path):
    few = Bench(bench._data, bench._test, COMMON, 1, tmp_path / 'few', networks=('small_enc_dec',))
    assert {'Global-Local', 'Small Enc-Dec', 'dataset mean'} <= studies.main_comparison(few).rows.keys()
    assert {path.name for path in (tmp_path / 'few' / 'runs').iterdir()} == {'global_local-0', 'small_enc_dec-0', 'pose_scratch_full-0'}
    assert set(studies.density(few).curves) == {'Global-Local'}


def test_the_ends_of_the_density_sweep_are_always_there_and_of_the_rest_what_is_asked_for(bench, tmp_path):
    few = Bench(bench._data, bench._test, COMMON, 1, tmp_path / 'few', densities=(10,))
    assert studies.density(few).curves == {'Global-Local': [f'Global-Local, {text}' for text in ('1', '10', 'dense')], 'DispNet': ['DispNet, 1', 'DispNet, dense']}


@pytest.mark.parametrize('name', list(studies.STUDIES))
def test_every_study_fills_its_table_and_files(bench, name, tmp_path):
    table = studies.STUDIES[name](bench)
    table.save(tmp_path)
    assert len({tuple(scores) for seeds in table.rows.values() for scores in seeds}) == 1
    assert all(torch.isfinite(torch.tensor(list(scores.values()))).all() for seeds in table.rows.values() for scores in seeds)
    assert json.loads((tmp_path / f'{name}.json').read_text())['seeds'].keys() == table.rows.keys()
    assert (tmp_path / f'{name}.png').stat().st_size > 1000
    for rows in table.curves.values():
        assert all(row in table.rows and row in table.abscissa for row in rows)


def test_the_pretrained_heads_begin_with_the_depth_network_of_their_seed(bench):
    head = studies._pose_head(bench, 0, full=False, pretrained=True)
    depth = bench.train('global_local', 0)
    for ours, theirs in zip(head.network.encoder.global_module.parameters(), depth.network.global_module.parameters()):
        assert torch.equal(ours, theirs)


def test_studies_take_global_local_as_the_recipe_has_it(bench, tmp_path):
    """A head that reads the global parameters of a network has to see pairs as that network does."""
    own = Bench(bench._data, bench._test, replace(COMMON, model_config={'constant': True, 'global_width': 16, 'image_pair': False, 'coordinates': False}), 1, tmp_path / 'own')
    for study in (studies.pose, studies.flow_tuning):
        study(own)
    config = {name: checkpoint.load(own.checkpoint(name, 0)).model.config for name in ('pose_pretrained_head', 'pose_scratch_full', 'tuned_flow')}
    assert all((c.global_width, c.image_pair) == (16, False) for c in config.values()) and (config['tuned_flow'].constant, config['tuned_flow'].coordinates) == (True, False)


# ---------------------------------------------------------------- courses

def test_a_course_that_falls_as_a_power_of_the_steps_is_drawn_out_along_it():
    history = [{'step': step, 'abs_rel': 3.0 * step ** -0.25} for step in range(100, 1100, 100)]
    assert learning_curves.drawn_out(history, 'abs_rel') == pytest.approx(3.0 * 10000 ** -0.25, rel=1e-6)
    assert learning_curves.drawn_out(history[:2], 'abs_rel') == history[1]['abs_rel']      # too short to say
    grown = [entry | {'reduce': 2, 'abs_rel': 1.0} for entry in history[:4]] + [entry | {'reduce': 1} for entry in history[4:]]
    assert learning_curves.drawn_out(grown, 'abs_rel') == pytest.approx(3.0 * 10000 ** -0.25, rel=1e-6)     # what it had at another size tells nothing


def test_the_courses_are_those_of_every_network_that_scores_depth(bench, tmp_path):
    studies.pose(bench)
    table = studies.curves(bench)
    assert set(table.courses) == {'global_local-0'}     # pose heads have other scores
    assert [entry['step'] for entry in table.courses['global_local-0']] == [2]


# ---------------------------------------------------------------- tables and options

def test_a_table_says_mean_and_spread_over_seeds():
    table = Table('t', 'Title', 'Note.', {'a': [{'abs_rel': 0.1, 'sc_inv': 1.0}, {'abs_rel': 0.3, 'sc_inv': 1.0}]})
    assert table.cells() == [['', 'Abs-Rel', 'S-RMSE'], ['a', '0.2000 ± 0.1000', '1.0000 ± 0.0000']]
    assert '| a | 0.2000 ± 0.1000 | 1.0000 ± 0.0000 |' in table.markdown()


def test_help_says_how_long_it_takes(capsys):
    parser = argparse.ArgumentParser()
    compare.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--help'])
    assert 'how long it takes' in capsys.readouterr().out


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Runs the command without training anything: what all networks would share."""
    made = []
    monkeypatch.setattr(compare, 'open_store', lambda *_: MemoryStore(wavy_pairs(4)))
    monkeypatch.setattr(compare, 'Bench', lambda *parts: made.append(parts[2]))
    monkeypatch.setitem(compare.STUDIES, 'main', lambda bench: Table('main', 'Main', 'Note.', {'a': [{'abs_rel': 0.1}]}))
    parser = argparse.ArgumentParser()
    compare.add_options(parser)

    def run(*words: str) -> Recipe:
        args = parser.parse_args(['--studies', 'main', '--device', 'cpu', '--out', str(tmp_path), *words])
        args.score(args)
        return made[-1]

    return run


@pytest.mark.parametrize('words, warns', [([], False), (['--size', '64x48'], True)])
def test_a_size_that_is_too_small_for_some_is_noted(compared, tmp_path, words, warns):
    common = compared(*words)
    assert (common.data['width'], common.data['height'], common.reduce) == (128, 96, 2 if warns else 1)
    assert ('1 x 1' in (tmp_path / 'README.md').read_text()) == warns


@pytest.mark.parametrize('name', ['compare', 'compare_small', 'compare_grown'])
def test_the_shipped_comparisons_tell_one_pixel_an_image_and_the_same_to_all(compared, tmp_path, name):
    common = compared('--recipe', name)
    assert (common.model, common.supervised_pixels, common.start_from) == ('global_local', 1, '')
    assert f'{common.steps} steps of {common.batch}' in (tmp_path / 'README.md').read_text()


def test_the_command_line_wins_over_the_recipe(compared):
    common = compared('--recipe', 'compare_grown', '--steps', '30', '--rate', '0.01', '--pairs', '8', '--size', '64x48', '--new-motion', '0')
    assert (common.steps, common.rate, common.reduce, common.last_reduce, common.data['train'], common.new_motion) == (30, 0.01, 2, 2, 8, 0.0)
    assert common.validate_every < 30
    assert common.l1_of == 'log_depth'      # what is not changed stays


def test_only_what_cannot_be_prolonged_warms_up_faster_when_it_is_shorter(compared):
    assert compared('--recipe', 'compare', '--steps', '30').warm_up == 3
    short, long = (compared('--recipe', 'compare_small', '--steps', steps) for steps in ('30', '3000'))
    assert not long.differences(short)


def test_unknown_studies_and_no_seeds_are_refused(capsys):
    parser = argparse.ArgumentParser()
    compare.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--studies', 'magic'])
    assert 'density' in capsys.readouterr().err
    args = parser.parse_args(['--seeds', '0'])
    with pytest.raises(ValueError, match='--seeds'):
        args.score(args)
