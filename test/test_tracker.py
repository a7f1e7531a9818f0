"""The tracker on rendered scenes with exact truth, on the real sequence with bounds, and on input that no tracker can follow."""
from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from depth_ros.apps import scoring
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap
from depth_ros.engines.pairing import Pairing
from depth_ros.engines.threads import single_threaded
from depth_ros.engines.tracker import Tracker, TrackerConfig, level_start
from depth_ros.frames import CameraFrame, Scale, TrackResult, TrackStatus
from depth_ros.learning import synthetic
from depth_ros.learning.sample import sample_scene
from depth_ros.learning.trajectory import Trajectory
from depth_ros.learning.tum import open_sequence, read_trajectory

STEP = 33_333_333   # ns
K = np.array([[262.5, 0.0, 159.5], [0.0, 262.5, 119.5], [0.0, 0.0, 1.0]])


@lru_cache(maxsize=1)
def scene() -> synthetic.Scene:
    return sample_scene(7)


def arc(t: float, sideways: float = 1.0) -> np.ndarray:
    """T_world_cam (4, 4) in the sample's room at time t: half a metre and thirty degrees a second."""
    T = np.eye(4)
    body = Rotation.from_euler('ZYX', [0.3 + 0.5 * t, 0.1 + 0.05 * np.sin(5 * t), 0.02 * np.sin(7 * t)]).as_matrix()
    T[:3, :3] = body @ level_start()[:3, :3]
    T[:3, 3] = -1.6 + 0.3 * sideways * t, -1.2 + 0.4 * sideways * t, 0.9 + 0.02 * np.sin(4 * t)
    return T


@lru_cache(maxsize=4)
def rendered(path: Callable[[float], np.ndarray], count: int) -> tuple[tuple[CameraFrame, ...], np.ndarray]:
    """Frames along a path at 30 Hz with exact depth, and their true poses (N, 4, 4)."""
    poses = np.stack([path(i / 30) for i in range(count)])
    images, depths = [], []
    for T in poses:
        with single_threaded():
            image, depth = synthetic.render(scene(), torch.tensor(T[None], dtype=torch.float32), torch.tensor(K, dtype=torch.float32), 240, 320)
        images.append(image[0].numpy())
        depths.append(depth[0].numpy())
    frames = tuple(CameraFrame(10 ** 9 + i * STEP, 'camera', im, K, d, np.isfinite(d)) for i, (im, d) in enumerate(zip(images, depths, strict=True)))
    return frames, poses


def turn(t: float) -> np.ndarray:
    """Pure rotation."""
    T = arc(0.0)
    T[:3, :3] = Rotation.from_euler('z', 0.6 * t).as_matrix() @ T[:3, :3]
    return T


def track(frames: Iterable[CameraFrame], tracker: Tracker | None = None, paired: bool = True, dropped: Container[int] = ()) -> list[TrackResult]:
    """Every frame through pairing, flow and tracker, as the nodes do it; `dropped`: indices of those that only pairing and flow see."""
    tracker, flow, pairing, results = tracker or Tracker(), FlowEngine(), Pairing(), []
    for i, frame in enumerate(frames):
        pair = pairing.pair(frame) if paired else None
        bundle = None if pair is None else flow.step(pair)
        if bundle is not None:
            pairing.update(bundle)
        if i in dropped:
            continue
        results.append(tracker.step(frame, bundle))
        assert np.isfinite(results[-1].T_odom_cam).all() and np.isfinite(results[-1].covariance).all()
    return results


def errors(results: list[TrackResult], truth: np.ndarray, delta: int) -> np.ndarray:
    """Relative translation errors (N - delta,) [m] over delta frames."""
    T = np.stack([r.T_odom_cam for r in results])
    moved, true = (np.linalg.inv(p[:-delta]) @ p[delta:] for p in (T, truth))
    return np.linalg.norm((np.linalg.inv(true) @ moved)[:, :3, 3], axis=-1)


def states(results: list[TrackResult]) -> set[TrackStatus]:
    return {r.status for r in results}


def blank(frame: CameraFrame) -> CameraFrame:
    return replace(frame, image=np.full_like(frame.image, 127))


def colour_only(frame: CameraFrame) -> CameraFrame:
    return replace(frame, depth=None, depth_valid=None)


def test_rendered_motion_comes_back():
    frames, truth = rendered(arc, 45)
    results = track(frames)
    assert states(results) == {TrackStatus.OK} and {r.scale for r in results} == {Scale.METRIC}
    assert np.allclose(results[0].T_odom_cam, level_start())
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.01
    assert sum(r.is_keyframe for r in results) > 3


def test_one_keyframe_will_do_with_a_sensor_and_flow_is_found_to_no_other():
    frames, truth = rendered(arc, 45)
    tracker = Tracker(TrackerConfig(sensor_keyframes=1))
    results = track(frames, tracker)
    assert states(results) == {TrackStatus.OK} and len(tracker.keyframes) > 3 and len(tracker.flows) == 1
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.01


def test_missing_bundles_are_computed():
    frames, truth = rendered(arc, 45)
    results = track(frames, paired=False)
    assert states(results) == {TrackStatus.OK}
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.01


def test_pure_rotation_is_tracked():
    frames, truth = rendered(turn, 20)
    results = track(frames)
    assert states(results) == {TrackStatus.OK}
    assert errors(results, truth, 19).max() < 0.01


def test_camera_at_rest_stays_where_it_is():
    frames, _ = rendered(arc, 45)
    still = [replace(frames[0], stamp=frames[0].stamp + i * STEP) for i in range(40)]
    results = track(still)
    assert states(results) == {TrackStatus.OK}
    assert np.abs(results[-1].T_odom_cam - results[0].T_odom_cam).max() < 1e-5


def test_start_pose_is_taken():
    frames, _ = rendered(arc, 45)
    start = arc(1.0)
    results = track(frames[:3], Tracker(T_odom_cam=start))
    assert np.array_equal(results[0].T_odom_cam, start)
    assert np.linalg.norm(results[2].T_odom_cam[:3, 3] - start[:3, 3]) < 0.1


def test_estimated_depth_of_keyframes_is_enough():
    frames, truth = rendered(arc, 45)
    tracker = Tracker()
    results = []
    for frame in frames:
        results.append(tracker.step(colour_only(frame)))
        assert tracker.set_depth(frame.stamp, DepthMap(frame.depth, frame.depth_valid, 0.02 * frame.depth, Scale.FREE))
    assert states(results[1:]) == {TrackStatus.OK} and results[-1].scale is Scale.FREE
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.02


@pytest.mark.parametrize('unit', [0.02, 30.0])
def test_the_unit_of_free_depth_means_nothing(unit):
    """A view may be fifty times nearer or thirty times farther than the one that set the unit, and the camera cover fifteen units a second."""
    frames, truth = rendered(arc, 12)
    tracker, results = Tracker(), []
    for frame in frames:
        results.append(tracker.step(colour_only(frame), T_odom_cam=None if results else truth[0]))
        depth = np.where(frame.depth_valid, frame.depth, 0.0) * np.float32(unit)
        tracker.set_depth(frame.stamp, DepthMap(depth, frame.depth_valid, 0.02 * depth, Scale.FREE))
    assert states(results) == {TrackStatus.OK} and sum(r.is_keyframe for r in results) < 6       # tracked, not found again and again
    moved = (results[-1].T_odom_cam - truth[0])[:3, 3] / unit
    np.testing.assert_allclose(moved, (truth[11] - truth[0])[:3, 3], atol=0.01)


def test_without_any_depth_it_is_initialising():
    frames, _ = rendered(arc, 45)
    results = track(map(colour_only, frames[:5]))
    assert states(results) == {TrackStatus.INITIALISING}
    assert all(np.array_equal(r.T_odom_cam, level_start()) for r in results)


def test_given_poses_are_taken_as_they_are_and_flows_handed_on():
    frames, truth = rendered(arc, 45)
    tracker = Tracker()
    for frame, T in zip(map(colour_only, frames[:30]), truth, strict=False):
        result = tracker.step(frame, T_odom_cam=T)
        assert result.status is TrackStatus.OK and np.array_equal(result.T_odom_cam, T)
        for flow in tracker.flows:
            assert flow.pair.current.stamp == frame.stamp
            assert np.array_equal(tracker.pose_of(flow.pair.reference.stamp), truth[(flow.pair.reference.stamp - 10 ** 9) // STEP])
    assert len(tracker.flows) == 2


def test_a_bundle_is_not_computed_again():
    frames, _ = rendered(arc, 45)
    tracker, flow = Tracker(), FlowEngine()
    pairing = Pairing()
    pairing.pair(frames[0])
    tracker.step(frames[0])
    bundle = flow.step(pairing.pair(frames[1]))
    tracker.step(frames[1], bundle)
    assert len(tracker.flows) == 1 and tracker.flows[0] is bundle


def test_bundle_with_an_unknown_reference_is_left_aside():
    frames, truth = rendered(arc, 45)
    tracker, flow, pairing = Tracker(), FlowEngine(), Pairing()
    pairing.pair(frames[0])     # the tracker never sees this one
    bundles = [flow.step(pairing.pair(f)) for f in frames[1:6]]
    results = [tracker.step(f, b) for f, b in zip(frames[1:6], bundles, strict=True)]
    assert states(results) == {TrackStatus.OK}
    assert errors(results, truth[1:6], 4).max() < 0.005


def test_dropped_frames_do_not_lose_it():
    frames, truth = rendered(arc, 45)
    results = track(frames[::4])
    assert states(results) == {TrackStatus.OK}
    assert errors(results, truth[::4], 8).max() < 0.02


def test_poses_remain_rotations_however_frames_are_dropped():
    """Motion is extrapolated over intervals that differ: what rounding leaves behind must not grow with them."""
    frames, _ = rendered(arc, 45)
    gaps = np.random.default_rng(2).choice([1, 1, 2, 5], 25)
    for result in track([frames[i] for i in np.cumsum(gaps) if i < 45]):
        R = result.T_odom_cam[:3, :3]
        assert np.abs(R @ R.T - np.eye(3)).max() < 1e-13


@pytest.mark.parametrize('paired', [True, False])
def test_blank_images_are_lost_and_found_again(paired: bool):
    frames, truth = rendered(arc, 45)
    given = [blank(f) if 20 <= i < 25 else f for i, f in enumerate(frames)]
    results = track(given, paired=paired)
    assert [i for i, r in enumerate(results) if r.status is TrackStatus.LOST] == [20, 21, 22, 23, 24]
    assert all(np.array_equal(r.T_odom_cam, results[19].T_odom_cam) for r in results[20:25])
    assert results[22].covariance[0, 0] > 100 > results[30].covariance[0, 0]
    good = [i for i in range(45) if not 20 <= i < 25]
    assert errors([results[i] for i in good], truth[good], 30).max() < 0.02


def test_blank_start_waits_for_a_picture():
    frames, truth = rendered(arc, 45)
    results = track([blank(f) for f in frames[:5]] + list(frames[5:20]))
    assert errors(results[6:], truth[6:20], 10).max() < 0.01


def test_a_jump_to_an_unknown_place_is_lost_not_integrated():
    frames, _ = rendered(arc, 45)
    rng = np.random.default_rng(0)
    elsewhere = [replace(f, image=rng.integers(0, 255, f.image.shape, dtype=np.uint8)) for f in frames[20:24]]
    results = track([*frames[:20], *elsewhere])
    assert states(results[20:]) == {TrackStatus.LOST}
    assert np.array_equal(results[-1].T_odom_cam, results[19].T_odom_cam)


def test_a_gap_is_bridged_by_recognition():
    """Back at a place seen before, after a gap in which the camera was carried: the pose is the true one, not last plus a guess."""
    frames, truth = rendered(arc, 45)
    late = [replace(frames[i], stamp=frames[44].stamp + 2 * 10 ** 9 + i * STEP) for i in range(3, 8)]
    results = track([*frames, *late])
    assert results[-1].status is TrackStatus.OK
    back = np.linalg.inv(results[7].T_odom_cam) @ results[-1].T_odom_cam
    assert np.linalg.norm(back[:3, 3]) < 0.02


def test_clock_that_jumps_back_starts_anew_at_the_last_pose():
    frames, _ = rendered(arc, 45)
    results = track([*frames[:20], *frames[:3]])
    assert np.array_equal(results[20].T_odom_cam, results[19].T_odom_cam)
    assert results[20].status is TrackStatus.OK


def test_depth_that_fails_for_a_while_is_survived():
    frames, truth = rendered(arc, 45)
    given = [replace(f, depth=np.zeros_like(f.depth), depth_valid=np.zeros_like(f.depth_valid)) if 20 <= i < 24 else f for i, f in enumerate(frames)]
    results = track(given)
    assert states(results) == {TrackStatus.OK}
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.02


def test_memory_is_bounded():
    frames, _ = rendered(arc, 45)
    tracker = Tracker(TrackerConfig(max_recent=5, max_keyframes=4, keyframe_displacement=0.02))
    track(frames, tracker, paired=False)
    remembered = sum(tracker.pose_of(f.stamp) is not None for f in frames)
    assert len(tracker.keyframes) == 4 and remembered <= 9


def test_reset_forgets():
    frames, _ = rendered(arc, 45)
    tracker = Tracker()
    track(frames[:10], tracker)
    tracker.reset()
    assert tracker.pose_of(frames[5].stamp) is None
    assert np.array_equal(tracker.step(frames[20]).T_odom_cam, level_start())


def test_covariance_is_symmetric_positive_and_covers_the_error():
    frames, truth = rendered(arc, 45)
    results = track(frames)
    for r in results[1:]:
        assert np.allclose(r.covariance, r.covariance.T) and np.linalg.eigvalsh(r.covariance).min() > 0
    sigma = np.median([np.sqrt(np.trace(r.covariance[:3, :3])) for r in results[1:]])
    assert np.median(errors(results, truth, 1)) < 4 * sigma < 0.02


def test_depth_of_another_size_is_refused():
    frames, _ = rendered(arc, 45)
    tracker = Tracker()
    tracker.step(frames[0])
    with pytest.raises(ValueError, match='shape'):
        tracker.set_depth(frames[0].stamp, DepthMap(np.ones((10, 10), np.float32), np.ones((10, 10), bool)))
    assert not tracker.set_depth(5, DepthMap(frames[0].depth, frames[0].depth_valid))


def test_real_sequence(kitchen: Path):
    """RPE over one second against the refined reference, on 100 frames; the whole sequence is scored by `evaluate`."""
    sequence, reference = open_sequence(kitchen), read_trajectory(kitchen / 'groundtruth_refined.txt')
    frames = [sequence[i] for i in range(100)]
    results = track(f.resized(320, 240) for f in frames)
    assert states(results) == {TrackStatus.OK}
    truth = np.stack([reference.at(f.stamp) for f in frames])
    assert np.sqrt((errors(results, truth, 30) ** 2).mean()) < 0.012


def test_a_busy_machine_loses_nothing_of_the_real_sequence(kitchen: Path):
    """Flow skips images and the tracker skips bundles, irregularly: references it never saw, silences of up to half a second."""
    rng = np.random.default_rng(5)
    sequence, reference = open_sequence(kitchen), read_trajectory(kitchen / 'groundtruth_refined.txt')
    chosen = np.cumsum(rng.choice([1, 2, 3, 5, 13], 150, p=[0.4, 0.25, 0.2, 0.1, 0.05]))
    chosen = chosen[chosen < len(sequence)]
    dropped = set(np.flatnonzero(rng.random(len(chosen)) < 0.25))
    results = track((sequence[i].resized(320, 240) for i in chosen), dropped=dropped)
    assert chosen[-1] > 280 and len(dropped) > 15 and states(results) == {TrackStatus.OK}
    trajectory = Trajectory(np.array([r.stamp for r in results]), np.stack([r.T_odom_cam for r in results]))
    assert scoring.tracking(trajectory, reference, Scale.METRIC).ate_rmse < 0.03


def test_depth_of_its_own_refines_the_last_pose_within_belief():
    frames, truth = rendered(arc, 45)
    tracker, colour = Tracker(), [replace(f, depth=None, depth_valid=None) for f in frames]
    for i in range(8):      # given poses
        tracker.step(colour[i], T_odom_cam=truth[i])
        tracker.set_depth(colour[i].stamp, DepthMap(frames[i].depth, frames[i].depth_valid, 0.2 * frames[i].depth, Scale.FREE))
    before = tracker.step(colour[8]).T_odom_cam
    known = DepthMap(frames[8].depth, frames[8].depth_valid, 0.01 * frames[8].depth, Scale.FREE)
    after = tracker.refine(known)
    assert np.array_equal(after, tracker.pose_of(colour[8].stamp))
    assert 0 < np.linalg.norm((after - truth[8])[:3, 3]) <= np.linalg.norm((before - truth[8])[:3, 3])
    wild = tracker.refine(replace(known, depth=(50 * known.depth).astype(np.float32)))      # depth of another scale would be a leap
    assert np.linalg.norm((wild - after)[:3, 3]) < 0.01
