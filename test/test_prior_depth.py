"""Depth that is known beforehand: how it is simulated for training, how the pose-aware network begins with it, and where it comes from in use."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import numpy as np
import pytest
import torch
from pair_support import MemoryStore, wavy_pairs

from depth_ros.engines.depth_filter import DepthFilterConfig
from depth_ros.engines.depth_networks import NetworkPair
from depth_ros.engines.flow_guide import prior_of
from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig, network_pair
from depth_ros.engines.rehearsal import Rehearsal
from depth_ros.engines.replay_buffer import observation, pair_batch
from depth_ros.frames import DepthResult, Scale
from depth_ros.learning import prior_depth
from depth_ros.learning.batches import Batches
from depth_ros.learning.recipe import Recipe
from depth_ros.models import checkpoint
from depth_ros.models.global_local import GlobalLocalConfig

HEIGHT, WIDTH = 48, 64


def noisy(count: int = 12, noise: float = 0.15) -> object:
    """Pairs whose flow errs, on the right half ten times as far."""
    pairs = wavy_pairs(count, HEIGHT, WIDTH)
    spread = torch.where(torch.arange(WIDTH) < WIDTH // 2, noise, 10 * noise)
    return replace(pairs, flow=pairs.flow + spread * torch.randn(pairs.flow.shape, generator=torch.Generator().manual_seed(1)))


def test_the_simulation_goes_by_the_filter_s_own_numbers():
    config = DepthFilterConfig()
    assert (prior_depth._NOISE, prior_depth._DOUBT, prior_depth._INCONSISTENT) == (config.filter_flow_noise, config.filter_doubt, config.filter_max_inconsistency)
    assert (prior_depth._TEXTURE, prior_depth._SPREAD, prior_depth._EDGE, prior_depth._CONFIDENT) == (config.filter_texture, config.filter_smoothness, config.filter_edge, config.filter_confident)


def draws(count: int, share: float = 1.0, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [prior_depth.draw(share, generator) for _ in range(count)]


def error(pairs) -> torch.Tensor:
    """|log| (B, 1, H, W) of the prior over the truth, NaN where that is not known."""
    return torch.where(pairs.valid, pairs.prior[:, :1] / pairs.inverse_depth, torch.nan).log().abs()


def test_it_errs_where_flow_errs_and_says_how_sure_it_is():
    pairs = prior_depth.add(noisy(), draws(12))
    found, sure = error(pairs), pairs.prior[:, 1:]
    assert (pairs.prior[:, :1] > 0).all() and (sure >= 0).all() and (sure <= 1).all()
    good, bad = found[..., :WIDTH // 2].nanmean(), found[..., WIDTH // 2:].nanmean()
    assert good < 0.5 * bad and sure[..., :WIDTH // 2].mean() > 2 * sure[..., WIDTH // 2:].mean()
    assert found[sure > 0.7].nanmean() < 0.5 * found[sure < 0.3].nanmean()


def test_the_more_frames_are_fused_the_less_it_errs_and_the_surer_it_is():
    few, many = (prior_depth.add(noisy(), [replace(one, frames=frames) for one in draws(12)]) for frames in (1.0, 30.0))
    assert error(many).nanmean() < 0.85 * error(few).nanmean() and many.prior[:, 1:].mean() > few.prior[:, 1:].mean() + 0.05


def test_it_scales_as_the_baseline_does():
    """Twice the depth of everything is half the inverse depth, and as sure."""
    pairs = noisy(4)
    T = pairs.T_2_1.clone()
    T[:, :3, 3] *= 2.0
    one, double = (prior_depth.add(p, draws(4)).prior for p in (pairs, replace(pairs, T_2_1=T, inverse_depth=pairs.inverse_depth / 2)))
    torch.testing.assert_close(double[:, 0], one[:, 0] / 2, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(double[:, 1], one[:, 1], rtol=1e-3, atol=1e-3)


def test_a_share_of_the_pairs_has_none():
    drawn = draws(200, 0.75)
    assert 0.6 < np.mean([one is not None for one in drawn]) < 0.9
    pairs = prior_depth.add(noisy(), drawn[:12])
    assert [bool(p.any()) for p in pairs.prior] == [one is not None for one in drawn[:12]]


def test_batches_of_a_recipe_that_asks_for_it_have_it_the_same_in_every_run():
    store = MemoryStore(noisy())
    recipe = Recipe(prior=0.75, rotation_error=0.1, batch=8, steps=10)
    first, again = (Batches(store, recipe).of_step(3).pairs.prior for _ in range(2))
    assert torch.equal(first, again) and first.any()
    assert Batches(store, replace(recipe, prior=0.0)).of_step(3).pairs.prior is None
    assert Batches.unseen(store, recipe, 0, 2).prior.flatten(1).any(1).all()


def test_the_network_begins_with_it_where_it_is_and_with_triangulation_elsewhere():
    network, (result, depth) = support.network('pose_aware', prior=True), support.wall()
    known = np.zeros_like(depth)
    known[:, :64] = 1.3 * depth[:, :64]
    guide = DepthResult(result.pair.current, known, known > 0, np.full(depth.shape, 0.9, np.float32), Scale.METRIC)
    with torch.no_grad():
        z = network(*network.inputs(network_pair(result, support.T_REF_CUR, guide)))[0, 0].numpy()
        without = network(*network.inputs(network_pair(result, support.T_REF_CUR)))[0, 0].numpy()
    expected = np.where(known > 0, known, depth)
    np.testing.assert_allclose(support.BASELINE / z, expected, rtol=1e-3)
    np.testing.assert_allclose(support.BASELINE / without, depth, rtol=1e-3)


def test_only_a_network_that_triangulates_takes_it():
    with pytest.raises(ValueError, match='pose_aware'):
        GlobalLocalConfig(prior=True)
    plain = support.network('pose_aware')
    pair = network_pair(*support.wall()[:1], support.T_REF_CUR)
    assert len(plain.inputs(pair)) + 1 == len(support.network('pose_aware', prior=True).inputs(pair)) == len(support.network('pose_aware', prior=True).inputs(pair._replace(prior=None)))


@pytest.fixture
def engine(tmp_path):
    """Makes an engine with a network that takes depth beforehand."""
    file = tmp_path / 'prior.safetensors'
    checkpoint.save(file, 'global_local', support.network('pose_aware', prior=True), {'number': 0})
    return lambda **config: GlobalLocalEngine(GlobalLocalEngineConfig(variant='pose_aware', weights=str(file), width=128, height=96, scale='odometry', **config))


def test_the_engine_hands_on_what_a_filter_makes_of_flow_and_odometry(engine):
    one, (result, depth) = engine(), support.wall()
    found = one.step(support.living(result), support.T_REF_CUR, None, support.BASELINE, np.eye(4))
    assert np.median(np.abs(one.known.depth / depth - 1)) < 0.02
    np.testing.assert_allclose(found.depth.depth, one.known.depth, rtol=2e-2)       # it has learned nothing yet
    assert one.step(support.living(support.wall(3 * 10 ** 9)[0]), None).depth is None and one.known is None
    plain = engine(guided=False)
    assert plain.step(support.living(result), support.T_REF_CUR, None, support.BASELINE).depth is not None and plain.known is None


def test_a_jump_of_the_odometry_makes_the_engine_forget_what_was_known(engine):
    one = engine()
    first = [one.step(support.living(support.wall(stamp, stamp - 10 ** 9)[0]), support.T_REF_CUR, None, support.BASELINE, np.eye(4)) and one.known.confidence.mean()
             for stamp in (2 * 10 ** 9, 2 * 10 ** 9 + 10 ** 8)]
    assert first[1] > first[0]
    one.forget_places()
    one.step(support.living(support.wall(2 * 10 ** 9 + 2 * 10 ** 8, 10 ** 9)[0]), support.T_REF_CUR, None, support.BASELINE, np.eye(4))
    assert one.known.confidence.mean() < first[1]


def test_a_learner_remembers_it_in_units_of_the_step():
    result, depth = support.wall()
    confidence = np.linspace(0, 1, depth.size, dtype=np.float32).reshape(depth.shape)
    guide = DepthResult(result.pair.current, depth, depth < 2.9, confidence, Scale.METRIC)
    batch = pair_batch([observation(result, support.T_REF_CUR, np.zeros_like(depth), guide=guide)])
    seen = depth < 2.9
    np.testing.assert_allclose(batch.prior[0, 0].numpy(), np.where(seen, support.BASELINE / depth, 0.0), rtol=1e-3)
    np.testing.assert_allclose(batch.prior[0, 1].numpy(), np.where(seen, confidence, 0.0), atol=1e-3)
    assert not prior_of(None, 1.0, support.SIZE).any()
    small = prior_of(guide, 1.0, (32, 24))
    known = small[..., 0] > 0
    np.testing.assert_allclose(1 / small[..., 0][known], np.broadcast_to(depth[1::4, 2::4], (24, 32))[known], rtol=0.03)     # also beside what is not known


def test_rehearsed_pairs_have_it_for_a_network_that_takes_it():
    pairs = wavy_pairs(24, HEIGHT, WIDTH)
    rehearsal = Rehearsal(pairs, prior=True)
    assert rehearsal.checks.prior is not None and rehearsal.draw(16).prior.any() and Rehearsal(pairs).draw(4).prior is None


def test_the_graph_that_is_exported_says_what_the_network_says(engine):
    one, result = engine(), support.living(support.wall()[0])
    partly = torch.rand(1, 2, *support.SIZE[::-1], generator=torch.Generator().manual_seed(0)) * (torch.arange(support.SIZE[0]) < 80)
    pair: NetworkPair = network_pair(result, support.T_REF_CUR)._replace(prior=0.2 * partly)
    z, _ = one.networks.run('pose_aware', pair)
    model = support.network('pose_aware', prior=True)
    with torch.no_grad():
        told, without = (model(*model.inputs(p))[0, 0].numpy() for p in (pair, pair._replace(prior=None)))
    np.testing.assert_allclose(z, told, rtol=1e-3)
    assert np.abs(np.log(told / without)).mean() > 0.1


def test_what_is_known_for_sure_is_moved_less():
    network, (result, depth) = support.network('pose_aware', prior=True), support.wall()
    with torch.no_grad():
        network.local.refiner.last.bias[0] = 0.2
    moved = []
    for confidence in (0.05, 0.5, 0.95):
        guide = DepthResult(result.pair.current, depth, depth > 0, np.full(depth.shape, confidence, np.float32), Scale.METRIC)
        with torch.no_grad():
            z = network(*network.inputs(network_pair(result, support.T_REF_CUR, guide)))[0, 0].numpy()
        moved.append(np.log(z * depth / support.BASELINE).mean())
    assert 0.18 < moved[0] < 0.2 and moved[1] == pytest.approx(0.2 / 1.44, rel=0.02) and moved[2] < 0.03
