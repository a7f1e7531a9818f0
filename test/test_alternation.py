"""Laws of alternation: with networks that tell the truth it finds poses, depth and focal length from any start; bad input gives a status and a reason."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from deepv2d_support import NARROW, SIZE, Clip, K, Oracle, clip

from depth_ros.engines.alternation import Alternation, AlternationConfig, AlternationResult, AlternationStatus, FeatureCache
from depth_ros.engines.keyframes import DepthMap
from depth_ros.geometry.bundle import Tracks
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.geometry.warp import induced_flow
from depth_ros.models.deepv2d import TYPICAL_DEPTH, DeepV2D

TWISTS = np.array([[0.25, 0.05, 0.06, 0.02, -0.05, 0.01], [-0.2, 0.1, 0.02, -0.03, 0.04, 0.02], [0.1, -0.22, -0.06, 0.03, 0.02, -0.02], [-0.3, -0.05, 0.1, 0.0, 0.06, 0.0]])
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def moving() -> Clip:
    return clip(TWISTS)


def check(found: AlternationResult, frames: list) -> AlternationResult:
    """The invariants of a run."""
    assert np.isfinite(found.T_view_key).all() and found.T_view_key.shape == (max(len(frames) - 1, 0), 4, 4)
    assert np.isfinite(found.depth).all() and (found.depth >= 0).all() and found.depth.shape == found.confidence.shape
    assert np.isfinite(found.confidence).all() and np.isfinite(found.K).all() or found.status is AlternationStatus.BAD_CALIBRATION
    assert (found.reason == '') == (found.status is AlternationStatus.OK)
    return found


def run(one: Clip, config: AlternationConfig = AlternationConfig(), oracle: Oracle | None = None, views: int | None = None, **begin) -> AlternationResult:
    frames = one.frames if views is None else one.frames[:1 + views]
    return check(Alternation(oracle or Oracle(one), config).run(frames, **begin), frames)


def errors(found: AlternationResult, one: Clip) -> tuple[float, float]:
    """Largest error of a pose (matrix entries), and median relative error of depth, both after the best common scale."""
    true = one.T_view_key[:len(found.T_view_key)]
    scale = np.median(one.depth[0]) / np.median(found.depth)
    poses = found.T_view_key.copy()
    poses[:, :3, 3] *= scale
    return float(np.abs(poses - true).max()), float(np.median(np.abs(scale * found.depth / one.depth[0] - 1)))


def known_depth(one: Clip, unit: float = 1.0) -> DepthMap:
    return DepthMap(one.depth[0] * np.float32(unit), np.ones(SIZE[::-1], bool))


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_from_a_constant_depth_every_round_comes_nearer_to_poses_and_depth(moving, form):
    found = [errors(run(moving, AlternationConfig(rounds=rounds, form=form)), moving) for rounds in (1, 3, 10)]
    for before, after in zip(found, found[1:]):
        assert after[0] < before[0] and after[1] < before[1]
    assert found[-1][0] < 0.05 and found[-1][1] < 0.02


@pytest.mark.parametrize('unit', [1.0, 0.1, 30.0])
def test_given_depth_is_kept_to_in_its_unit(moving, unit):
    found = run(moving, AlternationConfig(rounds=1), depth=known_depth(moving, unit))
    np.testing.assert_allclose(found.T_view_key[:, :3, 3], unit * moving.T_view_key[:, :3, 3], atol=0.004 * unit)
    np.testing.assert_allclose(found.T_view_key[:, :3, :3], moving.T_view_key[:, :3, :3], atol=0.002)
    assert np.median(np.abs(found.depth / (unit * moving.depth[0]) - 1)) < 0.01
    assert found.status is AlternationStatus.OK and (found.confidence == 1).all()


def test_holes_in_a_given_depth_do_no_harm(moving):
    depth = known_depth(moving)
    holes = DepthMap(np.where(np.arange(SIZE[0]) < 60, np.float32(np.nan), depth.depth), depth.valid)
    found = run(moving, AlternationConfig(rounds=1), depth=holes)
    np.testing.assert_allclose(found.T_view_key, moving.T_view_key, atol=0.01)


@pytest.mark.parametrize('unit', [1.0, 20.0])
def test_given_poses_make_depth_in_their_unit_and_stay_in_the_only_round(moving, unit):
    poses = moving.T_view_key.copy()
    poses[:, :3, 3] *= unit
    found = run(moving, AlternationConfig(rounds=1), T_view_key=poses, expected_depth=1.3 * unit)      # a guess will do
    np.testing.assert_allclose(found.T_view_key, poses, rtol=1e-5, atol=1e-6)
    assert np.median(np.abs(found.depth / (unit * moving.depth[0]) - 1)) < 0.01


def test_poses_that_are_off_are_mended_from_the_second_round_on(moving):
    poses = moving.T_view_key.copy()
    poses[:, :3, 3] += np.random.default_rng(3).normal(0, 0.03, (len(poses), 3))
    first, later = (errors(run(moving, AlternationConfig(rounds=rounds), T_view_key=poses, expected_depth=2.0), moving) for rounds in (1, 8))
    assert later[0] < 0.5 * first[0] and later[1] < 0.5 * first[1]


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_depth_is_shown_the_flow_from_its_own_keyframe_to_the_views(moving, form):
    oracle, missed = Oracle(moving), []
    honest, oracle.depth.sees_flow = oracle.depth.forward, True

    def looking(features, K, T_view_key, planes, size, measured):
        depth = torch.from_numpy(moving.depth[len(missed)])[None, None, 2::4, 2::4]
        flow, _ = induced_flow(depth.expand(1, len(moving.T_view_key), -1, -1), K[:, None], T_view_key)
        sure = measured.error < 0.1
        assert sure.float().mean() > 0.1
        missed.append((measured.pixels - pixel_grid(*sure.shape[-2:]) - flow).norm(dim=-1)[sure].median())
        return honest(features, K, T_view_key, planes, size)

    oracle.depth.forward = looking
    run(moving, AlternationConfig(rounds=1, form=form), oracle, T_view_key=moving.T_view_key, expected_depth=TYPICAL_DEPTH)
    assert len(missed) == (1 if form == 'keyframe' else len(moving.frames)) and max(missed) < 0.2


def drifting(one: Clip) -> Oracle:
    """Networks whose motion module sees measured flow, and is a little off everywhere, as one is that has not learned enough."""
    oracle = Oracle(one)
    honest = oracle.motion.forward
    oracle.motion.sees_flow = True
    oracle.motion.forward = lambda key, view, *_: (honest(key, view)[0] + 1.0, honest(key, view)[1])
    return oracle


@pytest.mark.parametrize(('known', 'initial_poses'), [('all', 'identity'), ('half', 'identity'), ('nothing', 'identity'), ('nothing', 'flow')])
def test_poses_that_drift_are_adjusted_to_the_flow(moving, known, initial_poses):
    depth = None if known == 'nothing' else known_depth(moving)
    if known == 'half':
        depth = DepthMap(np.where(np.arange(SIZE[0]) < SIZE[0] // 2, np.float32(np.nan), depth.depth), depth.valid)
    kept, adjusted = (run(moving, AlternationConfig(rounds=3, initial_poses=initial_poses, adjust_poses=adjusted), drifting(moving), depth=depth) for adjusted in (False, True))
    assert errors(adjusted, moving)[0] < 0.5 * errors(kept, moving)[0]
    if known != 'nothing':
        np.testing.assert_allclose(adjusted.T_view_key[:, :3, 3], moving.T_view_key[:, :3, 3], atol=0.02)       # the unit is that of the depth


@pytest.mark.parametrize('changes', [{'form': 'global'}, {'uncalibrated': True}])
def test_nothing_is_adjusted_in_the_global_form_or_while_the_focal_length_is_solved_for(moving, changes, monkeypatch):
    monkeypatch.setattr('depth_ros.engines.alternation.bundle.adjust', lambda *_: pytest.fail('adjusted'))
    assert run(moving, AlternationConfig(rounds=1, **changes), drifting(moving), depth=known_depth(moving)).status is AlternationStatus.OK


def test_what_is_not_tracked_leaves_poses_where_the_network_put_them(moving, monkeypatch):
    nothing = Tracks(np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 5, 2)), np.zeros((0, 5), bool), SIZE[1])
    monkeypatch.setattr('depth_ros.engines.alternation.tracks_of', lambda *_: nothing)
    kept, adjusted = (run(moving, AlternationConfig(rounds=2, adjust_poses=adjusted), drifting(moving), depth=known_depth(moving)) for adjusted in (False, True))
    np.testing.assert_array_equal(kept.T_view_key, adjusted.T_view_key)


@pytest.mark.parametrize('views', [1, 2, 4])
def test_any_number_of_views_will_do(moving, views):
    found = run(moving, AlternationConfig(rounds=1), views=views, depth=known_depth(moving))
    assert found.status is AlternationStatus.OK and errors(found, moving)[0] < 0.01


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_a_focal_length_that_is_off_is_found(moving, form):
    off = K.copy()
    off[0, 0] = off[1, 1] = 1.2 * K[0, 0]
    frames = [replace(frame, K=off) for frame in moving.frames]
    config = AlternationConfig(rounds=1, iterations=8, form=form, uncalibrated=True)
    found = check(Alternation(Oracle(moving), config).run(frames, depth=known_depth(moving)), frames)
    assert found.status is AlternationStatus.OK
    assert found.K[0, 0] == pytest.approx(K[0, 0], rel=0.05) and found.K[1, 1] == pytest.approx(found.K[0, 0]) and found.K[0, 2] == K[0, 2]


def test_the_pose_network_is_where_poses_begin(moving):
    oracle = Oracle(moving)
    oracle.config.pose_network = True
    oracle.motion.initial_motion = lambda key, views: torch.from_numpy(TWISTS).float()
    honest = oracle.motion.forward
    oracle.motion.forward = lambda *inputs: (0 * honest(*inputs)[0], honest(*inputs)[1])       # all is well as it is
    assert errors(run(moving, AlternationConfig(rounds=1, initial_poses='network'), oracle), moving)[0] < 0.01
    assert run(moving, AlternationConfig(rounds=1), oracle).status is AlternationStatus.NO_PARALLAX
    with pytest.raises(ValueError, match='no pose network'):
        run(moving, AlternationConfig(initial_poses='network'))


# Bad input: a status and a reason, and never a pose that is not finite

def test_fewer_frames_than_needed(moving):
    for frames in ([], moving.frames[:1]):
        assert check(Alternation(Oracle(moving)).run(frames), frames).status is AlternationStatus.TOO_FEW_FRAMES
    found = Alternation(Oracle(moving), AlternationConfig(min_frames=5)).run(moving.frames[:4])
    assert found.status is AlternationStatus.TOO_FEW_FRAMES and '4 frames of 5' in found.reason


@pytest.mark.parametrize('twists', [np.zeros((2, 6)), np.array([[0, 0, 0, 0.05, -0.1, 0.02], [0, 0, 0, -0.04, 0.08, 0.0]])], ids=['at rest', 'turning'])
def test_without_parallax_there_is_motion_but_no_depth(twists):
    one = clip(twists)
    found = run(one)
    assert found.status is AlternationStatus.NO_PARALLAX and not found.depth.any() and not found.confidence.any()
    np.testing.assert_allclose(found.T_view_key, one.T_view_key, atol=0.01)
    given = run(one, depth=known_depth(one))
    assert given.status is AlternationStatus.NO_PARALLAX
    np.testing.assert_allclose(given.depth, one.depth[0], rtol=1e-5)        # what was known still is


def test_a_blank_wall(moving):
    blank = [replace(frame, image=np.full_like(frame.image, 90)) for frame in moving.frames]
    for frames in ([blank[0], *moving.frames[1:]], [moving.frames[0], *blank[1:]], blank):
        found = check(Alternation(Oracle(moving)).run(frames), frames)
        assert found.status is AlternationStatus.BLANK and not found.depth.any()


def test_a_frame_of_another_camera(moving):
    other = replace(moving.frames[2], image=moving.frames[2].image[:64, :64])
    longer = replace(moving.frames[2], K=moving.frames[2].K * [[2.0], [2.0], [1.0]])
    for odd in (other, longer):
        frames = [*moving.frames[:2], odd]
        assert check(Alternation(Oracle(moving)).run(frames), frames).status is AlternationStatus.OTHER_CAMERA


@pytest.mark.parametrize('bad', [np.diag([0.0, 0.0, 1.0]), np.full((3, 3), np.nan), np.eye(2)])
def test_no_focal_length(moving, bad):
    frames = [replace(frame, K=bad) for frame in moving.frames]
    found = check(Alternation(Oracle(moving)).run(frames), frames)
    assert found.status is AlternationStatus.BAD_CALIBRATION and 'focal length' in found.reason


@pytest.mark.parametrize('poses', [np.full((4, 4, 4), np.nan), np.tile(np.eye(4), (3, 1, 1))])
def test_poses_that_are_not_finite_or_too_few(moving, poses):
    assert run(moving, T_view_key=poses).status is AlternationStatus.NOT_FINITE


@pytest.mark.parametrize('expected', [np.nan, np.inf, 0.0, -2.0])
def test_an_expected_depth_that_is_no_length(moving, expected):
    found = run(moving, T_view_key=moving.T_view_key, expected_depth=expected)
    assert found.status is AlternationStatus.BAD_DEPTH and str(expected) in found.reason
    np.testing.assert_array_equal(found.T_view_key, moving.T_view_key)


def test_a_depth_map_of_another_size_than_the_image(moving):
    depth = known_depth(moving)
    for odd in (DepthMap(depth.depth[::2, ::2], depth.valid[::2, ::2]), DepthMap(depth.depth, depth.valid[:, 1:]), DepthMap(depth.depth.T, depth.valid.T)):
        found = run(moving, depth=odd)
        assert found.status is AlternationStatus.BAD_DEPTH and not found.depth.any()


@pytest.mark.parametrize('part', ['motion', 'depth'])
def test_a_network_that_gives_no_numbers(moving, part):
    oracle = Oracle(moving)
    module = getattr(oracle, part)
    honest = module.forward

    def broken(*inputs, **named):
        said = honest(*inputs, **named)
        return tuple(x * torch.nan for x in said) if part == 'motion' else replace(said, depths=[said.depths[0] * torch.nan])

    module.forward = broken
    assert run(moving, oracle=oracle).status is AlternationStatus.NOT_FINITE


def test_a_network_that_is_sure_of_nothing(moving):
    oracle = Oracle(moving)
    honest = oracle.motion.forward
    oracle.motion.forward = lambda *inputs: (honest(*inputs)[0], torch.zeros_like(honest(*inputs)[1]))
    found = run(moving, oracle=oracle)
    assert found.status is AlternationStatus.UNSOLVED and '4 of 4 views' in found.reason


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_a_view_far_away_from_good_ones(moving, form):
    poses = moving.T_view_key.copy()
    poses[2, 0, 3] += 50.0
    found = run(moving, AlternationConfig(form=form), T_view_key=poses, depth=known_depth(moving))
    assert found.status is AlternationStatus.UNSOLVED and '1 of 4 views' in found.reason
    np.testing.assert_allclose(found.T_view_key, poses, atol=1e-4)
    np.testing.assert_allclose(found.depth, moving.depth[0], rtol=1e-5)


# Features

def test_features_of_a_frame_are_worked_out_once_and_the_memory_is_bounded(moving):
    oracle = Oracle(moving)
    alternation = Alternation(oracle, AlternationConfig(rounds=2, remembered=6))
    alternation.run(moving.frames)
    assert oracle.seen == 2 * len(moving.frames)        # for motion and for depth
    alternation.run(moving.frames[1:], T_view_key=np.stack([T @ np.linalg.inv(moving.T_view_key[0]) for T in moving.T_view_key[1:]]))
    assert oracle.seen == 2 * len(moving.frames)
    for lap in range(1, 4):
        alternation.run([replace(frame, stamp=frame.stamp + lap * 10 ** 9) for frame in moving.frames])
        assert max(len(alternation.motion_features), len(alternation.depth_features)) <= 6
    alternation.reset()
    assert not len(alternation.motion_features) and not len(alternation.depth_features)


def test_a_cache_gives_more_than_it_keeps(moving):
    cache = FeatureCache(2)
    found = cache.of(moving.frames, lambda images: images[:, :1])
    assert found.shape == (1, len(moving.frames), 1, SIZE[1], SIZE[0]) and len(cache) == 2


def test_a_network_of_the_package_runs_on_sizes_that_do_not_divide_evenly(moving):
    torch.manual_seed(0)
    narrow = DeepV2D(NARROW).eval()
    frames = [frame.resized(152, 120) for frame in moving.frames]
    found = check(Alternation(narrow, AlternationConfig(rounds=1)).run(frames, T_view_key=moving.T_view_key, expected_depth=2.0), frames)
    assert found.status is AlternationStatus.OK and found.depth.shape == (120, 152)
    assert 0.2 < np.median(found.depth) < 20
