"""The player: the same messages as were recorded, bit for bit, none lost, in any order of starting; bad recordings end it with one line."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import ros_support
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from tf2_msgs.msg import TFMessage

from depth_ros.learning.tum import open_sequence
from depth_ros.ros import codecs, player_node
from depth_ros.ros.player_node import PlayerNode

FRAMES = 12
START = 1_000_000_000
HEARD = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)       # as nodes listen, but for losses of this test's own when the machine is busy
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def folder(tmp_path):
    """A TUM folder of 12 frames of 64 x 48 pixels at 50 Hz."""
    rng = np.random.default_rng(0)
    for name in ('rgb', 'depth'):
        (tmp_path / name).mkdir()
    (tmp_path / 'calibration.yaml').write_text('fx: 50.0\nfy: 51.0\ncx: 31.5\ncy: 23.5\nwidth: 64\nheight: 48\nframe_id: lens\n')
    for i in range(FRAMES):
        cv2.imwrite(str(tmp_path / f'rgb/{i}.png'), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / f'depth/{i}.png'), rng.integers(0, 3, (48, 64), dtype=np.uint16) * 5001)
    stamps = [f'{START + i * 0.02:.6f}' for i in range(FRAMES)]
    for name in ('rgb', 'depth'):
        (tmp_path / f'{name}.txt').write_text(''.join(f'{s} {name}/{i}.png\n' for i, s in enumerate(stamps)))
    (tmp_path / 'groundtruth.txt').write_text(''.join(f'{s} {0.1 * i} 0 1 0 0 0 1\n' for i, s in enumerate(stamps)))
    return tmp_path


class Audience:
    """Everything that a player says."""

    def __init__(self, world):
        self.world = world
        self.images = world.record(Image, 'camera/rgb/image_color', HEARD)
        self.infos = world.record(CameraInfo, 'camera/rgb/camera_info', HEARD)
        self.depths = world.record(Image, 'camera/depth/image', HEARD)
        self.scans = world.record(LaserScan, 'scan', HEARD)
        self.truth = world.record(PoseStamped, 'ground_truth/pose', HEARD)
        self.clock = world.record(Clock, '/clock', 1000)
        self.static = world.record(TFMessage, '/tf_static', LATCHED)

    def hear(self, node):
        """Listen until the player has ended and everything that it said is heard; its exit status."""
        self.world.until(lambda: node.exit_status is not None, 'the end of the recording')
        by_topic = {'camera/rgb/image_color': self.images, 'camera/rgb/camera_info': self.infos, 'camera/depth/image': self.depths,
                    'scan': self.scans, 'ground_truth/pose': self.truth}
        self.world.until(lambda: all(len(heard) == node.diagnostics.output(f'/{topic}').count for topic, heard in by_topic.items()), 'all that was published')
        return node.exit_status


@pytest.fixture
def audience(world):
    yield Audience(world)
    world.forget()


@pytest.fixture
def play(world):
    nodes = []

    def make(folder, **parameters):
        nodes.append(world.node(PlayerNode, bag=str(folder), **{'linger': 0.2, **parameters}))
        return nodes[-1]

    yield make
    for node in nodes:
        world.remove(node)


def stamp(message):
    return codecs.stamp_ns(message.header.stamp)


def test_the_messages_are_the_recording_bit_for_bit(world, folder, audience, play):
    assert audience.hear(play(folder)) == 0
    sequence = open_sequence(folder)
    expected = sequence.colour_stamps.tolist()
    assert [stamp(m) for m in audience.images] == [stamp(m) for m in audience.infos] == [stamp(m) for m in audience.depths] == expected
    assert [stamp(m) for m in audience.truth] == expected
    for index, frame in enumerate(sequence):
        image, depth = audience.images[index], audience.depths[index]
        assert (image.encoding, depth.encoding, image.header.frame_id, depth.header.frame_id) == ('rgb8', '32FC1', 'lens', 'lens')
        assert bytes(image.data) == frame.image.tobytes()
        assert bytes(depth.data) == sequence.read_depth(index).tobytes()
        assert np.isnan(np.frombuffer(depth.data, np.float32)).any()
        rebuilt = codecs.camera_frame(image, audience.infos[index], depth)
        assert rebuilt.stamp == frame.stamp and (rebuilt.K == frame.K).all() and (rebuilt.depth == frame.depth).all()
    assert [m.pose.position.x for m in audience.truth] == [0.1 * i for i in range(FRAMES)]
    assert audience.truth[0].header.frame_id == 'world'


def test_clock_scan_and_its_frame(world, folder, audience, play):
    assert audience.hear(play(folder)) == 0
    times = lambda: [codecs.stamp_ns(m.clock) for m in audience.clock]
    world.until(lambda: audience.static and set(open_sequence(folder).colour_stamps) <= set(times()), 'the frame of the scans, and the time of every image')
    assert times() == sorted(times())
    assert [round((stamp(s) - stamp(audience.scans[0])) * 1e-8) for s in audience.scans] == [0, 1, 2]      # 10 Hz
    transform = audience.static[-1].transforms[0]
    assert transform.header.frame_id == 'lens' and transform.child_frame_id == audience.scans[0].header.frame_id


def test_the_last_images_can_be_left_without_scans_in_every_lap(world, folder, audience, play):
    play(folder, loop=True, rate=4.0, scan_silent_last=4, scan_rate=100.0, scan_beams=1)
    world.until(lambda: len(audience.images) >= 2 * FRAMES + 1, 'two laps')
    stamps = open_sequence(folder).colour_stamps.tolist()
    assert {stamp(s) for s in audience.scans} == set(stamps[:-4]) and len(audience.scans) >= 2 * (FRAMES - 4)
    assert {len(s.ranges) for s in audience.scans} == {1}


def test_nothing_is_played_before_somebody_listens(world, folder, play):
    node = play(folder)
    values = lambda: {v.key: v.value for v in node.diagnostics.status().values}
    world.until(lambda: values().get('waiting for subscribers') == '0 of 1', 'the player to wait')
    late = Audience(world)
    assert late.hear(node) == 0
    assert len(late.images) == len(late.depths) == len(late.infos) == FRAMES
    world.forget()


def test_it_waits_for_the_end_of_a_chain_of_nodes(world, folder, play, audience):
    node = play(folder, wait_for_topic='chain/end')
    values = lambda: {v.key: v.value for v in node.diagnostics.status().values}
    world.until(lambda: values().get('waiting for subscribers', '').endswith('of 1, none of chain/end'), 'the player to wait')
    assert not audience.images
    world.record(Image, 'chain/end')
    assert audience.hear(node) == 0 and len(audience.images) == FRAMES


def test_without_an_audience_it_plays_after_the_time_out(world, folder, play):
    node = play(folder, wait_for_subscribers=5, wait_timeout=0.3)
    world.until(lambda: node.exit_status == 0, 'the end of the recording')


def test_waiting_for_subscribers_is_told(world, folder, play, monkeypatch, capfd):
    """A misspelt topic would look like a hang."""
    monkeypatch.setattr(player_node, '_PATIENCE', 0.1)
    node = play(folder, wait_for_subscribers=5, wait_timeout=1.0)
    world.until(lambda: node.exit_status == 0, 'the end of the recording')
    assert '0 of 5 subscribers; playing begins without them after 1 s' in capfd.readouterr().err


@pytest.mark.parametrize('kind, topic, publish_clock', [(Clock, '/clock', True), (Image, '/camera/rgb/image_color', True), (Image, '/camera/rgb/image_color', False)])
def test_a_player_that_comes_later_is_warned_of_once(world, folder, play, audience, capfd, kind, topic, publish_clock):
    node = play(folder, publish_clock=publish_clock, rate=0.05)
    world.until(lambda: audience.images, 'the first image')
    node.diagnostics.publish()
    assert 'offered by others' not in capfd.readouterr().err
    other = world.publisher(kind, topic)
    try:
        world.until(lambda: node.count_publishers(topic) == 2, 'the two to see each other')
        for _ in range(3):
            node.diagnostics.publish()
        assert f'{topic}: offered by others too' in node.diagnostics.status().message
    finally:
        world.tester.destroy_publisher(other)
    world.until(lambda: node.count_publishers(topic) == 1, 'the other to go')
    node.diagnostics.publish()
    assert 'offered by others' not in node.diagnostics.status().message
    said = capfd.readouterr().err
    assert said.count('offered by others') == 1 and f'{topic}: offered by others too' in said and 'another ROS_DOMAIN_ID' in said


def test_a_loop_goes_round_with_stamps_that_jump_back(world, folder, audience, play):
    node = play(folder, loop=True, rate=4.0)
    world.until(lambda: len(audience.images) >= 2 * FRAMES + 3, 'two wraps')
    expected = open_sequence(folder).colour_stamps.tolist()
    assert [stamp(m) for m in audience.images][:2 * FRAMES + 3] == expected * 2 + expected[:3]
    times = [codecs.stamp_ns(m.clock) for m in audience.clock]
    back = [b for a, b in zip(times, times[1:]) if b < a]
    assert len(back) >= 2 and set(back) == {expected[0]}
    assert node.exit_status is None


def test_so_many_passes_and_then_the_end(world, folder, audience, play, capfd):
    assert audience.hear(play(folder, passes=2, rate=4.0)) == 0
    said = capfd.readouterr().err
    assert 'pass 2 of 2' in said and 'offered by others' not in said
    assert [stamp(m) for m in audience.images] == 2 * open_sequence(folder).colour_stamps.tolist()


def test_deactivating_pauses_and_nothing_is_lost(world, folder, audience, play):
    node = play(folder, rate=0.2)
    world.until(lambda: len(audience.images) >= 3, 'the first images')
    node.trigger_deactivate()
    assert node.state == 'inactive'
    node.trigger_activate()
    assert audience.hear(node) == 0
    assert len(audience.images) == len(audience.depths) == FRAMES


def test_an_image_damaged_half_way_ends_it_after_those_before(world, folder, audience, play):
    damaged = folder / 'rgb/7.png'
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert audience.hear(play(folder)) == 1 and len(audience.images) == 7


@pytest.mark.parametrize('bag', ['/nowhere/at/all', 'empty'])
def test_a_bad_recording_is_one_line_and_status_one(world, tmp_path, bag):
    code = 'import sys; from depth_ros.ros import executables; executables.player()'
    path = bag if bag.startswith('/') else str(tmp_path)
    done = subprocess.run([sys.executable, '-c', code, '--ros-args', '-p', f'bag:={path}'], capture_output=True, text=True, timeout=ros_support.LIMIT)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 1 and len(lines) == 1 and path in lines[0], lines
