"""Pairs of recorded sequences: what they hold, which frames make them, and what unusable input does."""

from __future__ import annotations

import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning.sample import SampleSettings, camera_poses, write_sample
from depth_ros.learning.sequence_pairs import SequenceData, open_sequence_store, sequence_pairs
from depth_ros.learning.trajectory import SequenceError, Trajectory, read_trajectory, write_trajectory

FRAMES, GAP = 44, 9
SETTINGS = SampleSettings(frames=FRAMES, width=64, height=48, focal=52.5, ramp=0.05)


def no_flow(rgb1, rgb2):
    return np.zeros((*rgb1.shape[:2], 2), np.float32)


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sequence') / 'drive'
    write_sample(folder, SETTINGS)
    return folder


@pytest.fixture
def folder(rendered, tmp_path, monkeypatch):
    """A copy that a test may spoil, and a cache of its own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'drive').mkdir()
    for path in rendered.rglob('*'):
        target = tmp_path / 'drive' / path.relative_to(rendered)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    return tmp_path / 'drive'


@pytest.fixture
def spec(folder):
    return SequenceData(sequence=str(folder), gap=GAP, every=7, width=64, height=48, flow_width=64, flow_height=48, flow='none')


def test_pairs_are_frames_a_gap_apart(spec):
    """Image 1 is the later frame; the motion is that of the ground truth, in baselines; depth is the sensor's."""
    batch = open_sequence_store(spec, no_flow).batch(range(5))
    T = camera_poses(SETTINGS)
    for i, current in enumerate(range(GAP, FRAMES, 7)):
        T_2_1 = np.linalg.inv(T[current - GAP]) @ T[current]
        baseline = np.linalg.norm(T_2_1[:3, 3])
        T_2_1[:3, 3] /= baseline
        np.testing.assert_allclose(batch.T_2_1[i], T_2_1, atol=1e-4)
    whole = open_sequence_store(replace(spec, gap=1, every=1, least_baseline=0.0), no_flow)
    assert len(whole) == FRAMES - 1
    later = whole.batch([GAP + 7 - 1])      # image 1 is the frame of pair 1, too
    assert torch.equal(later.image1[0], batch.image1[1])
    torch.testing.assert_close(later.valid, batch.valid[1:2])


def test_flow_and_visibility_follow_from_depth_and_motion(spec):
    batch = open_sequence_store(spec, no_flow).batch(range(5))
    known = batch.valid[:, 0]
    assert known.float().mean() > 0.99
    moved, _ = induced_flow(torch.where(known, 1.0 / batch.inverse_depth[:, 0], 0.0), batch.K, batch.T_2_1)
    assert (moved.movedim(-1, 1) - batch.exact_flow).norm(dim=1)[known].max() < 0.05
    seen = batch.visible[:, 0] & known
    warped, _ = warp_by_flow(batch.image2, batch.exact_flow.movedim(1, -1))
    off, unmoved = ((other - batch.image1).abs().mean(1) for other in (warped, batch.image2))
    assert 0.5 < seen.float().mean() < 0.99 and off[seen].mean() < 0.5 * unmoved[seen].mean()


def test_frames_and_poses_can_be_chosen(spec, tmp_path):
    """Poses of a file go before those of the sequence; a longer way to the same places scales the depth that is seen."""
    truth = camera_poses(SETTINGS)
    stamps = read_trajectory(tmp_path / 'drive' / 'groundtruth.txt').stamps_ns
    doubled = truth.copy()
    doubled[:, :3, 3] *= 2.0
    write_trajectory(tmp_path / 'doubled.txt', Trajectory(stamps, doubled))
    one = open_sequence_store(replace(spec, first=10, last=19), no_flow)
    two = open_sequence_store(replace(spec, first=10, last=19, poses=str(tmp_path / 'doubled.txt')), no_flow)
    assert len(one) == len(two) == 1
    np.testing.assert_allclose(two.batch([0]).inverse_depth, 2.0 * one.batch([0]).inverse_depth, rtol=2e-3)
    assert len(open_sequence_store(replace(spec, first=10, last=18 + 7), no_flow)) == 1


def test_pairs_beyond_the_limits_are_left_out(spec, caplog):
    with caplog.at_level(logging.WARNING):
        kept = list(sequence_pairs(replace(spec, gap=40, every=1)))
    assert not kept and '4 of 4 pairs were left out' in caplog.text          # the robot turns more than 14 degrees in that time
    still = replace(spec, least_baseline=5.0)
    with pytest.raises(SequenceError, match='drive: no two frames 9 apart'):
        open_sequence_store(still, no_flow)


def test_an_unusable_image_stops_the_strict_and_is_named(spec, folder, caplog):
    images = sorted((folder / 'rgb').iterdir())
    whole, wrong_size = images[GAP].read_bytes(), sorted((folder / 'depth').iterdir())
    images[GAP].write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SequenceError, match=images[GAP].name):
        open_sequence_store(spec, no_flow)
    with caplog.at_level(logging.WARNING):
        assert len(open_sequence_store(replace(spec, strict=False), no_flow)) == 4
    assert images[GAP].name in caplog.text
    images[GAP].write_bytes(whole)
    cv2.imwrite(str(wrong_size[GAP]), np.full((24, 32), 5000, np.uint16))
    with pytest.raises(SequenceError, match=f'{wrong_size[GAP].name}: is 32 x 24 pixels'):
        open_sequence_store(spec, no_flow)
    assert len(open_sequence_store(replace(spec, strict=False, every=14), no_flow)) == 2


def test_what_cannot_be_used_is_named(spec, folder):
    with pytest.raises(ValueError, match='no flow function'):
        open_sequence_store(spec)
    with pytest.raises(SequenceError, match='last frame below 44, got 44'):
        open_sequence_store(replace(spec, last=44), no_flow)
    with pytest.raises(SequenceError, match='nowhere: does not exist'):
        open_sequence_store(replace(spec, sequence=str(folder / 'nowhere')), no_flow)
    with pytest.raises(ValueError, match='gap: expected at least 1'):
        open_sequence_store(replace(spec, gap=0), no_flow)
    (folder / 'groundtruth.txt').unlink()
    with pytest.raises(SequenceError, match='no reference poses were given'):
        open_sequence_store(spec, no_flow)


def test_pairs_are_made_once_and_again_when_the_files_change(spec, folder):
    first = open_sequence_store(spec, no_flow)
    assert torch.equal(open_sequence_store(spec).batch([0]).image1, first.batch([0]).image1)      # without a flow function: from the cache
    lines = (folder / 'groundtruth.txt').read_text()
    (folder / 'groundtruth.txt').write_text(lines + '\n')
    with pytest.raises(ValueError, match='no flow function'):
        open_sequence_store(spec)


def test_the_real_sequence_makes_pairs(kitchen, tmp_path, monkeypatch):
    """Some pixels have no depth; the rest agree with the images along the exact flow far better than without."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    spec = SequenceData(sequence=str(kitchen), poses=str(kitchen / 'groundtruth_refined.txt'), first=50, last=120, every=20, flow='none')
    batch = open_sequence_store(spec, no_flow).batch(range(4))
    known = batch.valid[:, 0]
    assert 0.5 < known.float().mean() < 0.95 and (batch.inverse_depth[~batch.valid] == 0.0).all() and (batch.exact_flow.abs().sum(1)[~known] == 0.0).all()
    assert batch.inverse_depth[batch.valid].median() == pytest.approx(0.04, abs=0.02)
    warped, _ = warp_by_flow(batch.image2, batch.exact_flow.movedim(1, -1))
    seen = batch.visible[:, 0] & known
    off, unmoved = ((other - batch.image1).abs().mean(1) for other in (warped, batch.image2))
    assert off[seen].mean() < 0.5 * unmoved[seen].mean()
