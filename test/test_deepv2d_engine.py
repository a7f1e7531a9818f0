"""The engine on the real sequence, with sensor depth, with poses, with colour alone; and on input that nothing can be made of."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FunctionType, ModuleType

import numpy as np
import pytest
from sequence_support import head_of

from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine, EngineResult
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.pairing import Pairing
from depth_ros.engines.tracker import level_start
from depth_ros.frames import CameraFrame, Scale, TrackStatus, resize_intrinsics
from depth_ros.learning.metrics import median_scale
from depth_ros.learning.tum import open_sequence, read_trajectory

SIZE = 320, 240
COUNT = 60
HITS_FROM = 24
STEP = 33_333_333
COLOUR = DeepV2DConfig(depth='flow')


@pytest.fixture(scope='module')
def beginning(kitchen, tmp_path_factory) -> tuple[list[CameraFrame], np.ndarray]:
    """The first frames of the real sequence at the engine's size, and their refined poses (N, 4, 4)."""
    folder = head_of(kitchen, tmp_path_factory.mktemp('engine') / 'kitchen', COUNT)
    with open_sequence(folder) as sequence:
        frames = [frame.resized(*SIZE) for frame in sequence]
    reference = read_trajectory(kitchen / 'groundtruth_refined.txt')
    return frames, np.stack([reference.at(frame.stamp) for frame in frames])


@pytest.fixture(scope='module')
def hurried(kitchen) -> list[CameraFrame]:
    """Every third of the first 90 frames, as if the camera moved three times as fast: colour starts after some 16 of them."""
    with open_sequence(kitchen) as sequence:
        return [sequence[i].resized(*SIZE) for i in range(0, 90, 3)]


@pytest.fixture(scope='module')
def coloured(hurried) -> list[EngineResult]:
    """Colour alone, then range hits as well."""
    return run(DeepV2DEngine(COLOUR), hurried, hits_from=HITS_FROM)


def run(engine: DeepV2DEngine, frames: Iterable[CameraFrame], poses: np.ndarray | None = None, hits_from: int = COUNT) -> list[EngineResult]:
    """Every frame through the engine, which must never give what is not a number."""
    results = []
    for i, frame in enumerate(frames):
        hits = scanned(frame) if i >= hits_from else None
        results.append(engine.step(frame, T_odom_cam=None if poses is None else poses[i], hits=hits))
        check(results[-1], frame)
    return results


def check(result: EngineResult, frame: CameraFrame) -> None:
    """The invariants of a step."""
    track, depth = result
    assert track.stamp == frame.stamp
    assert np.isfinite(track.T_odom_cam).all() and np.isfinite(track.covariance).all() and 0 <= track.inlier_ratio <= 1
    np.testing.assert_allclose(track.T_odom_cam[:3, :3] @ track.T_odom_cam[:3, :3].T, np.eye(3), atol=1e-5)
    if depth is not None:
        assert depth.frame.stamp == frame.stamp and depth.depth.dtype == np.float32
        assert np.isfinite(depth.depth).all() and (depth.depth[depth.valid] > 0).all()
        assert np.isfinite(depth.confidence).all() and depth.confidence.min() >= 0 and depth.confidence.max() <= 1


def scanned(frame: CameraFrame) -> np.ndarray:
    """Three rows of the sensor's depth, as range hits."""
    hits = np.zeros_like(frame.depth)
    rows = [100, 120, 140]
    hits[rows] = np.where(frame.depth_valid[rows], frame.depth[rows], 0)
    return hits


def blank(frame: CameraFrame) -> CameraFrame:
    return replace(frame, image=np.full_like(frame.image, 90))


def resting(frame: CameraFrame, count: int) -> list[CameraFrame]:
    return [replace(frame, stamp=frame.stamp + i * STEP) for i in range(count)]


def statuses(results: Iterable[EngineResult]) -> list[TrackStatus]:
    return [r.track.status for r in results]


def worst(results: list[EngineResult], truth: np.ndarray) -> float:
    """Largest distance [m] from the true path, the first poses being laid upon each other."""
    T = np.stack([r.track.T_odom_cam for r in results])
    moved, true = (np.linalg.inv(p[0]) @ p for p in (T, truth))
    return float(np.linalg.norm((moved - true)[:, :3, 3], axis=-1).max())


def bytes_held(root: object) -> int:
    """Room that the arrays take which can be reached from an object: in instances and containers, not through code or threads."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, ThreadPoolExecutor)):
            continue
        seen[id(thing)] = thing
        waiting += [thing.base] if isinstance(thing, np.ndarray) else gc.get_referents(thing)
    return sum(thing.nbytes for thing in seen.values() if isinstance(thing, np.ndarray) and thing.base is None)


def test_sensor_depth_tracks_the_real_sequence(beginning):
    frames, truth = beginning
    engine = DeepV2DEngine()
    results = run(engine, frames[:40])
    assert set(statuses(results)) == {TrackStatus.OK} and {r.track.scale for r in results} == {Scale.METRIC}
    assert worst(results, truth[:40]) < 0.03
    assert all(np.array_equal(r.depth.depth, f.depth) and r.depth.scale is Scale.METRIC for r, f in zip(results, frames, strict=False))
    assert engine.reason == ''


def test_flows_from_outside_track_as_well(beginning):
    frames, truth = beginning
    engine, flow, pairing, results = DeepV2DEngine(), FlowEngine(), Pairing(), []
    for frame in frames[:40]:
        pair = pairing.pair(frame)
        bundle = None if pair is None else flow.step(pair)
        if bundle is not None:
            pairing.update(bundle)
        results.append(engine.step(frame, bundle))
        check(results[-1], frame)
    assert set(statuses(results)) == {TrackStatus.OK} and worst(results, truth[:40]) < 0.03


def test_an_image_without_its_sensor_depth_is_tracked_and_told(beginning):
    frames, truth = beginning
    engine = DeepV2DEngine()
    run(engine, frames[:10])
    track, depth = engine.step(replace(frames[10], depth=None, depth_valid=None))
    assert track.status is TrackStatus.OK and depth is None and 'no sensor depth' in engine.reason
    assert engine.step(frames[11]).depth is not None


def test_given_poses_give_metric_depth_from_colour(beginning):
    frames, truth = beginning
    results = run(DeepV2DEngine(COLOUR), frames[:40], truth)
    assert all(np.array_equal(r.track.T_odom_cam, T) for r, T in zip(results, truth, strict=False))
    assert {r.track.scale for r in results} == {Scale.METRIC}
    assert all(r.depth is not None and r.depth.scale is Scale.METRIC for r in results[15:])
    final = results[-1].depth
    both = final.valid & frames[39].depth_valid
    error = np.abs(final.depth - frames[39].depth)[both] / frames[39].depth[both]
    assert both.mean() > 0.5 and np.median(error) < 0.15          # in metres as it is: nothing is aligned


def test_a_sweep_gives_depth_now_and_then(beginning):
    frames, truth = beginning
    results = run(DeepV2DEngine(DeepV2DConfig(depth='sweep', sweep_every=5, sweep_planes=32)), frames[:26], truth)
    swept = [i for i, r in enumerate(results) if r.depth is not None]
    assert swept and set(np.diff(swept)) <= {5} and swept[-1] >= 20
    final, frame = results[swept[-1]].depth, frames[swept[-1]].resized(320, 240)
    assert final.depth.shape == (240, 320) and final.scale is Scale.METRIC
    assert median_scale(final.depth, frame.depth, final.valid & frame.depth_valid) == pytest.approx(1, abs=0.2)


def test_colour_starts_once_the_camera_has_moved_and_its_scale_is_free(coloured):
    found = statuses(coloured)
    begin = found.index(TrackStatus.OK)
    assert 1 <= begin < HITS_FROM - 3
    assert set(found[:begin]) == {TrackStatus.INITIALISING} and set(found[begin:]) == {TrackStatus.OK}
    assert all(r.depth is None and np.array_equal(r.track.T_odom_cam, level_start()) for r in coloured[:begin])
    assert all(r.track.scale is Scale.FREE and r.depth.scale is Scale.FREE for r in coloured[begin:HITS_FROM])


def test_range_hits_make_a_free_scale_metric_without_a_jump(coloured, hurried):
    after = coloured[HITS_FROM:]
    assert all(r.track.scale is Scale.METRIC and r.depth.scale is Scale.METRIC for r in after)
    for result, frame in zip(after, hurried[HITS_FROM:], strict=True):
        both = result.depth.valid & frame.depth_valid
        assert median_scale(result.depth.depth, frame.depth, both) == pytest.approx(1, abs=0.15)
    free = coloured[HITS_FROM - 1].depth
    assert abs(median_scale(free.depth, hurried[HITS_FROM - 1].depth, hurried[HITS_FROM - 1].depth_valid) - 1) > 0.2      # so the hits told something
    positions = np.stack([r.track.T_odom_cam[:3, 3] for r in coloured[HITS_FROM - 2:]])
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() < 0.08      # 2.2 cm a step in truth, on average


def test_hits_that_come_late_give_the_scale_of_hits_in_time(hurried):
    late_by, last = 3, len(hurried) - 3
    prompt, late = DeepV2DEngine(COLOUR), DeepV2DEngine(COLOUR)
    for i, frame in enumerate(hurried):
        in_time = prompt.step(frame, hits=scanned(frame) if HITS_FROM <= i < last else None)
        if HITS_FROM <= i - late_by < last:
            late.put_hits(hurried[i - late_by].stamp, scanned(hurried[i - late_by]))
        behind = late.step(frame)
    assert in_time.depth.scale is behind.depth.scale is Scale.METRIC
    np.testing.assert_allclose(behind.depth.depth, in_time.depth.depth, rtol=1e-5)


def test_a_resting_camera_waits_with_a_reason(beginning):
    engine = DeepV2DEngine(COLOUR)
    results = run(engine, resting(beginning[0][0], 10))
    assert set(statuses(results)) == {TrackStatus.INITIALISING} and all(r.depth is None for r in results)
    assert 'move the camera' in engine.reason


def test_a_resting_camera_with_sensor_depth_stays(beginning):
    results = run(DeepV2DEngine(), resting(beginning[0][0], 10))
    assert set(statuses(results)) == {TrackStatus.OK}
    np.testing.assert_allclose(results[-1].track.T_odom_cam, results[0].track.T_odom_cam, atol=1e-5)


def test_blank_images_are_lost_with_sensor_depth_and_found_again(beginning):
    frames, truth = beginning
    results = run(DeepV2DEngine(), [blank(f) if 15 <= i < 18 else f for i, f in enumerate(frames[:25])])
    assert [i for i, r in enumerate(results) if r.track.status is TrackStatus.LOST] == [15, 16, 17]
    assert all(np.array_equal(r.track.T_odom_cam, results[14].track.T_odom_cam) for r in results[15:18])
    assert np.linalg.norm(np.linalg.inv(truth[0]) @ truth[24] - np.linalg.inv(results[0].track.T_odom_cam) @ results[24].track.T_odom_cam) < 0.04


def test_blank_images_never_start_colour(beginning):
    engine = DeepV2DEngine(COLOUR)
    results = run(engine, map(blank, beginning[0][:6]))
    assert set(statuses(results)) == {TrackStatus.INITIALISING} and engine.reason


@pytest.mark.parametrize('config', [DeepV2DConfig(), COLOUR])
@pytest.mark.parametrize('K', [np.diag([0.0, 0.0, 1.0]), np.full((3, 3), np.nan), np.diag([-500.0, 500.0, 1.0]), np.eye(2)])
def test_a_camera_without_focal_length_is_refused_and_harms_nothing(beginning, config, K):
    frames, _ = beginning
    engine = DeepV2DEngine(config)
    bad = replace(frames[0], K=K)
    result = engine.step(bad)
    check(result, bad)
    assert result.track.status is not TrackStatus.OK and result.depth is None and 'focal length' in engine.reason
    after = engine.step(frames[0])
    check(after, frames[0])
    assert 'focal length' not in engine.reason


def test_a_bad_frame_after_a_start_with_sensor_depth_is_lost_in_metres(beginning):
    frames, _ = beginning
    engine = DeepV2DEngine()
    bad = replace(frames[1], K=np.diag([0.0, 0.0, 1.0]))
    assert engine.step(bad).track.status is TrackStatus.INITIALISING
    good = engine.step(frames[0]).track
    lost = engine.step(bad).track
    assert (good.status, lost.status, lost.scale) == (TrackStatus.OK, TrackStatus.LOST, Scale.METRIC)
    np.testing.assert_array_equal(lost.T_odom_cam, good.T_odom_cam)
    engine.reset()
    assert engine.step(bad).track.status is TrackStatus.INITIALISING


def test_an_image_too_small_is_refused(beginning):
    frame = beginning[0][0]
    tiny = replace(frame, image=frame.image[:8, :8], depth=None, depth_valid=None)
    engine = DeepV2DEngine()
    result = engine.step(tiny)
    check(result, tiny)
    assert result.depth is None and '16 x 16' in engine.reason


@pytest.mark.parametrize('change', ['size', 'clock'])
def test_another_camera_or_a_clock_that_jumps_back_starts_anew_at_the_last_pose(beginning, change):
    frames, truth = beginning
    engine = DeepV2DEngine()
    before = run(engine, frames[:20])[-1].track.T_odom_cam
    if change == 'size':
        later = [replace(f.resized(160, 120), K=resize_intrinsics(f.K, 0.5, 0.5)) for f in frames[20:30]]
    else:
        later = [replace(f, stamp=f.stamp - 10 ** 12) for f in frames[20:30]]
    results = run(engine, later)
    assert set(statuses(results)) == {TrackStatus.OK}
    np.testing.assert_allclose(results[0].track.T_odom_cam, before, atol=1e-12)
    assert worst(results, truth[20:30]) < 0.02


def test_reset_returns_to_the_start_or_keeps_the_pose(beginning):
    frames, _ = beginning
    engine = DeepV2DEngine()
    last = run(engine, frames[:20])[-1].track.T_odom_cam
    engine.reset(keep_pose=True)
    kept = engine.step(frames[20]).track
    assert kept.status is TrackStatus.OK and np.array_equal(kept.T_odom_cam, last) and not np.allclose(last, level_start(), atol=1e-3)
    engine.reset()
    assert np.array_equal(engine.step(frames[21]).track.T_odom_cam, level_start())


def test_reset_while_initialising_keeps_the_pose_it_starts_from(hurried):
    engine = DeepV2DEngine(COLOUR)
    pose = level_start()
    pose[:3, 3] = 3.0, -2.0, 1.0
    engine.step(hurried[0], T_odom_cam=pose)
    for _ in range(2):      # from the pose tracked last, then from one that it only waits at
        engine.reset(keep_pose=True)
        results = run(engine, hurried[:3])
        assert set(statuses(results)) == {TrackStatus.INITIALISING}
        assert all(np.array_equal(r.track.T_odom_cam, pose) for r in results)
    results = run(engine, hurried[3:HITS_FROM])
    begun = results[statuses(results).index(TrackStatus.OK)].track
    assert 0 < np.linalg.norm((begun.T_odom_cam - pose)[:3, 3]) < 0.5


def test_sensor_depth_is_taken_up_whenever_it_comes(beginning):
    frames, truth = beginning
    engine = DeepV2DEngine()
    late = [replace(f, depth=None, depth_valid=None) for f in frames[:3]]
    assert set(statuses(run(engine, late))) == {TrackStatus.INITIALISING}
    results = run(engine, frames[3:20])
    assert set(statuses(results)) == {TrackStatus.OK} and all(r.depth.scale is Scale.METRIC for r in results)
    assert worst(results, truth[3:20]) < 0.02
    assert engine.step(replace(frames[20], depth=None, depth_valid=None)).track.scale is Scale.METRIC   # and it may miss now and then


@pytest.mark.parametrize('depth', ['sensor', 'flow', 'sweep'])
def test_memory_is_bounded(beginning, depth):
    """The same two seconds on and on: all the arrays that the engine holds take no more room after a while."""
    frames, truth = beginning
    engine = DeepV2DEngine(DeepV2DConfig(depth=depth, sweep_every=1000, max_keyframes=8, width=80, height=60))
    small = [f.resized(80, 60) for f in frames]
    held = []
    for lap in range(4):
        run(engine, [replace(f, stamp=f.stamp + lap * COUNT * STEP) for f in small], truth)
        held.append(bytes_held(engine))
    assert 0 < held[3] < 1.05 * held[1]
