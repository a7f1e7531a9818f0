"""Global-Local as users start it: its launch file on the real sequence, with tracking and without, its arguments, its end, and the RViz view of it."""

from __future__ import annotations

import global_local_support as support
import launch_pytest
import launch_support
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros_support import LIMIT
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Float32MultiArray

from depth_ros.learning.tum import open_sequence
from depth_ros.ros import codecs

FILE = 'global_local.launch.py'


def graph(beginning, untrained, variant, **more):
    return launch_support.looping(FILE, beginning, variant=variant, weights=str(untrained / support.FILES[variant]), **more)


@launch_pytest.fixture
def published(world, beginning, untrained):
    return graph(beginning, untrained, 'published')


@launch_pytest.fixture
def pose_aware(world, beginning, untrained, tmp_path):
    # Slowly and with patience: on a busy machine tracking drops frames, and its poses come late.
    patient = tmp_path / 'patient.yaml'
    patient.write_text('/**/global_local:\n  ros__parameters:\n    odometry_patience: 2.0\n')
    return graph(beginning, untrained, 'pose_aware', rate='0.25', params_file=str(patient))


@pytest.mark.launch(fixture=published)
def test_depth_comes_in_metres_and_survives_two_wraps(world, beginning):
    depths, infos = world.record(Image, '/global_local/depth/image'), world.record(CameraInfo, '/global_local/depth/camera_info')
    clouds, parameters = world.record(PointCloud2, '/global_local/points'), world.record(Float32MultiArray, '/global_local/parameters')
    world.until(lambda: launch_support.wraps(depths) >= 2 and infos and clouds and parameters, 'everything, and depth after two wraps', LIMIT)
    recorded = open_sequence(beginning)
    assert {codecs.stamp_ns(d.header.stamp) for d in depths} <= set(recorded.colour_stamps.tolist())
    assert {(d.width, d.height, d.encoding, d.header.frame_id) for d in depths} == {(256, 192, '32FC1', recorded.frame_id)}
    assert (infos[-1].width, infos[-1].height) == (256, 192) and infos[-1].k[0] == pytest.approx(recorded.K[0, 0] * 256 / 640)
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
    nodes = {'player', 'flow', 'sparse_depth', 'deepv2d', 'global_local'}
    world.until(lambda: nodes <= launch_support.reporting(reports), f'diagnostics of {nodes}', LIMIT)


@pytest.mark.launch(fixture=published)
def test_rviz_shows_topics_and_frames_of_the_graph(world):
    options = launch_support.view_of(world, 'global_local.rviz', 'Image', 'PointCloud2')
    clouds = world.record(PointCloud2, '/global_local/points')
    world.until(lambda: clouds, 'points', LIMIT)
    assert options['Fixed Frame'] == clouds[0].header.frame_id


def test_every_argument_is_described():
    assert launch_support.COMMON | {'variant', 'weights', 'tracking', 'odometry_topic'} <= launch_support.described(FILE)


def test_a_launch_ends_with_its_recording(world, beginning, untrained):
    done = launch_support.launched(FILE, f'bag:={beginning}', 'rviz:=false', 'rate:=4.0', f'weights:={untrained}/{support.FILES["published"]}')
    assert done.returncode == 0, done.stdout
    assert 'evaluate depth --engine global_local' in done.stdout
    assert 'Traceback' not in done.stdout and 'process has died' not in done.stdout


def test_weights_that_cannot_be_used_fail_the_replay_and_are_named(world, beginning, tmp_path):
    (tmp_path / 'broken.safetensors').write_bytes(b'broken')
    done = launch_support.launched(FILE, f'bag:={beginning}', 'rviz:=false', f'weights:={tmp_path}/broken.safetensors')
    assert done.returncode != 0
    assert f'{tmp_path}/broken.safetensors: not a safetensors file' in done.stdout
