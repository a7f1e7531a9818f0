"""Weights take the place of others only where they descend from those that were loaded, and are not older."""

from __future__ import annotations

from dataclasses import replace

import global_local_support as support
import pytest
from learner_support import QUICK, feed

from depth_ros.engines import lineage
from depth_ros.engines.depth_networks import Networks
from depth_ros.engines.inference import InferenceConfig
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.models import checkpoint

pytestmark = pytest.mark.usefixtures('one_thread')


def running(path) -> Networks:
    """What a node runs, loaded from a file."""
    return Networks('pose_aware', str(path), (48, 64), InferenceConfig(backend='torch'))


@pytest.fixture
def shipped(start, tmp_path):
    path = tmp_path / 'start.safetensors'
    checkpoint.save(path, start.name, start.model, start.record)
    return path


def numbered(start, course: lineage.Lineage, number: int) -> bytes:
    return checkpoint.to_bytes(start.name, start.model, course.noted({}, number))


def test_what_is_learned_from_the_loaded_weights_is_taken_and_what_others_taught_other_weights_is_not(start, shipped):
    offers = []
    networks, learner = running(shipped), OnlineLearner(start, QUICK, offers.append)
    feed(learner, range(6), batches=3)
    assert offers and all(networks.offer(blob).accepted for blob in offers)
    other = checkpoint.from_bytes(support.blob('pose_aware', seed=7))
    refused = networks.offer(OnlineLearner(other, QUICK).weights())
    assert not refused.accepted and 'learned from other weights' in refused.reason and lineage.fingerprint(start.model) in refused.reason
    assert networks.record('pose_aware')['number'] == learner.progress.number


def test_older_ones_of_a_course_are_refused_the_same_are_not_and_a_new_course_begins_at_nought(start, shipped):
    networks, course = running(shipped), lineage.begun(lineage.fingerprint(start.model))
    assert networks.offer(numbered(start, course, 5)).accepted and networks.offer(numbered(start, course, 5)).accepted
    refused = networks.offer(numbered(start, course, 4))
    assert not refused.accepted and 'number 4 is older than the 5 at work' in refused.reason
    assert networks.offer(numbered(start, lineage.begun(course.start), 0)).accepted and networks.record('pose_aware')['number'] == 0


def test_learned_weights_that_are_loaded_go_with_the_learner_that_made_them_and_with_one_that_begins_with_them(start, tmp_path):
    learner = OnlineLearner(start, QUICK)
    feed(learner, range(6), batches=3)
    path = tmp_path / 'learned.safetensors'
    learner.save(path)
    assert running(path).offer(learner.weights()).accepted
    assert running(path).offer(OnlineLearner(checkpoint.load(path), QUICK).weights()).accepted


def test_a_course_goes_on_over_a_restart_ends_with_a_reset_and_refuses_the_file_of_another_start(start, tmp_path):
    learner = OnlineLearner(start, QUICK)
    course = lambda one: replace(lineage.noted_in(checkpoint.from_bytes(one.weights()).record), run='')
    path = tmp_path / 'state.safetensors'
    learner.save(path)
    again = OnlineLearner(start, QUICK)
    assert course(again) != course(learner)
    again.restore(path)
    assert course(again) == course(learner)
    again.reset()
    assert course(again) != course(learner) and course(again).start == course(learner).start
    other = OnlineLearner(checkpoint.from_bytes(support.blob('pose_aware', seed=7)), QUICK)
    with pytest.raises(ValueError, match='state.safetensors: it was learned from other weights'):
        other.restore(path)


def test_after_a_full_disk_and_a_restart_what_is_handed_out_is_taken_though_its_number_is_lower(start, shipped, tmp_path):
    path = tmp_path / 'state.safetensors'
    networks, learner, offers = running(shipped), OnlineLearner(start, QUICK), []
    learner.save(path)      # the last that the disk had room for
    learner.offer_to(offers.append)
    feed(learner, range(12), batches=6)
    assert len(offers) > 2 and networks.offer(offers[-1]).accepted and not networks.offer(offers[0]).accepted
    again = OnlineLearner(start, QUICK)
    again.restore(path)
    again.offer_to(lambda blob: taken.append(networks.offer(blob)))
    taken = []
    feed(again, range(6), batches=3)
    assert taken and taken[0].accepted and again.progress.number < learner.progress.number
    again.progress.serves_frozen = True         # as where they do harm
    again._hand_out()
    again._deliver()
    assert all(offer.accepted for offer in taken) and networks.record('pose_aware')['number'] == again.progress.number < learner.progress.number
    assert networks.record('pose_aware')['online']['serves_frozen']


@pytest.mark.parametrize('note', ['text', {'start': 1, 'learner': 'a'}, {'learner': 'a'}])
def test_a_note_that_cannot_be_read_is_refused(start, shipped, note):
    refused = running(shipped).offer(checkpoint.to_bytes(start.name, start.model, {'number': 1, 'lineage': note}))
    assert not refused.accepted and 'expected a lineage' in refused.reason


def test_a_fingerprint_is_of_the_weights_alone(start):
    again = checkpoint.from_bytes(checkpoint.to_bytes(start.name, start.model, {'other': 'record'}))
    assert lineage.fingerprint(again.model) == lineage.fingerprint(start.model)
    next(again.model.parameters()).data.view(-1)[0] += 1e-6
    assert lineage.fingerprint(again.model) != lineage.fingerprint(start.model)
