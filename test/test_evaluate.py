"""`evaluate` as a user runs it: its files, its figures on the real sequence, and its complaints."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import global_local_support as support
import numpy as np
import pytest
from sequence_support import head_of, walking_folder

from depth_ros.apps import depth_scores, evaluate, runs
from depth_ros.engines.flow import FlowConfig
from depth_ros.engines.global_local import GlobalLocalEngineConfig
from depth_ros.frames import Scale, TrackResult, TrackStatus
from depth_ros.learning.sample import sample_folder
from depth_ros.learning.tum import open_sequence

TRACKING = {'rpe_1s_trans_rmse', 'ate_rmse', 'ms_per_frame_median', 'frames', 'lost'}
DEPTH = {'abs_rel', 'delta_1_25', 'rmse', 'sc_inv', 'scale', 'ms_per_frame_median'}


@pytest.fixture(scope='module')
def beginning(kitchen, tmp_path_factory):
    """The first three seconds of the real sequence."""
    return head_of(kitchen, tmp_path_factory.mktemp('evaluate') / 'kitchen', 90)


def report(out) -> dict:
    return json.loads((out / 'metrics.json').read_text())


def is_picture(path) -> bool:
    picture = cv2.imread(str(path))
    return picture is not None and picture.shape[1] > 500 and picture.std() > 5


def test_tracking_with_sensor_depth(beginning, kitchen, tmp_path):
    assert evaluate.main(['tracking', '--sequence', str(beginning), '--reference', str(kitchen / 'groundtruth_refined.txt'), '--out', str(tmp_path)]) == 0
    figures = report(tmp_path)
    assert TRACKING <= set(figures)
    assert figures['frames'] == 90 and figures['lost'] == 0 and figures['alignment'] == 'SE3'
    assert figures['rpe_1s_trans_rmse'] < 0.016 and figures['ate_rmse'] < 0.021
    assert is_picture(tmp_path / 'trajectory.png')
    assert np.loadtxt(tmp_path / 'trajectory.txt').shape == (90, 8)


def test_depth_from_colour_with_given_poses(beginning, kitchen, tmp_path):
    assert evaluate.main(['depth', '--sequence', str(beginning), '--poses', str(kitchen / 'groundtruth_refined.txt'),
                          '--reference', str(kitchen / 'groundtruth_refined.txt'), '--out', str(tmp_path)]) == 0
    figures = report(tmp_path)
    assert DEPTH <= set(figures)        # by flow: the sensor is what is scored against
    assert figures['ate_rmse'] < 1e-6   # the poses that were given
    assert figures['scale'] == 'median' and figures['frames_scored'] == 5 and figures['coverage'] > 0.99
    assert figures['abs_rel'] < 0.13 and figures['confident_abs_rel'] < figures['abs_rel']
    assert is_picture(tmp_path / 'depth.png')


def test_sensor_depth_scores_perfectly_against_itself(beginning, tmp_path):
    assert evaluate.main(['depth', '--sequence', str(beginning), '--depth', 'sensor', '--frames', '45', '--out', str(tmp_path)]) == 0
    figures = report(tmp_path)
    assert figures['scale'] == 'metric' and figures['abs_rel'] < 1e-6 and figures['delta_1_25'] == 1.0


@pytest.mark.parametrize('words, complaint', [
    (['tracking', '--sequence', '{tmp}/absent'], '{tmp}/absent'),
    (['tracking', '--sequence', '{beginning}', '--reference', '{tmp}/absent.txt'], '{tmp}/absent.txt'),
    (['tracking', '--sequence', '{beginning}', '--width', '7'], 'width: expected at least 64 px, got 7'),
    (['depth', '--sequence', '{beginning}', '--poses', '{tmp}/other.txt'], 'same clock'),
    (['depth', '--engine', 'global_local', '--sequence', '{beginning}', '--weights', '{tmp}/absent.safetensors'], '{tmp}/absent.safetensors'),
    (['depth', '--engine', 'global_local', '--sequence', '{beginning}', '--gap', '0'], 'gap: expected at least 1 frame, got 0'),
])
def test_bad_input_is_one_clear_line_and_leaves_nothing(beginning, tmp_path, capsys, words, complaint):
    (tmp_path / 'other.txt').write_text('5.0 0 0 0 0 0 0 1\n6.0 0 0 0 0 0 0 1\n')
    places = {'tmp': tmp_path, 'beginning': beginning}
    assert evaluate.main([word.format(**places) for word in words] + ['--out', str(tmp_path / 'out')]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and complaint.format(**places) in error
    assert not (tmp_path / 'out').exists()


def test_help_is_there_at_once():
    """Without what only the tasks need."""
    script = """
import sys
from depth_ros.apps import evaluate
try:
    evaluate.main(['--help'])
except SystemExit:
    sys.exit(not {'torch', 'matplotlib', 'scipy'}.isdisjoint(sys.modules))
"""
    shown = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120, check=True).stdout
    assert all(task in shown for task in ('tracking', 'depth', 'deepv2d', 'compare', 'online'))


@pytest.mark.parametrize('task', ['tracking', 'depth', 'deepv2d', 'compare', 'online'])
def test_each_task_has_a_help_of_its_own(task, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([task, '--help'])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f'usage: evaluate {task}' in shown and '--out' in shown


def global_local(beginning, kitchen, variant, untrained, *words):
    return ['depth', '--engine', 'global_local', '--variant', variant, '--weights', str(untrained / support.FILES[variant]), '--backend', 'torch',
            '--sequence', str(beginning), '--poses', str(kitchen / 'groundtruth_refined.txt'), *words]


def test_global_local_is_scored_with_the_same_figures(beginning, kitchen, untrained, tmp_path):
    assert evaluate.main(global_local(beginning, kitchen, 'pose_aware', untrained, '--out', str(tmp_path))) == 0
    figures = report(tmp_path)
    assert DEPTH | {'abs_inv', 'confident_abs_rel', 'coverage', 'lost'} <= set(figures)
    assert figures['scale'] == 'median' and figures['frames_scored'] == 5 and figures['coverage'] > 0.99
    assert figures['abs_rel'] < 0.3 and figures['confident_abs_rel'] < figures['abs_rel']       # triangulation alone, before any training
    assert is_picture(tmp_path / 'depth.png')


@pytest.mark.parametrize(('variant', 'abs_rel', 's_rmse'), [('published', 0.20, 0.24), ('pose_aware', 0.13, 0.18)])
def test_the_shipped_global_local_measures_a_recording_that_it_never_saw(kitchen, tmp_path, variant, abs_rel, s_rmse):
    """With unit translation and after median match, where one constant has 0.27 and 0.29."""
    words = ['depth', '--engine', 'global_local', '--variant', variant, '--sequence', str(kitchen), '--poses', str(kitchen / 'groundtruth_refined.txt')]
    assert evaluate.main([*words, '--every', '20', '--frames', '140', '--out', str(tmp_path)]) == 0
    figures = report(tmp_path)
    assert figures['frames_scored'] == 5 and figures['abs_rel'] < abs_rel and figures['sc_inv'] < s_rmse


def test_given_poses_and_scans_tell_metres_to_global_local(beginning, kitchen, untrained, tmp_path):
    words = '--align', 'metric', '--every', '25'
    assert evaluate.main(global_local(beginning, kitchen, 'pose_aware', untrained, *words, '--out', str(tmp_path / 'poses'))) == 0
    assert evaluate.main(global_local(beginning, kitchen, 'pose_aware', untrained, '--hits', 'scan', '--every', '25', '--out', str(tmp_path / 'scans'))) == 0
    poses, scans = report(tmp_path / 'poses'), report(tmp_path / 'scans')
    assert poses['scale'] == scans['scale'] == 'metric'
    assert poses['abs_rel'] < 0.5 and scans['abs_rel'] < 0.5


def test_the_published_network_needs_no_poses_for_a_match(beginning, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.DeepV2DEngine, 'step', lambda *_, **__: pytest.fail('tracked'))
    words = ['depth', '--engine', 'global_local', '--weights', str(untrained / support.FILES['published']), '--backend', 'torch', '--sequence', str(beginning)]
    assert evaluate.main([*words, '--every', '40', '--out', str(tmp_path)]) == 0
    assert report(tmp_path)['frames_scored'] == 2


def test_the_time_of_a_step_has_that_of_the_tracking_that_it_needs(beginning, untrained, monkeypatch):
    clock = [0.0]

    class SlowTracker:
        def __init__(self, config):
            pass

        def step(self, frame, hits):
            clock[0] += 7.0
            return SimpleNamespace(track=TrackResult(frame.stamp, TrackStatus.LOST, np.eye(4), np.eye(6), 0.0, Scale.FREE))

    monkeypatch.setattr(runs, 'DeepV2DEngine', SlowTracker)
    monkeypatch.setattr(runs, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    config = GlobalLocalEngineConfig(weights=str(untrained / support.FILES['published']), backend='torch')
    steps = list(runs.global_local(runs.Course(open_sequence(beginning), frames=3), config, 2, FlowConfig(width=256, height=192), lambda index: True))
    assert [step.milliseconds for step in steps] == [7000.0]


def test_scans_make_depth_from_colour_metric(beginning, tmp_path):
    words = ['depth', '--sequence', str(beginning), '--depth', 'flow', '--hits', 'scan', '--first', '70', '--every', '5', '--out', str(tmp_path)]
    assert evaluate.main(words) == 0
    figures = report(tmp_path)
    assert figures['scale'] == 'metric' and figures['abs_rel'] < 0.3


def test_examples_lie_evenly_and_never_pile_up():
    spread, most = depth_scores.Spread(4), 0
    for i in range(100):
        if spread.wants():
            spread.add(i)
        most = max(most, len(spread._kept))
    chosen = spread.chosen()
    assert len(chosen) == 4 and chosen[0] == 0 and chosen[-1] > 70 and most <= 9
    assert np.diff(chosen).min() > 10


def test_many_sequences_give_a_table_with_their_mean(beginning, kitchen, tmp_path, capsys):
    refined = str(kitchen / 'groundtruth_refined.txt')
    words = ['tracking', '--frames', '45', '--sequence', str(beginning), 'sample', '--reference', refined, str(sample_folder() / 'groundtruth.txt'), '--sequence', str(beginning)]
    assert evaluate.main([*words, '--reference', refined, '--out', str(tmp_path)]) == 0
    figures, shown = report(tmp_path), capsys.readouterr().out
    each = figures['sequences']
    assert list(each) == ['kitchen_1', 'sample', 'kitchen_2'] and all(TRACKING <= set(one) for one in each.values())
    assert TRACKING <= set(figures) and figures['frames'] == 135
    for name in ('rpe_1s_trans_rmse', 'rpe_1s_rot_rmse_deg', 'ate_rmse'):
        assert figures[name] == pytest.approx(np.mean([one[name] for one in each.values()]))
        assert f'{figures[name]:.4f}' in next(line for line in shown.splitlines() if line.startswith('mean'))
    assert all(is_picture(tmp_path / name) for name in ('tracking.png', 'sample/trajectory.png'))
    assert each['kitchen_1']['ate_rmse'] == pytest.approx(each['kitchen_2']['ate_rmse'], rel=1e-3)


def test_a_sequence_that_cannot_be_scored_is_named_beside_the_others(tmp_path, capsys):
    still = walking_folder(tmp_path / 'noise', 40)
    assert evaluate.main(['tracking', '--frames', '40', '--sequence', str(still), 'sample', '--out', str(tmp_path / 'out')]) == 0
    figures = report(tmp_path / 'out')
    assert figures['sequences']['noise']['not_scored'] and figures['sequences_scored'] == 1
    assert figures['ate_rmse'] == figures['sequences']['sample']['ate_rmse']
    assert 'noise is not scored' in capsys.readouterr().out


def test_references_are_for_each_sequence_or_for_none(beginning, kitchen, tmp_path, capsys):
    words = ['tracking', '--sequence', str(beginning), str(beginning), '--reference', str(kitchen / 'groundtruth_refined.txt')]
    assert evaluate.main([*words, '--out', str(tmp_path / 'out')]) == 1
    assert '--reference: expected one file for each of the 2 sequences' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_depth_that_comes_now_and_then_is_scored_when_it_comes(beginning, kitchen, tmp_path, monkeypatch):
    poses = np.loadtxt(kitchen / 'groundtruth_refined.txt')
    late = tmp_path / 'late.txt'
    np.savetxt(late, poses[3:], fmt='%.9f')     # the first frames have no pose, so the sweeps are not at the frames that are wanted
    scored: list[int] = []
    add = depth_scores.DepthScores.add
    monkeypatch.setattr(depth_scores.DepthScores, 'add', lambda self, index, *rest: (scored.append(index), add(self, index, *rest)))
    words = ['depth', '--sequence', str(beginning), '--poses', str(late), '--depth', 'sweep', '--first', '20', '--frames', '55', '--sweep-planes', '16', '--sweep-fine-width', '160']
    assert evaluate.main([*words, '--out', str(tmp_path / 'out')]) == 0
    figures = report(tmp_path / 'out')
    assert figures['frames_scored'] == len(scored) >= 3 and figures['frames_without_depth'] == 0
    assert all(index % 10 for index in scored)
