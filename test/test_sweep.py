"""Laws of the sweeper on the real sequence: metric depth of the newest frame, from views that it chose among the last ones."""
from __future__ import annotations

import numpy as np
import pytest
from sequence_support import head_of

from depth_ros.engines.sweep import Sweeper, SweepSettings
from depth_ros.frames import CameraFrame
from depth_ros.geometry import plane_sweep
from depth_ros.learning.tum import open_sequence, read_trajectory

COUNT = 26
MIDDLE = 0.55       # [1/m], the usual inverse depth of the kitchen


@pytest.fixture(scope='module')
def beginning(kitchen, tmp_path_factory) -> tuple[list[CameraFrame], np.ndarray]:
    """The first frames at half size and their refined poses (N, 4, 4)."""
    with open_sequence(head_of(kitchen, tmp_path_factory.mktemp('sweep') / 'kitchen', COUNT)) as sequence:
        frames = [frame.resized(320, 240) for frame in sequence]
    reference = read_trajectory(kitchen / 'groundtruth_refined.txt')
    return frames, np.stack([reference.at(frame.stamp) for frame in frames])


def filled(beginning, settings: SweepSettings = SweepSettings(), length: float = 1.0) -> Sweeper:
    """A sweeper that has seen all frames, with lengths in units of 1 / `length` metres."""
    sweeper = Sweeper(settings)
    for frame, T_odom_cam in zip(*beginning, strict=True):
        T = T_odom_cam.copy()
        T[:3, 3] *= length
        sweeper.remember(frame, T)
    return sweeper


def median_error(depth: np.ndarray, frame: CameraFrame) -> float:
    truth = frame.resized(depth.shape[1], depth.shape[0])
    known = truth.depth_valid
    return float(np.median(np.abs(depth[known] / truth.depth[known] - 1)))


@pytest.mark.parametrize(('settings', 'size'), [(SweepSettings(), (320, 240)), (SweepSettings(sweep_fine_width=64), (160, 120)),
                                                (SweepSettings(sweep_width=80, sweep_fine_width=160), (160, 120))])
def test_depth_is_metric_and_of_the_size_asked_for(beginning, settings, size):
    result = filled(beginning, settings).step(MIDDLE)
    assert result.frame.stamp == beginning[0][-1].stamp and result.frame.size == size
    assert result.depth.shape == result.valid.shape == result.confidence.shape == size[::-1]
    assert median_error(result.depth, beginning[0][-1]) < 0.15


def test_lengths_in_another_unit_give_depth_in_that_unit(beginning):
    metres, doubled = filled(beginning).step(MIDDLE), filled(beginning, length=2.0).step(MIDDLE / 2)
    assert np.median(np.abs(doubled.depth / metres.depth / 2 - 1)) < 1e-3


def test_the_first_frame_has_nothing_to_be_swept_against(beginning):
    sweeper = Sweeper()
    sweeper.remember(beginning[0][0], beginning[1][0])
    assert sweeper.step(MIDDLE) is None
    sweeper.remember(beginning[0][1], beginning[1][1])
    assert sweeper.step(MIDDLE) is not None
    sweeper.reset()
    sweeper.remember(beginning[0][2], beginning[1][2])
    assert sweeper.step(MIDDLE) is None


def test_references_are_those_whose_parallax_was_wanted(beginning, monkeypatch):
    """The sweep gets every image and pose of the choice, at both sizes."""
    seen, sweep = [], plane_sweep.sweep
    monkeypatch.setattr(plane_sweep, 'sweep', lambda image, references, K, T, config: seen.append((references, T)) or sweep(image, references, K, T, config))
    filled(beginning).step(MIDDLE)
    (references, T_ref_cur), = seen
    assert references.shape == (len(plane_sweep.BASELINES), 3, 120, 160)
    nearest = min(np.linalg.norm((np.linalg.inv(T) @ beginning[1][-1])[:3, 3]) * MIDDLE for T in beginning[1][:-1])
    shares = T_ref_cur[:, :3, 3].norm(dim=-1) * MIDDLE
    assert float(shares.min()) >= nearest - 1e-6 and len(set(shares.tolist())) == len(shares)


def test_memory_is_bounded(beginning):
    sweeper = Sweeper()
    for _ in range(4):
        for frame, T_odom_cam in zip(*beginning, strict=True):
            sweeper.remember(frame, T_odom_cam)
    assert len(sweeper.views) == 40
