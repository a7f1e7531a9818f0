"""What an online learner keeps over a restart: the weights that were handed out, whole, in a file of its own; and what it does when it cannot."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import global_local_support as support
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from learning_bench import as_shipped_here, bench, first, own_cache, number_of, same  # noqa: F401 - fixtures among them
from lifecycle_msgs.msg import Transition

from depth_ros.engines import observation_file, rehearsal
from depth_ros.models import checkpoint
from depth_ros.ros.online_learning_node import OnlineLearningNode


def test_a_restart_goes_on_with_the_last_weights_and_hands_them_out(bench):
    one = bench()
    one.drive_until_learned(2)
    good, number, heard = one.node._learner.weights(), one.node._learner.progress.number, len(one.learned)
    one.world.remove(one.node)
    one.node = None
    again = bench()
    again.world.until(lambda: again.learned, 'the weights of before')
    assert number_of(again.blobs[0]) == number and same(again.blobs[0], good) and heard
    again.drive_until_learned()
    assert number_of(again.blobs[-1]) == number + 1


def test_a_restart_remembers_what_was_kept_and_begins_with_nothing_where_that_is_spoilt_or_not_wanted(bench):
    one = bench()
    one.drive_until_learned()
    number = one.node._learner.progress.number
    path = one.node._file.observations

    def again(**parameters):
        one.world.remove(one.node)
        one.node = None
        return bench(**parameters)

    two = again()
    kept = observation_file.read(path)
    assert sum(two.node._learner.buffered.values()) == len(kept) > 0 and len(kept.withheld_recent) == two.node._learner.buffered['withheld']
    one.world.remove(two.node)
    two.node = None
    path.write_bytes(path.read_bytes()[:1000])
    three = bench()
    assert sum(three.node._learner.buffered.values()) == 0 and three.node._learner.progress.number >= number
    three.drive()
    assert three.trigger('reset').success and not path.exists()


def test_cleanup_and_configure_go_on_as_a_restart_does(bench):
    one = bench()
    one.drive_until_learned()
    good = one.node._learner.weights()
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert one.world.change_state(one.node, transition).success
    assert one.node._learner is None and not [s for s in one.node.subscriptions if 'flow/' in s.topic_name]
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert one.world.change_state(one.node, transition).success
    assert same(one.node._learner.weights(), good)
    one.meet()
    one.drive()
    assert one.told() == 'learning: '


def test_without_resume_it_begins_anew(bench):
    one = bench()
    one.drive_until_learned()
    one.world.remove(one.node)
    one.node = None
    again = bench(resume=False)
    assert again.node._learner.progress.number == 0 and not again.learned


def test_other_first_weights_do_not_go_on_from_these(bench, tmp_path):
    one = bench()
    one.drive_until_learned()
    one.world.remove(one.node)
    one.node = None
    checkpoint.save(tmp_path / 'own.safetensors', 'global_local', support.network('pose_aware', seed=3), {})
    assert bench(weights=str(tmp_path / 'own.safetensors')).node._learner.progress.number == 0


def test_two_learners_of_one_name_keep_apart(bench, world):
    one = bench()
    other = world.node(OnlineLearningNode, rehearse=0)
    world.until(lambda: other.state == 'active', 'the other')
    assert other._file.path != one.node._file.path
    world.remove(other)


def test_a_file_that_another_learner_holds_is_refused(bench, world, tmp_path):
    bench(state_file=str(tmp_path / 'state.safetensors'))
    other = world.node(OnlineLearningNode, rehearse=0, autostart=False, state_file=str(tmp_path / 'state.safetensors'))
    assert not world.change_state(other, Transition.TRANSITION_CONFIGURE).success
    assert 'another process learns into this file' in other.diagnostics.status().message
    world.remove(other)


@pytest.mark.parametrize(('content', 'complaint'), [
    (lambda: support.blob('pose_aware')[:1000], 'not a safetensors file'),
    (lambda: support.blob('published'), 'expected a network of'),
    (lambda: support.blob('pose_aware'), 'holds no figures of an online learner'),
])
def test_a_named_state_file_that_cannot_be_used_fails_the_configuration(world, tmp_path, content, complaint):
    path = tmp_path / 'state.safetensors'
    path.write_bytes(content())
    node = world.node(OnlineLearningNode, rehearse=0, autostart=False, state_file=str(path))
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert f'{path}: ' in node.diagnostics.status().message and complaint in node.diagnostics.status().message
    path.unlink()
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    world.remove(node)


def test_a_broken_file_of_the_cache_is_set_aside(bench):
    one = bench()
    path = one.node._file.path
    one.drive_until_learned()
    one.world.remove(one.node)
    one.node = None
    path.write_bytes(path.read_bytes()[:1000])
    again = bench()
    assert again.node._learner.progress.number == 0 and path.with_name(f'{path.name}.refused').exists() and not path.exists()
    again.drive_until_learned()
    checkpoint.load(path)


def test_a_cache_that_cannot_be_written_is_told_and_it_learns_all_the_same(bench, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('no folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    one = bench(rehearse=8)
    one.tells('what is learned cannot be kept over a restart')
    one.tells('learns without synthetic pairs')
    one.drive_until_learned()


def test_it_rehearses_pairs_that_are_kept_in_the_cache(bench, monkeypatch, tmp_path):
    small = partial(rehearsal.PairData, width=64, height=48, flow_width=64, flow_height=48, shard=8)
    monkeypatch.setattr(rehearsal, 'PairData', small)
    one = bench(rehearse=8)
    assert len(one.node._learner._rehearsal.checks) == 4 and len(list((tmp_path / 'cache' / 'depth_ros').glob('pairs-*/train-*.npy'))) == 1
    one.drive_until_learned()
    assert one.told() == 'learning: ' and 'synthetic' not in one.message()


def test_one_pair_to_rehearse_is_refused_before_anything_is_rendered(world, tmp_path):
    node = world.node(OnlineLearningNode, rehearse=1, autostart=False)
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert 'rehearse: expected at least 2 pairs' in node.diagnostics.status().message
    assert not list((tmp_path / 'cache').rglob('*.npy'))
    world.remove(node)


def test_a_full_disk_is_told_the_last_file_stays_and_the_weights_are_handed_out(bench, monkeypatch, tmp_path):
    path = tmp_path / 'state.safetensors'
    one = bench(state_file=str(path))
    one.drive_until_learned()
    kept, write = path.read_bytes(), Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, 'write_bytes', half)
    one.drive_until_learned()
    one.tells(f'cannot write {path}')
    assert 'No space left' in one.message() and one.node.diagnostics.status().level == DiagnosticStatus.ERROR
    assert path.read_bytes() == kept and not [p for p in tmp_path.iterdir() if p not in (path, tmp_path / 'cache') and not p.name.endswith('.lock')]
    monkeypatch.setattr(Path, 'write_bytes', write)
    one.drive_until_learned()
    assert 'cannot write' not in one.message() and same(path.read_bytes(), one.node._learner.weights())


@pytest.mark.parametrize(('variant', 'content', 'complaint'), [
    ('pose_aware', lambda: support.blob('published'), 'expected weights of the pose_aware variant, got published'),
    ('published', lambda: support.blob('published')[:-5], 'not a safetensors file'),
])
def test_first_weights_that_cannot_be_used_fail_the_configuration(world, tmp_path, variant, content, complaint):
    path = tmp_path / 'own.safetensors'
    path.write_bytes(content())
    node = world.node(OnlineLearningNode, rehearse=0, autostart=False, variant=variant, weights=str(path))
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert f'{path}: ' in node.diagnostics.status().message and complaint in node.diagnostics.status().message
    world.remove(node)
