"""Trajectory scores: laws of alignment, and agreement with errors put in by hand."""

from __future__ import annotations

import numpy as np
import pytest
from evo.core import metrics
from evo.core.trajectory import PosePath3D
from scipy.spatial.transform import Rotation

from depth_ros.apps import scoring
from depth_ros.frames import Scale
from depth_ros.learning.trajectory import Trajectory

RATE = 30
RNG = np.random.default_rng(3)


def wandering(seconds: float = 4.0) -> Trajectory:
    """A smooth trajectory through space."""
    t = np.arange(0, seconds, 1 / RATE)
    T = np.tile(np.eye(4), (len(t), 1, 1))
    T[:, :3, 3] = np.stack([np.sin(t), 0.5 * t, 0.2 * np.cos(2 * t)], axis=1)
    T[:, :3, :3] = Rotation.from_rotvec(np.stack([0.1 * t, np.sin(t), 0 * t], axis=1)).as_matrix()
    return Trajectory((1_700_000_000 + t) * 1e9, T)


def moved(trajectory: Trajectory, scale: float = 1.0) -> Trajectory:
    """The same trajectory in another world frame and unit."""
    T = trajectory.T_world_cam.copy()
    T[:, :3, 3] *= scale
    change = np.eye(4)
    change[:3, :3] = Rotation.from_rotvec([0.4, -0.2, 1.0]).as_matrix()
    change[:3, 3] = [3.0, -1.0, 0.5]
    return Trajectory(trajectory.stamps_ns, change @ T)


def test_the_world_frame_does_not_matter():
    score = scoring.tracking(moved(wandering()), wandering(), Scale.METRIC)
    assert score.alignment == 'SE3' and score.poses == 4 * RATE
    assert max(score.rpe_1s_trans_rmse, score.ate_rmse) < 1e-9
    np.testing.assert_allclose(score.aligned, score.reference, atol=1e-9)


def test_the_unit_matters_only_to_a_metric_trajectory():
    tripled = moved(wandering(), scale=3.0)
    assert scoring.tracking(tripled, wandering(), Scale.FREE).ate_rmse < 1e-9
    assert scoring.tracking(tripled, wandering(), Scale.METRIC).ate_rmse > 0.5


def test_drift_at_constant_speed_is_the_relative_error_per_second():
    truth = wandering()
    T = truth.T_world_cam.copy()
    T[:, :3, :3] = np.eye(3)
    drifting = T.copy()
    drifting[:, 0, 3] += 0.05 * np.arange(len(truth)) / RATE
    score = scoring.tracking(Trajectory(truth.stamps_ns, drifting), Trajectory(truth.stamps_ns, T), Scale.METRIC)
    assert score.rpe_1s_trans_rmse == pytest.approx(0.05, rel=0.02)
    assert score.rpe_1s_rot_rmse < 0.1


def test_noise_gives_the_error_that_it_is():
    truth = wandering(20.0)
    T = truth.T_world_cam.copy()
    T[:, :3, 3] += RNG.normal(0, 0.01, (len(truth), 3))
    score = scoring.tracking(Trajectory(truth.stamps_ns, T), truth, Scale.METRIC)
    assert score.ate_rmse == pytest.approx(0.01 * 3 ** 0.5, rel=0.1)
    assert score.rpe_1s_trans_rmse == pytest.approx(0.01 * 6 ** 0.5, rel=0.1)


def test_without_gaps_the_relative_error_is_that_of_evo():
    truth = wandering(6.0)
    T = truth.T_world_cam.copy()
    T[:, :3, 3] += RNG.normal(0, 0.01, (len(truth), 3))
    paths = [PosePath3D(poses_se3=list(poses)) for poses in (truth.T_world_cam, T)]
    rpe = metrics.RPE(metrics.PoseRelation.translation_part, delta=RATE, delta_unit=metrics.Unit.frames, all_pairs=True)
    rpe.process_data(tuple(paths))
    score = scoring.tracking(Trajectory(truth.stamps_ns, T), truth, Scale.METRIC)
    assert score.rpe_1s_trans_rmse == pytest.approx(rpe.get_statistic(metrics.StatisticsType.rmse), rel=1e-6)


def test_gaps_do_not_stretch_the_second():
    truth = wandering(6.0)
    T = truth.T_world_cam.copy()
    T[:, :3, :3] = np.eye(3)
    drifting = T.copy()
    drifting[:, 0, 3] += 0.05 * np.arange(len(truth)) / RATE
    kept = RNG.random(len(truth)) < 0.7
    score = scoring.tracking(Trajectory(truth.stamps_ns[kept], drifting[kept]), Trajectory(truth.stamps_ns, T), Scale.METRIC)
    assert score.rpe_1s_trans_rmse == pytest.approx(0.05, rel=0.02)


def test_missing_poses_are_left_out():
    truth = wandering()
    kept = np.arange(len(truth)) % 3 != 0
    score = scoring.tracking(Trajectory(truth.stamps_ns[kept], truth.T_world_cam[kept]), truth, Scale.METRIC)
    assert score.poses == kept.sum() and score.ate_rmse < 1e-9


def test_another_clock_or_too_short_a_track_is_an_error():
    truth = wandering()
    with pytest.raises(ValueError, match='same clock'):
        scoring.tracking(Trajectory(truth.stamps_ns + 10 ** 15, truth.T_world_cam), truth, Scale.METRIC)
    with pytest.raises(ValueError, match='one second apart'):
        scoring.tracking(Trajectory(truth.stamps_ns[:20], truth.T_world_cam[:20]), truth, Scale.METRIC)


def test_a_track_that_never_moves_is_an_error():
    still = Trajectory(wandering().stamps_ns, np.tile(np.eye(4), (len(wandering()), 1, 1)))
    with pytest.raises(ValueError, match='does not move enough'):
        scoring.tracking(still, wandering(), Scale.METRIC)
