"""The flow node over DDS: the bundle's parts agree with each other and with the images."""

from __future__ import annotations

import time

import numpy as np
import pytest
import ros_support
import torch
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, TimeReference

from depth_ros.models import checkpoint
from depth_ros.models.pwc_net import PwcNet, PwcNetConfig
from depth_ros.ros import codecs, flow_node
from depth_ros.ros.flow_node import FlowNode

KINDS = {'image': Image, 'reference_image': Image, 'flow': Image, 'backward': Image, 'camera_info': CameraInfo, 'reference': TimeReference}


@pytest.fixture
def camera(world):
    made = ros_support.Camera(world, size=(320, 240))
    yield made
    made.close()


@pytest.fixture
def start(world, camera):
    nodes = []

    def make(**parameters):
        nodes.append(world.node(FlowNode, **parameters))
        world.connected(camera.images, camera.infos)
        return nodes[-1]

    yield make
    for node in nodes:
        world.remove(node)


@pytest.fixture
def bundles(world):
    """Messages by topic and stamp."""
    heard = {name: {} for name in KINDS}
    subscriptions = []
    for name, kind in KINDS.items():
        def take(message, name=name):
            heard[name][codecs.stamp_ns(message.header.stamp)] = message
        subscriptions.append(world.tester.create_subscription(kind, f'flow/{name}', take, 10))
    yield heard
    for subscription in subscriptions:
        world.tester.destroy_subscription(subscription)


def complete(bundles):
    return sorted(set.intersection(*(set(messages) for messages in bundles.values())))


def test_the_bundle_tells_how_the_image_moved_since_its_reference(world, camera, start, bundles):
    start(width=160, height=120)
    camera.run(lambda: len(complete(bundles)) >= 5, 'five bundles')
    for stamp in complete(bundles):
        parts = {name: bundles[name][stamp] for name in KINDS}
        reference = codecs.stamp_ns(parts['reference'].time_ref)
        assert reference < stamp and parts['reference'].source == 'flow'
        assert {m.header.frame_id for m in parts.values()} == {'camera'}
        flow, backward = codecs.flow_array(parts['flow'], ''), codecs.flow_array(parts['backward'], '')
        moved = camera.speed * (camera.shots[stamp] - camera.shots[reference]) / 2      # at half the size; what moved left was further right before
        inner = (slice(20, -20), slice(30, -30))
        assert np.abs(np.median(flow[inner], axis=(0, 1)) - [moved, 0.0]).max() < 0.1
        assert np.abs(np.median(backward[inner], axis=(0, 1)) + [moved, 0.0]).max() < 0.1
        K = codecs.camera_matrix(parts['camera_info'], (160, 120), '')
        assert K[0, 0] == 150.0 and K[0, 2] == pytest.approx(0.5 * (camera.K[0, 2] + 0.5) - 0.5)
        for name, at in (('image', stamp), ('reference_image', reference)):
            half = camera.picture(camera.shots[at]).reshape(120, 2, 160, 2, 3).mean((1, 3))
            assert np.abs(codecs.image_array(parts[name], '').astype(float) - half).max() <= 1.0


def test_references_change_as_the_image_moves_on(world, camera, start, bundles):
    camera.speed = 8
    start()
    references = lambda: {codecs.stamp_ns(m.time_ref) for m in bundles['reference'].values()}
    camera.run(lambda: len(references()) >= 4, 'a fourth reference')


def test_images_beyond_the_highest_rate_are_left_out_and_told(world, camera, start, bundles):
    """By the time at which they come: their stamps go by at two thirds of that here, as in a recording that is played slowly."""
    node = start(width=160, height=120, max_rate=4.0)
    values = lambda: {v.key: v.value for v in node.diagnostics.status().values}
    camera.run(lambda: len(complete(bundles)) >= 6, 'six bundles')      # by when the speed is known
    first, began, index = len(complete(bundles)), time.monotonic(), camera.index
    camera.run(lambda: len(complete(bundles)) >= first + 12, 'twelve more')
    taken, seconds, sent = len(complete(bundles)) - first, time.monotonic() - began, camera.index - index
    by_stamps = 4.0 * sent * ros_support.STEP * 1e-9
    assert 1.2 * by_stamps < taken <= 4.6 * seconds + 2 and int(values()['images left out']) > 0
    assert node.set_parameters([Parameter('max_rate', value=0.0)])[0].successful
    camera.run(lambda: ros_support.STEP in np.diff(complete(bundles)), 'every image')


def test_a_slow_machine_looks_at_fewer_images_but_never_so_few_that_pairing_gives_up(world, camera, start, bundles, monkeypatch):
    monkeypatch.setattr(flow_node, '_CORES', 2)
    node = start(width=160, height=120, max_rate=20.0, max_share=1e-6)
    values = lambda: {v.key: v.value for v in node.diagnostics.status().values}
    camera.run(lambda: values().get('highest rate [Hz]') == '4.0', 'the rate at which two images fall into the longest silence')
    assert float(values()['processor time a pair [ms]']) > 0
    before = len(complete(bundles))
    camera.run(lambda: len(complete(bundles)) > before + 3 and int(values()['images left out']) > 0, 'bundles nevertheless')
    assert node.set_parameters([Parameter('max_share', value=0.1)])[0].successful
    for cost, rate in ((0.02, 10.0), (0.005, 20.0), (0.0, 20.0)):       # [s] of each of two cores, a tenth of which may be taken
        monkeypatch.setattr(node, '_cost', cost)
        assert node._rate() == pytest.approx(rate)


def test_large_messages_are_not_made_for_nobody(world, camera, start):
    node = start()
    heard = world.record(TimeReference, 'flow/reference')
    camera.run(lambda: len(heard) >= 3, 'bundles')
    published = {v.key for v in node.diagnostics.status().values if 'published' in v.key}
    assert published == {'/flow/reference published'}


def test_a_new_size_needs_a_pause_for_other_nodes_must_change_with_it(world, camera, start, bundles):
    node = start(width=160, height=120)
    camera.run(lambda: bundles['flow'], 'flow')
    refused = node.set_parameters([Parameter('width', value=80)])[0]
    assert not refused.successful and 'width' in refused.reason and 'while the node is active' in refused.reason and node.config.flow.width == 160
    assert node.set_parameters([Parameter('width', value=160)])[0].successful       # no change
    node.trigger_deactivate()
    assert all(result.successful for result in node.set_parameters([Parameter('width', value=80), Parameter('height', value=60)]))
    node.trigger_activate()
    world.connected(camera.images, camera.infos)
    camera.run(lambda: any(m.width == 80 for m in bundles['flow'].values()), 'flow of the new size')


def test_effort_changes_from_the_next_pair_on(world, camera, start, bundles):
    node = start(width=160, height=120)
    camera.run(lambda: bundles['flow'], 'flow')
    assert node.set_parameters([Parameter('preset', value='ultrafast')])[0].successful and node._engine.config.preset == 'ultrafast'
    before = len(bundles['flow'])
    camera.run(lambda: len(bundles['flow']) > before + 1, 'flow of the new preset')
    refused = node.set_parameters([Parameter('preset', value='psychic')])[0]
    assert not refused.successful and 'tuned, ultrafast, fast, medium' in refused.reason


def test_a_network_without_weights_is_refused_and_flow_goes_on(world, camera, start, bundles):
    node = start(width=160, height=120)
    camera.run(lambda: bundles['flow'], 'flow')
    refused = node.set_parameters_atomically([Parameter('estimator', value='pwc_net')])
    assert not refused.successful and 'weights' in refused.reason and node._engine.config.estimator == 'dis'
    before = len(bundles['flow'])
    camera.run(lambda: len(bundles['flow']) > before + 1, 'flow as before')


def test_a_network_serves_in_place_of_dis(world, camera, start, bundles, tmp_path):
    """Untrained: what it says is not looked at, but that it is heard. Estimator and weights come together, as neither means anything alone."""
    torch.manual_seed(0)
    checkpoint.save(tmp_path / 'small.safetensors', 'pwc_net', PwcNet(PwcNetConfig(share=0.1)), {})
    start(width=64, height=48, estimator='pwc_net', weights=str(tmp_path / 'small.safetensors'))
    camera.run(lambda: bundles['backward'] and bundles['flow'], 'flow of the network')
    assert all(m.width == 64 and np.isfinite(codecs.flow_array(m, '')).all() for m in bundles['flow'].values())


def test_compressed_images_serve_as_well(world, camera, start, bundles):
    import cv2
    from sensor_msgs.msg import CompressedImage
    compressed = world.publisher(CompressedImage, 'image/compressed')
    nodes = world.node(FlowNode, image_transport='compressed')
    world.connected(compressed, camera.infos)

    def shoot():
        camera.index, camera.stamp = camera.index + 1, camera.stamp + ros_support.STEP
        camera.infos.publish(codecs.camera_info(camera.K, camera.size, camera.header()))
        data = cv2.imencode('.png', cv2.cvtColor(camera.picture(camera.index), cv2.COLOR_RGB2BGR))[1].tobytes()
        compressed.publish(CompressedImage(header=camera.header(), format='rgb8; png compressed bgr8', data=data))

    world.repeat(shoot, lambda: bundles['flow'], 'flow')
    world.remove(nodes)
    world.tester.destroy_publisher(compressed)
