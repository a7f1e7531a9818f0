"""The shipped weights of DeepV2D load, say where they come from, and measure depth and motion on a recording that they never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depth_ros.apps import evaluate
from depth_ros.engines import learned_depth
from depth_ros.models import checkpoint
from depth_ros.models.deepv2d import LIVE

pytestmark = pytest.mark.usefixtures('one_thread')


def scores(task: str, kitchen: Path, out: Path, *options: str) -> dict[str, float]:
    assert evaluate.main([task, '--sequence', str(kitchen), '--out', str(out), *options]) == 0
    return json.loads((out / 'metrics.json').read_text())


def test_they_are_small_and_tell_how_both_parts_were_made():
    assert learned_depth.SHIPPED.stat().st_size < 4e6
    loaded = checkpoint.load(learned_depth.SHIPPED, 'deepv2d')
    assert loaded.model.config == LIVE
    assert {part: record['recipe']['objective'] for part, record in loaded.record['parts'].items()} == {'depth': 'deepv2d_depth', 'motion': 'deepv2d_motion'}


def test_depth_of_keyframes_with_known_poses(kitchen, tmp_path):
    found = scores('depth', kitchen, tmp_path, '--poses', str(kitchen / 'groundtruth_refined.txt'), '--depth', 'learned', '--frames', '72')
    assert found['frames_scored'] >= 3
    assert found['abs_rel'] < 0.13 and found['delta_1_25'] > 0.8      # a constant: 0.27, 0.5


def test_motion_along_a_recording(kitchen, tmp_path):
    found = scores('tracking', kitchen, tmp_path, '--reference', str(kitchen / 'groundtruth_refined.txt'), '--motion', 'learned', '--frames', '50')
    assert found['lost'] == 0
    assert found['rpe_1s_trans_rmse'] < 0.03
