"""Online learning as users start it: both launch files, their arguments, what they show and save."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import launch_pytest
import pytest
import ros_support
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from sensor_msgs.msg import Image
from std_msgs.msg import UInt8MultiArray

from depth_ros.models import checkpoint
from depth_ros.ros import launching, learning_graph
from depth_ros.ros.managed_node import LATCHED_QOS

FILES = 'online_learning.launch.py', 'robot.launch.py'
LIMIT = 2 * ros_support.LIMIT
KINDS = {'Image': 'sensor_msgs/msg/Image', 'PointCloud2': 'sensor_msgs/msg/PointCloud2', 'Path': 'nav_msgs/msg/Path', 'Odometry': 'nav_msgs/msg/Odometry'}


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    """Parameters with which it learns at once, and renders nothing."""
    path = tmp_path_factory.mktemp('parameters') / 'quick.yaml'
    path.write_text('/**/online_learning:\n  ros__parameters:\n    rehearse: 0\n    round: 2\n    withheld_run: 1\n    checks: 2\n    share: 1.0\n    niceness: 0\n    only_idle: false\n    hits_patience: 5.0\n'
                    '    odometry_patience: 5.0\n')
    return path


def graph(file, beginning, quick, cache, **more):
    arguments = {'bag': str(beginning), 'loop': 'true', 'rate': '0.25', 'rviz': 'false', 'params_file': str(quick), **more}
    source = PythonLaunchDescriptionSource(launching.share('launch', file))
    return LaunchDescription([SetEnvironmentVariable('XDG_CACHE_HOME', str(cache)), IncludeLaunchDescription(source, launch_arguments=arguments.items()), ReadyToTest()])


@launch_pytest.fixture
def learning(world, beginning, quick, tmp_path_factory):
    return graph(FILES[0], beginning, quick, tmp_path_factory.mktemp('cache'))


@launch_pytest.fixture
def robot(world, beginning, quick, tmp_path_factory):
    return graph(FILES[1], beginning, quick, tmp_path_factory.mktemp('cache'), variant='published')


def of(reports, node):
    """The newest values that a node told in its diagnostics."""
    return next(({v.key: v.value for v in s.values} for r in reversed(reports) for s in r.status if s.name == node), {})


@pytest.mark.launch(fixture=learning)
def test_it_learns_from_the_scan_of_a_recording_the_network_takes_what_it_learned_and_the_view_shows_it(world):
    reports, figures = world.record(DiagnosticArray, '/diagnostics'), world.record(DiagnosticArray, '/online_learning/metrics')
    weights, depths = world.record(UInt8MultiArray, '/online_learning/weights', LATCHED_QOS), world.record(Image, '/global_local/depth/image')
    told = lambda name: next(v.value for v in figures[-1].status[0].values if v.key == name) if figures else '0'
    world.until(lambda: int(told('batches')) >= 4, 'learning', LIMIT)
    assert int(told('hits')) > 10 * int(told('pairs')) > 0 and float(told('withheld error before')) > 0
    world.until(lambda: weights and depths, 'learned weights, and depth', LIMIT)
    number = lambda: checkpoint.from_bytes(bytes(weights[-1].data)).record['number']
    world.until(lambda: of(reports, 'global_local').get('weights of pose_aware') == str(number()), 'the weights at work', LIMIT)
    shows(world, 'online_learning.rviz', {'before', 'after', 'hits'})


@pytest.mark.launch(fixture=robot)
def test_the_robots_view_shows_topics_and_frames_of_the_graph(world):
    shows(world, 'robot.rviz', {'before', 'after', 'hits', 'map', 'path', 'odometry'})


def shows(world, file, parts):
    view = yaml.safe_load(Path(launching.share('rviz', file)).read_text())['Visualization Manager']
    shown = {'/' + d['Topic']['Value']: d['Class'].split('/')[1] for d in view['Displays'] if 'Topic' in d}
    assert all(any(part in topic for topic in shown) for part in parts)

    def offered():
        return {name: types for name, types in world.tester.get_topic_names_and_types() if world.tester.count_publishers(name)}

    world.until(lambda: set(shown) <= set(offered()), f'publishers of {sorted(shown)}', LIMIT)
    assert {topic: [KINDS[display]] for topic, display in shown.items()} == {topic: offered()[topic] for topic in shown}
    looked = [world.record(Image, topic) for topic, display in shown.items() if display == 'Image']
    world.until(lambda: all(looked), 'every image of the view', LIMIT)
    assert view['Global Options']['Fixed Frame'] == 'odom'


def ros2_launch(file: str, *arguments: str) -> list[str]:
    return ['ros2', 'launch', 'depth_ros', file, *arguments]


@pytest.mark.parametrize(('file', 'own'), [(FILES[0], {'tracking'}), (FILES[1], set())])
def test_every_argument_is_described(file, own):
    shown = subprocess.run(ros2_launch(file, '--show-args'), capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    names = re.findall(r"^\s+'(\w+)':", shown, re.MULTILINE)
    assert own | {'bag', 'rate', 'loop', 'passes', 'use_sim_time', 'params_file', 'namespace', 'namespaced_tf', 'base_frame', 'odom_frame', 'fixed_frame', 'publish_tf', 'rviz', 'log_level', 'variant', 'weights', 'resume', 'image_topic', 'camera_info_topic',
                  'depth_topic', 'odometry_topic', 'scan_topic', 'range_topic', 'points_topic', 'out'} == set(names)
    assert 'no description' not in shown.lower()


def test_a_replay_saves_what_it_learned_where_asked_to(world, beginning, quick, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    given = [f'bag:={beginning}', 'rate:=0.25', 'rviz:=false', f'params_file:={quick}', f'out:={tmp_path}/out']
    done = subprocess.run(ros2_launch(FILES[0], *given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    assert done.returncode == 0 and f'saved {tmp_path}/out/learned.safetensors' in done.stdout, done.stdout
    assert 'Traceback' not in done.stdout and 'process has died' not in done.stdout
    checkpoint.load(tmp_path / 'out/learned.safetensors', 'global_local')


def test_the_closing_hint_names_what_was_played():
    hint = learning_graph.ADVICE.format(ros2='ros2', bag='KITCHEN', variant='published')
    assert 'evaluate online --sequence KITCHEN --variant published' in hint and 'resume:=false' in hint and 'out:=FOLDER' in hint
