"""Scores of trajectories against a reference; association and alignment are evo's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from evo.core import metrics, sync
from evo.core.geometry import GeometryException
from evo.core.trajectory import PoseTrajectory3D
from scipy.spatial.transform import Rotation

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
    pairs = pairs_apart(np.asarray(truth.timestamps), 1.0)
    if len(pairs) == 0:
        raise ValueError(f'expected poses one second apart, got {truth.num_poses} poses over {truth.timestamps[-1] - truth.timestamps[0]:.1f} s')
    try:
        track.align(truth, correct_scale=scale is Scale.FREE)
    except GeometryException as error:
        raise ValueError(f'cannot align the trajectory with the reference, one of them does not move enough: {error}') from error
    errors = relative_errors(np.stack(truth.poses_se3), np.stack(track.poses_se3), pairs)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((truth, track))
    return TrackingScore(
        rpe_1s_trans_rmse=_rms(np.linalg.norm(errors[:, :3, 3], axis=1)),
        rpe_1s_rot_rmse=_rms(np.degrees(Rotation.from_matrix(errors[:, :3, :3]).magnitude())),
        ate_rmse=float(ape.get_statistic(metrics.StatisticsType.rmse)),
        alignment='Sim3' if scale is Scale.FREE else 'SE3',
        poses=truth.num_poses,
        stamps=np.asarray(truth.timestamps),
        reference=truth.positions_xyz,
        aligned=track.positions_xyz,
        ate=np.asarray(ape.error),
    )


def pairs_apart(stamps: np.ndarray, delta: float) -> np.ndarray:
    """Indices (M, 2) of all poses whose stamps (N,) [s] lie delta [s] apart, to half a frame.

    evo counts frames instead, which stretches the second wherever frames are missing.
    """
    later = np.searchsorted(stamps, stamps + delta).clip(1, len(stamps) - 1)
    later -= stamps + delta - stamps[later - 1] < stamps[later] - stamps - delta     # whichever neighbour is nearer
    tolerance = 0.5 * np.median(np.diff(stamps))
    kept = np.abs(stamps[later] - stamps - delta) <= tolerance
    return np.stack([np.flatnonzero(kept), later[kept]], axis=1)


def relative_errors(truth: np.ndarray, track: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Errors (M, 4, 4) of the track's motion over each pair (M, 2) of poses (N, 4, 4) (Sturm et al., IROS 2012, eq. 1)."""
    wanted, found = (np.linalg.inv(T[pairs[:, 0]]) @ T[pairs[:, 1]] for T in (truth, track))
    return np.linalg.inv(wanted) @ found


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values ** 2)))


def _evo(trajectory: Trajectory) -> PoseTrajectory3D:
    return PoseTrajectory3D(poses_se3=list(trajectory.T_world_cam), timestamps=np.asarray(trajectory.stamps_ns) * 1e-9)
