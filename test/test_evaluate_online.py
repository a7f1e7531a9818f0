"""`evaluate online` as a user runs it: its figures, its files and its complaints."""

from __future__ import annotations

import json

import cv2
import global_local_support as support
import numpy as np
import pytest
from sequence_support import head_of

from depth_ros.apps import evaluate, online_course, online_report
from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.learning.tum import open_sequence
from depth_ros.models import checkpoint

WANTED = {'abs_rel_frozen_scaled', 'abs_rel_triangulated', 'abs_rel_learned', 'abs_rel_dense', 'updates', 'rollbacks', 'learner_seconds', 'memory_mb'}


@pytest.fixture(scope='module')
def ran(kitchen, tmp_path_factory):
    """Two passes over the beginning of the real sequence with a network that starts at triangulation."""
    folder = tmp_path_factory.mktemp('online')
    beginning, out = head_of(kitchen, folder / 'kitchen', 60), folder / 'out'
    weights = support.write(folder / 'weights') / support.FILES['pose_aware']
    assert evaluate.main(['online', '--sequence', str(beginning), '--poses', str(kitchen / 'groundtruth_refined.txt'), '--weights', str(weights), '--size', '128x96',
                          '--every', '4', '--passes', '2', '--batches', '3', '--hold-out-last', '12', '--withheld-run', '2', '--round', '4', '--rehearse', '0',
                          '--synthetic', '0', '--out', str(out)]) == 0
    return out


def test_it_reports_what_was_learned_beside_what_it_is_compared_with(ran):
    figures = json.loads((ran / 'metrics.json').read_text())
    assert WANTED <= set(figures)
    assert figures['held_out'] == [48, 52, 56] and figures['frames_scored'] == 11 and len(figures['abs_rel_learned_by_pass']) == 2
    assert figures['updates'] > 0 and figures['abs_rel_learned_all'] < 1.05 * figures['abs_rel_frozen_scaled_all']
    assert figures['worst_to_frozen'] >= figures['learned_to_frozen_all'] > 0
    assert figures['states']['waiting for hits'] >= 6 and sum(figures['states'].values()) == 24
    assert all(0.01 < figures[f'abs_rel_{name}'] < 0.6 for name in ('frozen_scaled', 'triangulated', 'learned'))


def test_it_leaves_the_curve_and_the_learned_weights(ran):
    picture = cv2.imread(str(ran / 'online.png'))
    assert picture.shape[1] > 500 and picture.std() > 5
    saved = checkpoint.load(ran / 'learned.safetensors', 'global_local')
    figures = saved.record['online']
    assert saved.record['number'] == figures['number'] > 0 and figures['updates'] > 0       # each hand-over has a number, also that of the first weights when learned ones do harm


@pytest.fixture(scope='module')
def frame():
    _, depth = support.wall()
    K = np.array([[110.0, 0.0, 63.5], [0.0, 110.0, 47.5], [0.0, 0.0, 1.0]])
    valid = np.ones(depth.shape, bool)
    valid[:, :32] = False
    return CameraFrame(0, 'camera', np.zeros((*depth.shape, 3), np.uint8), K, np.where(valid, depth, 0), valid)


def cut(frame, kind='row', fault='none', seed=0, first=0):
    return online_course.cut_hits(frame, kind, fault, np.random.default_rng(seed), first)


def test_hits_lie_on_one_row_where_depth_is_known_with_a_hundredth_of_noise(frame):
    hits = cut(frame)
    rows, columns = np.nonzero(hits)
    assert set(rows) == {48} and columns.min() >= 32 and 40 <= len(rows) <= 64
    error = hits[rows, columns] / frame.depth[rows, columns] - 1
    assert 0.005 < error.std() < 0.015
    np.testing.assert_array_equal(hits, cut(frame))
    assert (cut(frame, seed=1) != hits).any()
    assert np.count_nonzero(cut(frame, 'single')) == 1


def test_faults_spoil_the_hits_as_they_say(frame):
    good = cut(frame)
    spoilt = {fault: cut(frame, fault=fault) for fault in ('outliers', 'nan', 'tenfold', 'tilt')}
    wild = np.mean(np.abs(spoilt['outliers'][good > 0] / good[good > 0] - 1) > 0.1)
    assert 0.1 < wild < 0.5
    assert 0.1 < np.isnan(spoilt['nan'][good > 0]).mean() < 0.5
    np.testing.assert_allclose(spoilt['tenfold'], 10 * good, rtol=1e-6)
    np.testing.assert_array_equal(cut(frame, fault='tenfold', first=-online_course.LASTS), good)
    assert set(np.nonzero(spoilt['tilt'])[0]) == {48 + 19}


def test_a_frozen_camera_repeats_one_image_while_all_else_goes_on(kitchen, tmp_path):
    whole = open_sequence(head_of(kitchen, tmp_path / 'kitchen', 70))
    hanging = online_course.Hanging(whole)
    assert len(hanging) == len(whole) == 70 and hanging.name == whole.name
    for index, shown in ((59, 59), (60, 60), (61, 60), (69, 60)):
        np.testing.assert_array_equal(hanging[index].image, whole[shown].image)
        np.testing.assert_array_equal(hanging[index].depth, whole[index].depth)
        assert hanging[index].stamp == whole[index].stamp


def test_a_score_counts_what_has_no_prediction_as_far(frame):
    depth = frame.depth.copy()
    sure = np.ones_like(depth)
    assert online_course.score(DepthResult(frame, np.where(frame.depth_valid, depth, 1.0), frame.depth_valid, sure, Scale.METRIC), frame) == 0.0
    nothing = DepthResult(frame, depth, np.zeros_like(frame.depth_valid), sure, Scale.METRIC)
    assert online_course.score(nothing, frame) == pytest.approx(float(np.mean(8.0 / depth[frame.depth_valid] - 1)), rel=1e-5)
    assert online_course.score(None, frame) is None


def test_frames_are_compared_only_where_all_have_depth():
    lines = {'frozen_scaled': [{1: None, 2: 0.4, 3: 0.2}], 'triangulated': [{1: 0.1, 2: 0.1, 3: 0.1}], 'learned': [{1: 0.9, 2: 0.2, 3: 0.1}]}
    figures = online_report.summary(lines, [3])
    assert figures['abs_rel_learned'] == 0.1 and figures['abs_rel_learned_all'] == pytest.approx(0.15) and figures['frames_scored'] == 2
    assert figures['learned_to_frozen_scaled'] == pytest.approx(0.5) and online_report.summary(lines, [])['abs_rel_frozen_scaled'] == pytest.approx(0.3)
    assert figures['worst_to_frozen_scaled'] == pytest.approx(0.5)
    with pytest.raises(ValueError, match='no frame has depth'):
        online_report.summary({'learned': [{1: None}]}, [])


def test_the_worst_second_is_found_in_any_pass():
    frozen = dict.fromkeys(range(100), 0.1)
    bad = {i: 0.3 if 40 <= i < 70 else 0.05 for i in range(100)}
    lines = {'learned': [frozen, bad, frozen], 'frozen': [frozen] * 3}
    assert online_report.summary(lines, [])['worst_to_frozen'] == online_report.worst(bad, frozen, list(range(100))) == pytest.approx(3.0)
    assert online_report.worst(frozen, frozen, list(range(0, 9, 3))) == pytest.approx(1.0)


@pytest.mark.parametrize('words, complaint', [
    (['--sequence', '{tmp}/absent'], '{tmp}/absent'),
    (['--sequence', '{kitchen}', '--size', 'large'], "WIDTHxHEIGHT such as 256x192, got 'large'"),
    (['--sequence', '{kitchen}', '--passes', '0'], '--passes: expected at least 1'),
    (['--sequence', '{kitchen}', '--rate', '7'], 'rate: expected at most'),
    (['--sequence', '{kitchen}', '--variant', 'published'], 'expected weights of the published variant'),
])
def test_bad_input_is_one_clear_line_and_leaves_nothing(kitchen, tmp_path, capsys, words, complaint):
    places = {'tmp': tmp_path, 'kitchen': kitchen}
    weights = support.write(tmp_path / 'weights') / support.FILES['pose_aware']
    assert evaluate.main(['online', *(w.format(**places) for w in words), '--weights', str(weights), '--out', str(tmp_path / 'out')]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and complaint.format(**places) in error
    assert not (tmp_path / 'out').exists()
