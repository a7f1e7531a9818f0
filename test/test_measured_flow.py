"""Flow that was measured, as DeepV2D's modules see it: exact flow gives exact poses, wild flow is outvoted, and no pair is worked out twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_support import SHOWN, TINY, sample_clips
from torch import Tensor

from depth_ros.engines import known_flows
from depth_ros.engines.alternation import Alternation, AlternationConfig, AlternationStatus
from depth_ros.engines.features import Features
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.focal import FocalEngine, FocalEstimate
from depth_ros.engines.keyframes import DepthMap
from depth_ros.engines.known_flows import KnownFlows, agreeing, reverse
from depth_ros.frames import CameraFrame, FlowResult, ImagePair
from depth_ros.geometry import gauss_newton, se3
from depth_ros.geometry.bundle import GIVEN
from depth_ros.geometry.gauss_newton import Damping
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning.clips import clip_batch
from depth_ros.models import registry
from depth_ros.models.deepv2d import LIVE
from depth_ros.models.deepv2d_motion import STRIDE, MeasuredFlow, MotionModule, agreement_weight, align, edges_of, keyframe_edges, measured_flow

pytestmark = pytest.mark.usefixtures('one_thread')
HEIGHT, WIDTH, FRAMES = 24, 32, 3
K = torch.tensor([[[26.0, 0.0, 15.5], [0.0, 26.0, 11.5], [0.0, 0.0, 1.0]]])
EDGES = keyframe_edges(FRAMES)


@pytest.fixture(scope='module')
def believer() -> MotionModule:
    """A module that corrects nothing, and is equally sure of all flow."""
    torch.manual_seed(0)
    module = MotionModule(LIVE).eval()
    with torch.no_grad():
        for head in (module.flow.residual, module.flow.confidence):
            head.weight.zero_()
    return module


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Depth (1, N, h, w), true poses (1, N, 4, 4) and the exact pixels (1, E, h, w, 2) of the edges."""
    g = torch.Generator().manual_seed(0)
    depth = 2.0 + torch.rand(1, FRAMES, HEIGHT, WIDTH, generator=g)
    T = se3.exp(0.05 * torch.randn(1, FRAMES, 6, generator=g))
    T[:, 0] = torch.eye(4)
    flow, _ = induced_flow(depth[:, EDGES[0]], K[:, None], gauss_newton.relative_motion(T, *EDGES))
    return depth, T, flow + pixel_grid(HEIGHT, WIDTH)


def found_with(module: MotionModule, pixels: Tensor, error: Tensor) -> Tensor:
    depth, _, _ = scene()
    features = torch.zeros(1, FRAMES, LIVE.motion_features, HEIGHT, WIDTH)
    with torch.inference_mode():
        return align(module, features, depth, K, torch.eye(4).expand(1, FRAMES, 4, 4), EDGES, iterations=6, damping=Damping(1e-6, 0.0), measured=MeasuredFlow(pixels, error)).T_cam_world


def test_exact_flow_gives_exact_poses(believer):
    _, truth, pixels = scene()
    torch.testing.assert_close(found_with(believer, pixels, torch.zeros(pixels.shape[:-1])), truth, atol=1e-4, rtol=0)


def test_a_third_of_wild_flow_is_outvoted(believer):
    _, truth, pixels = scene()
    g = torch.Generator().manual_seed(1)
    wild = torch.rand(pixels.shape[:-1], generator=g) < 0.3
    pixels = torch.where(wild[..., None], pixels + 6.0 * torch.rand(pixels.shape, generator=g), pixels)
    torch.testing.assert_close(found_with(believer, pixels, torch.zeros(wild.shape)), truth, atol=2e-2, rtol=0)


def test_the_scale_of_what_agrees_is_that_of_consistent_flow():
    missed = torch.full((1, 2, 4, 8), 0.3)
    missed[..., 4:] = 30.0
    error = torch.zeros(1, 4, 8)
    error[..., 4:] = 1.0
    weight = agreement_weight(missed, error)
    assert weight.shape == (1, 1, 4, 8) and (weight[..., :4] > 0.75).all() and (weight[..., 4:] < 1e-3).all()
    assert torch.equal(agreement_weight(missed, torch.ones_like(error)).isfinite(), torch.ones(1, 1, 4, 8, dtype=torch.bool))      # none is consistent
    assert torch.equal(agreement_weight(torch.zeros_like(missed), error), torch.ones(1, 1, 4, 8))


def test_maps_see_the_mean_of_what_they_cover():
    flow = torch.zeros(1, 1, 10, 13, 2)
    flow[..., 0], flow[..., 1] = 8.0, -2.0
    error = torch.full((1, 1, 10, 13), 0.4)
    found = measured_flow(flow, error)
    assert found.pixels.shape == (1, 1, 3, 4, 2) and found.error.shape == (1, 1, 3, 4)      # ceil, as the trunk
    torch.testing.assert_close(found.pixels, (pixel_grid(3, 4) + torch.tensor([2.0, -0.5])).expand(1, 1, 3, 4, 2))
    torch.testing.assert_close(found.error, torch.full((1, 1, 3, 4), 0.1))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_no_number_is_as_inconsistent_as_can_be(bad):
    flow, error = torch.zeros(1, 1, 8, 8, 2), torch.zeros(1, 1, 8, 8)
    flow[0, 0, :4, :4, 0], error[0, 0, 4:, 4:] = bad, bad
    found = measured_flow(flow, error)
    assert torch.isfinite(found.pixels).all()
    assert found.error[0, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_module_that_sees_flow_says_that_it_got_none_or_that_of_other_edges(believer):
    depth, T, pixels = scene()
    features = torch.zeros(1, FRAMES, LIVE.motion_features, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match='of the 2 edges that are used, got that of 1'):
        align(believer, features, depth, K, T, EDGES, measured=MeasuredFlow(pixels[:, :1], torch.zeros(pixels[:, :1].shape[:-1])))
    with pytest.raises(ValueError, match='sees measured flow, and got none'):
        align(believer, torch.zeros(1, FRAMES, LIVE.motion_features, HEIGHT, WIDTH), depth, K, T, EDGES)


class Counting(FlowEngine):
    """Counts what it works out."""

    worked = 0

    def step(self, pair, initial=None):
        self.worked += 1
        return super().step(pair, initial)


def frames_of(count: int = 5, larger: int = 1, number: int = 0) -> list[CameraFrame]:
    clip = sample_clips(larger=larger)[number]
    return [CameraFrame(1 + i, 'camera', image, clip.K) for i, image in enumerate(clip.images[:count])]


def test_every_pair_is_worked_out_once_in_both_directions():
    a, b, c = frames_of(3)
    engine = Counting(FlowConfig(preset='medium'))
    known = KnownFlows(engine, 2)
    there, back = known.between(a, b), known.between(b, a)
    assert engine.worked == 1 and np.array_equal(back.flow, there.backward) and back.pair.current is b
    np.testing.assert_array_equal(reverse(back).flow, there.flow)
    known.between(a, c)
    known.between(b, c)
    assert len(known) == 2 and engine.worked == 3       # bounded: the oldest pair is forgotten
    known.between(a, b)
    assert engine.worked == 4
    known.offer([there])
    assert known.between(a, b) is there
    known.clear()
    assert not len(known)


class Begun(FlowEngine):
    """Exact flow of neighbouring stamps; of frames that are farther apart wherever it is told to begin within three pixels of it."""

    def __init__(self, flows: dict[tuple[int, int], np.ndarray]) -> None:
        super().__init__()
        self._flows = flows
        self.begun: list[tuple[int, int]] = []

    def step(self, pair, initial=None):
        ends = pair.current.stamp, pair.reference.stamp
        if initial is None and abs(ends[0] - ends[1]) == 1:
            return FlowResult(pair, self._flows[ends], self._flows[ends[::-1]])
        lost = np.full((*pair.current.image.shape[:2], 2), 500.0, np.float32)
        if initial is None:
            return FlowResult(pair, lost, lost)
        self.begun.append(ends)
        return FlowResult(pair, *(np.where(np.linalg.norm(start - exact, axis=-1, keepdims=True) < 3.0, exact, lost)
                                  for start, exact in zip(initial, (self._flows.get(way, -lost) for way in (ends, ends[::-1])))))


def exact_flows(larger: int, frames: int) -> dict[tuple[int, int], np.ndarray]:
    """By stamps, of all pairs of the first views of a clip."""
    clips = clip_batch(sample_clips(larger=larger)[:1], [list(range(frames))])
    found = {}
    for i in range(frames):
        for j in range(frames):
            T = clips.T_cam_world[0, j] @ se3.inverse(clips.T_cam_world[0, i])
            found[1 + i, 1 + j] = induced_flow(clips.depth[0, i], clips.K[0], T)[0].numpy()
    return found


def test_views_too_far_apart_are_met_by_way_of_one_between(monkeypatch):
    monkeypatch.setattr(Features, 'matched', lambda *_: np.zeros((2, 0, 2), np.float32))
    key, middle, far = frames_of(3, larger=3)
    exact = exact_flows(3, 3)
    engine = Begun(exact)
    known = KnownFlows(engine, 8)
    assert not agreeing(known.between(key, far)).any()
    near, found = known.to_views(key, [middle, far])
    assert np.array_equal(near.flow, exact[1, 2])
    assert agreeing(found).mean() > 0.4 and is_exact(found, exact)
    tried = len(engine.begun)
    assert not agreeing(known.between(key, far)).any()      # whoever does not know the view between gets nothing of it
    assert [flow.pair.reference.stamp for flow in known.to_views(key, [far])] == [3] and len(engine.begun) == tried


def test_views_too_far_apart_are_met_where_their_features_are():
    key, _, far = frames_of(3, larger=3)
    exact = exact_flows(3, 3)
    engine = Begun(exact)
    known = KnownFlows(engine, 8)
    found, = known.to_views(key, [far])
    assert len(engine.begun) == 1
    assert agreeing(found).mean() > 0.3 and is_exact(found, exact)
    assert not agreeing(known.between(key, far)).any()      # depends on no other view, but what is remembered is what flow alone tells


def is_exact(found: FlowResult, exact: dict[tuple[int, int], np.ndarray]) -> bool:
    """Whether what agrees with itself is right, both ways."""
    ends, sure = (found.pair.current.stamp, found.pair.reference.stamp), agreeing(found)
    return all(np.median(np.linalg.norm(flow - exact[way], axis=-1)[sure]) < 0.05 for flow, way in ((found.flow, ends), (found.backward, ends[::-1])))


def test_flow_that_is_told_where_to_begin_is_kept_only_if_more_of_it_comes_back():
    key, _, far = frames_of(3, larger=3)
    exact = exact_flows(3, 3)
    engine = Begun(exact)
    known = KnownFlows(engine, 8)
    right = FlowResult(ImagePair(key, far), np.where(np.arange(exact[1, 3].shape[1])[:, None] % 2, exact[1, 3], 500.0).astype(np.float32), exact[3, 1])
    known.offer([right])
    here = np.random.default_rng(0).uniform(0, 90, (40, 2)).astype(np.float32)
    known._features.matched = lambda *_: (here, here + 20.0)
    assert 0 < agreeing(right).mean() < 0.6 and known.to_views(key, [far])[0] is right and engine.begun == [(1, 3)]


def test_nothing_leads_by_way_of_a_blank_view():
    """Flow into it is consistent, for nothing contradicts it."""
    key, _, far = frames_of(3, larger=3)
    blank = replace(key, stamp=9, image=np.full_like(key.image, 128))
    there = FlowResult(ImagePair(key, blank), *np.zeros((2, *key.image.shape[:2], 2), np.float32))
    assert there.valid.all() and not agreeing(there).any()
    engine = Begun(exact_flows(3, 3))
    known = KnownFlows(engine, 8)
    known.offer([there])
    assert known.to_views(key, [blank, far])[0] is there
    assert engine.begun.count((1, 3)) == 1      # where the features of the two are


@pytest.mark.parametrize('homography', [np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0]), None])
def test_matches_that_no_homography_joins_begin_nothing(monkeypatch, homography):
    monkeypatch.setattr(known_flows.cv2, 'findHomography', lambda *_: (homography, np.ones((20, 1), np.uint8)))
    assert known_flows._homography((32, 24), *np.zeros((2, 20, 2), np.float32)) is None


@pytest.mark.parametrize('form, remembered', [('keyframe', 16), ('global', 16), ('global', 1)])
def test_an_alternation_measures_flow_once_for_all_rounds(form, remembered):
    torch.manual_seed(0)
    network = registry.build('deepv2d', SHOWN).eval()
    alternation = Alternation(network, AlternationConfig(rounds=3, form=form, min_parallax=0.0))
    engine = Counting(FlowConfig(preset='medium'))
    alternation.flows = KnownFlows(engine, remembered)
    found = alternation.run(frames_of(4))
    assert found.status is AlternationStatus.OK and np.isfinite(found.T_view_key).all()
    assert engine.worked == (3 if form == 'keyframe' else 6)


def test_no_second_look_is_taken_at_flow_of_given_poses():
    """Images of nothing in common, whose flow does not come back: where poses are given the images still tell something."""
    torch.manual_seed(0)
    alternation = Alternation(registry.build('deepv2d', SHOWN).eval(), AlternationConfig(rounds=1, min_parallax=0.0))
    engine = Counting(FlowConfig(preset='medium'))
    alternation.flows = KnownFlows(engine, 16)
    rng = np.random.default_rng(0)
    frames = [replace(frame, image=rng.integers(0, 255, frame.image.shape, dtype=np.uint8)) for frame in frames_of(4)]
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = 0.1, 0.2, 0.3
    assert alternation.run(frames, T_view_key=poses).status is AlternationStatus.OK
    assert engine.worked == 3
    alternation.flows.to_views(frames[0], frames[1:])
    assert engine.worked > 3


def test_an_alternation_begins_with_what_flow_tells():
    """Before any network has a word, poses and depth are already near the truth, in the unit of a depth that is given or else a free one; without parallax it begins as it would have."""
    batch = clip_batch(sample_clips(larger=5)[:1], [[0, 1, 2, 3, 4]])
    torch.manual_seed(0)
    alternation = Alternation(registry.build('deepv2d', TINY), AlternationConfig(initial_poses='flow', min_parallax=0.0))
    frames = frames_of(larger=5)
    scene = alternation._begin(frames, None, None, None)
    known = (scene.depth[0, 0] > 0) & batch.valid[0, 0]
    ratio = (scene.depth[0, 0] / batch.depth[0, 0])[known]
    assert known.float().mean() > 0.2 and not scene.depth[0, 1:].any()
    assert (ratio / ratio.median() - 1).abs().median() < 0.15
    found, true = scene.T[0, 1:, :3, 3] / ratio.median(), batch.T_cam_world[0, 1:, :3, 3]
    assert (found - true).norm(dim=1).median() < 0.25 * true.norm(dim=1).median()
    measured = DepthMap(batch.depth[0, 0].numpy(), batch.valid[0, 0].numpy())
    metric = alternation._begin(frames, measured, None, None)
    torch.testing.assert_close(metric.depth[0, 0] / metric.unit, torch.where(batch.valid[0, 0], batch.depth[0, 0], 0.0))
    assert (metric.T[0, 1:, :3, 3] / metric.unit - true).norm(dim=1).median() < 0.25 * true.norm(dim=1).median()
    turned = scene.T[0, 1:, :3, :3] @ batch.T_cam_world[0, 1:, :3, :3].mT
    assert torch.rad2deg(torch.arccos(((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))).median() < 1.5
    resting = alternation._begin([replace(frames_of()[0], stamp=stamp) for stamp in (11, 12, 13)], None, None, None)
    assert (resting.depth[0, 0] == resting.depth[0, 0, 0, 0]).all() and torch.allclose(resting.T, torch.eye(4), atol=1e-3)


@pytest.mark.parametrize('sizes', [TINY, SHOWN], ids=['features', 'flow too'])
def test_an_alternation_finds_the_focal_length_in_the_flow_and_keeps_it(sizes):
    """Whatever the networks say; and where there is only a still or nothing to see it keeps what was given, and tells that it knows no better."""
    torch.manual_seed(0)
    network = registry.build('deepv2d', sizes)
    off = [replace(frame, K=frame.K * [[1.2, 1, 1], [1, 1.2, 1], [1, 1, 1]]) for frame in frames_of(larger=4, number=3)]
    for rounds in (1, 2):
        config = AlternationConfig(rounds=rounds, initial_poses='flow', uncalibrated=True, min_parallax=0.0)
        found = Alternation(network, config).run(off)
        assert found.status is AlternationStatus.OK and found.focal_deviation < 0.05
        assert found.K[0, 0] == pytest.approx(off[0].K[0, 0] / 1.2, rel=0.05) and found.K[1, 1] == pytest.approx(found.K[0, 0])
    assert Alternation(network, replace(config, uncalibrated=False)).run(off).focal_deviation is None
    still = [replace(off[0], stamp=stamp) for stamp in (11, 12, 13)]
    resting = FocalEngine().step(still, KnownFlows(FlowEngine(FlowConfig(preset='medium')), 16))
    assert resting.factor == pytest.approx(1.0, abs=0.02) and resting.deviation > 0.2
    blank = [replace(frame, image=np.full_like(frame.image, 90)) for frame in off]
    assert FocalEngine().step(blank, KnownFlows(FlowEngine(FlowConfig(preset='medium')), 16)) == FocalEstimate(1.0, GIVEN)


def test_maps_are_of_the_size_of_the_features():
    images = torch.rand(1, 3, 50, 66)
    size = MotionModule(LIVE).eval().features(images).shape[-2:]
    assert measured_flow(torch.zeros(1, 1, 50, 66, 2), torch.zeros(1, 1, 50, 66)).error.shape[-2:] == size == (-(-50 // STRIDE), -(-66 // STRIDE))


@pytest.mark.parametrize('form', ['keyframe', 'global'])
@pytest.mark.parametrize('what', ['depth', 'no depth', 'focal length', 'pose', 'flow', 'inconsistent', 'features'])
def test_no_input_gives_a_pose_that_is_not_finite(what, form):
    torch.manual_seed(0)
    module, (depth, T, _), edges = MotionModule(LIVE).eval(), scene(), edges_of(form, FRAMES)
    features, intrinsics, T = torch.randn(1, FRAMES, LIVE.motion_features, HEIGHT, WIDTH), K.clone(), T.clone()
    flow, error = 30.0 * torch.randn(1, len(edges[0]), HEIGHT * STRIDE, WIDTH * STRIDE, 2), torch.rand(1, len(edges[0]), HEIGHT * STRIDE, WIDTH * STRIDE)
    if what == 'depth':
        depth[0, :, ::2] = torch.nan
    elif what == 'no depth':
        depth.zero_()
    elif what == 'focal length':
        intrinsics[0, 0, 0] = 0.0
    elif what == 'pose':
        T[0, 1] = torch.nan
    elif what == 'flow':
        flow[:, :, ::3] = torch.nan
    elif what == 'inconsistent':
        error.fill_(torch.inf)
    else:
        features.fill_(torch.nan)
    with torch.inference_mode():
        found = align(module, features, depth, intrinsics, T, edges, form, measured=measured_flow(flow, error))
    assert torch.isfinite(found.T_cam_world).all()
    assert not (what in ('no depth', 'focal length', 'pose', 'features') and found.solved.any())


def test_clips_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    module, (depth, _, pixels) = MotionModule(LIVE).eval(), scene()
    features, start = torch.randn(2, FRAMES, LIVE.motion_features, HEIGHT, WIDTH), torch.eye(4).expand(2, FRAMES, 4, 4)
    shown = MeasuredFlow(torch.cat([pixels, pixels.flip(1) + torch.randn_like(pixels)]), torch.rand(2, *pixels.shape[1:-1]))
    depth = torch.cat([depth, depth.flip(2)])
    with torch.inference_mode():
        both = align(module, features, depth, K.expand(2, 3, 3), start, EDGES, measured=shown).T_cam_world
        alone = [align(module, features[i:i + 1], depth[i:i + 1], K, start[i:i + 1], EDGES, measured=MeasuredFlow(shown.pixels[i:i + 1], shown.error[i:i + 1])).T_cam_world for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)
