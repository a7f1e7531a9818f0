"""What a learner remembers survives as a file: bounded, whole or not at all, and no spoilt one gets in."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from learner_support import QUICK, SHARE, T, feed, hits_on, scene

from depth_ros.engines import observation_file
from depth_ros.engines.observation_file import Kept
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.replay_buffer import observation

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def one():
    result, depth, guide = scene(0)
    return replace(observation(result, T, hits_on(depth, SHARE), guide=guide), weight=0.75)


def kept(one, *counts: int) -> Kept:
    return Kept(*([replace(one, stamp=100 * part + i) for i in range(count)] for part, count in enumerate(counts)), seen=(50, 20))


def test_it_comes_back_as_it_was_to_the_precision_of_a_range_sensor(one, tmp_path):
    path = tmp_path / 'observations.npz'
    assert observation_file.write(path, kept(one, 3, 2, 1, 0), 100) == 6
    back = observation_file.read(path)
    assert [[o.stamp for o in part] for part in back.parts] == [[0, 1, 2], [100, 101], [200], []] and back.seen == (50, 20)
    again = back.recent[0]
    for field in fields(one):
        before, after = getattr(one, field.name), getattr(again, field.name)
        if field.name in ('hits', 'carried', 'guide'):
            np.testing.assert_allclose(after, before, rtol=1e-3)
            assert ((after > 0) == (before > 0)).all() and after.dtype == before.dtype
        elif field.name not in ('stamp', 'serial'):
            np.testing.assert_array_equal(after, before)
            assert type(after) is type(before) and getattr(after, 'dtype', None) == getattr(before, 'dtype', None)
    assert len({o.serial for part in back.parts for o in part} | {one.serial}) == 7


@pytest.mark.parametrize(('most', 'parts'), [(10, [4, 4, 1, 1]), (0, [0, 0, 0, 0]), (1000, [40, 40, 10, 10])])
def test_it_is_bounded_and_an_even_choice(one, tmp_path, most, parts):
    path = tmp_path / 'observations.npz'
    assert observation_file.write(path, kept(one, 40, 40, 10, 10), most) == sum(parts)
    back = observation_file.read(path)
    assert [len(part) for part in back.parts] == parts
    if most == 10:
        assert [o.stamp for o in back.recent] == [0, 13, 26, 39]


def rewrite(path: Path, **changes: object) -> None:
    with np.load(path) as stored:
        planes = {name: stored[name] for name in stored.files}
    np.savez_compressed(path, **{name: value for name, value in {**planes, **changes}.items() if value is not None})


@pytest.mark.parametrize('spoil', [
    lambda path: path.write_bytes(path.read_bytes()[:2000]),
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'text'),
    lambda path: path.write_bytes(path.read_bytes().replace(b'image2', b'image3')),
    lambda path: rewrite(path, hits=None),
    lambda path: rewrite(path, note=np.array('[]')),
    lambda path: rewrite(path, note=np.array(json.dumps({'format': 'depth_ros observations 2'}))),
    lambda path: rewrite(path, flow=np.full((3, 48, 64, 2), np.nan, np.float16)),
    lambda path: rewrite(path, image1=np.zeros((3, 48, 60, 3), np.uint8)),
    lambda path: rewrite(path, K=np.zeros((2, 3, 3), np.float32)),
    lambda path: rewrite(path, step_length=np.zeros(3)),
    lambda path: rewrite(path, stamp=np.array([{}, {}, {}], object)),
])
def test_a_file_that_is_damaged_or_of_another_kind_is_refused_by_name(one, tmp_path, spoil):
    path = tmp_path / 'observations.npz'
    observation_file.write(path, kept(one, 2, 1, 0, 0), 100)
    spoil(path)
    with pytest.raises(ValueError, match='observations.npz: no observations to go on with'):
        observation_file.read(path)


def test_a_full_disk_leaves_the_file_of_before(one, tmp_path, monkeypatch):
    path = tmp_path / 'observations.npz'
    observation_file.write(path, kept(one, 2, 1, 0, 0), 100)
    before = path.read_bytes()

    def full(*_args, **_planes):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match='No space left'):
        observation_file.write(path, kept(one, 3, 1, 0, 0), 100)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_learner_goes_on_with_what_it_remembered_and_keeps_nothing_for_a_smaller_memory(start, tmp_path):
    path = tmp_path / 'observations.npz'
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(24))
    learner.save_observations(path, 100)
    again = OnlineLearner(start, QUICK)
    assert again.restore_observations(path) == sum(learner.buffered.values()) and again.buffered == learner.buffered
    feed(again, [24], batches=2)
    assert again.progress.batches == 2
    small = OnlineLearner(start, replace(QUICK, recent=3, reservoir=2))
    small.restore_observations(path)
    assert small.buffered['recent'] == 3 and small.buffered['reservoir'] == 2
    with pytest.raises(FileNotFoundError):
        small.restore_observations(tmp_path / 'absent.npz')
