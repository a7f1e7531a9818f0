"""Laws of the window: errors of a tracker shrink, held poses stay, memory is bounded, what is lost is found, and bad input is a status."""
from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from deepv2d_support import Clip, Oracle, clip

from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.keyframes import DepthMap, View
from depth_ros.engines.learned_motion import LearnedMotion
from depth_ros.engines.slam_window import FlowPairs, KeyframeChoice, PairSource, SlamWindow, SlamWindowConfig, WindowUpdate, lent_depth, overlap
from depth_ros.engines.tracker import Tracker, TrackerConfig
from depth_ros.frames import CameraFrame, ImagePair, Scale, TrackStatus
from depth_ros.geometry import se3

pytestmark = pytest.mark.usefixtures('one_thread')

FRAMES = 14


@pytest.fixture(scope='module')
def drive() -> Clip:
    """Half a metre sideways and some turning in 14 frames, each of them far enough from the one before to be a keyframe."""
    t = np.linspace(0, 1, FRAMES)[1:, None]
    return clip(np.hstack([-0.5 * t, 0.1 * np.sin(6 * t), 0.15 * t, 0.05 * np.sin(5 * t), 0.12 * t, 0.03 * t]))


def truth(of: Clip) -> np.ndarray:
    """T_odom_cam (N, 4, 4), odom being the first camera."""
    return np.concatenate([np.eye(4)[None], np.linalg.inv(of.T_view_key)])


def measured(of: Clip, index: int) -> DepthMap:
    return DepthMap(of.depth[index], np.ones_like(of.depth[index], bool))


def shaken(poses: np.ndarray, size: float, seed: int = 0) -> np.ndarray:
    """Poses with the errors [m, rad] of a tracker."""
    xi = size * np.random.default_rng(seed).standard_normal((len(poses), 6)) * [1, 1, 1, 0.5, 0.5, 0.5]
    return poses @ se3.exp(torch.from_numpy(xi)).numpy()


def error(poses: np.ndarray, of: Clip, indices: Sequence[int]) -> float:
    """Root mean squared distance [m] of poses from where these cameras were."""
    return float(np.sqrt(((poses[:, :3, 3] - truth(of)[list(indices), :3, 3]) ** 2).sum(-1).mean()))


def run(window: SlamWindow, of: Clip, poses: np.ndarray, key_every: int = 1) -> dict[int, np.ndarray]:
    """All frames through the window; the last pose of each, by index."""
    last = {}
    index = {frame.stamp: i for i, frame in enumerate(of.frames)}
    for i, (frame, T) in enumerate(zip(of.frames, poses, strict=True)):
        update = window.add(frame, measured(of, i), T, i % key_every == 0)
        assert update.status is TrackStatus.OK and frame.stamp in update.poses
        last |= {index[stamp]: pose for stamp, pose in update.poses.items()}
    return last


def sources(of: Clip) -> dict[str, PairSource]:
    return {'flow': FlowPairs(), 'learned': LearnedMotion(Oracle(of).motion)}


@pytest.mark.parametrize('source', ['flow', 'learned'])
@pytest.mark.parametrize('key_every', [1, 3])
def test_errors_of_the_tracker_shrink(drive, source, key_every):
    given = shaken(truth(drive), 0.01)
    given[:2] = truth(drive)[:2]
    found = run(SlamWindow(sources(drive)[source]), drive, given, key_every)
    keys = [i for i in found if i >= 2 and i % key_every == 0]
    assert error(np.stack([found[i] for i in keys]), drive, keys) < 0.35 * error(given[keys], drive, keys)
    assert all(np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-9) for T in found.values())


def test_frames_between_keyframes_are_refined_with_them(drive):
    given = shaken(truth(drive), 0.01)
    given[[0, 1, 3]] = truth(drive)[[0, 1, 3]]
    found = run(SlamWindow(FlowPairs(), SlamWindowConfig(window_fixed=1, window_between=1)), drive, given, key_every=3)
    between = [4, 5, 7, 8]
    assert error(np.stack([found[i] for i in between]), drive, between) < 0.35 * error(given[between], drive, between)


def test_the_oldest_poses_are_held(drive):
    given = shaken(truth(drive), 0.01)
    window, config = SlamWindow(FlowPairs()), SlamWindowConfig()
    for i in range(FRAMES):
        moved = set(window.add(drive.frames[i], measured(drive, i), given[i], True).poses)
        first = max(0, i + 1 - config.window_frames)
        assert moved == {f.stamp for f in drive.frames[first + min(config.window_fixed, i):i + 1]}


def test_flow_that_is_offered_is_not_worked_out_again(drive, monkeypatch):
    engine = FlowEngine()
    pairs = FlowPairs(engine)
    window = SlamWindow(pairs)
    window.add(drive.frames[0], measured(drive, 0), truth(drive)[0])
    pairs.offer([engine.step(ImagePair(drive.frames[1], drive.frames[0]))])
    monkeypatch.setattr(engine, 'step', lambda *_: pytest.fail('worked out again'))
    assert window.add(drive.frames[1], measured(drive, 1), truth(drive)[1], True).is_keyframe


class NoPairs:
    """Sees nothing anywhere."""

    def matches(self, *_: object) -> list[object]:
        return []

    def reset(self) -> None:
        pass


def test_memory_is_bounded(drive):
    """Whatever comes: of the frames that it was given, those beyond the window and the remembered places are let go."""
    config = SlamWindowConfig(window_frames=4, window_fixed=2, max_keyframes=5)
    window, given = SlamWindow(FlowPairs(), config), []
    for i in range(24):
        source = drive.frames[i % 4]
        frame = replace(source, stamp=10 ** 9 + i, image=source.image.copy())
        given.append(weakref.ref(frame))
        window.add(frame, measured(drive, i % 4), truth(drive)[i % 4], i % 2 == 0)
        del frame
    gc.collect()
    assert len(window) == 4
    assert sum(ref() is not None for ref in given) <= 5 + 2 * 4


def test_keyframes_are_chosen_by_distance_and_overlap(drive):
    window, T = SlamWindow(NoPairs()), truth(drive)
    window.add(drive.frames[0], measured(drive, 0), T[0])
    near = window.add(drive.frames[1], measured(drive, 1), T[1])
    assert not near.is_keyframe and len(window) == 1 and near.status is TrackStatus.OK
    turned = T[0] @ se3.exp(torch.tensor([0, 0, 0, 0, 0.4, 0], dtype=torch.float64)).numpy()
    views = [View(f, pose, measured(drive, 0)) for f, pose in zip(drive.frames, (T[0], turned), strict=False)]
    assert overlap(views[0], views[0], TrackerConfig()) == 1.0 and 0.4 < overlap(views[1], views[0], TrackerConfig()) < 0.75
    for pose, choice in ((T[-1], KeyframeChoice(overlap=0.0)), (turned, KeyframeChoice(motion=100.0))):
        window = SlamWindow(FlowPairs(), choice=choice)
        window.add(drive.frames[0], measured(drive, 0), T[0])
        update = window.add(drive.frames[-1], measured(drive, FRAMES - 1), pose)
        assert update.is_keyframe or update.status is TrackStatus.LOST      # it was looked at as one


def test_a_keyframe_without_depth_borrows_that_of_the_last(drive):
    T = truth(drive)
    lender, view = View(drive.frames[0], T[0], measured(drive, 0)), View(drive.frames[6], T[6])
    lent = lent_depth(lender, view)
    assert lent.valid.mean() > 0.8 and lent.scale is Scale.METRIC
    wrong = np.abs(lent.depth / drive.depth[6] - 1)[lent.valid]
    assert np.median(wrong) < 0.01 and (wrong < 0.05).mean() > 0.95
    window = SlamWindow(FlowPairs())
    window.add(drive.frames[0], measured(drive, 0), T[0])
    for i in range(1, 6):
        assert window.add(drive.frames[i], None, T[i], True).status is TrackStatus.OK
    given = shaken(T, 0.05)[6]
    assert error(window.add(drive.frames[6], None, given, True).poses[drive.frames[6].stamp][None], drive, [6]) < 0.35 * error(given[None], drive, [6])


def blank(frame: CameraFrame) -> CameraFrame:
    return replace(frame, image=np.full_like(frame.image, 127))


def test_lost_is_told_and_a_known_place_is_found_again(drive):
    window, T = SlamWindow(FlowPairs()), truth(drive)
    run(window, replace(drive, frames=drive.frames[:6], depth=drive.depth[:6]), T[:6])
    before = len(window)
    lost = window.add(blank(drive.frames[6]), measured(drive, 6), T[6], True)
    assert lost == WindowUpdate({}, TrackStatus.LOST, 0.0, False) and len(window) == before
    astray = T[2] @ se3.exp(torch.tensor([1.5, 0, 0, 0, 0.9, 0], dtype=torch.float64)).numpy()
    again = replace(drive.frames[2], stamp=drive.frames[7].stamp)
    found = window.add(again, measured(drive, 2), astray, True)
    assert found.status is TrackStatus.OK and found.relocalised and len(window) == 2
    assert error(found.poses[again.stamp][None], drive, [2]) < 0.005


@pytest.mark.parametrize('change', ['clock', 'size', 'K'])
def test_what_does_not_belong_begins_a_new_window(drive, change):
    window, T = SlamWindow(FlowPairs()), truth(drive)
    run(window, replace(drive, frames=drive.frames[:4], depth=drive.depth[:4]), T[:4])
    frame = drive.frames[4]
    other = {'clock': replace(frame, stamp=5), 'size': frame.resized(80, 60), 'K': replace(frame, K=frame.K * [[1.1], [1.1], [1.0]])}[change]
    update = window.add(other, None, T[4])
    assert update.is_keyframe and update.status is TrackStatus.OK and len(window) == 1


def test_a_camera_at_rest_or_that_only_turns_stays_finite(drive):
    turns = np.zeros((6, 6))
    turns[:, 4] = np.linspace(0.0, 0.2, 6)
    turning = clip(turns)
    found = run(SlamWindow(FlowPairs()), turning, truth(turning))
    assert all(np.isfinite(T).all() for T in found.values())
    assert error(np.stack([found[i] for i in sorted(found)]), turning, sorted(found)) < 0.01


def test_without_any_depth_it_is_lost_not_broken(drive):
    window = SlamWindow(FlowPairs())
    window.add(drive.frames[0], None, np.eye(4))
    assert window.add(drive.frames[1], None, np.eye(4), True).status is TrackStatus.LOST


def test_the_newest_keyframe_moves_however_many_are_to_be_held(drive):
    window, given = SlamWindow(FlowPairs(), SlamWindowConfig(window_frames=3, window_fixed=3)), shaken(truth(drive), 0.01)
    for i in range(5):
        assert drive.frames[i].stamp in window.add(drive.frames[i], measured(drive, i), given[i], True).poses


def test_the_tracker_goes_on_from_what_was_corrected(drive):
    tracker = Tracker()
    frames = [replace(f, depth=d, depth_valid=np.ones_like(d, bool)) for f, d in zip(drive.frames, drive.depth, strict=True)]
    results = [tracker.step(frame) for frame in frames[:6]]
    assert {r.status for r in results} == {TrackStatus.OK}
    moved = se3.exp(torch.tensor([0.2, -0.1, 0.3, 0.1, 0.2, -0.3], dtype=torch.float64)).numpy()
    tracker.correct({r.stamp: moved @ r.T_odom_cam for r in results[:4]})
    for r in results:
        np.testing.assert_allclose(tracker.pose_of(r.stamp), moved @ r.T_odom_cam, atol=1e-9)
    untouched = Tracker()
    for frame in frames[:6]:
        untouched.step(frame)
    np.testing.assert_allclose(tracker.step(frames[6]).T_odom_cam, moved @ untouched.step(frames[6]).T_odom_cam, atol=1e-4)


def test_the_engine_hands_the_window_what_it_tracks(drive):
    frames = [replace(f, depth=d, depth_valid=np.ones_like(d, bool)) for f, d in zip(drive.frames, drive.depth, strict=True)]
    engine = DeepV2DEngine(DeepV2DConfig(window=True, width=160, height=120))
    results = [engine.step(frame).track for frame in frames]
    assert {r.status for r in results} == {TrackStatus.OK} and sum(r.is_keyframe for r in results) > 2
    moved = np.stack([np.linalg.inv(results[0].T_odom_cam) @ r.T_odom_cam for r in results])
    assert error(moved, drive, range(FRAMES)) < 0.01
    engine.reset()
    assert engine.step(frames[0]).track.status is TrackStatus.OK


@pytest.mark.parametrize('depth', ['flow', 'sweep', 'learned'])
def test_the_engine_refuses_a_window_where_no_sensor_is_to_be_used(depth):
    with pytest.raises(ValueError, match=f'window: true needs sensor depth, but depth is {depth}'):
        DeepV2DEngine(DeepV2DConfig(window=True, depth=depth))


def test_the_engine_says_once_that_the_window_waits_for_sensor_depth(drive, caplog):
    caplog.set_level('INFO')
    engine = DeepV2DEngine(DeepV2DConfig(window=True, width=160, height=120))
    for frame in drive.frames[:3]:
        engine.step(replace(frame, depth=None, depth_valid=None))
    assert [r.getMessage() for r in caplog.records].count('window: true waits for sensor depth') == 1
