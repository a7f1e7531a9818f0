"""Laws of the DeepV2D networks: their sizes are the published ones, volumes are what single projections say, and samples and views do not touch each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepv2d_network_support import SMALL, camera, depth_of, flow_of, images, motions
from torch import Tensor

from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.models import checkpoint, deepv2d_depth, registry
from depth_ros.models.deepv2d import LIVE, PAPER, DeepV2D, DeepV2DNetworkConfig
from depth_ros.models.deepv2d_blocks import Conv3d
from depth_ros.models.deepv2d_depth import planes_between
from depth_ros.models.deepv2d_motion import INCONSISTENT, MeasuredFlow, agreement, measured_flow

pytestmark = pytest.mark.usefixtures('one_thread')
LITTLE = replace(PAPER, motion_width=8, motion_features=8, motion_flow=8, depth_width=8, depth_growth=8, depth_features=8, volume_width=8, volume_growth=4, planes=16)


@pytest.fixture(scope='module')
def live() -> DeepV2D:
    torch.manual_seed(0)
    return DeepV2D(SMALL).eval()


def conv(inputs: int, outputs: int, taps: int) -> int:
    return (inputs * taps + 1) * outputs


def normed(inputs: int, outputs: int, taps: int) -> int:
    """Batch norm's scale and shift, and the convolution after it."""
    return 2 * inputs + conv(inputs, outputs, taps)


def residual(inputs: int, outputs: int, taps: int) -> int:
    return normed(inputs, outputs, taps) + normed(outputs, outputs, taps)


def hourglass(width: int, growth: int, taps: int) -> int:
    """Four levels; the innermost one is a convolution in two dimensions and a residual block in three."""
    total = 0
    for _ in range(4):
        total += residual(width, width, taps) + normed(width, width + growth, taps) + normed(width + growth, width, taps)
        width += growth
    return total + (normed(width, width, taps) if taps == 9 else residual(width, width, taps))


def test_it_has_as_many_parameters_as_published():
    """About 8.5 M in the motion module without its pose network and about 32 M in the depth module, from the widths of the paper's appendix."""
    trunk = conv(3, 32, 49) + 3 * residual(32, 32, 9) + residual(32, 64, 9) + conv(32, 64, 1) + 3 * residual(64, 64, 9)
    encoder = [(128, 32, 49), (32, 32, 49), (32, 64, 25), (64, 64, 25), (64, 128, 9), (128, 128, 9), (128, 256, 9), (256, 256, 9), (256, 512, 9), (512, 512, 9)]
    decoder = [(512, 256), (512, 256), (256, 128), (256, 128), (128, 64), (128, 64), (64, 32), (64, 32), (32, 32), (32, 32)]
    flow = sum(conv(*layer) for layer in encoder) + sum(conv(a, b, 9) for a, b in decoder) + 2 * conv(32, 2, 9)
    motion = trunk + conv(64, 64, 1) + flow
    head = 2 * 32 + 2 * conv(32, 32, 27) + conv(32, 1, 1)
    volume = conv(64, 32, 1) + residual(32, 32, 27) + 2 * (hourglass(32, 48, 27) + head)
    depth = trunk + 2 * hourglass(64, 64, 9) + conv(64, 32, 1) + volume
    network = DeepV2D(PAPER)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in network.named_modules() if name in ('motion', 'motion.pose', 'depth')}
    assert (counts['motion'] - counts['motion.pose'], counts['depth']) == (motion, depth) == (8_550_212, 32_117_890)
    assert motion == pytest.approx(8.5e6, rel=0.02) and depth == pytest.approx(32e6, rel=0.02)


def test_the_published_size_runs_forward_and_backward():
    torch.manual_seed(1)
    network = DeepV2D(PAPER)
    clip = images(1, 3, 3, 64, 64)
    estimate = depth_of(network, clip, motions(1, 2))
    features = network.motion.features(clip[0, :2])
    flow, confidence = network.motion(features[:1], features[1:])
    twist = network.motion.initial_motion(clip[:, 0], clip[:, 1])
    assert [tuple(d.shape) for d in estimate.depths] == [(1, 64, 64)] * 2 and flow.shape == confidence.shape == (1, 2, 16, 16) and twist.shape == (1, 6)
    (sum(d.mean() for d in estimate.depths) + flow.abs().mean() + confidence.mean() + twist.abs().sum()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


@pytest.mark.parametrize('config', [SMALL, LITTLE, replace(LITTLE, form='concatenation', views=2, spacing='inverse')], ids=['live', 'paper', 'concatenation'])
def test_every_weight_learns_from_odd_sizes(config: DeepV2DNetworkConfig):
    torch.manual_seed(2)
    network = DeepV2D(config)
    if config.correction:
        torch.nn.init.normal_(network.depth.correction.head[-1].weight, std=0.01)      # begun with zeros, through which nothing before them learns in the first step
    clip = images(2, 3, 3, 56, 72)
    estimate = depth_of(network, clip, motions(2, 2))
    features = network.motion.features(clip[:, :2].flatten(0, 1)).unflatten(0, (2, 2))
    shown = (torch.rand(2, 2, *features.shape[-2:]), torch.rand(2, *features.shape[-2:])) if network.motion.sees_flow else ()
    flow, confidence = network.motion(features[:, 0], features[:, 1], *shown)
    truth = torch.linspace(1.0, 4.0, 72).expand(2, 56, 72)
    loss = sum((d - truth).abs().mean() for d in estimate.depths) + (flow - 1.0).square().mean() + (confidence * flow).mean()
    if network.motion.pose is not None:
        loss = loss + network.motion.initial_motion(clip[:, 0], clip[:, 1]).sum()
    loss.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0]
    assert not [name for name in silent if not name.endswith('bias')]       # a softmax over planes or a norm takes some biases away


def test_planes_are_evenly_spaced_in_what_they_say():
    linear, inverse = planes_between(0.5, 4.0, 8), planes_between(0.5, 4.0, 8, 'inverse')
    torch.testing.assert_close(linear.diff(), torch.full((7,), 0.5))
    torch.testing.assert_close((1 / inverse).diff(), torch.full((7,), -0.25))
    assert inverse[0] == pytest.approx(0.5) and inverse[-1] == pytest.approx(4.0)
    for wrong in ((0.0, 4.0, 8), (4.0, 0.5, 8), (0.5, 4.0, 1)):
        with pytest.raises(ValueError, match='near < far'):
            planes_between(*wrong)
    with pytest.raises(ValueError, match='linear, inverse'):
        planes_between(0.5, 4.0, 8, 'cubic')


def test_a_volume_holds_the_pixel_that_each_plane_projects_to():
    """Maps of their own pixel coordinates, swept, give the projections themselves."""
    height, width = 12, 16
    K, T, planes = camera(height, width), motions(1, 1, 0.05)[:, 0], planes_between(0.5, 8.0, 5)[None]
    v, u = torch.meshgrid(torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing='ij')
    values, inside = deepv2d_depth.swept(torch.stack([u, v])[None], K, T, planes)
    for k, y, x in ((0, 3, 4), (2, 6, 8), (4, 9, 11)):
        point = T[0, :3, :3] @ (planes[0, k] * torch.linalg.inv(K[0]) @ torch.tensor([float(x), float(y), 1.0])) + T[0, :3, 3]
        pixel = (K[0] @ point)[:2] / point[2]
        assert inside[0, k, y, x]
        torch.testing.assert_close(values[0, :, k, y, x], pixel, atol=1e-4, rtol=0)


def test_a_volume_keeps_its_precision_where_networks_run_in_half():
    height, width = 24, 32
    K, T, planes = camera(height, width), motions(1, 1, 0.05)[:, 0], planes_between(0.5, 8.0, 5)[None]
    pixels = pixel_grid(height, width).movedim(-1, 0)[None]
    with torch.autocast('cpu', torch.bfloat16):
        half, seen = deepv2d_depth.swept(pixels, K, T, planes)
    full, inside = deepv2d_depth.swept(pixels, K, T, planes)
    assert torch.equal(seen, inside)
    torch.testing.assert_close(half, full, atol=1e-3, rtol=0)


def test_a_volume_can_be_counted_where_nothing_is_computed():
    with torch.device('meta'):
        values, inside = deepv2d_depth.swept(torch.zeros(1, 4, 24, 32), torch.zeros(1, 3, 3), torch.zeros(1, 4, 4), torch.ones(1, 5))
    assert values.shape == (1, 4, 5, 24, 32) and inside.shape == (1, 5, 24, 32)


def test_untrained_correlation_prefers_the_right_plane():
    """What views of a wall show agrees best on the plane of the wall, before anything is learned."""
    torch.manual_seed(3)
    K, planes, wall = camera(24, 32), planes_between(1.0, 4.0, 7)[None], 2.0
    T = torch.eye(4)[None].repeat(1, 1, 1)
    T[0, 0, 3] = -4 * wall / K[0, 0, 0]             # 4 px there
    grey = images(1, 1, 24, 40, seed=8)
    key, view = grey[..., 4:36], grey[..., 8:40]    # what is at u in the keyframe is at u - 4 in the view
    found = deepv2d_depth._correlation(replace(LIVE, depth_features=4, groups=4), torch.cat([torch.ones(1, 4, 24, 32), key], 1),
                                       torch.cat([torch.ones(1, 4, 24, 32), view], 1), K, T, planes)[0, 4]
    assert float((found[:, 3:-3, 8:-3].argmax(0) == int((planes[0] - wall).abs().argmin())).float().mean()) > 0.99
    assert float(found.max()) <= 1.0 + 1e-4


def wall(views: int = 3) -> tuple[Tensor, Tensor, Tensor, MeasuredFlow]:
    """Depth (1, h, w) of a slanted wall, K, views that moved sideways by a tenth and less of it, and the flow to them."""
    K, depth = camera(24, 32), (2.0 + torch.linspace(-0.4, 0.4, 32)).expand(1, 24, 32)
    T = torch.eye(4).repeat(1, views, 1, 1)
    T[0, :, 0, 3], T[0, :, 1, 3] = 0.2 / torch.arange(1, 1 + views), 0.05
    return depth, K, T, flow_of(depth, K, T)


def test_flow_is_nearest_to_the_plane_it_moved_by():
    depth, K, T, flow = wall()
    planes = planes_between(1.0, 4.0, 13, 'inverse')[None]
    one = MeasuredFlow(flow.pixels[:, 0], flow.error[:, 0])
    pixels, _ = deepv2d_depth.swept_pixels(24, 32, K, T[:, 0], planes)
    near = deepv2d_depth.flow_nearness(pixels, one)
    expected = (1 / planes[0, :, None, None] - 1 / depth).abs().argmin(0)
    assert near.shape == (1, 2, 13, 24, 32) and (near[0].argmax(1) == expected).all()
    fine, coarse = near[0].amax(1)
    assert (coarse >= fine).all() and coarse.mean() > fine.mean() and fine.min() > 0.5       # half a plane is 0.2 px of these maps
    doubtful, wild = (deepv2d_depth.flow_nearness(pixels, replace(one, error=torch.full_like(one.error, error))) for error in (0.25, INCONSISTENT))
    torch.testing.assert_close(doubtful, near / 2)
    assert not wild.any()
    # Nothing where the plane's pixel lies outside the view, however near it comes to the flow.
    beside = T[:, 0].clone()
    beside[:, 0, 3] = 1.5
    leaving = flow_of(depth, K, beside[:, None])
    features = torch.ones(1, 5, 24, 32)
    costs = deepv2d_depth._correlation(replace(LIVE, depth_features=4, groups=4), features, features, K, beside, planes, MeasuredFlow(leaving.pixels[:, 0], leaving.error[:, 0]))
    outside = costs[:, -1] == 0
    assert 0.1 < outside.float().mean() < 1 and not costs[:, 5:7][outside[:, None].expand(-1, 2, -1, -1, -1)].any() and costs[:, 5:7].any()


@pytest.mark.parametrize('off', [0.97, 1.03])
def test_depth_moves_to_where_flow_is(off):
    depth, K, T, flow = wall()
    start, variance = off / depth, torch.full_like(depth, 0.02 ** 2)
    moved = (deepv2d_depth.refined_by_flow(start, variance, K, T, flow) - start) / (1 / depth - start)
    assert 0.2 < moved.min() and moved.max() < 0.5      # what 0.2 px of flow and 0.02 / m of depth are worth beside each other
    loose = deepv2d_depth.refined_by_flow(start, 1e4 * variance, K, T, flow)
    torch.testing.assert_close(loose, 1 / depth, rtol=2e-4, atol=0)
    firm = deepv2d_depth.refined_by_flow(start, 1e-4 * variance, K, T, flow)
    torch.testing.assert_close(firm, start, rtol=1e-3, atol=0)


def test_depth_stays_where_flow_says_nothing_or_what_is_not_so():
    depth, K, T, flow = wall()
    start, variance = 0.97 / depth, torch.full_like(depth, 0.02 ** 2)
    wild = replace(flow, pixels=flow.pixels + torch.tensor([6.0, -9.0]))
    torch.testing.assert_close(deepv2d_depth.refined_by_flow(start, variance, K, T, wild), start, rtol=1e-3, atol=0)
    torch.testing.assert_close(deepv2d_depth.refined_by_flow(start, variance, K, torch.eye(4).expand(1, 3, 4, 4), flow), start)      # no parallax
    behind = T.clone()
    behind[..., 2, 3] = -3.0
    torch.testing.assert_close(deepv2d_depth.refined_by_flow(start, variance, K, behind, flow), start)
    one_wild = replace(flow, pixels=torch.cat([flow.pixels[:, :2], wild.pixels[:, 2:]], 1))
    both = deepv2d_depth.refined_by_flow(start, variance, K, T[:, :2], MeasuredFlow(flow.pixels[:, :2], flow.error[:, :2]))
    torch.testing.assert_close(deepv2d_depth.refined_by_flow(start, variance, K, T, one_wild), both, rtol=1e-3, atol=0)
    unseen = deepv2d_depth.refined_by_flow(start, variance, K, T, one_wild, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(unseen, both)


def test_flow_that_is_none_changes_nothing(live):
    """Not a number, wherever it would lead."""
    clips, T = images(1, 3, 3, 48, 64), motions(1, 2)
    features = live.depth.features(clips.flatten(0, 1))[None]
    flow = torch.stack([torch.full((48, 64, 2), torch.nan), torch.full((48, 64, 2), torch.inf)])[None]
    nothing = measured_flow(flow, torch.full(flow.shape[:-1], torch.nan))
    other = MeasuredFlow(nothing.pixels + 3.0, nothing.error)
    with torch.inference_mode():
        first, second = (live.depth(features, camera(12, 16), T, live.planes(clips), (48, 64), measured=one) for one in (nothing, other))
    assert torch.isfinite(first.depths[-1]).all() and torch.equal(first.depths[-1], second.depths[-1])


def test_gradients_of_depth_that_flow_refined_are_finite_with_views_behind_it():
    depth, K, T, flow = wall()
    T[0, 0, 2, 3] = -2.0        # in the midst of the wall
    inverse, variance = (0.97 / depth).requires_grad_(), torch.full_like(depth, 0.02 ** 2).requires_grad_()
    deepv2d_depth.refined_by_flow(inverse, variance, K, T, flow).sum().backward()
    assert torch.isfinite(inverse.grad).all() and torch.isfinite(variance.grad).all() and inverse.grad.abs().sum() > 0


def test_confidence_is_that_of_the_depth_that_flow_chose(live):
    """Of two planes that the network takes for equally likely, between which the expected depth lies."""
    planes, key = live.planes(torch.zeros(1)), live.depth.features(torch.zeros(1, 3, 16, 16))
    logits = torch.full((1, SMALL.planes, 4, 4), -50.0)
    logits[:, 1], logits[:, 6] = 0.0, 0.0
    between, chosen = (live.depth._choose(logits, planes, key, (16, 16), refine)[1] for refine in (None, lambda inverse, _: torch.full_like(inverse, 1 / planes[0, 1].item())))
    assert between.max() < 1e-6
    torch.testing.assert_close(chosen, torch.full_like(chosen, 0.5))


def test_what_the_network_chose_gives_way_by_its_spread_and_stays_between_the_planes(live):
    planes, key, told = live.planes(torch.zeros(1)), live.depth.features(torch.zeros(1, 3, 16, 16)), []
    step = ((1 / planes[0, 0] - 1 / planes[0, -1]) / (SMALL.planes - 1)).item()
    sure, torn = torch.full((2, 1, SMALL.planes, 4, 4), -50.0)
    sure[:, 3], torn[:, 1], torn[:, 5] = 0.0, 0.0, 0.0

    def looking(inverse, variance):
        told.append(variance.sqrt().mean().item() / step)
        return inverse

    for logits in (sure, torn):
        live.depth._choose(logits, planes, key, (16, 16), looking)
    assert told == pytest.approx([0.4, math.hypot(0.4, 2.0)], rel=1e-3)
    for wild, end in ((-1.0, SMALL.far), (1e3, SMALL.near)):
        depth, _ = live.depth._choose(sure, planes, key, (16, 16), lambda inverse, _: torch.full_like(inverse, wild))
        torch.testing.assert_close(depth, torch.full_like(depth, end))


def test_exact_flow_moves_an_untrained_network_between_the_planes(live):
    """Features that say nothing, a wall between two planes."""
    near, far = (1 / live.planes(torch.zeros(1))[0, i].item() for i in (3, 4))
    wall_at = 1 / (0.7 * near + 0.3 * far)
    K, T = camera(24, 32), torch.eye(4).repeat(1, 2, 1, 1)
    T[0, :, 0, 3] = torch.tensor([0.3, -0.3])
    features, size = live.depth.features(torch.full((3, 3, 96, 128), 0.5))[None], (96, 128)
    flow = flow_of(torch.full((1, 24, 32), wall_at), K, T)
    with torch.inference_mode():
        told = live.depth(features, K, T, live.planes(features), size, measured=flow).depths[-1]
        untold = live.depth(features, K, T, live.planes(features), size, measured=replace(flow, error=torch.ones_like(flow.error))).depths[-1]
    missed, without = ((1 / found[:, 16:-16, 24:-24] - 1 / wall_at).abs().median().item() * wall_at for found in (told, untold))
    assert missed < 0.02 and missed < 0.2 * without


def test_a_depth_module_that_sees_flow_says_that_it_got_none_or_that_of_other_views(live):
    features = live.depth.features(images(3, 3, 48, 64))[None]
    K, T, planes = camera(12, 16), motions(1, 2), live.planes(features)
    for measured, expected in ((None, 'got None'), (flow_of(torch.ones(1, 12, 16), K, T[:, :1]), r'got \(1, 1, 12, 16\)')):
        with pytest.raises(ValueError, match=r'measured flow \(1, 2, 12, 16\), which this depth module sees, ' + expected):
            live.depth(features, K, T, planes, (48, 64), measured=measured)
    for changes in ({'spacing': 'linear'}, {'upsampling': 'logits'}, {'matching': 'concatenation', 'zncc': False}):
        with pytest.raises(ValueError, match='depth_flow: expected False unless matching is correlation, spacing inverse and upsampling convex'):
            replace(LIVE, **changes)


def test_samples_and_the_order_of_views_do_not_matter(live):
    clips, T = images(2, 4, 3, 48, 64), motions(2, 3)
    with torch.inference_mode():
        together = depth_of(live, clips, T)
        alone = torch.cat([depth_of(live, clips[i:i + 1], T[i:i + 1]).depths[-1] for i in range(2)])
        turned = depth_of(live, clips[:, [0, 3, 1, 2]], T[:, [2, 0, 1]]).depths[-1]
    torch.testing.assert_close(together.depths[-1], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.depths[-1], turned, atol=1e-4, rtol=1e-4)
    assert together.confidence.min() >= 0 and together.confidence.max() <= 1 + 1e-5


def test_views_that_do_not_count_change_nothing(live):
    clips, T = images(1, 4, 3, 48, 64), motions(1, 3)
    with torch.inference_mode():
        two = depth_of(live, clips[:, :3], T[:, :2])
        masked = depth_of(live, clips, T, seen=torch.tensor([[True, True, False]]))
    torch.testing.assert_close(two.depths[-1], masked.depths[-1], atol=1e-5, rtol=1e-5)


def test_depth_stays_between_the_planes(live):
    with torch.inference_mode():
        depth = depth_of(live, images(1, 3, 3, 40, 56), motions(1, 2)).depths[-1]
    assert SMALL.near <= depth.min() and depth.max() <= SMALL.far


def test_wrong_numbers_of_views_are_told():
    network = DeepV2D(replace(LITTLE, form='concatenation', views=2)).eval()
    with pytest.raises(ValueError, match='made for 2 views, got 3'):
        depth_of(network, images(1, 4, 3, 48, 64), motions(1, 3))
    with pytest.raises(ValueError, match='V >= 1'):
        depth_of(network, images(1, 1, 3, 48, 64), motions(1, 1)[:, :0])


@pytest.mark.parametrize('values, told', [({'near': 5.0, 'far': 2.0}, 'near'), ({'matching': 'correlation', 'groups': 5}, 'groups'), ({'zncc': True}, 'zncc'), ({'correction': 8}, 'correction'),
                                          ({'form': 'concatenation', 'matching': 'correlation'}, 'form'), ({'plane': 3}, 'plane')])
def test_settings_that_contradict_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        registry.configuration('deepv2d', values)


def test_agreement_is_largest_where_features_came_from():
    features = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(9))
    moved = features.roll((1, -2), (2, 3))
    found = agreement(features, moved, 2)[0, :, 3:-3, 3:-3]
    assert found.shape[0] == 25 and (found.argmax(0) == (1 + 2) * 5 + (-2 + 2)).all()
    torch.testing.assert_close(found.amax(0), torch.ones(6, 10), atol=1e-5, rtol=0)


def test_it_is_stored_and_found_by_its_name(live, tmp_path: Path):
    checkpoint.save(tmp_path / 'live.safetensors', 'deepv2d', live, {'steps': 0})
    loaded = checkpoint.load(tmp_path / 'live.safetensors', expect='deepv2d').model
    clips, T = images(1, 3, 3, 48, 64), motions(1, 2)
    with torch.inference_mode():
        assert loaded.config == SMALL
        assert torch.equal(depth_of(loaded, clips, T).depths[-1], depth_of(live, clips, T).depths[-1])


def test_volumes_are_convolved_without_onednn_too(monkeypatch):
    torch.manual_seed(4)
    conv, volume = Conv3d(3, 5, 3, padding=1), torch.rand(1, 3, 4, 6, 5)

    def missing(*_):
        raise RuntimeError('built without oneDNN')

    with torch.inference_mode():
        usual = conv(volume)
        monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
        monkeypatch.setattr(torch, 'mkldnn_convolution', missing)
        torch.testing.assert_close(conv(volume), usual)
