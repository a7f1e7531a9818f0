"""Scores of trajectories against a reference, through evo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from evo.core import metrics, sync
from evo.core.geometry import GeometryException
from evo.core.trajectory import PoseTrajectory3D

from depth_ros.frames import Scale
from depth_ros.learning.trajectory import Trajectory

MAX_STAMP_DIFFERENCE = 0.01  # [s] between an estimate and the reference pose that it is compared with


@dataclass(frozen=True)
class TrackingScore:
    """Errors of a trajectory after association by stamp and alignment."""

    rpe_1s_trans_rmse: float        # [m/s], over all pairs one second apart
    rpe_1s_rot_rmse: float          # [deg/s]
    ate_rmse: float                 # [m]
    alignment: str                  # SE3 | Sim3
    poses: int                      # associated with the reference
    stamps: np.ndarray              # (N,) [s]
    reference: np.ndarray           # (N, 3) [m]
    aligned: np.ndarray             # (N, 3) [m], in the reference's frame
    ate: np.ndarray                 # (N,) [m]


def tracking(estimate: Trajectory, reference: Trajectory, scale: Scale) -> TrackingScore:
    """Relative (1 s, all pairs) and absolute (aligned by SE3, or by Sim3 while the scale is FREE) translational errors.

    Raises ValueError if fewer than three poses can be associated or the trajectory is shorter than one second.
    """
    try:
        truth, track = sync.associate_trajectories(_evo(reference), _evo(estimate), max_diff=MAX_STAMP_DIFFERENCE)
    except sync.SyncException as error:
        raise ValueError(f'no pose lies within {MAX_STAMP_DIFFERENCE} s of the reference: do both use the same clock?') from error
    if truth.num_poses < 3:
        raise ValueError(f'expected at least 3 poses within {MAX_STAMP_DIFFERENCE} s of the reference, got {truth.num_poses}')
    frames_per_second = max(1, round(1.0 / float(np.median(np.diff(truth.timestamps)))))
    if truth.num_poses <= frames_per_second:
        raise ValueError(f'expected a trajectory longer than 1 s, got {truth.num_poses} poses at {frames_per_second} Hz')
    try:
        track.align(truth, correct_scale=scale is Scale.FREE)
    except GeometryException as error:
        raise ValueError(f'cannot align the trajectory with the reference, one of them does not move enough: {error}') from error
    relative = {}
    for part in (metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg):
        rpe = metrics.RPE(part, delta=frames_per_second, delta_unit=metrics.Unit.frames, all_pairs=True)
        rpe.process_data((truth, track))
        relative[part] = float(rpe.get_statistic(metrics.StatisticsType.rmse))
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((truth, track))
    return TrackingScore(
        rpe_1s_trans_rmse=relative[metrics.PoseRelation.translation_part],
        rpe_1s_rot_rmse=relative[metrics.PoseRelation.rotation_angle_deg],
        ate_rmse=float(ape.get_statistic(metrics.StatisticsType.rmse)),
        alignment='Sim3' if scale is Scale.FREE else 'SE3',
        poses=truth.num_poses,
        stamps=np.asarray(truth.timestamps),
        reference=truth.positions_xyz,
        aligned=track.positions_xyz,
        ate=np.asarray(ape.error),
    )


def _evo(trajectory: Trajectory) -> PoseTrajectory3D:
    return PoseTrajectory3D(poses_se3=list(trajectory.T_world_cam), timestamps=np.asarray(trajectory.stamps_ns) * 1e-9)
