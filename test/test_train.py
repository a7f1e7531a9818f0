"""Laws of the `train` program: recipes by name, changes on the command line, refusals, flow of the stores."""

from __future__ import annotations

import contextlib
import logging
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_support import MemoryStore, wavy_pairs
from sequence_support import walking_folder

from depth_ros.apps import train
from depth_ros.learning.ranks import Ranks
from depth_ros.learning.sequence_pairs import open_sequence_store
from depth_ros.learning.trainer import BEST, STATE
from depth_ros.models import checkpoint


@pytest.fixture(autouse=True)
def stores(monkeypatch):
    """Pairs at hand instead of rendered ones."""
    monkeypatch.setattr(train, 'open_store', lambda spec, split, flow: MemoryStore(wavy_pairs(8, seed=len(split))))


SMALL = [word for change in ('steps=4', 'batch=4', 'reduce=1', 'grow_at=1.0', 'validate_every=2', 'warm_up=1', 'new_motion=0.0', 'device=cpu')
         for word in ('--set', change)]


def test_the_recipes_that_come_along_are_found_by_name():
    assert {'global_local', 'global_local_small', 'global_local_pose_aware'} <= train.shipped_recipes().keys()
    assert train.find_recipe('global_local').name == 'global_local.yaml'
    with pytest.raises(ValueError, match=r'neither a file nor one of the recipes .*global_local_small.*; did you mean pwc_net_small or pwc_net\?'):
        train.find_recipe('pwc_net_smal')


def test_a_list_says_what_each_recipe_is_for(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    assert train.main(['--list']) == 0
    lines = capsys.readouterr().out.splitlines()
    begun = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if not line.startswith(' ')}
    assert begun.keys() == train.shipped_recipes().keys() and max(map(len, lines)) <= 100
    assert begun['global_local'].startswith('Global-Local as published') and all(text[0].isupper() for text in begun.values())


def test_it_trains_stops_at_a_step_and_goes_on(tmp_path, capsys):
    command = ['global_local_small', '--out', str(tmp_path), *SMALL]
    assert train.main([*command, '--until', '2']) == 0
    assert '2 steps' in capsys.readouterr().out
    assert train.main(command) == 0
    assert '4 steps' in capsys.readouterr().out and (tmp_path / STATE).exists() and (tmp_path / BEST).exists()


def test_the_exported_network_is_the_best_one_and_says_how_it_came_about(tmp_path):
    target = tmp_path / 'network.safetensors'
    assert train.main(['global_local_small', '--out', str(tmp_path), *SMALL, '--export', str(target)]) == 0
    best, exported = checkpoint.load(tmp_path / BEST), checkpoint.load(target)
    assert exported.record == best.record and exported.record['recipe']['model'] == 'global_local'
    for name, weight in best.model.state_dict().items():
        assert torch.allclose(exported.model.state_dict()[name], weight, rtol=1e-3, atol=1e-7), name
    assert target.stat().st_size < 0.6 * (tmp_path / BEST).stat().st_size


def test_a_training_on_endless_pairs_goes_on_to_the_bit_and_shows_each_once(tmp_path, monkeypatch):
    """Rendered ones would take longer: these are made of their index."""
    shown = []

    class Endless(MemoryStore):
        def __init__(self, data, make_flow, count):
            super().__init__(wavy_pairs(16))
            assert (data.round, count) == (8, 16)

        def batch(self, indices):
            shown.extend(indices)
            return super().batch(indices)

    monkeypatch.setattr(train, 'SyntheticPairs', lambda *parts: contextlib.nullcontext(Endless(*parts)))
    command = ['global_local_small', *SMALL, '--set', 'endless=true', '--set', 'data.round=8']
    assert train.main([*command, '--out', str(tmp_path / 'once')]) == 0
    assert shown[:16] == list(range(16))
    assert train.main([*command, '--out', str(tmp_path / 'twice'), '--until', '2']) == 0
    assert train.main([*command, '--out', str(tmp_path / 'twice')]) == 0
    once, twice = (checkpoint.load(tmp_path / out / BEST).model.state_dict() for out in ('once', 'twice'))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_endless_pairs_of_a_sequence_are_refused(capsys):
    assert train.main(['global_local_finetune', '--set', 'endless=true']) == 1
    assert 'endless' in capsys.readouterr().err


def test_another_recipe_does_not_go_on_with_the_state_but_may_begin_anew(tmp_path, capsys):
    command = ['global_local_small', '--out', str(tmp_path), *SMALL]
    assert train.main([*command, '--until', '2']) == 0
    assert train.main([*command, '--set', 'rate=0.5']) == 1
    assert 'rate: 0.5 instead of 0.001' in capsys.readouterr().err
    assert train.main([*command, '--set', 'rate=0.5', '--fresh', '--until', '1']) == 0


def test_every_process_opens_the_stores_so_that_they_share_the_rendering(tmp_path, monkeypatch):
    opened, trained = [], []
    monkeypatch.setattr(train, 'open_store', lambda spec, split, flow: opened.append(split) or MemoryStore(wavy_pairs(8)))
    monkeypatch.setattr(train.ranks, 'joined', lambda device: contextlib.nullcontext(Ranks(1, 2)))      # no process that it could wait for
    monkeypatch.setattr(train, 'Trainer', lambda recipe, data, *_, **__: trained.append(data) or types.SimpleNamespace(run=lambda until: None))
    assert train.main(['global_local_small', '--out', str(tmp_path), *SMALL]) == 0
    assert opened == ['train', 'validation'] and len(trained) == 1


@pytest.mark.parametrize('words, complaint', [
    ([], 'expected a recipe'),
    (['global_local_small', '--set', 'rate'], 'expected KEY=VALUE'),
    (['global_local_small', '--set', 'speed=3'], "unknown key 'speed'"),
    (['global_local_small', '--set', 'warmup=3'], 'did you mean warm_up?'),
    (['global_local_small', '--set', 'model_config.pose_awre=true'], 'did you mean pose_aware?'),
    (['global_local_small', '--set', 'model=tinny'], 'expected one of the models global_local'),
    (['global_local_small', '--set', 'data.widht=3'], "unknown key 'widht': expected seed, width"),
    (['global_local_small', '--set', 'data.flow=magic'], 'expected one of dis, dis_depth'),
])
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, words, complaint):
    assert train.main([*words, '--out', str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith('error: ') and complaint in message and message.count('\n') == 1


SEQUENCE = [word for change in ('steps=4', 'batch=2', 'validate_every=2', 'warm_up=1', 'device=cpu', 'data.gap=2', 'data.first=1', 'data.last=7', 'data.width=32', 'data.height=24',
                                'data.flow_width=64', 'data.flow_height=48') for word in ('--set', change)]


@pytest.fixture
def walk(tmp_path, monkeypatch) -> list[str]:
    """The command that trains the shipped network on a sequence of 14 frames, a cache of its own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = walking_folder(tmp_path / 'walk', 14)
    return ['global_local_finetune', '--out', str(tmp_path / 'out'), *SEQUENCE, '--set', f'data.sequence={folder}']


def test_the_shipped_network_learns_on_from_a_recorded_sequence(walk, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(train, 'open_sequence_store', lambda *args: opened.append(open_sequence_store(*args)) or opened[-1])
    assert train.main([*walk, '--set', f'data.poses={tmp_path / "walk" / "groundtruth.txt"}']) == 0
    assert [len(store) for store in opened] == [5, 4]           # of frames 1 to 7, and of 8 to 13
    assert (opened[0].batch(range(5)).T_2_1[:, 0, 3] > 0.99).all()
    record = checkpoint.load(tmp_path / 'out' / BEST, 'global_local').record
    assert record['pairs'] == 5 and record['recipe']['supervised_pixels'] == 1


def test_the_shipped_pose_aware_network_learns_on_as_well(walk, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train.main(['global_local_pose_aware_finetune', *walk[1:], '--set', 'rate=0.0']) == 0
    scores = [message.split(': ', 1)[1] for message in caplog.messages if message.startswith(('before the first step: abs_inv', 'step 4: abs_inv'))]
    assert len(scores) == 2 and scores[0] == scores[1]      # it begins with what it is, and learned nothing at that rate
    shipped = checkpoint.load(checkpoint.find('global_local_pose_aware.safetensors')).model.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in checkpoint.load(tmp_path / 'out' / BEST).model.state_dict().items())
    trained = checkpoint.load(tmp_path / 'out' / BEST, 'global_local')
    assert trained.model.config.pose_aware and trained.record['recipe']['prior'] == 0.0 and trained.record['pairs'] == 5


def test_an_image_that_cannot_be_read_stops_the_training_unless_told_otherwise(walk, tmp_path, capsys):
    image = sorted((tmp_path / 'walk' / 'rgb').iterdir())[4]
    image.write_bytes(image.read_bytes()[:100])
    assert train.main(walk) == train.main([*walk, '--strict']) == 1
    assert image.name in capsys.readouterr().err
    assert train.main([*walk, '--no-strict']) == 0
    assert checkpoint.load(tmp_path / 'out' / BEST).record['pairs'] == 3


@pytest.mark.parametrize('change, complaint', [('data.last=-1', 'expected a last frame'), ('data.validation=7', 'data.validation: expected keys and values'),
                                               ('data.train=7', "unknown key 'train'"), ('data.last=12', 'no two frames 2 apart')])
def test_a_sequence_without_frames_to_validate_on_or_with_unknown_keys_is_refused(walk, capsys, change, complaint):
    assert train.main([*walk, '--set', change]) == 1
    assert complaint in capsys.readouterr().err


def test_the_flow_of_a_store_follows_a_shifted_texture():
    texture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    for name in train.FLOWS:
        flow = train.flow_function(name)(texture[:, 8:264], texture[:, 4:260])
        assert np.median(np.abs(flow - [4.0, 0.0])) < 0.3
