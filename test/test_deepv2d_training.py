"""Training DeepV2D's modules on clips, on a tiny network: it learns, goes on bit for bit, leaves alone what it does not train, and joins what was trained apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clip_support import SHOWN, TINY, ClipMemory, sample_clips
from pair_support import few_surfaces
from safetensors.torch import load_file

from depth_ros.apps import train
from depth_ros.engines.flow import both_flows
from depth_ros.frames import resize_intrinsics
from depth_ros.geometry.depth_maps import reduce_depth
from depth_ros.geometry.gauss_newton import relative_motion
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning import clips, objectives, optimisers
from depth_ros.learning.clip_batches import ClipBatches
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.trainer import BEST, STATE, Data, Trainer
from depth_ros.models import checkpoint, registry
from depth_ros.models.deepv2d_motion import STRIDE, edges_of, keyframe_edges

RECIPE = Recipe(model='deepv2d', model_config=TINY, objective='deepv2d_depth', l1_of='log_depth', l1_weight=1.0, smooth_weight=1.0, steps=4, batch=2, rate=3e-3, clip=1.0, ema=0.9,
                stretch=1.2, colour=0.5, fewest_views=2, pose_error=0.02, flow_weight=1.0, validation_pairs=2, validate_every=4, checkpoint_every=2, log_every=2, device='cpu')
KINDS = {'deepv2d_depth': 'abs_rel', 'deepv2d_motion': 'rotation', 'deepv2d': 'abs_rel'}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope='module')
def data() -> Data:
    made = sample_clips()
    return Data(ClipMemory(made[:2], both_flows()), ClipMemory(made[2:], both_flows()))


def of_kind(kind: str, **changes) -> Recipe:
    return replace(RECIPE, objective=kind, best_by=KINDS[kind], **changes)


def shown_flow(kind: str, **changes) -> Recipe:
    """The same with modules that are shown measured flow."""
    return of_kind(kind, model_config=SHOWN, measured_flow=True, **changes)


@pytest.mark.parametrize('kind, of', [*((kind, of_kind) for kind in KINDS), *((kind, shown_flow) for kind in KINDS)])
def test_going_on_is_bit_equal_to_never_having_stopped(data, tmp_path, kind, of):
    recipe = of(kind, predicted_from=0.25)
    whole = Trainer(recipe, data, tmp_path / 'whole').run()
    Trainer(recipe, data, tmp_path / 'parts').run(until=1)
    Trainer(recipe, data, tmp_path / 'parts').run(until=3)
    parts = Trainer(recipe, data, tmp_path / 'parts').run()
    ours, theirs = (load_file(tmp_path / name / STATE) for name in ('whole', 'parts'))
    assert ours.keys() == theirs.keys() and not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert whole == parts and {*objectives.kind(recipe).reported} <= whole.best.keys()


@pytest.mark.parametrize('kind, of', [*((kind, of_kind) for kind in KINDS), ('deepv2d_depth', shown_flow)])
def test_networks_in_half_precision_learn_nearly_what_those_in_full_learn(data, kind, of):
    recipe = of(kind, predicted_from=0.0)
    objective = objectives.build(recipe)
    torch.manual_seed(0)
    network, drawn = registry.build(recipe.model, recipe.model_config), ClipBatches(data.train, recipe).of_step(3)
    full = objective.terms(network, drawn, torch.ones_like)
    with torch.autocast('cpu', torch.bfloat16):
        half = objective.terms(network, drawn, torch.ones_like)
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value, rtol=5e-3, atol=1e-5)
    sum(half.values()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]


@pytest.mark.parametrize('kind, part', [('deepv2d_depth', 'depth'), ('deepv2d_motion', 'motion'), ('deepv2d', '')])
def test_a_stage_changes_every_weight_of_its_part_and_no_other(data, tmp_path, kind, part):
    trainer = Trainer(of_kind(kind, steps=3, ema=0.0), data, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.run()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(part)}


@pytest.mark.parametrize('kind, of, steps, watched', [('deepv2d_depth', of_kind, 25, 'depth'), ('deepv2d_depth', shown_flow, 25, 'depth'), ('deepv2d_motion', of_kind, 45, 'flow'), ('deepv2d_motion', shown_flow, 30, 'certainty')])
def test_some_steps_lower_the_loss_on_two_clips(data, kind, of, steps, watched):
    recipe = of(kind, colour=0.0, stretch=1.0, fewest_views=4, flip=False, still_start=0.0)
    torch.manual_seed(0)
    network, objective = registry.build('deepv2d', recipe.model_config), objectives.build(recipe)
    drawn = ClipBatches(data.train, recipe).of_step(0)
    optimiser = optimisers.optimiser_for(network, recipe)
    losses = []
    for _ in range(steps):
        terms = objective.terms(network, drawn, torch.ones_like)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(terms[watched].detach()))
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize('form, edges', [('keyframe', 4), ('global', 20)])
def test_flow_is_measured_on_the_images_that_are_shown(data, form, edges):
    """After every change to them: flow, the clip's own poses and its depth agree, mirrored or not."""
    recipe = shown_flow('deepv2d_motion', form=form, fewest_views=4, colour=0.0)
    clips = ClipBatches(data.train, recipe).of_step(0).clips
    assert clips.flow.shape == (2, edges, *clips.depth.shape[2:], 2) and clips.flow_error.shape == clips.flow.shape[:-1]
    source, target = edges_of(form, 5)
    truth, valid = induced_flow(clips.depth[:, source], clips.K[:, None], relative_motion(clips.T_cam_world, source, target))
    sure = valid & (clips.flow_error < 0.2)
    assert sure.float().mean() > 0.2
    assert (clips.flow - truth).norm(dim=-1)[sure].median() < 0.5
    other = replace(recipe, colour=3.0)
    assert not torch.equal(ClipBatches(data.train, other).of_step(0).clips.flow, clips.flow)


def test_flow_is_asked_for_by_recipe_and_network_alike(data):
    seeing = shown_flow('deepv2d_motion')
    for recipe, expected in ((replace(seeing, measured_flow=False), 'expected True, as what is trained sees'), (of_kind('deepv2d_motion', measured_flow=True), 'expected False'),
                             (replace(seeing, objective='deepv2d_depth', best_by='abs_rel', model_config=SHOWN | {'depth_flow': False}), 'expected False'),
                             (replace(seeing, model_config=SHOWN | {'measured_flow': False}), 'expected False')):
        with pytest.raises(ValueError, match=expected):
            objectives.build(recipe)
    with pytest.raises(ValueError, match='something to measure flow with'):
        ClipBatches(ClipMemory(sample_clips()), shown_flow('deepv2d_motion')).of_step(0)


@pytest.mark.parametrize('form', ['keyframe', 'global'])
def test_the_depth_module_is_shown_the_flow_from_the_keyframe_to_each_view(data, form):
    """Whatever edges the motion module has beside them."""
    recipe = shown_flow('deepv2d', form=form, fewest_views=4, colour=0.0)
    clips = ClipBatches(data.train, recipe).of_step(0).clips
    told = objectives.build(recipe)._from_key(clips)
    source, target = keyframe_edges(5)
    depth = reduce_depth(clips.depth, STRIDE)[:, source]
    truth, valid = induced_flow(depth, resize_intrinsics(clips.K, 1 / STRIDE, 1 / STRIDE)[:, None], relative_motion(clips.T_cam_world, source, target))
    missed, sure = (told.pixels - pixel_grid(*depth.shape[-2:]) - truth).norm(dim=-1), valid & (told.error < 0.05)
    for view in range(4):
        assert sure[:, view].float().mean() > 0.1 and missed[:, view][sure[:, view]].median() < 0.2


def test_modules_trained_apart_are_joined(data, tmp_path):
    for kind in ('deepv2d_depth', 'deepv2d_motion'):
        Trainer(of_kind(kind), data, tmp_path / kind).run()
    paths = {part: str(tmp_path / f'deepv2d_{part}' / BEST) for part in ('depth', 'motion')}
    joined = Trainer(of_kind('deepv2d', start_parts=paths), data, tmp_path / 'joined')
    for part, path in paths.items():
        trained = checkpoint.load(path).model.get_submodule(part).state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in joined.model.get_submodule(part).state_dict().items())
    assert joined.record({})['recipe']['start_parts'] == {'depth': BEST, 'motion': BEST}
    for rate, expected in ((0.0, {part: f'deepv2d_{part}' for part in paths}), (1e-3, dict.fromkeys(paths, 'deepv2d'))):        # joined alone, or learned on together
        Trainer(of_kind('deepv2d', start_parts=paths, rate=rate), data, tmp_path / f'joined{rate}').run()
        again = Trainer(of_kind('deepv2d', start_parts=dict.fromkeys(paths, str(tmp_path / f'joined{rate}' / BEST))), data, tmp_path / 'again', resume=False)
        assert {part: record['recipe']['objective'] for part, record in again.record({})['parts'].items()} == expected
    with pytest.raises(ValueError, match='start_parts: the network has no part'):
        Trainer(of_kind('deepv2d', start_parts={'colour': paths['depth']}), data, tmp_path / 'wrong')
    other = of_kind('deepv2d', start_parts=paths, model_config=TINY | {'depth_width': 8})
    with pytest.raises(ValueError, match='start_parts: depth of .*do not fit'):
        Trainer(other, data, tmp_path / 'other')


def test_a_module_that_a_checkpoint_lacks_begins_anew_if_told_so(data, tmp_path):
    convex = TINY | {'upsampling': 'convex'}
    Trainer(of_kind('deepv2d_depth', model_config=convex), data, tmp_path / 'before').run()
    given, wider = {'depth': str(tmp_path / 'before' / BEST)}, convex | {'correction': 8, 'correction_levels': 2}
    with pytest.raises(ValueError, match='do not fit their network: it lacks: correction'):
        Trainer(of_kind('deepv2d_depth', start_parts=given, model_config=wider), data, tmp_path / 'strict')
    grown = Trainer(of_kind('deepv2d_depth', start_parts=given, start_new='depth.correction', model_config=wider), data, tmp_path / 'grown').model.depth.state_dict()
    for name, value in checkpoint.load(given['depth']).model.depth.state_dict().items():
        assert torch.equal(grown.pop(name), value)
    assert grown and all(name.startswith('correction.') for name in grown)
    torch.manual_seed(3)
    again = Trainer(of_kind('deepv2d_depth', seed=5, start_parts=given, start_new='depth.heads.0', model_config=convex), data, tmp_path / 'again').model.depth.state_dict()
    kept = checkpoint.load(given['depth']).model.depth.state_dict()
    changed = {name for name, value in again.items() if not torch.equal(value, kept[name])}
    assert changed and all(name.startswith('heads.0.') for name in changed)     # though the checkpoint holds it
    for wrong, parts in (('depth.corection', given), ('motion.trunk', given), ('depth.correction', {}), ('depth.correction.head.1', given), ('depth', given)):
        with pytest.raises(ValueError, match=f"start_new: expected a module with weights within a part of start_parts.*got '{wrong}'"):
            Trainer(of_kind('deepv2d_depth', start_parts=parts, start_new=wrong, model_config=wider), data, tmp_path / 'wrong')


def test_parts_have_rates_of_their_own_and_rmsprop_takes_steps(data, tmp_path):
    recipe = of_kind('deepv2d', optimiser='rmsprop', rate_shares={'motion': 0.0}, steps=2, ema=0.0)
    trainer = Trainer(recipe, data, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.run()
    changed = {name.partition('.')[0] for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert isinstance(trainer._optimiser, torch.optim.RMSprop) and changed == {'depth'}
    with pytest.raises(ValueError, match="rate_shares: the network has no part 'motoin'"):
        Trainer(replace(recipe, rate_shares={'motoin': 0.1}), data, tmp_path / 'wrong')


def test_the_published_motion_module_trains_with_its_pose_network(data):
    """Every weight of the part gets a gradient, as several processes that train together need."""
    config = TINY | {'pose_network': True, 'motion_norm': 'batch', 'motion_reach': 0}
    objective = objectives.build(of_kind('deepv2d_motion', model_config=config, form='global'))
    network = registry.build('deepv2d', config)
    objective.freeze_others(network)
    terms = objective.terms(network, ClipBatches(data.train, RECIPE).of_step(0), torch.ones_like)
    sum(terms.values()).backward()
    assert 'start' in terms
    assert all((weight.grad is not None) == name.startswith('motion') for name, weight in network.named_parameters())


def test_the_command_trains_on_rendered_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    small = {'data.width': 64, 'data.height': 48, 'data.train': 2, 'data.validation': 2, 'data.shard': 2, 'reduce': 1, 'reduce_to': 1, 'steps': 2, 'batch': 2}
    settings = [part for key, value in small.items() for part in ('--set', f'{key}={value}')]
    with few_surfaces():
        assert train.main(['deepv2d_live_motion', '--out', str(tmp_path / 'out'), *settings]) == 0
    assert 'best at step 2' in capsys.readouterr().out
    assert checkpoint.load(tmp_path / 'out' / BEST, 'deepv2d').record['recipe']['size'] == 'live'
    assert clips.open_clips(clips.ClipData(width=64, height=48, train=2, shard=2), 'train').size == (48, 64)
