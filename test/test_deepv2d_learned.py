"""The engine with learned motion and learned depth: on networks that tell the truth, on one that knows nothing, and on files that hold none."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepv2d_support import NARROW, SIZE, Clip, Oracle, drive

from depth_ros.engines import deepv2d, learned_depth
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine, EngineResult
from depth_ros.engines.depth_filter import DepthFilter, InverseDepth
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.tracker import level_start
from depth_ros.frames import CameraFrame, DepthResult, Scale, TrackStatus
from depth_ros.models import checkpoint, registry
from depth_ros.models.deepv2d import DeepV2D

COUNT = 24
SMALL = {'width': SIZE[0], 'height': SIZE[1], 'learned_width': SIZE[0]}
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def course() -> Clip:
    return drive(COUNT)


@pytest.fixture
def oracle(course, monkeypatch) -> Oracle:
    """What any weights are taken for."""
    made = Oracle(course)
    monkeypatch.setattr(deepv2d, 'load', lambda weights: made)
    return made


@pytest.fixture(scope='module')
def untrained(tmp_path_factory) -> Path:
    """A checkpoint of a network that has learned nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'untrained.safetensors'
    checkpoint.save(path, 'deepv2d', DeepV2D(NARROW), {})
    return path


def seen(course: Clip, sensor: bool) -> list[CameraFrame]:
    return [replace(f, depth=d, depth_valid=np.ones(d.shape, bool)) if sensor else f for f, d in zip(course.frames, course.depth, strict=True)]


def truth(course: Clip) -> np.ndarray:
    """T_odom_cam (N, 4, 4)."""
    return np.stack([level_start(), *(level_start() @ np.linalg.inv(T) for T in course.T_view_key)])


def run(engine: DeepV2DEngine, frames: Sequence[CameraFrame], poses: np.ndarray | None = None) -> list[EngineResult]:
    results = []
    for i, frame in enumerate(frames):
        results.append(engine.step(frame, T_odom_cam=None if poses is None else poses[i]))
        track, depth = results[-1]
        assert np.isfinite(track.T_odom_cam).all() and np.isfinite(track.covariance).all() and 0 <= track.inlier_ratio <= 1
        if depth is not None:
            assert np.isfinite(depth.depth).all() and (depth.depth[depth.valid] > 0).all()
    return results


def worst(results: Sequence[EngineResult], poses: np.ndarray) -> float:
    return max(float(np.abs(r.track.T_odom_cam - T).max()) for r, T in zip(results, poses, strict=True))


# Motion

def test_learned_motion_tracks_with_sensor_depth(oracle, course):
    results = run(DeepV2DEngine(DeepV2DConfig(motion='learned', **SMALL)), seen(course, sensor=True))
    assert {r.track.status for r in results} == {TrackStatus.OK}
    assert worst(results, truth(course)) < 5e-3
    assert sum(r.track.is_keyframe for r in results) >= 3       # chosen as ever
    assert oracle.seen <= 2 * COUNT         # a keyframe's features at most once more than every frame's


def test_without_a_word_of_the_network_there_is_no_motion(oracle, course):
    """Flow does not stand in for it unseen: as long as nothing is known, every frame is a new start at the same place."""
    honest = oracle.motion.forward
    oracle.motion.forward = lambda *inputs: (honest(*inputs)[0], 0 * honest(*inputs)[1])
    results = run(DeepV2DEngine(DeepV2DConfig(motion='learned', **SMALL)), seen(course, sensor=True)[:4])
    assert all(r.track.is_keyframe and np.array_equal(r.track.T_odom_cam, level_start()) for r in results)


def test_learned_motion_and_the_filter_s_depth_track_colour(oracle, course):
    engine = DeepV2DEngine(DeepV2DConfig(motion='learned', depth='flow', keyframe_displacement=0.02, **SMALL))
    frames, poses = seen(course, sensor=False), truth(course)
    run(engine, frames[:14], poses)
    results = run(engine, frames[14:])
    assert {r.track.status for r in results} == {TrackStatus.OK}
    assert np.linalg.norm(results[-1].track.T_odom_cam[:3, 3] - poses[-1][:3, 3]) < 0.05
    both = np.abs(np.log(results[-1].depth.depth / course.depth[-1]))
    assert np.median(both) < 0.1


def test_what_the_network_does_not_know_is_lost_and_a_known_place_found_again(oracle, course):
    frames = seen(course, sensor=True)
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    shown = [*frames[:8], *(replace(f, image=noise) for f in frames[8:11]), *frames[11:16]]
    results = run(DeepV2DEngine(DeepV2DConfig(motion='learned', **SMALL)), shown)
    assert [r.track.status for r in results[8:11]] == [TrackStatus.LOST] * 3
    assert all(np.array_equal(r.track.T_odom_cam, results[7].track.T_odom_cam) for r in results[8:11])
    assert results[-1].track.status is TrackStatus.OK and worst(results[-1:], truth(course)[15:16]) < 0.01


@pytest.fixture
def believer(monkeypatch) -> DeepV2D:
    """A network that believes the flow that it is shown, all of it alike."""
    torch.manual_seed(0)
    made = DeepV2D(replace(NARROW, measured_flow=True)).eval()
    with torch.no_grad():
        for head in (made.motion.flow.residual, made.motion.flow.confidence):
            head.weight.zero_()
    monkeypatch.setattr(deepv2d, 'load', lambda weights: made)
    return made


class Counting(FlowEngine):
    """Counts the pairs that it works out."""

    worked = 0

    def step(self, pair, initial=None):
        self.worked += 1
        return super().step(pair, initial)


@pytest.mark.parametrize('sensor', [True, False], ids=['sensor', 'colour'])
def test_motion_with_the_help_of_flow_tracks(believer, course, monkeypatch, sensor):
    monkeypatch.setattr(deepv2d, 'FlowEngine', Counting)
    engine = DeepV2DEngine(DeepV2DConfig(motion='learned', depth='auto' if sensor else 'flow', keyframe_displacement=0.02, **SMALL))
    frames, poses = seen(course, sensor), truth(course)
    known = 0 if sensor else 14        # poses of the first frames are given where depth comes of them
    run(engine, frames[:known], poses)
    before = engine._flow.worked
    results = run(engine, frames[known:])
    assert {r.track.status for r in results} == {TrackStatus.OK}
    assert np.linalg.norm(results[-1].track.T_odom_cam[:3, 3] - poses[-1][:3, 3]) < (0.02 if sensor else 0.06)
    assert engine._flow.worked - before <= 3 * len(results)        # to two keyframes, and to the frame before for the filter: the network has what the tracker has


def test_flow_of_another_place_is_forgotten_with_the_clock(believer, course):
    engine = DeepV2DEngine(DeepV2DConfig(motion='learned', **SMALL))
    frames = seen(course, sensor=True)
    run(engine, frames[:8])
    assert 0 < len(engine._tracker._learned._flows) <= 12
    engine.reset()
    assert not len(engine._tracker._learned._flows)
    again = run(engine, frames[:8])
    assert {r.track.status for r in again} == {TrackStatus.OK}


# Depth

def test_learned_depth_comes_now_and_then_and_is_right(oracle, course):
    results = run(DeepV2DEngine(DeepV2DConfig(depth='learned', sweep_every=6, learned_views=3, **SMALL)), seen(course, sensor=False), truth(course))
    with_depth = [i for i, r in enumerate(results) if r.depth is not None]
    assert with_depth == [i for i in range(COUNT) if i % 6 == 0 and i]
    for i in with_depth:
        assert results[i].depth.scale is Scale.METRIC and results[i].depth.frame.stamp == course.frames[i].stamp
        assert np.median(np.abs(results[i].depth.depth / course.depth[i] - 1)) < 0.02


def test_the_filter_s_estimate_counts_where_it_is_surer_than_the_network(oracle, course):
    course_depth, wrong = course.depth[6], 1.3

    def told(**choice):
        engine = DeepV2DEngine(DeepV2DConfig(depth='learned', sweep_every=6, learned_views=3, **choice, **SMALL))
        honest = engine._keyframe_depth._work
        engine._keyframe_depth._work = lambda *work: replace(found := honest(*work), depth=found.depth * np.float32(wrong))
        return run(engine, seen(course, sensor=False)[:7], truth(course)[:7])[-1].depth.depth, engine._filter.estimate

    alone, estimate = told(learned_deviation=0.0)
    fused, _ = told()
    np.testing.assert_allclose(np.median(alone / course_depth), wrong, rtol=0.02)
    sure = estimate.relative_sigma < 0.03
    assert sure.mean() > 0.05
    assert np.median(np.abs(np.log(fused / estimate.depth))[sure]) < 0.02 < 0.15 < np.median(np.abs(np.log(fused / alone))[sure])
    assert np.all((fused > 0.99 * np.minimum(alone, estimate.depth)) & (fused < 1.01 * np.maximum(alone, estimate.depth)))


def test_what_the_network_does_not_know_is_left_to_the_filter(course):
    frame = course.frames[0]
    height, width = 2 * frame.image.shape[0], 2 * frame.image.shape[1]
    depth = np.full((height, width), 2.0, np.float32)
    depth[:, :width // 2] = 0.0
    large = frame.resized(width, height)
    result = DepthResult(large, depth, depth > 0, np.ones_like(depth), Scale.FREE)
    estimate = InverseDepth(np.full((height // 2, width // 2), 0.4, np.float32), np.full((height // 2, width // 2), 50.0, np.float32))
    fused = deepv2d._fused(DepthFilter(), estimate, 0.25, result)
    assert fused.valid.all() and fused.scale is Scale.FREE
    np.testing.assert_allclose(fused.depth[:, :width // 2], 2.5, rtol=1e-5)
    assert ((fused.depth[:, width // 2:] > 2.01) & (fused.depth[:, width // 2:] < 2.49)).all()
    assert fused.confidence[0, -1] > fused.confidence[0, 0] > 0


@pytest.mark.parametrize('told', [0.0, np.inf, np.nan])
def test_where_neither_network_nor_filter_knows_depth_is_finite_and_not_sure(course, told):
    frame = course.frames[0]
    depth, shape = np.full(frame.image.shape[:2], told, np.float32), frame.image.shape[:2]
    estimate = InverseDepth(np.full(shape, 0.4, np.float32), np.zeros(shape, np.float32))
    fused = deepv2d._fused(DepthFilter(), estimate, 0.25, DepthResult(frame, depth, np.ones(shape, bool), np.ones(shape, np.float32), Scale.FREE))
    np.testing.assert_allclose(fused.depth, 2.5, rtol=1e-5)
    assert (fused.confidence < 0.05).all()


def test_deferred_depth_is_what_would_have_come_at_once(oracle, course):
    config = DeepV2DConfig(depth='learned', sweep_every=6, learned_views=3, **SMALL)
    at_once, deferred = DeepV2DEngine(config), DeepV2DEngine(config, deferred=True)
    compared = 0
    for frame, T in zip(seen(course, sensor=False), truth(course), strict=True):
        now, later = at_once.step(frame, T_odom_cam=T), deferred.step(frame, T_odom_cam=T)
        assert later.depth is None and at_once.later is None
        assert (deferred.later is None) == (now.depth is None)
        if deferred.later is not None:
            work, compared = deferred.later, compared + 1
            deferred.reset(keep_pose=compared % 2 == 0) if compared == 3 else None      # what is under way goes on undisturbed
            np.testing.assert_allclose(work().depth, now.depth.depth, rtol=1e-6)     # at once it runs on one thread, and sums in another order
            if compared == 3:
                return
    raise AssertionError('no depth was due')


def test_depth_of_a_camera_at_rest_is_not_told_and_says_why(oracle, course):
    frames = [replace(course.frames[0], stamp=course.frames[0].stamp + i * 33_333_333) for i in range(3)]
    found = learned_depth.LearnedDepth(oracle, learned_depth.LearnedSettings(learned_width=SIZE[0]))
    for frame in frames:
        found.remember(frame, np.eye(4))
    assert found.step(0.5) is None and 'rests' in found.reason


# Weights

def test_networks_are_loaded_only_if_something_is_to_be_learned():
    assert DeepV2DEngine(DeepV2DConfig(weights='no/such/file')).config.motion == 'flow'


@pytest.mark.parametrize('choice', [{'motion': 'learned'}, {'depth': 'learned'}])
def test_weights_that_cannot_be_used_are_named_with_the_reason(tmp_path, choice):
    with pytest.raises(ValueError, match='missing.safetensors: there is no such file'):
        DeepV2DEngine(DeepV2DConfig(weights=str(tmp_path / 'missing.safetensors'), **choice))
    (tmp_path / 'text.safetensors').write_text('no weights')
    with pytest.raises(ValueError, match='text.safetensors: not a safetensors file'):
        DeepV2DEngine(DeepV2DConfig(weights=str(tmp_path / 'text.safetensors'), **choice))
    checkpoint.save(tmp_path / 'other.safetensors', 'pose_head', registry.build('pose_head'), {})
    with pytest.raises(ValueError, match='other.safetensors: expected weights of deepv2d, got those of pose_head'):
        DeepV2DEngine(DeepV2DConfig(weights=str(tmp_path / 'other.safetensors'), **choice))


def test_a_network_that_has_learned_nothing_does_no_harm(untrained, course):
    """Whatever it says, results are finite and have a status."""
    config = DeepV2DConfig(motion='learned', depth='learned', weights=str(untrained), sweep_every=4, learned_rounds=2, **SMALL)
    engine = DeepV2DEngine(config)
    frames, poses = seen(course, sensor=False), truth(course)
    results = run(engine, frames[:10], poses) + run(engine, frames[10:16])
    assert any(r.depth is not None for r in results)
    run(DeepV2DEngine(replace(config, depth='sensor')), seen(course, sensor=True)[:6])


def test_channels_last_says_what_the_network_says(untrained):
    plain, made = checkpoint.load(untrained, 'deepv2d').model, learned_depth.load(str(untrained))
    images = torch.rand(2, 3, 120, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for part in ('motion', 'depth'):
            torch.testing.assert_close(getattr(made, part).features(images), getattr(plain, part).features(images), rtol=1e-4, atol=1e-5)


def test_memory_is_bounded(untrained, course):
    config = DeepV2DConfig(motion='learned', depth='learned', weights=str(untrained), sweep_every=8, learned_views=2, learned_width=80, width=80, height=64)
    colour, sensor = DeepV2DEngine(config), DeepV2DEngine(replace(config, depth='sensor'))
    for lap in range(3):
        later = [replace(f, stamp=f.stamp + lap * COUNT * 33_333_333) for f in seen(course, sensor=True)]
        run(colour, [replace(f, depth=None, depth_valid=None) for f in later], truth(course))
        run(sensor, later[::3])
        assert len(colour._keyframe_depth._alternation.depth_features) <= 16 and len(colour._keyframe_depth.views) <= 40
        assert len(sensor._tracker._learned._features) <= 12
