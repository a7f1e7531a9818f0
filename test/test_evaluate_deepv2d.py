"""`evaluate deepv2d` on a handful of tiny clips: its tables, its figures, and what must hold of them whatever the network knows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from clip_support import TINY, ClipMemory, sample_clips

from depth_ros.apps import clip_runs, deepv2d_studies, evaluate
from depth_ros.apps.clip_runs import Found, Runner
from depth_ros.models import checkpoint, registry

CLIPS, ROUNDS = 2, 2


@pytest.fixture(autouse=True)
def few_clips(monkeypatch, one_thread):
    """Clips of the sample's scene stand for the test split."""
    monkeypatch.setattr(deepv2d_studies, 'open_clips', lambda *_: ClipMemory(sample_clips()))


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return registry.build('deepv2d', TINY).eval()


@pytest.fixture
def trials():
    return list(clip_runs.synthetic(ClipMemory(sample_clips()), CLIPS))


def runner(network, **changes) -> Runner:
    return Runner(network, deepv2d_studies.StudyConfig(**{'rounds': ROUNDS, 'min_parallax': 0.0} | changes))


def evaluated(network, tmp_path, *words) -> dict:
    checkpoint.save(tmp_path / 'tiny.safetensors', 'deepv2d', network, {})
    command = ['deepv2d', '--weights', str(tmp_path / 'tiny.safetensors'), '--clips', str(CLIPS), '--rounds', str(ROUNDS), '--out', str(tmp_path / 'out'), *words]
    assert evaluate.main(command) == 0
    return json.loads((tmp_path / 'out/metrics.json').read_text())


def test_every_study_leaves_a_table_and_a_plot(network, tmp_path, capsys):
    figures = evaluated(network, tmp_path, '--min-parallax', '0')
    shown, studies = capsys.readouterr().out, figures['studies']
    assert set(studies) == set(deepv2d_studies.STUDIES)
    assert {'abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'sc_inv', 'delta_1_25', 'delta_1_25_2', 'delta_1_25_3', 'rotation', 'direction', 'translation_cm', 'abs_rel_to_sweep',
            'uncalibrated_focal_error'} <= set(figures)
    assert list(studies['rounds']) == [str(n + 1) for n in range(ROUNDS)] and list(studies['views']) == ['2', '3', '4', '5']
    # The same run, seen by several studies.
    for name in ('abs_rel', 'rotation', 'translation_cm'):
        assert figures[name] == studies['rounds'][str(ROUNDS)][name] == studies['views']['5'][name] == studies['uncalibrated']['calibrated'][name]
    assert studies['uncalibrated']['20 % off']['focal_error'] == pytest.approx(20.0, abs=1e-3)
    assert {'DeepV2D, identity', 'DeepV2D, learned', 'DeepV2D, reference', 'plane sweep, reference'} <= set(studies['pose_source'])
    assert studies['pose']['no motion']['direction'] == 90.0
    for name in studies:
        assert all((tmp_path / 'out' / f'{name}.{kind}').stat().st_size for kind in ('png', 'md', 'json')) and deepv2d_studies.STUDIES[name].title in shown
    assert (tmp_path / 'out/examples.png').exists()


def test_clips_that_nothing_is_found_for_are_told_and_not_counted(network, tmp_path, capsys):
    figures = evaluated(network, tmp_path, '--min-parallax', '0.5', '--studies', 'depth', 'rounds')
    assert list(figures['studies']['depth']) == ['one constant'] and figures['studies']['rounds'] == {}
    assert 'abs_rel' not in figures and 'Nothing was found for: DeepV2D, own poses' in capsys.readouterr().out


def test_rounds_one_by_one_are_those_of_one_run(network, trials):
    config = deepv2d_studies.StudyConfig(rounds=3, min_parallax=0.0)
    whole = clip_runs.Alternation(network, config).run(trials[0].frames)
    steps = runner(network, rounds=3).rounds(trials[0])
    assert len(steps) == 3
    np.testing.assert_allclose(steps[-1].depth, whole.depth, rtol=1e-3)
    np.testing.assert_allclose(steps[-1].T_view_key, whole.T_view_key, atol=1e-4)


def test_depth_at_given_poses_does_not_depend_on_their_unit(network, trials):
    trial = trials[0]
    far = trial.T_view_key.copy()
    far[:, :3, 3] *= 7.0
    near, scaled = (runner(network).at_poses(trial, T).scores(trial)['abs_rel'] for T in (trial.T_view_key, far))
    assert scaled == pytest.approx(near, rel=0.1)


def test_the_truth_has_no_error_and_an_unknown_unit_does_not_matter(trials):
    trial = trials[1]
    T = trial.T_view_key.copy()
    T[:, :3, 3] *= 3.0
    scores = Found(3.0 * trial.depth, T).scores(trial)
    assert scores['abs_rel'] < 1e-6 and scores['delta_1_25'] == 1.0
    assert scores['rotation'] < 1e-3 and scores['direction'] < 1e-3 and scores['translation_cm'] < 1e-3


def test_views_are_drawn_and_the_truth_goes_with_them(trials):
    for trial in trials:
        assert trial.T_view_key.shape == (4, 4, 4) and len(trial.frames) == 5
        some = trial.of_views([2, 0])
        assert [f.stamp for f in some.frames] == [trial.frames[i].stamp for i in (0, 3, 1)]
        np.testing.assert_array_equal(some.T_view_key, trial.T_view_key[[2, 0]])
        assert trial.at_focal(1.2).frames[3].K[0, 0] == pytest.approx(1.2 * trial.frames[3].K[0, 0])
    stamps = [f.stamp for trial in trials for f in trial.frames]
    assert len(set(stamps)) == len(stamps)      # features are kept by stamp


def test_clips_of_a_sequence_are_scored_by_its_own_poses(network, tmp_path):
    size = '--width', '64', '--height', '48', '--every', '60', '--views', '3'
    figures = evaluated(network, tmp_path, '--min-parallax', '0', '--studies', 'depth', 'pose', '--sequence', 'sample', *size)
    assert figures['of'] == 'sample' and 1 <= figures['clips'] <= CLIPS and figures['width'] == 64
    assert figures['studies']['pose']['no motion']['translation_cm'] > 1.0 and 'abs_rel' in figures


@pytest.mark.parametrize('words, complaint', [(['--clips', '0'], '--clips: expected at least 1'), (['--weights', '{tmp}/absent'], '{tmp}/absent'), (['--rounds', '0'], 'rounds'),
                                              (['--sequence', 'sample', '--mirror', '0'], '--mirror: for synthetic clips'), (['--sequence', 'sample', '--reduce', '2'], '--reduce: for synthetic clips')])
def test_bad_input_is_one_clear_line(tmp_path, capsys, words, complaint):
    assert evaluate.main(['deepv2d', *(word.format(tmp=tmp_path) for word in words), '--out', str(tmp_path / 'out')]) == 1
    assert complaint.format(tmp=tmp_path) in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / 'out').exists()
