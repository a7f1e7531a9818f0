"""Global-Local as users start it: its launch file on the real sequence, with tracking and without, its arguments, its end, and the RViz view of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import global_local_support as support
import launch_pytest
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from sequence_support import head_of
from std_msgs.msg import Float32MultiArray

from depth_ros.ros import codecs, launching

FILE = 'global_local.launch.py'
FRAMES = 60
LIMIT = 120     # [s] for a launch to start and end on a busy machine


@pytest.fixture(scope='module')
def beginning(kitchen, tmp_path_factory):
    """The first two seconds of the real sequence."""
    return head_of(kitchen, tmp_path_factory.mktemp('launch') / 'kitchen', FRAMES)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    return support.write(tmp_path_factory.mktemp('weights'))


def graph(beginning, weights, variant, **more):
    arguments = {'bag': str(beginning), 'loop': 'true', 'rviz': 'false', 'variant': variant, 'weights': str(weights / support.FILES[variant]), **more}
    source = PythonLaunchDescriptionSource(launching.share('launch', FILE))
    return LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments.items()), ReadyToTest()])


@launch_pytest.fixture
def published(world, beginning, weights):
    return graph(beginning, weights, 'published')


@launch_pytest.fixture
def pose_aware(world, beginning, weights):
    # Slowly and with patience: on a busy machine tracking drops frames, and its poses come late.
    patient = weights / 'patient.yaml'
    patient.write_text('/**/global_local:\n  ros__parameters:\n    odometry_patience: 2.0\n')
    return graph(beginning, weights, 'pose_aware', rate='0.25', params_file=str(patient))


@pytest.mark.launch(fixture=published)
def test_depth_comes_in_metres_and_survives_two_wraps(world):
    depths, infos = world.record(Image, '/global_local/depth/image'), world.record(CameraInfo, '/global_local/depth/camera_info')
    clouds, parameters = world.record(PointCloud2, '/global_local/points'), world.record(Float32MultiArray, '/global_local/parameters')
    shots = world.record(CameraInfo, '/camera/rgb/camera_info')

    def wraps():
        stamps = [codecs.stamp_ns(d.header.stamp) for d in depths]
        return sum(b < a for a, b in zip(stamps, stamps[1:]))

    world.until(lambda: wraps() >= 2 and clouds and parameters, 'depth after two wraps', LIMIT)
    assert {codecs.stamp_ns(d.header.stamp) for d in depths} <= {codecs.stamp_ns(i.header.stamp) for i in shots}
    assert {(d.width, d.height, d.encoding, d.header.frame_id) for d in depths} == {(256, 192, '32FC1', shots[0].header.frame_id)}
    assert (infos[-1].width, infos[-1].height) == (256, 192) and infos[-1].k[0] == pytest.approx(shots[-1].k[0] * 256 / 640)
    # The network is untrained, so the shape of its depth means nothing; but the hits of the scan make its size right.
    middles = [np.nanmedian(codecs.depth_array(d, '')[0]) for d in depths]
    assert 0.5 < np.median(middles) < 5.0
    assert clouds[-1].width * clouds[-1].height > 1000 and len(parameters[-1].data) == 6


@pytest.mark.launch(fixture=pose_aware)
def test_the_pose_aware_network_gets_its_poses_from_tracking(world):
    reports = world.record(DiagnosticArray, '/diagnostics')
    depths = world.record(Image, '/global_local/depth/image')

    def at_work():
        values = {v.key: v.value for r in reports for s in r.status if 'global_local' in s.name for v in s.values}
        return depths and values.get('network') == 'pose_aware'

    world.until(at_work, 'pose-aware depth', LIMIT)
    nodes = {s.name.strip('/').split(':')[0].split('/')[0] for r in reports for s in r.status}
    assert {'player', 'flow', 'sparse_depth', 'deepv2d', 'global_local'} <= nodes


@pytest.mark.launch(fixture=published)
def test_rviz_shows_topics_and_frames_of_the_graph(world):
    view = yaml.safe_load(Path(launching.share('rviz', 'global_local.rviz')).read_text())['Visualization Manager']
    shown = {'/' + d['Topic']['Value']: d['Class'].split('/')[1] for d in view['Displays'] if 'Topic' in d}
    kinds = {'Image': 'sensor_msgs/msg/Image', 'PointCloud2': 'sensor_msgs/msg/PointCloud2'}
    assert set(kinds) == set(shown.values())

    def offered():
        return {name: types for name, types in world.tester.get_topic_names_and_types() if world.tester.count_publishers(name)}

    world.until(lambda: set(shown) <= set(offered()), f'publishers of {sorted(shown)}', LIMIT)
    assert {topic: [kinds[display]] for topic, display in shown.items()} == {topic: offered()[topic] for topic in shown}
    clouds = world.record(PointCloud2, '/global_local/points')
    world.until(lambda: clouds, 'points', LIMIT)
    assert view['Global Options']['Fixed Frame'] == clouds[0].header.frame_id


def ros2_launch(*arguments: str) -> list[str]:
    return ['ros2', 'launch', 'depth_ros', FILE, *arguments]


def test_every_argument_is_described():
    shown = subprocess.run(ros2_launch('--show-args'), capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    names = re.findall(r"^\s+'(\w+)':", shown, re.MULTILINE)
    assert {'bag', 'rate', 'loop', 'use_sim_time', 'params_file', 'namespace', 'rviz', 'log_level', 'variant', 'weights', 'tracking', 'image_topic',
            'camera_info_topic', 'depth_topic', 'odometry_topic', 'scan_topic', 'range_topic', 'points_topic'} <= set(names)
    assert 'no description' not in shown.lower()


def test_a_launch_ends_with_its_recording(world, beginning, weights):
    done = subprocess.run(ros2_launch(f'bag:={beginning}', 'rviz:=false', 'rate:=4.0', f'weights:={weights}/{support.FILES["published"]}'),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout
    assert 'evaluate depth --engine global_local' in done.stdout
    assert 'Traceback' not in done.stdout and 'process has died' not in done.stdout


def test_weights_that_cannot_be_used_fail_the_replay_and_are_named(world, beginning, tmp_path):
    (tmp_path / 'broken.safetensors').write_bytes(b'broken')
    done = subprocess.run(ros2_launch(f'bag:={beginning}', 'rviz:=false', f'weights:={tmp_path}/broken.safetensors'),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    assert done.returncode != 0
    assert f'{tmp_path}/broken.safetensors: not a safetensors file' in done.stdout
