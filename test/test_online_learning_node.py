"""The learning node over DDS: what it hands out, what it waits for, its services, what survives a restart, and what goes wrong."""

from __future__ import annotations

import threading
from array import array
from dataclasses import replace
from pathlib import Path

import cv2
import global_local_support as support
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from learning_bench import LearningBench, as_shipped_here, bench, first, hits_message, number_of, own_cache, same  # noqa: F401 - fixtures among them
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from depth_ros.ros import codecs
from depth_ros.ros.global_local_node import GlobalLocalNode
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE
from depth_ros.ros.online_learning_node import OnlineLearningNode


def values(message) -> dict[str, str]:
    return {v.key: v.value for v in message.status[0].values}


# What it hands out


def test_it_learns_from_hits_hands_out_numbered_weights_and_tells_its_figures(bench, first):
    one = bench()
    one.drive_until_learned(2)
    assert [number_of(b) for b in one.blobs] == list(range(1, len(one.blobs) + 1)) and not same(one.blobs[-1], first.read_bytes())
    shown = one.world.until(lambda: (m := values(one.metrics[-1])) if one.metrics and int(values(one.metrics[-1])['updates']) >= 2 else None, 'the figures')
    assert shown['state'] == 'learning' and int(shown['weights']) >= 2 and int(shown['buffer size']) > 0 and float(shown['updates a second [Hz]']) > 0
    assert 0 < float(shown['withheld error after']) < float(shown['withheld error before']) < 1
    assert int(shown['hits']) > int(shown['withheld hits']) > 0
    one.world.until(lambda: one.values().get('learning') == 'learning', 'the same in the diagnostics')


def test_global_local_runs_what_was_learned(bench, world):
    one = bench()
    other = world.node(GlobalLocalNode, variant='pose_aware', width=128, height=96, backend='torch')
    one.drive_until_learned()
    shown = lambda: {v.key: v.value for v in other.diagnostics.status().values}
    world.until(lambda: shown().get('weights of pose_aware') == str(number_of(one.blobs[-1])), 'the learned weights at work')
    assert shown()['/online_learning/weights rejected'] == '0'
    world.remove(other)


def test_learning_in_a_thread_of_its_own_goes_on_between_the_pairs(bench):
    one = bench(batches_per_pair=0, niceness=0, only_idle=False, share=1.0)
    one.drive_until_learned()
    one.pause()
    one.world.until(lambda: same(one.blobs[-1], one.node._learner.weights()), 'the last ones to be heard')


def test_told_to_end_it_tells_its_learner_before_it_waits_for_anybody(bench, monkeypatch):
    one = bench(batches_per_pair=0)
    learner, wait, told = one.node._learner, LatestWorker.stop, []
    monkeypatch.setattr(LatestWorker, 'stop', lambda worker, timeout: told.append(learner._thread.is_stopping) or wait(worker, timeout))
    assert one.world.change_state(one.node, Transition.TRANSITION_DEACTIVATE).success
    assert told and all(told)


def test_a_learner_that_was_let_go_of_hands_out_nothing(bench):
    one = bench()
    one.drive_until_learned()
    old, heard, kept = one.node._learner, len(one.learned), one.node._file.path
    for transition in ('DEACTIVATE', 'CLEANUP', 'CONFIGURE', 'ACTIVATE'):
        assert one.world.change_state(one.node, getattr(Transition, f'TRANSITION_{transition}')).success
    one.world.until(lambda: len(one.learned) == heard + 1, 'the weights of before')
    content = kept.read_bytes()
    old._hand_out()         # as an abandoned thread would, at the end of its batch
    old._deliver()
    assert kept.read_bytes() == content
    one.node._learner._hand_out()
    one.node._learner._deliver()
    one.world.until(lambda: len(one.learned) > heard + 1, 'weights of the new one')
    assert len(one.learned) == heard + 2


# What it waits for


def test_it_tells_what_it_waits_for(bench):
    one = bench(hits_patience=0.1)
    one.drive()
    assert one.told() == 'learning: '
    one.drive(result=one.still())
    one.tells('waiting for motion: the image moved by')
    one.world.repeat(lambda: one.drive(hits=False), lambda: 'waiting for hits' in one.told(), 'the hits to be missed', every=0.0)
    one.tells('waiting for hits: 0 range hits are in view')
    assert one.node.diagnostics.status().level == DiagnosticStatus.WARN
    assert one.pause().message == 'paused' and one.told().startswith('paused')
    one.tells('paused')
    batches = one.node._learner.progress.batches
    one.drive(3)
    assert one.node._learner.progress.batches == batches and one.values()['learning'] == 'paused'
    assert one.pause(False).success
    one.drive(2)
    assert one.told() == 'learning: ' and one.node._learner.progress.batches > batches


def test_pairs_that_stop_coming_are_told(bench):
    one = bench(stale_after=0.2)
    one.drive()
    one.tells('waiting for motion: no image pair has come for')
    assert '/flow/flow stalled' in one.message() and one.node.diagnostics.status().level == DiagnosticStatus.STALE


def test_a_lost_odometry_tells_no_motion_and_its_old_places_are_forgotten(bench):
    one = bench(odometry_patience=0.5)
    one.drive(3)
    assert len(one.node._learner._intake._memory._kept)
    result = one.result()
    one.send_pose(result.pair.current.stamp, 0.0, variance=UNKNOWN_VARIANCE)
    one.send_hits(result.pair.current.stamp)
    one.send(result)
    one.tells('waiting for motion: the motion of the pair is not known')
    assert not len(one.node._learner._intake._memory._kept)
    one.drive()
    assert one.told() == 'learning: '


def test_an_odometry_that_jumps_does_not_carry_hits_along(bench):
    one = bench()
    one.drive(3)
    home = one.pose
    one.pose = lambda stamp: home(stamp) + 1000.0        # as after a reset elsewhere
    one.drive()
    assert len(one.node._learner._intake._memory._kept) <= 1 and one.told() == 'learning: '


def test_the_clock_jumping_back_is_a_new_drive(bench):
    one = bench()
    one.drive_until_learned()
    number = one.node._learner.progress.number
    one.stamp -= 60 * 10 ** 9
    one.drive()
    assert one.told() == 'learning: ' and one.node._learner.progress.number >= number and one.node._learner.progress.observed > 3
    one.send_pair(one.at(one.stamp - 100_000_000))
    one.world.until(lambda: one.values()['/flow/flow late'] == '1', 'the late pair')


# Services


def test_reset_brings_back_the_first_weights_everywhere(bench, first, tmp_path):
    one = bench(state_file=str(tmp_path / 'state.safetensors'))
    one.drive_until_learned()
    heard = len(one.learned)
    assert one.trigger('reset').success
    one.world.until(lambda: len(one.learned) > heard, 'the first weights')
    assert number_of(one.blobs[-1]) == 0 and same(one.blobs[-1], first.read_bytes())
    assert same((tmp_path / 'state.safetensors').read_bytes(), first.read_bytes())
    assert one.node._learner.progress.observed == 0


def test_save_writes_a_checkpoint_that_can_be_shipped(bench, tmp_path):
    one = bench(weights_file=str(tmp_path / 'new' / 'kitchen.safetensors'))
    one.drive_until_learned()
    answer = one.trigger('save')
    assert answer.success and answer.message == str(tmp_path / 'new' / 'kitchen.safetensors')
    assert same(Path(answer.message).read_bytes(), one.node._learner.weights())
    node = one.world.node(GlobalLocalNode, variant='pose_aware', weights=answer.message, backend='torch', width=128, height=96)
    one.world.until(lambda: node.state == 'active', 'Global-Local with what was saved')
    one.world.remove(node)


def test_the_first_weights_are_not_saved_as_if_they_were_learned(bench, tmp_path):
    one = bench(weights_file=str(tmp_path / 'mine.safetensors'))
    assert not one.trigger('save').success
    one.drive_until_learned()
    one.pause()     # what is learned after the reset could be saved
    assert one.trigger('reset').success
    answer = one.trigger('save')
    assert not answer.success and 'nothing has been learned yet' in answer.message and not (tmp_path / 'mine.safetensors').exists()


def test_weights_that_were_saved_and_then_did_harm_are_told(bench, tmp_path):
    one = bench(weights_file=str(tmp_path / 'mine.safetensors'))
    one.drive_until_learned()
    assert one.trigger('save').success and 'mine.safetensors' not in one.message()
    learner = one.node._learner
    learner.progress.serves_frozen, learner._why_back = True, 'they do harm here'
    one.tells('mine.safetensors holds weights')
    assert 'they do harm here' in one.message()


def test_save_where_nothing_can_be_written_says_so(bench, tmp_path):
    (tmp_path / 'file').write_text('no folder')
    one = bench(weights_file=str(tmp_path / 'file' / 'learned.safetensors'))
    one.drive_until_learned()
    answer = one.trigger('save')
    assert not answer.success and f'cannot write {tmp_path}/file/learned.safetensors' in answer.message


def test_services_of_a_node_that_is_not_configured_are_refused(world):
    one = LearningBench.__new__(LearningBench)
    one.world, one.node = world, world.node(OnlineLearningNode, rehearse=0, autostart=False)
    try:
        for answer in (one.pause(), one.trigger('reset'), one.trigger('save')):
            assert not answer.success and answer.message == 'the node is unconfigured'
    finally:
        world.remove(one.node)


def test_services_of_a_configured_node_that_was_never_active_answer(bench, world, tmp_path):
    one = LearningBench.__new__(LearningBench)
    one.world, one.node = world, world.node(OnlineLearningNode, rehearse=0, autostart=False, weights_file=str(tmp_path / 'mine.safetensors'))
    try:
        assert world.change_state(one.node, Transition.TRANSITION_CONFIGURE).success
        assert one.pause().message == 'paused' and one.pause(False).success
        refused = one.trigger('save')
        assert not refused.success and 'nothing has been learned yet' in refused.message and not (tmp_path / 'mine.safetensors').exists()
        assert one.trigger('reset').success and one.node.state == 'inactive'
    finally:
        world.remove(one.node)


def test_reset_of_an_inactive_node_reaches_the_others_once_it_is_active(bench, first):
    one = bench()
    one.drive_until_learned()
    assert one.world.change_state(one.node, Transition.TRANSITION_DEACTIVATE).success
    heard = len(one.learned)
    assert one.trigger('reset').success
    assert one.world.change_state(one.node, Transition.TRANSITION_ACTIVATE).success
    one.world.until(lambda: len(one.learned) > heard, 'the first weights')
    assert number_of(one.blobs[-1]) == 0 and same(one.blobs[-1], first.read_bytes())


def test_a_reset_that_cannot_remove_what_was_remembered_says_so_and_holds(bench, monkeypatch):
    one = bench()
    one.drive_until_learned()

    def refused(path, missing_ok=False):
        raise PermissionError(13, 'Permission denied', str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', refused)
        answer = one.trigger('reset')
    assert not answer.success and 'Permission denied' in answer.message and one.node._learner.progress.number == 0
    assert one.trigger('reset').success


def test_save_leaves_the_observations_to_a_thread_while_active(bench, monkeypatch, tmp_path):
    one = bench(weights_file=str(tmp_path / 'mine.safetensors'))
    one.drive_until_learned()
    write, who = one.node._learner.save_observations, []
    monkeypatch.setattr(one.node._learner, 'save_observations', lambda *about: who.append(threading.current_thread().name) or write(*about))
    assert one.trigger('save').success
    one.world.until(lambda: who and one.node._file.observations.exists(), 'the observations')
    assert who == ['online_learning observations']


# What goes wrong


def test_hits_of_an_image_that_flow_skipped_are_moved_into_the_next_pair(bench):
    one = bench()
    one.drive()
    result = one.result()
    current, reference = result.pair.current.stamp, result.pair.reference.stamp
    earlier = current - 60_000_000
    for stamp in (reference, earlier, current):
        one.send_pose(stamp, one.pose(stamp))
    one.send_hits(earlier)
    one.world.until(lambda: one.node._matcher._last_hits == earlier, 'the hits')
    one.send(result)
    one.hits.publish(hits_message(one, current + 10_000_000, np.full_like(one.truth, 0.0)))     # now it is known that none come for this image
    before = one.node._learner.progress.hits
    one.world.until(lambda: one.node._learner.progress.observed == 2, 'the pair')
    assert one.node._learner.progress.hits > before
    seen = one.node._learner._intake._buffer.spread(10)[-1] if len(one.node._learner._intake._buffer) > 1 else one.node._learner._intake._withheld.spread(10)[-1]
    row, columns = np.nonzero(seen.hits)
    np.testing.assert_allclose(seen.hits[row, columns], one.truth[2 * row, 2 * columns], rtol=0.03)


@pytest.mark.parametrize('away', [5_000_000_000, -5_000_000_000], ids=['future', 'past'])
def test_hits_of_another_time_teach_nothing_and_learning_goes_on(bench, away):
    one = bench(hits_patience=0.3)
    one.drive()
    hits = one.node._learner.progress.hits
    result = one.result()
    one.send_hits(result.pair.current.stamp + away)
    one.world.until(lambda: one.count('sparse_depth/image') >= 2, 'the hits')
    one.send_pair(result, hits=False)
    one.send_pose(result.pair.current.stamp + 1, one.pose(result.pair.current.stamp))
    one.world.repeat(lambda: one.send_pair(hits=False), lambda: 'waiting for hits' in one.told(), 'the hits to be missed', every=0.1)
    assert one.node._learner.progress.hits == hits
    one.drive(2)
    assert one.node._learner.progress.hits > hits


def test_hits_in_another_frame_are_refused(bench):
    one = bench()
    result = one.result()
    for stamp in (result.pair.reference.stamp, result.pair.current.stamp):
        one.send_pose(stamp, one.pose(stamp))
    one.hits.publish(hits_message(one, result.pair.current.stamp, support.hits_on(one.truth), 'laser'))
    one.send(result)
    one.tells("/sparse_depth/image: got hits in the frame 'laser'; accepted: those in the camera of the flow, 'camera'")
    one.drive()
    assert one.told() == 'learning: '


@pytest.mark.parametrize('spoil', [lambda hits: np.full_like(hits, np.nan), lambda hits: 0.0 * hits, lambda hits: np.full_like(hits, -np.inf)],
                         ids=['nan', 'none', 'too close'])
def test_an_image_without_a_usable_hit_teaches_nothing(bench, spoil):
    one = bench()
    result = one.result()
    for stamp in (result.pair.reference.stamp, result.pair.current.stamp):
        one.send_pose(stamp, one.pose(stamp))
    hits = spoil(support.hits_on(one.truth))
    message = codecs.depth_image(hits, np.ones(hits.shape, bool), codecs.make_header(result.pair.current.stamp, 'camera'))
    one.hits.publish(message)
    one.send(result)
    one.tells('waiting for hits: 0 range hits are in view')
    assert one.node._learner.progress.hits == 0


def test_a_camera_that_changes_its_size_while_it_learns(bench):
    """The flow comes at a size of its own, but a camera of another shape or focal length must not end learning."""
    one = bench()
    one.drive_until_learned()
    for size in ((96, 72), (160, 96)):
        one.drive(result=one.result().resized(*size))
        assert one.told() == 'learning: '
    one.drive_until_learned()


def uncalibrated(result):
    return replace(result, pair=replace(result.pair, current=replace(result.pair.current, K=np.zeros((3, 3)))))


def with_nan(result):
    flow = result.flow.copy()
    flow[3, 4] = np.nan
    return replace(result, flow=flow)


@pytest.mark.parametrize(('damage', 'complaint'), [
    (with_nan, '/flow/flow: got flow with NaN or inf'),
    (uncalibrated, '/flow/camera_info: got an uncalibrated camera'),
    (lambda result: replace(result, backward=result.backward[:50]), '/flow/backward: got flow of 128 x 50 pixels'),
])
def test_a_bundle_that_cannot_be_used_is_refused_and_work_goes_on(bench, damage, complaint):
    one = bench()
    one.drive(result=damage(one.result()))
    one.tells(complaint)
    one.drive()
    assert one.told() == 'learning: ' and one.node._learner.progress.observed == 1


def test_a_hits_message_that_is_no_depth_is_refused(bench):
    one = bench()
    result = one.result()
    for stamp in (result.pair.reference.stamp, result.pair.current.stamp):
        one.send_pose(stamp, one.pose(stamp))
    one.hits.publish(Image(header=codecs.make_header(result.pair.current.stamp, 'camera'), width=4, height=4, encoding='rgb8', step=12, data=array('B', bytes(48))))
    one.send(result)
    one.tells("/sparse_depth/image: got encoding 'rgb8'")


# Parameters, and what it shows


def test_parameters_of_the_learner_change_while_it_runs_but_for_those_heeded_at_the_beginning(bench):
    one = bench()
    assert one.node.set_parameters([Parameter('hit_weight', value=0.5)])[0].successful
    assert one.node._learner.config.hit_weight == 0.5
    for name, value in (('recent', 99), ('width', 128), ('variant', 'published')):
        refused = one.node.set_parameters([Parameter(name, value=value)])[0]
        assert not refused.successful and name in refused.reason
    assert one.world.change_state(one.node, Transition.TRANSITION_DEACTIVATE).success
    refused = one.node.set_parameters([Parameter('recent', value=99)])[0]
    assert not refused.successful and 'clean it up first' in refused.reason


def test_views_are_made_for_who_looks_and_show_what_learning_changed(bench, monkeypatch):
    one = bench(view_rate=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(one.node._learner, 'depths', lambda *_: pytest.fail('nobody looks'))
        one.drive_until_learned(2)
    topics = {name: one.world.record(Image, f'online_learning/{name}') for name in ('before/depth/image', 'after/depth/image', 'hits')}
    one.world.connected(*[p for p in one.node.publishers if p.topic_name.removeprefix('/online_learning/') in topics])
    one.drive()
    stamp = one.stamp
    one.world.until(lambda: all(topics.values()), 'the views')
    before, after = (codecs.depth_array(topics[f'{name}/depth/image'][-1], '')[0] for name in ('before', 'after'))
    assert {codecs.stamp_ns(m[-1].header.stamp) for m in topics.values()} == {stamp} and before.shape == one.truth.shape
    row = one.truth[40]
    assert np.median(np.abs(np.log(after[40] / row))) < 0.8 * np.median(np.abs(np.log(before[40] / row)))
    picture = codecs.image_array(topics['hits'][-1], '')
    assert picture.shape == (480, 640, 3)
    changed = (picture != cv2.resize(one.at(stamp).pair.current.image, (640, 480), interpolation=cv2.INTER_LINEAR)).any(-1)
    assert changed[202].mean() > 0.6 and not changed[:190].any() and not changed[215:].any()       # marks on the row of the hits alone


def test_taking_pairs_in_leaves_time_to_learn_and_tells_which_it_left_out(bench):
    """On a slow machine pairs alone would use up the share."""
    one = bench(batches_per_pair=0, share=0.01)
    one.drive(6)
    left_out = int(one.values()['pairs left out for want of time'])
    assert left_out > 0 and one.node._learner.progress.observed + left_out <= len(one.worked)
