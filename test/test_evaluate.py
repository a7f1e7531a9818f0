"""`evaluate` as a user runs it: its files, its figures on the real sequence, and its complaints."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from sequence_support import head_of

from depth_ros.apps import evaluate

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
    assert evaluate.main(['depth', '--sequence', str(beginning), '--poses', str(kitchen / 'groundtruth_refined.txt'), '--depth', 'flow', '--out', str(tmp_path)]) == 0
    figures = report(tmp_path)
    assert DEPTH <= set(figures)
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
])
def test_bad_input_is_one_clear_line_and_leaves_nothing(beginning, tmp_path, capsys, words, complaint):
    (tmp_path / 'other.txt').write_text('5.0 0 0 0 0 0 0 1\n6.0 0 0 0 0 0 0 1\n')
    places = {'tmp': tmp_path, 'beginning': beginning}
    assert evaluate.main([word.format(**places) for word in words] + ['--out', str(tmp_path / 'out')]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and complaint.format(**places) in error
    assert not (tmp_path / 'out').exists()
