"""The store of pairs: what it promises of each pair, of its files, and of splits and seeds."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from pair_support import few_surfaces, parts

from depth_ros import settings
from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning import materials, pairs, scenes
from depth_ros.learning.pairs import PairData, PairStore, open_store

SPEC = PairData(seed=5, width=64, height=48, flow_width=64, flow_height=48, train=12, validation=6, test=6, shard=6, sensor=0.0, flow='none')


def no_flow(rgb1, rgb2):
    return np.zeros((*rgb1.shape[:2], 2), np.float32)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """A cache of the module's own."""
    with few_surfaces() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def store(cache):
    return open_store(SPEC, 'train', no_flow)


@pytest.fixture(scope='module')
def batch(store):
    return store.batch(range(len(store)))


def test_a_batch_has_the_agreed_shapes(store, batch):
    assert len(store) == len(batch) == 12 and store.size == (48, 64)
    assert batch.image1.shape == batch.image2.shape == (12, 3, 48, 64)
    assert batch.flow.shape == batch.exact_flow.shape == (12, 2, 48, 64)
    assert batch.inverse_depth.shape == batch.valid.shape == batch.visible.shape == (12, 1, 48, 64)
    assert batch.K.shape == (12, 3, 3) and batch.T_2_1.shape == (12, 4, 4)
    assert 0.0 <= batch.image1.min() and batch.image1.max() <= 1.0 and batch.valid.all()
    assert {t.dtype for t in parts(batch).values()} == {torch.float32, torch.bool}
    some = store.batch([7, 2]).pick([1])
    assert len(some) == 1 and torch.equal(some.image2[0], batch.image2[2])


def test_flow_is_the_projection_of_depth_and_motion(batch):
    moved, in_front = induced_flow(1.0 / batch.inverse_depth[:, 0], batch.K, batch.T_2_1)
    error = (moved.movedim(-1, 1) - batch.exact_flow).norm(dim=1)[in_front]
    assert error.max() < 0.05       # of 16-bit floats
    assert torch.allclose(batch.T_2_1[:, :3, 3].norm(dim=1), torch.ones(12))


def test_warped_images_agree_where_visible(batch):
    """Without the sensor's faults, and but for reflections and edges, image 2 along the flow is image 1."""
    warped, _ = warp_by_flow(batch.image2, batch.exact_flow.movedim(1, -1))
    seen = batch.visible[:, 0]
    off, unmoved = ((other - batch.image1).abs().mean(1) for other in (warped, batch.image2))
    assert off[seen].median() < 0.015 and off[seen].mean() < 0.5 * unmoved[seen].mean()
    assert off[seen].mean() < 0.5 * off[~seen & (warped.sum(1) > 0)].mean()


def test_motions_keep_the_limits_and_show_parallax(batch):
    angles = torch.rad2deg(se3.log(batch.T_2_1)[:, 3:].abs())
    assert angles.max() <= 14.0
    still = batch.T_2_1.clone()
    still[:, :3, :3] = torch.eye(3)
    parallax = induced_flow(1.0 / batch.inverse_depth[:, 0], batch.K, still)[0].norm(dim=-1).mean((1, 2)) / batch.K[:, 0, 0]
    assert parallax.min() > 0.009 and parallax.max() < 0.36
    assert batch.visible.float().mean((1, 2, 3)).min() > 0.45


def test_hidden_pixels_are_those_behind_what_the_other_view_sees():
    """A near wall covers the right half of view 2; of the far wall in view 1, what ends there is hidden and nothing else."""
    K = torch.tensor([[50.0, 0.0, 31.5], [0.0, 50.0, 23.5], [0.0, 0.0, 1.0]])
    T = torch.eye(4)[None]
    T[0, 0, 3] = -0.4       # 5 px to the left at 4 m
    far, near = torch.full((1, 48, 64), 4.0), torch.full((1, 48, 64), 4.0)
    near[:, :, 32:] = 2.0
    moved, visible = scenes.views_flow(far, near, T, K)
    torch.testing.assert_close(moved[..., 0], torch.full((1, 48, 64), -5.0))
    u = torch.arange(64) - 5
    assert torch.equal(visible[0], ((u >= 0) & (u < 32)).expand(48, 64))


def test_the_same_seed_makes_the_same_bits(store, cache):
    assert [first.tobytes() for first in _records(SPEC, 'train', 1)] == [np.load(path).tobytes() for path in _files(SPEC, 'train')[1:]]
    other = _records(replace(SPEC, seed=6), 'train', 1)[0]
    assert (other['image1'] != np.load(_files(SPEC, 'train')[1])['image1']).mean() > 0.5


def _records(spec, split, number):
    shard = np.zeros(spec.shard, pairs.record_type(spec.height, spec.width))
    for row, pair in zip(range(spec.shard), scenes.scene_pairs(spec, split, number)):
        pairs.fill(shard[row:row + 1], pair, no_flow)
    return [shard]


def _files(spec, split):
    return sorted(pairs.store_folder(spec).glob(f'{split}-*.npy'))


def test_the_splits_never_share_a_scene():
    ranges = sorted(scenes.SPLITS.values(), key=lambda r: r.start)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:])) and set(scenes.SPLITS) == {'train', 'validation', 'test'}
    for split, numbers in scenes.SPLITS.items():
        assert {scenes.scene_number(split, shard, index) in numbers for shard in (0, 1000) for index in (0, 4095)} == {True}
        assert scenes.scene_number(split, 0, 4095) < scenes.scene_number(split, 1, 0)
        with pytest.raises(ValueError, match=f'{split} split'):
            scenes.scene_number(split, len(numbers), 0)


def test_splits_show_different_scenes(store, batch, cache):
    validation = open_store(SPEC, 'validation', no_flow)
    images = validation.batch(range(6)).image1
    assert (images[:, None] - batch.image1[None]).abs().mean((2, 3, 4)).min() > 0.01


def test_a_store_grows_without_making_anything_again(store, cache):
    before = {path: path.stat().st_mtime_ns for path in _files(SPEC, 'train')}
    assert len(open_store(replace(SPEC, train=3), 'train')) == 3
    assert len(open_store(replace(SPEC, train=13), 'train', no_flow)) == 13
    after = {path: path.stat().st_mtime_ns for path in _files(SPEC, 'train')}
    assert len(after) == 3 and before.items() <= after.items()
    assert json.loads((pairs.store_folder(SPEC) / 'spec.json').read_text())['seed'] == SPEC.seed


def test_a_broken_off_building_leaves_whole_files_only_and_says_what_is_kept(cache, caplog):
    calls = []

    def tiring(rgb1, rgb2):
        calls.append(None)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return no_flow(rgb1, rgb2)

    spec = replace(SPEC, seed=11)
    with pytest.raises(KeyboardInterrupt):
        open_store(spec, 'train', tiring)
    assert [p.name for p in _files(spec, 'train')] == ['train-00000.npy']
    assert f'6 of 12 of the train split are kept in {pairs.store_folder(spec)}, and the same command goes on' in caplog.text
    assert len(open_store(spec, 'train', no_flow)) == 12
    assert not [p for p in pairs.store_folder(spec).iterdir() if p.name.startswith('.')]


def test_several_may_build_one_store(cache):
    """Each shard is made once, whoever comes first; all end with the same store. (Locks hold between open files, so threads are as good as processes.)"""
    spec, calls = replace(SPEC, seed=12, train=24), []

    def counting(rgb1, rgb2):
        calls.append(None)
        return no_flow(rgb1, rgb2)

    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: open_store(spec, 'train', counting), range(2)))
    assert [len(s) for s in stores] == [24, 24] and len(calls) == 24
    last = torch.from_numpy(_records(spec, 'train', 3)[0]['image1']).movedim(-1, 1) / 255.0
    assert all(torch.equal(s.batch(range(18, 24)).image1, last) for s in stores)


def test_what_cannot_be_opened_is_named(store, cache, tmp_path):
    with pytest.raises(ValueError, match='no flow function'):
        open_store(replace(SPEC, seed=99), 'train')
    with pytest.raises(ValueError, match='train, validation, test'):
        open_store(SPEC, 'tests', no_flow)
    with pytest.raises(ValueError, match='focal: expected at most'):
        open_store(replace(SPEC, focal=9.0), 'train', no_flow)
    for content, name in ((b'nothing', 'short.npy'), (np.zeros(3).tobytes(), 'raw.npy')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            PairStore([tmp_path / name])
    np.save(tmp_path / 'other.npy', np.zeros(3))
    with pytest.raises(ValueError, match='other.npy: holds no pairs'):
        PairStore([tmp_path / 'other.npy'])
    with pytest.raises(ValueError, match='at least 99'):
        PairStore(_files(SPEC, 'train'), 99)
    for indices in ([0, 12], [-1]):
        with pytest.raises(IndexError, match='from 0 to 11'):
            store.batch(indices)


def test_images_at_a_larger_size_for_flow_show_the_same_view(cache):
    """What is brought down from the size of flow is what the exact flow at the pair's size speaks of."""
    spec = replace(SPEC, flow_width=128, flow_height=96)
    small, large = (next(scenes.scene_pairs(s, 'train', 0)) for s in (SPEC, spec))
    assert large.image1.shape == (96, 128, 3)
    np.testing.assert_allclose(small.K, large.K, rtol=1e-6)
    np.testing.assert_allclose(small.depth, large.depth, rtol=1e-4)
    record = np.zeros(1, pairs.record_type(48, 64))
    pairs.fill(record, large, lambda a, b: np.full((*a.shape[:2], 2), [6.0, -4.0], np.float32))
    np.testing.assert_allclose(record['flow'][0, 20, 30], [3.0, -2.0])
    assert np.abs(record['image1'][0].astype(float) - small.image1).mean() < 6.0


def test_depth_is_measured_in_baselines(store, batch):
    pair = next(scenes.scene_pairs(SPEC, 'train', 0))
    baseline = np.linalg.norm(pair.T_2_1[:3, 3])
    np.testing.assert_allclose(batch.inverse_depth[0, 0], baseline / pair.depth, rtol=1e-3)
    points = pinhole.unproject(torch.from_numpy(pair.depth), torch.from_numpy(pair.K))
    scaled = se3.transform(batch.T_2_1[0], points / baseline) * baseline
    np.testing.assert_allclose(scaled, se3.transform(torch.tensor(pair.T_2_1, dtype=torch.float32), points), atol=1e-4)


def test_paths_rendered_together_are_those_rendered_alone(cache):
    """As on a GPU: other order, the same pairs up to rounding."""
    alone = [p for _, p in zip(range(40), scenes.scene_pairs(SPEC, 'train', 0))]
    merged = [p for _, p in zip(range(12), scenes.scene_pairs(SPEC, 'train', 0, together=3))]
    found = 0
    for pair in merged:
        like = [p for p in alone if np.allclose(p.T_2_1, pair.T_2_1)]
        for p in like:
            found += 1
            np.testing.assert_allclose(p.depth, pair.depth, rtol=1e-4)
            assert np.mean(np.abs(p.image1.astype(int) - pair.image1) > 2) < 1e-2 and np.mean(p.visible != pair.visible) < 1e-2
    assert found >= 10


def test_photographs_become_surfaces(cache, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / 'red.png'), np.full((90, 60, 3), (0, 0, 255), np.uint8))
    palette = materials.random_palette(3, 4, str(tmp_path))
    red = palette.sample(torch.tensor([0, 3]), *[torch.tensor([0.2, 0.7])] * 2, torch.full((2,), 0.01))
    assert (red[0] > 0.95).all() and (red[1:] < 0.05).all()
    spec = replace(SPEC, photographs=str(tmp_path))
    folder = pairs.store_folder(spec)
    assert folder != pairs.store_folder(SPEC)
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    assert pairs.store_folder(spec) != folder       # other photographs, other pairs
    with pytest.raises(ValueError, match='broken.jpg: cannot be read'):
        materials.random_palette(4, 12, str(tmp_path))
    lenient = replace(spec, strict=False)
    assert pairs.store_folder(lenient) != pairs.store_folder(spec) and pairs.store_folder(replace(SPEC, strict=False)) == pairs.store_folder(SPEC)
    with pytest.raises(ValueError, match='broken.jpg: cannot be read'):
        [scenes.shard_palette(spec, 'train', shard) for shard in range(0, 80, 4)]      # each has few surfaces here
    assert all(len(scenes.shard_palette(lenient, 'train', shard).metres) for shard in range(0, 80, 4))
    with caplog.at_level(logging.WARNING):
        again = materials.random_palette(3, 4, str(tmp_path), strict=False)
        materials.random_palette(4, 12, str(tmp_path), strict=False)
    assert [record.message for record in caplog.records if 'photograph' in record.message] == [f'going on without a photograph: {tmp_path}/broken.jpg cannot be read as an image']
    assert torch.equal(again.sample(torch.tensor([0]), *[torch.tensor([0.2])] * 2, torch.full((1,), 0.01)), red[:, :1])
    (tmp_path / 'red.png').unlink()
    with pytest.raises(ValueError, match=f'{tmp_path}: none of its 1 photographs can be read'):
        materials.random_palette(4, 12, str(tmp_path), strict=False)
    with pytest.raises(ValueError, match='expected a folder with photographs'):
        materials.random_palette(4, 12, str(tmp_path / 'none'))


def test_the_settings_are_complete():
    assert set(asdict(SPEC)) == set(settings.settings_of(PairData))
