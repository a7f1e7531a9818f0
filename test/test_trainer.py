"""Laws of the trainer, on a network and a store of a few pixels: resuming, diverging, stopping, several processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_support import MemoryStore, identical, wavy_pairs
from safetensors.torch import load_file
from torch import nn

from depth_ros.learning import batches, train_state, trainer
from depth_ros.learning.batches import Batches
from depth_ros.learning.ranks import Ranks
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.trainer import BEST, HISTORY, STATE, Data, Diverged, Trainer
from depth_ros.models import checkpoint, registry
from depth_ros.settings import setting

RECIPE = Recipe(model='tiny', steps=6, batch=4, rate=1e-2, schedule='cosine', warm_up=2, clip=1.0, ema=0.9, supervised_pixels=3, validation_pairs=6,
                validate_every=3, checkpoint_every=2, log_every=2, device='cpu')


@dataclass(frozen=True)
class TinyConfig:
    width: int = setting(4, 'channels')


class Tiny(nn.Module):
    """Inverse depth from images and flow by two convolutions, with something random in between, as real networks have."""

    def __init__(self, config: TinyConfig = TinyConfig()) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Conv2d(8, config.width, 3, padding=1), nn.BatchNorm2d(config.width), nn.LeakyReLU(0.1), nn.Dropout(0.1), nn.Conv2d(config.width, 1, 1))

    def inputs(self, batch) -> tuple[torch.Tensor, ...]:
        return batch.image1, batch.image2, batch.flow / 10

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(self.layers(torch.cat(inputs, 1))) + 1e-3


class Narrow(Tiny):
    """Tiny, but its batch norm sees one value of an image and channel, as the narrowest place of an encoder-decoder does."""

    def __init__(self, config: TinyConfig = TinyConfig()) -> None:
        super().__init__(config)
        self.layers.insert(1, nn.AdaptiveAvgPool2d(1))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(*inputs).expand(-1, 1, *inputs[0].shape[-2:])


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(registry.MODELS, 'tiny', (TinyConfig, Tiny))
    torch.set_num_threads(1)


@pytest.fixture
def data() -> Data:
    return Data(MemoryStore(wavy_pairs(10, seed=1)), MemoryStore(wavy_pairs(6, seed=2)))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / STATE)


def assert_bit_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ---------------------------------------------------------------- what a step's batch is

def test_each_pair_comes_once_an_epoch_whatever_the_batch():
    batches = Batches(MemoryStore(wavy_pairs(10)), RECIPE)
    drawn = np.concatenate([batches.joint_indices(step) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10].tolist() != drawn[10:].tolist()


def test_a_step_draws_the_same_whenever_it_is_asked_and_another_seed_draws_otherwise():
    store = MemoryStore(wavy_pairs(10))
    first, again, other = (Batches(store, replace(RECIPE, seed=seed)) for seed in (0, 0, 1))
    first.of_step(0)
    a, b, c = first.of_step(7), again.of_step(7), other.of_step(7)
    assert torch.equal(a.pairs.image1, b.pairs.image1) and torch.equal(a.supervised, b.supervised) and a.indices.tolist() == b.indices.tolist()
    assert not torch.equal(a.supervised, c.supervised)


def test_the_parts_of_the_processes_are_the_joint_batch():
    store = MemoryStore(wavy_pairs(10))
    joint, *parts = (Batches(store, replace(RECIPE, magnify=1.25, zoom=0.1), ranks).of_step(3) for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2)))
    assert torch.equal(torch.cat([p.pairs.flow for p in parts]), joint.pairs.flow) and torch.equal(torch.cat([p.supervised for p in parts]), joint.supervised)


VARYING = {'magnify': 1.25, 'zoom': 0.2, 'shift': 0.2}


@pytest.mark.parametrize('change', [{}, VARYING])
def test_reduced_pairs_are_the_same_whether_they_are_kept_or_made_each_time(monkeypatch, change):
    store, recipe = MemoryStore(wavy_pairs(10)), replace(RECIPE, reduce=2, **change)
    kept = Batches(store, recipe).of_step(3).pairs
    monkeypatch.setattr(batches, '_KEPT', 0)
    made = Batches(store, recipe).of_step(3).pairs
    assert kept.image1.shape[-2:] == (12, 16)
    assert identical(kept, made)


def test_every_pair_has_a_camera_of_its_own_whenever_it_is_visited():
    drawing = Batches(MemoryStore(wavy_pairs(10)), replace(RECIPE, flip=False, steps=20, **VARYING))
    cameras: dict[int, set[tuple[float, ...]]] = {index: set() for index in range(10)}
    for drawn in map(drawing.of_step, range(20)):
        for index, K in zip(drawn.indices, drawn.pairs.K):
            cameras[index].add(tuple(K.flatten().tolist()))
    assert all(len(seen) == 1 for seen in cameras.values()) and len(set.union(*cameras.values())) == 10


def test_supervision_is_what_the_recipe_says():
    drawn = Batches(MemoryStore(wavy_pairs(10)), RECIPE).of_step(0)
    assert (drawn.supervised.flatten(1).sum(1) == 3).all()


@pytest.mark.parametrize('change', [{}, {'new_motion': 0.75}, {'reduce': 2}])
def test_a_pair_is_told_the_same_pixels_at_every_visit_however_it_is_turned(change):
    drawing = Batches(MemoryStore(wavy_pairs(10)), replace(RECIPE, steps=20, **change))
    colours, places = ({index: set() for index in range(10)} for _ in range(2))
    for drawn in map(drawing.of_step, range(20)):
        for index, image, mask in zip(drawn.indices.tolist(), drawn.pairs.image1, drawn.supervised[:, 0]):
            colours[index] |= {colour.sum().item() for colour in image[:, mask].T}
            places[index] |= {tuple(place) for place in mask.nonzero().tolist()}
    assert all(len(found) == RECIPE.supervised_pixels for found in colours.values())
    assert max(map(len, places.values())) > RECIPE.supervised_pixels


def test_the_pixel_of_a_growing_image_stays_under_the_first_one():
    recipe = replace(RECIPE, reduce=2, grow_at=0.5, supervised_pixels=1, flip=False, batch=10)
    pairs = wavy_pairs(10)
    pairs.valid[:] = True
    small, full = (Batches(MemoryStore(pairs), recipe).of_step(step) for step in (0, 5))
    places = [{int(index): mask[0].nonzero()[0] for index, mask in zip(drawn.indices, drawn.supervised)} for drawn in (small, full)]
    assert all(torch.equal(places[0][index], places[1][index] // 2) for index in range(10))


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused():
    with pytest.raises(ValueError, match='multiple of the 3 processes'):
        Batches(MemoryStore(wavy_pairs(10)), RECIPE, Ranks(0, 3))


# ---------------------------------------------------------------- training

def test_training_lowers_the_validation_error(data, tmp_path):
    recipe = replace(RECIPE, steps=120, supervised_pixels=0, validate_every=40, flip=False)
    progress = Trainer(recipe, data, tmp_path).run()
    assert progress.history[-1]['abs_inv'] < 0.5 * progress.history[0]['abs_inv'] or progress.history[-1]['abs_inv'] < 0.1
    assert progress.best == min(progress.history, key=lambda scores: scores['abs_rel'])


def test_going_on_is_bit_equal_to_never_having_stopped(data, tmp_path):
    Trainer(RECIPE, data, tmp_path / 'whole').run()
    Trainer(RECIPE, data, tmp_path / 'parts').run(until=2)
    Trainer(RECIPE, data, tmp_path / 'parts').run(until=3)
    progress = Trainer(RECIPE, data, tmp_path / 'parts').run()
    assert progress.step == 6 and [scores['step'] for scores in progress.history] == [3, 6]
    assert_bit_equal(tensors(tmp_path / 'whole'), tensors(tmp_path / 'parts'))
    assert (tmp_path / 'whole' / HISTORY).read_text() == (tmp_path / 'parts' / HISTORY).read_text()


def test_the_best_checkpoint_is_one_of_the_largest_size(data, tmp_path):
    progress = Trainer(replace(RECIPE, reduce=2, grow_at=0.5, validate_every=1), data, tmp_path).run()
    assert [scores['reduce'] for scores in progress.history] == [2, 2, 2, 1, 1, 1]
    assert progress.best == min(progress.history[3:], key=lambda scores: scores['abs_rel'])


def test_the_best_checkpoint_is_the_the_averaged_network_with_its_record(data, tmp_path):
    trainer = Trainer(RECIPE, data, tmp_path)
    best = trainer.run().best
    loaded = checkpoint.load(tmp_path / BEST, expect='tiny')
    assert loaded.record['validation'] == best and loaded.record['recipe']['batch'] == 4
    if best['step'] == RECIPE.steps:
        assert_bit_equal(loaded.model.state_dict(), trainer.result.state_dict())
    fresh = Trainer(replace(RECIPE, start_from=str(tmp_path / BEST)), data, tmp_path / 'other')
    assert_bit_equal(loaded.model.state_dict(), fresh.model.state_dict())


def test_the_curves_are_written_for_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(RECIPE, data, tmp_path).run()
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert {'train/loss', 'train/l1', 'train/rate', 'validation/abs_rel', 'validation/sc_inv'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('train/loss')] == [2, 4, 6]


def test_the_state_of_another_recipe_is_refused_naming_what_differs(data, tmp_path):
    Trainer(RECIPE, data, tmp_path).run(until=1)
    with pytest.raises(ValueError, match=r'another recipe: this one has batch: 2 instead of 4; rate: 0.5 instead of 0.01'):
        Trainer(replace(RECIPE, rate=0.5, batch=2), data, tmp_path)
    assert Trainer(replace(RECIPE, rate=0.5), data, tmp_path, resume=False).progress.step == 0


def test_a_state_cut_short_is_refused_by_name(data, tmp_path):
    Trainer(RECIPE, data, tmp_path).run(until=1)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(ValueError, match=str(state)):
        Trainer(RECIPE, data, tmp_path)


@pytest.mark.parametrize('change, complaint', [({'model': 'tinny'}, 'tiny'), ({'objective': 'colour'}, 'inverse_depth'), ({'model_config': {'widht': 3}}, 'width'),
                                               ({'best_by': 'beauty'}, 'abs_rel')])
def test_an_unknown_name_is_refused_with_the_known_ones(data, tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Trainer(replace(RECIPE, **change), data, tmp_path)


@pytest.mark.parametrize('objective, model, best_by', [('photometric', 'unsupervised', 'epe'), ('motion', 'pose_head', 'abs_rel'), ('flow', 'pwc_net', 'rotation')])
def test_a_score_that_the_objective_does_not_report_is_refused_at_once(data, tmp_path, objective, model, best_by):
    with pytest.raises(ValueError, match=f'best_by: expected one of .*, got .{best_by}'):
        Trainer(replace(RECIPE, objective=objective, model=model, best_by=best_by), data, tmp_path)


def test_a_score_that_is_not_a_number_is_never_the_best(data, tmp_path, monkeypatch):
    scores = iter([float('nan'), 0.3, float('nan'), 0.2, float('inf'), 0.25])
    trainer = Trainer(replace(RECIPE, validate_every=1), data, tmp_path)
    monkeypatch.setattr(trainer, 'validate', lambda: {'abs_rel': next(scores)})
    bests = []
    for step in range(1, 7):
        best = trainer.run(until=step).best
        bests.append(best and best['abs_rel'])
    assert bests == [None, 0.3, 0.3, 0.2, 0.2, 0.2]
    trainer.progress.best = {'step': 6, 'reduce': 1, 'abs_rel': float('nan')}       # as an older training may have left it
    assert trainer._best_yet({'step': 7, 'reduce': 1, 'abs_rel': 5.0})


def test_a_loss_that_is_not_finite_stops_at_the_last_good_state_and_tells_the_sample(data, tmp_path):
    Trainer(RECIPE, data, tmp_path).run(until=3)
    before = tensors(tmp_path)
    bad = int(Batches(data.train, RECIPE).joint_indices(4)[2])
    data.train.pairs.image2[bad] = float('nan')
    trainer = Trainer(replace(RECIPE, checkpoint_every=100), data, tmp_path)
    if bad in Batches(data.train, RECIPE).joint_indices(3):
        pytest.fail('choose another seed: the bad pair must first come at step 4')
    with pytest.raises(Diverged, match=rf'step 4: not finite .* samples \[{bad}\]; .*{STATE} holds the last good state'):
        trainer.run()
    assert_bit_equal(before, tensors(tmp_path))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_one_value_that_batch_norm_would_not_learn_from_is_judged_all_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.MODELS, 'tiny', (TinyConfig, Narrow))
    trainer = Trainer(RECIPE, data, tmp_path)
    trainer.run(until=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    bad = int(trainer._batches.joint_indices(1)[2])
    data.train.pairs.image2[bad] = float('nan')
    with pytest.raises(Diverged, match=rf'samples \[{bad}\]'):
        trainer.run()
    assert_bit_equal(before, trainer.model.state_dict())
    assert trainer.model.training


def test_ctrl_c_saves_a_state_from_which_going_on_is_bit_equal(data, tmp_path):
    class Interrupting(MemoryStore):
        def batch(self, indices):
            self.drawn = getattr(self, 'drawn', 0) + 1
            if self.drawn == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(indices)

    with pytest.raises(KeyboardInterrupt):
        Trainer(RECIPE, replace(data, train=Interrupting(data.train.pairs)), tmp_path / 'cut').run()
    assert 0 < train_state.Progress(**json.loads((tmp_path / 'cut' / HISTORY).read_text())).step < RECIPE.steps
    Trainer(RECIPE, data, tmp_path / 'cut').run()
    Trainer(RECIPE, data, tmp_path / 'whole').run()
    assert_bit_equal(tensors(tmp_path / 'cut'), tensors(tmp_path / 'whole'))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_steps_tell_how_long_the_others_will_take(data, tmp_path, monkeypatch, caplog):
    """A step on pairs of twice the size takes four times as long."""
    monkeypatch.setattr(trainer, '_TIMED', 2)
    with caplog.at_level('INFO'):
        Trainer(RECIPE, data, tmp_path / 'short').run()
    assert 'about 0 min to go' in caplog.text
    growing = Trainer(replace(RECIPE, steps=10, reduce=2, grow_at=0.5), data, tmp_path / 'long')
    growing.progress.step = 3
    assert growing._duration(10, 3600.0) == f'{2 + 5 * 4:.1f} h' and growing._duration(4, 120.0) == '2 min'


@pytest.mark.parametrize('objective, model, scores', [('photometric', 'unsupervised', {'abs_inv', 'abs_rel', 'sc_inv'}), ('motion', 'pose_head', {'rotation', 'direction'}),
                                                      ('flow', 'pwc_net', {'epe', 'epe_visible', 'estimator_epe', 'estimator_epe_visible'})])
def test_the_other_objectives_train_their_networks(data, tmp_path, objective, model, scores):
    small = {'share': 0.1} if model == 'pwc_net' else {}
    recipe = replace(RECIPE, model=model, model_config=small, objective=objective, steps=3, ema=0.0, best_by=min(scores))
    trainer = Trainer(recipe, data, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    progress = trainer.run()
    assert progress.history[-1].keys() == {'step', 'reduce'} | scores
    assert all((value != before[name]).any() for name, value in trainer.model.named_parameters() if name in before)


def test_depth_behind_a_flow_network_tunes_it_only_if_it_is_to(data, tmp_path):
    flow = replace(RECIPE, model='pwc_net', model_config={'share': 0.1}, objective='flow', steps=3, ema=0.0, best_by='epe')
    Trainer(flow, data, tmp_path / 'flow').run()
    trained = checkpoint.load(tmp_path / 'flow' / BEST).model.state_dict()
    for tune in (False, True):
        recipe = replace(RECIPE, model='flow_and_depth', model_config={'share': 0.1, 'tune': tune}, steps=3, ema=0.0, start_from=str(tmp_path / 'flow' / BEST))
        trainer = Trainer(recipe, data, tmp_path / str(tune))
        assert_bit_equal(trainer.model.flow.state_dict(), trained)
        trainer.run()
        assert all(torch.equal(value, trained[name]) for name, value in trainer.model.flow.state_dict().items()) != tune


def test_a_pose_head_begins_with_the_global_module_of_a_depth_network(data, tmp_path):
    depth = Trainer(replace(RECIPE, model='global_local', steps=3), data, tmp_path / 'depth')
    depth.run()
    head = Trainer(replace(RECIPE, model='pose_head', objective='motion', start_from=str(tmp_path / 'depth' / BEST), best_by='rotation'), data, tmp_path / 'head')
    assert_bit_equal(head.model.encoder.global_module.state_dict(), checkpoint.load(tmp_path / 'depth' / BEST).model.global_module.state_dict())
    with pytest.raises(ValueError, match='holds pose_head'):
        head.run()
        Trainer(replace(RECIPE, model='global_local', start_from=str(tmp_path / 'head' / BEST)), data, tmp_path / 'wrong')


# ---------------------------------------------------------------- several processes

WORKER = """
import sys
from dataclasses import replace
sys.path.insert(0, {test!r})
import test_trainer as t
from depth_ros.learning import ranks
t.registry.MODELS['tiny'] = t.TinyConfig, t.Calm
t.torch.set_num_threads(1)
with ranks.joined('cpu') as joined:
    t.Trainer(t.JOINT, t.uneven_data(), {out!r}, joined).run()
"""
JOINT = replace(RECIPE, supervised_pixels=0, steps=4, log_every=1)


class Calm(Tiny):
    """Tiny without what depends on the batch or on chance: its joint gradient is the mean of the parts'."""

    def __init__(self, config: TinyConfig = TinyConfig()) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(self.layers[0], self.layers[2], self.layers[4])


def uneven_data() -> Data:
    """Pairs of which some have much less known depth, so that the processes' parts do not weigh the same."""
    pairs = wavy_pairs(10, seed=1)
    pairs.valid[:5, :, 5:] = False
    return Data(MemoryStore(pairs), MemoryStore(pairs))


def test_two_processes_learn_what_one_learns_from_the_joint_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.MODELS, 'tiny', (TinyConfig, Calm))
    Trainer(JOINT, uneven_data(), tmp_path / 'one').run()
    code = WORKER.format(test=str(Path(__file__).parent), out=str(tmp_path / 'two'))
    with socket.socket() as held:       # until the workers listen on its port beside it, nobody else is given it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(('127.0.0.1', 0))
        environment = {**os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(held.getsockname()[1]), 'WORLD_SIZE': '2', 'OMP_NUM_THREADS': '1'}
        workers = [subprocess.Popen([sys.executable, '-c', code], env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in range(2)]
        assert [worker.wait(240) for worker in workers] == [0, 0]
    one, two = tensors(tmp_path / 'one'), tensors(tmp_path / 'two')
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one if name.startswith('model/')) < 1e-6
    assert abs(losses_of(tmp_path / 'one') - losses_of(tmp_path / 'two')).max() < 1e-6


def losses_of(out: Path) -> np.ndarray:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return np.array([event.value for event in EventAccumulator(str(out / 'tensorboard')).Reload().Scalars('train/loss')])
