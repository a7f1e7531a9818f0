"""The Global-Local engine: depth in metres by hits or odometry, new weights in flight, and a reason for every silence."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import global_local_support as support
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import depth_ros
from depth_ros.engines import depth_networks
from depth_ros.engines.global_local import CARRIED, GlobalLocalEngine, GlobalLocalEngineConfig, confidence_of, parallax_of
from depth_ros.frames import Scale

SIZE, BASELINE, T_REF_CUR = support.SIZE, support.BASELINE, support.T_REF_CUR
pytestmark = pytest.mark.usefixtures('as_shipped')


@pytest.fixture(scope='module')
def scene():
    return support.wall()


def made(variant='pose_aware', **config):
    # Making a graph takes longer than running it in torch does; test_inference tells that they agree.
    return GlobalLocalEngine(GlobalLocalEngineConfig(**{'variant': variant, 'width': SIZE[0], 'height': SIZE[1], 'backend': 'torch'} | config))


def test_the_step_of_an_odometry_makes_metres(scene):
    result, truth = scene
    engine = made()
    depth, parameters = engine.step(result, T_REF_CUR, step_length=BASELINE)
    assert engine.reason == '' and engine.used == 'pose_aware' and engine.scale_from == 'odometry'
    assert depth.scale is Scale.METRIC and depth.frame is result.pair.current and parameters.shape == (6,)
    np.testing.assert_allclose(depth.depth[depth.valid], truth[depth.valid], rtol=0.03)     # before training it is triangulation, smoothed a little by half size
    assert depth.valid.all() and depth.depth.dtype == depth.confidence.dtype == np.float32


@pytest.mark.parametrize(('variant', 'scale', 'step', 'asked'), [('pose_aware', 'auto', BASELINE, False), ('pose_aware', 'auto', None, True), ('pose_aware', 'auto', 0.0, True),
                                                                 ('pose_aware', 'hits', BASELINE, True), ('published', 'auto', BASELINE, True),
                                                                 ('published', 'odometry', None, False), ('published', 'none', None, False)])
def test_hits_are_asked_for_the_metre_where_nothing_better_tells_it(variant, scale, step, asked):
    assert made(variant, scale=scale).asks_hits(step) is asked


def test_what_stands_in_for_the_pose_aware_network_has_its_metre_from_hits(scene):
    result, truth = scene
    engine = made()
    assert engine.step(result, None, support.hits_on(truth, 2.0), step_length=BASELINE).depth is not None
    assert engine.used == 'published' and engine.scale_from == 'hits'


def test_the_unit_of_the_motion_does_not_matter_but_its_length_does(scene):
    result, _ = scene
    far, near = T_REF_CUR.copy(), T_REF_CUR.copy()
    near[0, 3] = 0.5
    once = made().step(result, far, step_length=0.25).depth.depth
    twice = made().step(result, near, step_length=0.5).depth.depth
    np.testing.assert_allclose(twice, 2.0 * once, rtol=1e-5)


@pytest.mark.parametrize(('variant', 'scale', 'length', 'source'), [('published', 'auto', BASELINE, 'hits'), ('pose_aware', 'auto', BASELINE, 'odometry'), ('pose_aware', 'auto', None, 'hits'),
                                                                    ('pose_aware', 'hits', BASELINE, 'hits')])
def test_hits_make_metres_and_come_before_an_odometry_that_depth_is_not_made_with(scene, variant, scale, length, source):
    result, truth = scene
    engine = made(variant, scale=scale)
    depth, _ = engine.step(result, T_REF_CUR if variant == 'pose_aware' else None, support.hits_on(truth, 2.0), step_length=length)
    assert engine.scale_from == source and depth.scale is Scale.METRIC
    if source == 'hits':
        assert np.median(depth.depth[40, ::2] / (2.0 * truth[40, ::2])) == pytest.approx(1.0, rel=1e-3)
    else:
        assert np.median(depth.depth / truth) == pytest.approx(1.0, rel=0.02)


def test_a_few_outlier_hits_do_not_matter(scene):
    result, truth = scene
    hits = support.hits_on(truth)
    hits[40, :20] *= 5.0
    depth = made().step(result, T_REF_CUR, hits).depth
    np.testing.assert_allclose(np.median(depth.depth / truth), 1.0, rtol=0.02)


def test_hits_that_contradict_each_other_tell_nothing(scene):
    result, truth = scene
    hits = support.hits_on(truth)
    hits[40] *= np.exp(np.random.default_rng(0).normal(size=SIZE[0]))
    engine = made('published', scale='hits')
    assert engine.step(result, None, hits).depth is None
    assert 'no range hits tell the scale (64 hits are too few or contradict each other)' in engine.reason


def test_without_motion_hits_of_another_pair_tell_nothing(scene):
    result, truth = scene
    engine = made('published')
    assert engine.step(result, None, support.hits_on(truth)).depth is not None
    found = engine.step(result, None, None)
    assert found.depth is None and found.parameters is not None and 'scale' in engine.reason


def one_hit(truth):
    hits = np.zeros_like(truth)
    hits[48, 64] = truth[48, 64]
    return hits


@pytest.mark.parametrize('scale', ['auto', 'hits'])
def test_a_single_rangefinder_without_odometry_is_told_that_it_needs_it(scene, scale):
    result, truth = scene
    engine = made('published', scale=scale)
    for _ in range(2 * engine.config.scale_min_hits):
        assert engine.step(result, None, one_hit(truth)).depth is None
    assert '1 hits an image are fewer than scale_min_hits 20' in engine.reason and 'a single rangefinder needs tracking:=true' in engine.reason


def test_with_odometry_a_single_rangefinder_tells_the_published_network_its_scale(scene):
    result, truth = scene
    engine = made('published', scale='hits')
    found = [engine.step(result, T_REF_CUR, one_hit(truth)).depth for _ in range(engine.config.scale_min_hits)]
    assert found[-2] is None and found[-1].depth[48, 64] == pytest.approx(truth[48, 64], rel=1e-3)


def test_settings_change_without_another_network_unless_they_are_its_own(scene, monkeypatch):
    result, truth = scene
    engine = made()
    engine.offer(support.blob('pose_aware', seed=5, number=4))
    before = engine.step(result, T_REF_CUR, support.hits_on(truth)).depth.depth
    monkeypatch.setattr(depth_networks.checkpoint, 'load', lambda *_: pytest.fail('loaded again'))
    assert engine.change(replace(engine.config, max_depth=2.0, scale_smoothing=1.0))
    after = engine.step(result, T_REF_CUR, support.hits_on(truth, 1.2)).depth
    assert not after.valid[:40].any() and engine.networks.record('pose_aware') == {'number': 4}
    np.testing.assert_allclose(after.depth[after.valid], 1.2 * before[after.valid], rtol=1e-4)     # the new smoothing goes on from the scale that was known
    for own in ({'variant': 'published'}, {'weights': 'other'}, {'width': 256}, {'height': 192}, {'backend': 'onnxruntime'}, {'threads': 2}):
        kept = engine.config
        assert not engine.change(replace(engine.config, **own)) and engine.config is kept
    with pytest.raises(ValueError, match='max_depth'):
        engine.change(replace(engine.config, max_depth=-1.0))


@pytest.mark.parametrize(('recipe', 'trained'), [({'data': {}}, 0.82), ({'data': {'focal': 0.6}, 'magnify': 1.5}, 0.9), ({'data': {'focal': 0.6}}, 0.6), (None, None),
                                                 ({'data': {'sequence': 'own'}}, None)])
@pytest.mark.parametrize('variant', ['published', 'pose_aware'])
def test_a_camera_unlike_that_of_the_training_is_told_once(scene, variant, recipe, trained, tmp_path, caplog):
    result, truth = scene                                        # its focal length is 0.86 of its width
    path = tmp_path / 'own.safetensors'
    depth_networks.checkpoint.save(path, 'global_local', support.network(variant), {} if recipe is None else {'recipe': recipe})
    engine = made(variant, weights=str(path), scale='none')
    wide = replace(result, pair=replace(result.pair, current=replace(result.pair.current, K=result.pair.current.K * [[0.7], [0.7], [1.0]])))
    with caplog.at_level(logging.WARNING):
        engine.step(result, T_REF_CUR)
        near = [r.getMessage() for r in caplog.records]
        for _ in range(2):
            engine.step(wide, T_REF_CUR)
    told = [r.getMessage() for r in caplog.records if 'focal length' in r.getMessage()]
    if variant == 'pose_aware' or trained is None:
        assert not told
    elif trained == 0.6:
        assert len(told) == 1 and told == near and 'is 0.86 of the image width' in told[0] and 'learned from 0.60' in told[0]
    else:
        assert not near and len(told) == 1 and 'is 0.60 of the image width' in told[0] and f'learned from {trained:.2f}' in told[0]


@pytest.mark.parametrize('variant', depth_networks.SHIPPED)
def test_the_weights_that_come_with_the_package_give_depth(variant):
    path = Path(depth_ros.__file__).parent / 'weights' / depth_networks.SHIPPED[variant]
    loaded = depth_networks.checkpoint.load(path, depth_networks.NAME)          # strictly: all weights, and no others
    assert depth_networks.variant_of(loaded.model) == variant and all(torch.isfinite(p).all() for p in loaded.model.parameters())
    networks = depth_networks.Networks(variant, str(path), SIZE[::-1], GlobalLocalEngineConfig())
    assert networks.backend(variant) == 'onnxruntime' and networks.focal(variant) == pytest.approx(525 / 640)
    z, parameters = networks.run(variant, depth_networks.example(SIZE[::-1]))
    assert np.isfinite(z).all() and (z > 0).all() and np.isfinite(1 / z).all() and np.isfinite(parameters).all() and parameters.std() > 0


@pytest.mark.parametrize(('scale', 'gives'), [('auto', True), ('hits', False), ('odometry', True), ('none', True)])
def test_the_chosen_source_of_scale_is_the_only_one(scene, scale, gives):
    result, _ = scene
    engine = made(scale=scale)
    depth = engine.step(result, T_REF_CUR, None, BASELINE).depth
    assert (depth is not None) == gives
    if scale == 'none':
        assert depth.scale is Scale.FREE and 'units of the baseline' in engine.reason
        np.testing.assert_allclose(depth.depth, made().step(result, T_REF_CUR, None, BASELINE).depth.depth / BASELINE, rtol=1e-5)
    if not gives:
        assert 'no range hits tell the scale' in engine.reason and 'scale: none' in engine.reason


def test_no_motion_no_depth(scene):
    result, _ = scene
    engine = made()
    still = replace(result, flow=0.001 * result.flow)
    assert engine.step(still, T_REF_CUR, None, BASELINE) == (None, None)
    assert 'min_displacement' in engine.reason
    assert engine.step(result, T_REF_CUR, None, BASELINE).depth is not None and engine.reason == ''


def resting(result, after=60_000_000):
    """The pair's current image once more, as the reference of one `after` so many ns that shows the same."""
    current = result.pair.current
    now = replace(current, stamp=current.stamp + after)
    return support.living(replace(result, pair=replace(result.pair, current=now, reference=current), flow=0.0 * result.flow, backward=0.0 * result.backward))


@pytest.mark.parametrize(('variant', 'scale', 'unit'), [('pose_aware', 'auto', 1.0), ('pose_aware', 'hits', 3.0), ('published', 'hits', 3.0), ('published', 'odometry', 1.0)])
def test_depth_is_carried_along_while_the_camera_rests(scene, variant, scale, unit):
    """Whatever unit the odometry has, and whether it tells of rest exactly or not."""
    result, truth = scene
    engine = made(variant, scale=scale)
    motion = T_REF_CUR.copy()
    motion[0, 3] *= unit
    place = np.eye(4)
    before, _ = engine.step(result, motion, support.hits_on(truth), BASELINE, place)
    for rest in (np.eye(4), np.array([[1, 0, 0, 1e-4 * unit], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])):
        depth, parameters = engine.step(resting(result), rest, None, float(np.linalg.norm(rest[:3, 3])), place @ rest)
        assert engine.reason == '' and engine.used == engine.scale_from == CARRIED and parameters is None and depth.scale is Scale.METRIC
        np.testing.assert_allclose(depth.depth, before.depth, rtol=0.01)
        np.testing.assert_allclose(depth.confidence, before.confidence, atol=0.1)


def test_carried_depth_is_nearer_after_a_step_towards_it_in_metres_of_hits(scene):
    result, truth = scene
    engine = made(scale='hits')
    motion, ahead = T_REF_CUR.copy(), np.eye(4)
    motion[0, 3], ahead[2, 3] = 2 * BASELINE, 0.06       # of an odometry whose unit is half a metre
    before, _ = engine.step(result, motion, support.hits_on(truth), None, np.eye(4))
    depth = engine.step(resting(result), np.eye(4), None, None, ahead).depth
    assert depth.depth[48, 64] == pytest.approx(before.depth[48, 64] - 0.03, abs=0.01)


@pytest.mark.parametrize('why', ['place unknown', 'forgotten', 'too old', 'not wanted', 'nothing recognised', 'unit free', 'unit changed'])
def test_depth_is_not_carried_where_it_would_be_of_another_place(scene, why):
    result, _ = scene
    engine = made(carry_time=0.0 if why == 'not wanted' else 1.0, scale='none' if why == 'unit free' else 'auto')
    engine.step(result, T_REF_CUR, None, BASELINE, np.eye(4))
    if why == 'forgotten':
        engine.forget_places()
    still = resting(result, 2 * 10 ** 9 if why == 'too old' else 60_000_000)
    if why == 'nothing recognised':     # a hand before the lens
        still = replace(still, backward=still.backward + 30.0)
    if why == 'unit changed':
        assert engine.change(replace(engine.config, scale='none'))
    assert engine.step(still, np.eye(4), None, 0.0, None if why == 'place unknown' else np.eye(4)) == (None, None)
    assert 'min_displacement' in engine.reason


@pytest.mark.parametrize('motion', [None, np.eye(4)])
def test_without_a_pose_the_published_network_stands_in_and_says_so(scene, motion):
    result, truth = scene
    engine = made()
    depth = engine.step(result, motion, support.hits_on(truth)).depth
    assert depth is not None and engine.used == 'published' and 'published one stands in' in engine.reason
    expected = made('published').step(result, None, support.hits_on(truth)).depth.depth
    np.testing.assert_allclose(depth.depth, expected, rtol=1e-5)


def test_without_a_pose_and_without_a_stand_in_there_is_no_depth(scene, untrained, tmp_path, monkeypatch):
    name = support.FILES['pose_aware']
    (tmp_path / name).write_bytes((untrained / name).read_bytes())
    monkeypatch.setattr(depth_networks, 'shipped', lambda variant: tmp_path / support.FILES[variant])
    engine = made()
    assert engine.step(scene[0], None, support.hits_on(scene[1])).depth is None
    assert 'no motion of the pair is known' in engine.reason


def test_flow_of_another_size_is_resized_and_told_once(scene, caplog):
    result, truth = scene
    double = result.resized(256, 192)
    assert double.pair.current.K[0, 0] == 220.0
    np.testing.assert_allclose(np.median(double.flow[..., 0] / result.flow.repeat(2, 0).repeat(2, 1)[..., 0]), 2.0, rtol=0.01)
    engine = made()
    with caplog.at_level(logging.WARNING):
        found = [engine.step(double, T_REF_CUR, None, BASELINE).depth for _ in range(2)]
    assert [r.getMessage() for r in caplog.records if 'resized' in r.getMessage()] == [
        "flow of 256 x 192 pixels is resized to the network's 128 x 96: give both the same size"]
    assert found[0].frame.size == SIZE
    np.testing.assert_allclose(np.median(found[0].depth / truth), 1.0, rtol=0.02)


def test_flow_that_is_not_finite_stays_where_it_is(scene):
    result, truth = scene
    broken = replace(result, flow=result.flow.copy())
    broken.flow[10:20, 10:20] = np.nan
    broken.flow[0, 0] = np.inf
    depth, parameters = made().step(broken, T_REF_CUR, None, BASELINE)
    assert np.isfinite(depth.depth).all() and np.isfinite(parameters).all()
    assert (depth.confidence[12:18, 12:18] == 0).all()
    far = np.s_[60:, 60:]
    np.testing.assert_allclose(np.median(depth.depth[far] / truth[far]), 1.0, rtol=0.05)


def test_confidence_falls_with_inconsistency_and_with_little_parallax(scene):
    result, _ = scene
    backward = result.backward.copy()
    backward[:, 64:, 0] += 2.0          # what ends there, 9 to 18 columns on, is inconsistent; the last columns leave the image
    parallax = parallax_of(result, None)
    confidence, agreeing = (confidence_of(r, parallax) for r in (replace(result, backward=backward), result))
    assert (confidence[:, :45] > 2 * confidence[:, 64:105].max()).all() and (confidence[:, -9:] == 0.0).all()
    assert (confidence_of(result, 0.1 * parallax)[:, :100] < agreeing[:, :100]).all() and 0.0 <= agreeing.min() and agreeing.max() <= 1.0


def test_what_a_rotation_moves_is_no_parallax(scene):
    result, _ = scene
    T = T_REF_CUR.copy()
    T[:3, :3] = Rotation.from_euler('xyz', [2.0, -3.0, 4.0], degrees=True).as_matrix()
    K = result.pair.current.K
    v, u = np.mgrid[:SIZE[1], :SIZE[0]]
    ends = np.stack([u, v, np.ones_like(u)], -1) @ (K @ T[:3, :3] @ np.linalg.inv(K)).T
    turned = replace(result, flow=(ends[..., :2] / ends[..., 2:] - np.stack([u, v], -1)).astype(np.float32))
    assert parallax_of(turned, T).max() < 1e-3 < 3.0 < np.median(parallax_of(turned, None))
    engine = made()
    assert engine.step(turned, T, None, BASELINE).depth is None and 'beyond what its rotation makes' in engine.reason


def test_depth_beyond_the_limit_is_not_valid(scene):
    depth = made(max_depth=2.0).step(scene[0], T_REF_CUR, None, BASELINE).depth
    assert not depth.valid[:40].any() and depth.valid[-20:].all()
    assert (depth.depth[~depth.valid] == 0.0).all()


@pytest.mark.parametrize('backend', ['onnxruntime', 'torch'])
def test_accepted_weights_take_over_and_a_rollback_brings_the_others_back_bit_for_bit(scene, backend):
    result, _ = scene
    engine = made('published', scale='none', backend=backend)
    before = engine.step(result).depth.depth
    offer = engine.offer(support.blob('published', seed=5, number=7))
    assert offer.accepted and offer.reason == '7' and engine.networks.record('published') == {'number': 7}
    after = engine.step(result).depth.depth
    assert np.median(np.abs(np.log(after / before))) > 1e-3
    model = support.network('published', seed=5)
    with torch.inference_mode():
        expected = model(*model.inputs(depth_networks.example(SIZE[::-1])))
    found = engine.networks.run('published', depth_networks.example(SIZE[::-1]))[0]
    np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=1e-3)
    assert engine.rollback()
    np.testing.assert_array_equal(engine.step(result).depth.depth, before)
    assert not engine.rollback('published') and engine.networks.record('published') == {'number': 0}


def bad_offers():
    good = support.blob('published', seed=5)
    return {
        'cut short': (good[:-100], 'not a safetensors file'),
        'no safetensors': (b'hello', 'not a safetensors file'),
        'empty': (b'', 'not a safetensors file'),
        'another variant': (support.blob('pose_aware'), 'expected weights of published, got pose_aware'),
        'another structure': (support.blob('published', coordinates=False), 'expected a network of'),
        'a record that is none': (depth_networks.checkpoint.to_bytes('global_local', support.network('published', seed=5), ['no', 'record']), 'a record of keys and values'),
        'another format': (good.replace(b'depth_ros network 1', b'depth_ros network 9'), 'network 9'),
    }


@pytest.mark.parametrize('name', bad_offers())
def test_an_offer_that_does_not_fit_is_refused_with_its_reason(scene, name):
    result, _ = scene
    blob, complaint = bad_offers()[name]
    engine = made('published', scale='none')
    before = engine.step(result).depth.depth
    offer = engine.offer(blob)
    assert not offer.accepted and complaint in offer.reason
    np.testing.assert_array_equal(engine.step(result).depth.depth, before)


def test_an_offer_that_fails_in_an_unforeseen_way_is_refused_too(scene, monkeypatch):
    engine = made('published', scale='none')
    before = engine.step(scene[0]).depth.depth

    def fails(*_):
        raise KeyError('unforeseen')

    monkeypatch.setattr(depth_networks.checkpoint, 'from_bytes', fails)
    offer = engine.offer(support.blob('published', seed=5))
    assert not offer.accepted and 'unforeseen' in offer.reason
    np.testing.assert_array_equal(engine.step(scene[0]).depth.depth, before)


def test_weights_that_overflow_on_the_last_pair_are_refused(scene):
    engine = made('published', scale='none')
    engine.step(scene[0])
    model = support.network('published')
    with torch.no_grad():
        model.global_module[0][0].weight.fill_(1e30)
    blob = depth_networks.checkpoint.to_bytes('global_local', model, {})
    offer = engine.offer(blob)
    assert not offer.accepted and 'not finite' in offer.reason


def test_bad_weights_fail_the_making_and_the_file_is_named(untrained, tmp_path):
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes((untrained / support.FILES['published']).read_bytes()[:5000])
    with pytest.raises(ValueError, match='broken.safetensors.*not a safetensors file'):
        made('published', weights=str(broken))
    depth_networks.checkpoint.save(broken, 'global_local', support.network('published'), 'no record')
    with pytest.raises(ValueError, match='broken.safetensors.*expected a record of keys and values'):
        made('published', weights=str(broken))
    with pytest.raises(ValueError, match='expected weights of the pose_aware variant, got published'):
        made('pose_aware', weights=str(untrained / support.FILES['published']))
    with pytest.raises(OSError, match='absent.safetensors'):
        made('published', weights=str(tmp_path / 'absent.safetensors'))
