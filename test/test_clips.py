"""Clips: what their views promise about each other, keyframes, files, and what augmentation must leave true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_support import ClipMemory, sample_clips
from pair_support import few_surfaces
from sequence_support import walking_folder

from depth_ros.geometry import se3
from depth_ros.geometry.depth_maps import reduce_depth
from depth_ros.geometry.warp import induced_flow, warp_by_flow
from depth_ros.learning import clip_augmentation as augmentation
from depth_ros.learning import clips, shards
from depth_ros.learning.clip_batches import ClipBatches
from depth_ros.learning.clips import ClipBatch, ClipData, ClipStore, open_clips
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.pairs import PairData, store_folder
from depth_ros.learning.scenes import views_flow
from depth_ros.learning.sequence_clips import SequenceClipData, sequence_clips
from depth_ros.learning.trajectory import SequenceError

SPEC = ClipData(seed=5, width=64, height=48, train=8, validation=4, test=4, shard=4, sensor=0.0)
RECIPE = Recipe(model='deepv2d', objective='deepv2d', batch=2, stretch=1.5, colour=1.0, fewest_views=2, pose_error=0.02)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    """In a cache of the module's own."""
    with few_surfaces() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield open_clips(SPEC, 'train')


@pytest.fixture(scope='module')
def batch(store):
    return store.batch(range(len(store)))


def seen_from_keyframe(batch: ClipBatch, view: int):
    """The view brought onto the keyframe by truth, and the mask of what it shows: (B, 3, H, W), (B, H, W)."""
    moved, visible = views_flow(torch.where(batch.valid[:, 0], batch.depth[:, 0], 1.0), batch.depth[:, view], batch.T_cam_world[:, view], batch.K)
    return warp_by_flow(batch.images[:, view], moved)[0], visible & batch.valid[:, 0]


def agreement(batch: ClipBatch) -> float:
    """Median difference of the views from the keyframe where both show the same, as a share of that without moving them."""
    off, still = [], []
    for view in range(1, batch.images.shape[1]):
        warped, visible = seen_from_keyframe(batch, view)
        off.append((warped - batch.images[:, 0]).abs().mean(1)[visible])
        still.append((batch.images[:, view] - batch.images[:, 0]).abs().mean(1)[visible])
    return float(torch.cat(off).mean() / torch.cat(still).mean())


def test_a_batch_has_the_agreed_shapes(store, batch):
    assert len(store) == len(batch) == 8 and store.size == (48, 64) and store.views == 5
    assert batch.images.shape == (8, 5, 3, 48, 64) and batch.depth.shape == batch.valid.shape == (8, 5, 48, 64)
    assert batch.K.shape == (8, 3, 3) and batch.T_cam_world.shape == (8, 5, 4, 4)
    assert 0.0 <= batch.images.min() and batch.images.max() <= 1.0 and batch.valid.all()
    assert torch.equal(batch.T_cam_world[:, 0], torch.eye(4).expand(8, 4, 4))
    assert len({round(f, 3) for f in batch.K[:, 0, 0].tolist()}) > 3


def test_views_warped_by_truth_agree_where_they_show_the_same(batch):
    assert agreement(batch) < 0.5


def test_baselines_and_overlap_keep_the_limits(batch):
    medians = batch.depth[:, 0].flatten(1).median(1).values
    baselines = se3.inverse(batch.T_cam_world[:, 1:])[..., :3, 3].norm(dim=-1) / medians[:, None]
    assert 0.018 < baselines.min() and baselines.max() < 0.22       # the median of a small image is not quite that of a large one
    assert se3.log(batch.T_cam_world[:, 1:])[..., 3:].norm(dim=-1).median() > 0.005
    for view in range(1, 5):
        assert seen_from_keyframe(batch, view)[1].float().mean((1, 2)).min() > 0.4


def test_the_keyframe_lies_between_the_others(batch):
    """Two views before and two after it: they stand, and turn, to opposite sides."""
    x = se3.inverse(batch.T_cam_world)[..., :3, 3]
    cosine = torch.cosine_similarity(x[:, 2], x[:, 3], dim=-1)
    assert cosine.median() < -0.8


@pytest.mark.parametrize('key', [1, 3])
def test_any_view_can_be_the_keyframe(store, batch, key):
    order = [key, 0, 4]
    other = store.batch([2], [order])
    by_time = [1, 2, 0, 3, 4]       # place in `batch` of each stored view
    places = [by_time[v] for v in order]
    assert torch.equal(other.images[0], batch.images[2, places]) and torch.equal(other.depth[0], batch.depth[2, places])
    expected = batch.T_cam_world[2, places] @ se3.inverse(batch.T_cam_world[2, places[:1]])
    torch.testing.assert_close(other.T_cam_world[0], expected, atol=1e-5, rtol=0)
    assert torch.equal(other.T_cam_world[0, 0], torch.eye(4))


def test_the_same_seed_makes_the_same_bits_and_what_is_there_is_not_made_again(store, monkeypatch):
    again = [clip for _, clip in zip(range(4), clips.scene_clips(SPEC, 'train', 1))]
    assert all(np.array_equal(clip.images, store.records([4 + i])['images'][0]) for i, clip in enumerate(again))
    monkeypatch.setattr(clips, 'scene_clips', None)
    assert len(open_clips(replace(SPEC, train=3), 'train')) == 3
    assert shards.folder(replace(SPEC, seed=6), 'clips', 1) != shards.folder(replace(SPEC, train=3), 'clips', 1) == shards.folder(SPEC, 'clips', 1)


def test_what_was_rendered_before_there_were_mirrors_is_found_again():
    """By the very names of that time."""
    assert shards.folder(ClipData(mirror=0.0), 'clips', 1).name == 'clips-320x240-78b9dfb9d8f8' != shards.folder(ClipData(), 'clips', 1).name
    assert store_folder(PairData()).name == 'pairs-128x96-753152910bed'


@pytest.mark.usefixtures('store')
def test_mirrors_change_images_alone():
    dull, shiny = ([next(clips.scene_clips(replace(SPEC, mirror=mirror), 'train', shard)) for shard in range(3)] for mirror in (0.0, 1.0))
    for a, b in zip(dull, shiny):
        assert np.array_equal(a.depth, b.depth) and np.array_equal(a.T_world_cam, b.T_world_cam)
    assert any((a.images != b.images).mean() > 0.05 for a, b in zip(dull, shiny))


def test_a_file_of_something_else_is_refused_by_name(tmp_path):
    np.save(tmp_path / 'other.npy', np.zeros(3, [('depth', 'f4', (2, 2))]))
    np.save(tmp_path / 'plain.npy', np.zeros(3))
    for name in ('other.npy', 'plain.npy'):
        with pytest.raises(ValueError, match=f'{name}: holds no clips'):
            ClipStore([tmp_path / name])


# ---------------------------------------------------------------- augmentation

@pytest.fixture(scope='module')
def sampled() -> ClipBatch:
    return ClipMemory(sample_clips()).batch(range(4))


def test_a_mirrored_or_reduced_or_rescaled_clip_still_agrees_with_itself(sampled):
    before = agreement(sampled)
    assert before < 0.4
    mirrored = augmentation.mirror(sampled, torch.tensor([True, False, True, True]))
    assert agreement(mirrored) == pytest.approx(before, rel=0.02)
    assert torch.equal(mirrored.images[1], sampled.images[1]) and torch.equal(mirrored.images[0], sampled.images[0].flip(-1))
    assert agreement(augmentation.reduce(sampled, 2)) < 0.5
    larger = augmentation.rescale(sampled, torch.tensor([2.0, 0.5, 1.0, 3.0]))
    assert agreement(larger) == pytest.approx(before, rel=0.02)


def test_mirroring_twice_changes_nothing(sampled):
    both = torch.ones(4, dtype=torch.bool)
    twice = augmentation.mirror(augmentation.mirror(sampled, both), both)
    assert all(torch.allclose(getattr(twice, name), getattr(sampled, name), atol=1e-5) for name in ('images', 'depth', 'K', 'T_cam_world'))


def test_lengths_come_to_the_typical_depth(sampled):
    scaled = augmentation.rescale(sampled, augmentation.typical_factors(sampled, 2.0))
    torch.testing.assert_close(scaled.depth[:, 0].flatten(1).median(1).values, torch.full((4,), 2.0))


def test_colours_change_between_views_and_stay_in_range(sampled):
    images = augmentation.recolour(sampled.images[0], 1.0, torch.Generator().manual_seed(1))
    assert images.min() >= 0.0 and images.max() <= 1.0
    change = (images - sampled.images[0]).mean((1, 2, 3))
    assert change.abs().min() > 1e-3 and change.std() > 1e-3
    assert torch.allclose(augmentation.recolour(sampled.images[0], 0.0, torch.Generator().manual_seed(1)), sampled.images[0], atol=2e-4)


def test_reduced_depth_of_a_plane_is_its_depth_and_unknown_pixels_do_not_count():
    v, u = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing='ij')
    inverse = 0.2 + 0.01 * u + 0.02 * v
    depth = (1 / inverse)[None, None]
    small = reduce_depth(depth, 4)
    assert small.shape == (1, 1, 2, 3)
    assert small[0, 0, 1, 1].item() == pytest.approx(1 / (0.2 + 0.01 * 5.5 + 0.02 * 5.5), rel=1e-5)
    depth[..., :4, :4] = 0.0
    depth[..., 0, 0] = 3.0
    assert reduce_depth(depth, 4)[0, 0, 0, 0].item() == pytest.approx(3.0)
    depth[..., 0, 0] = float('nan')
    assert reduce_depth(depth, 4)[0, 0, 0, 0] == 0.0 and torch.equal(reduce_depth(depth[0, 0], 4), reduce_depth(depth, 4)[0, 0])


# ---------------------------------------------------------------- batches

def test_a_step_draws_the_same_whenever_it_is_asked():
    first, again = (ClipBatches(ClipMemory(sample_clips()), RECIPE) for _ in range(2))
    first.of_step(0)
    a, b, other = first.of_step(5), again.of_step(5), again.of_step(6)
    assert a.indices.tolist() == b.indices.tolist() and a.predicted == b.predicted
    assert all(torch.equal(x, y) for x, y in ((a.clips.images, b.clips.images), (a.T_start, b.T_start), (a.T_near, b.T_near), (a.clips.K, b.clips.K)))
    assert a.clips.images.shape != other.clips.images.shape or not torch.equal(a.clips.images, other.clips.images)


def test_a_step_shows_as_many_views_as_the_recipe_allows_at_lengths_near_the_typical_one():
    drawing = ClipBatches(ClipMemory(sample_clips()), RECIPE)
    drawn = [drawing.of_step(step) for step in range(20)]
    assert {d.clips.images.shape[1] for d in drawn} == {3, 4, 5}
    medians = torch.cat([d.clips.depth[:, 0].flatten(1).median(1).values for d in drawn])
    assert 1.33 < medians.min() < 1.7 and 2.4 < medians.max() < 3.01
    still = torch.cat([(d.T_start == torch.eye(4)).all(-1).all(-1).all(-1) for d in drawn]).float().mean()
    assert 0.2 < still < 0.8
    assert all(torch.equal(d.T_near[:, 0], torch.eye(4).expand(2, 4, 4)) for d in drawn)
    errors = torch.cat([se3.log(d.T_near[:, 1:] @ se3.inverse(d.clips.T_cam_world[:, 1:])).flatten() for d in drawn])
    assert 0.015 < errors.std() < 0.025


def test_what_a_step_draws_agrees_with_itself():
    drawing = ClipBatches(ClipMemory(sample_clips()), replace(RECIPE, colour=0.0))
    assert max(agreement(drawing.of_step(step).clips) for step in range(4)) < 0.6


def test_motion_is_found_with_predicted_depth_in_half_of_the_later_steps():
    drawing = ClipBatches(ClipMemory(sample_clips()), replace(RECIPE, predicted_from=0.5, steps=80))
    predicted = [drawing.of_step(step).predicted for step in range(0, 80, 2)]
    assert not any(predicted[:20]) and 4 < sum(predicted[20:]) < 16


# ---------------------------------------------------------------- of a recorded sequence

def test_clips_of_a_sequence_look_back_by_suitable_baselines(kitchen):
    spec = SequenceClipData(sequence=str(kitchen), poses=str(kitchen / 'groundtruth_refined.txt'), first=60, last=75, every=15, width=160, height=120)
    found = list(sequence_clips(spec))
    assert [c.frame for c in found] == [60, 75]
    for one in found:
        assert list(one.stamps) == sorted(set(one.stamps)) and one.stamps[-1] - one.stamps[0] <= 1_000_000_000
        assert one.clip.images.shape == (5, 120, 160, 3)
        motion = np.linalg.inv(one.clip.T_world_cam[:-1]) @ one.clip.T_world_cam[-1]
        shares = np.linalg.norm(motion[:, :3, 3], axis=1) / np.median(one.clip.depth[-1][one.clip.depth[-1] > 0])
        assert 0.019 < shares.min() and shares.max() < 0.21
    batch = clips.clip_batch([one.clip for one in found], [[4, 0, 1, 2, 3]] * len(found))
    assert batch.valid.float().mean() > 0.4 and agreement(batch) < 0.9


def test_views_are_spread_up_to_the_largest_baseline(tmp_path):
    """5 cm a frame, and depth of noise whose median is about 6 m: from 3 to 20 frames back are possible, of which one second allows all."""
    folder = walking_folder(tmp_path / 'walk', 26)
    [one] = sequence_clips(SequenceClipData(sequence=str(folder), first=25, width=64, height=48))
    median = np.median(one.clip.depth[-1][one.clip.depth[-1] > 0])
    most = int(0.2 * median / 0.05)
    back = np.rint((one.clip.T_world_cam[-1, 0, 3] - one.clip.T_world_cam[:-1, 0, 3]) / 0.05)
    assert np.abs(back - most * np.array([1.0, 0.75, 0.5, 0.25])).max() <= 1.0
    assert not list(sequence_clips(SequenceClipData(sequence=str(folder), first=5, last=5)))     # too few before it


def test_a_sequence_without_poses_is_refused(tmp_path):
    folder = walking_folder(tmp_path / 'walk', 3)
    (folder / 'groundtruth.txt').unlink()
    with pytest.raises(SequenceError, match='no ground truth'):
        next(sequence_clips(SequenceClipData(sequence=str(folder))))
