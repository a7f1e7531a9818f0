"""The main job as users start it: `deepv2d_slam.launch.py` on the real sequence, its arguments, its end, and the RViz view of it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess

import launch_pytest
import launch_support
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry, Path as PathMessage
from ros_support import LIMIT
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from sequence_support import BEGINNING
from tf2_msgs.msg import TFMessage

from depth_ros.learning.tum import open_sequence
from depth_ros.ros import codecs, launching

FILE = 'deepv2d_slam.launch.py'


@launch_pytest.fixture
def looping(world, beginning):
    return launch_support.looping(FILE, beginning)


@pytest.mark.launch(fixture=looping)
def test_the_graph_tracks_and_survives_two_wraps(world, beginning):
    odometry = world.record(Odometry, '/deepv2d/odometry')
    infos = world.record(CameraInfo, '/deepv2d/depth/camera_info')
    depths = world.record(Image, '/deepv2d/depth/image')
    clouds = world.record(PointCloud2, '/deepv2d/points')
    paths = world.record(PathMessage, '/deepv2d/path')
    transforms = world.record(TFMessage, '/tf')
    world.until(lambda: launch_support.wraps(odometry) >= 2 and all((infos, depths, clouds, paths, transforms)), 'everything, and odometry after two wraps', LIMIT)
    assert {codecs.stamp_ns(o.header.stamp) for o in odometry} <= set(open_sequence(beginning).colour_stamps.tolist())
    assert all(o.header.frame_id == 'odom' and np.isfinite([*o.pose.covariance]).all() for o in odometry)
    tracked = [o for o in odometry if o.pose.covariance[0] < 1.0]
    assert len(tracked) > 0.9 * len(odometry)
    # Poses go on across the wrap, and a hand-held camera moves by centimetres from frame to frame; a busy machine skips some.
    places = np.array([[o.pose.pose.position.x, o.pose.pose.position.y, o.pose.pose.position.z] for o in odometry])
    elapsed = 1e-9 * np.diff([codecs.stamp_ns(o.header.stamp) for o in odometry]).clip(min=0)
    assert (np.linalg.norm(np.diff(places, axis=0), axis=1) < 0.3 + 1.0 * elapsed).all()
    assert (depths[-1].width, depths[-1].height, depths[-1].encoding) == (infos[-1].width, infos[-1].height, '32FC1')
    # A path may be sent just when a wrap has cleared it.
    assert any(p.poses for p in paths) and clouds[-1].width * clouds[-1].height > 1000
    children = {t.child_frame_id for m in transforms for t in m.transforms if t.header.frame_id == 'odom'}
    assert children == {odometry[-1].child_frame_id}


@pytest.mark.launch(fixture=looping)
def test_rviz_shows_topics_and_frames_of_the_graph(world):
    options = launch_support.view_of(world, 'deepv2d_slam.rviz', 'Image', 'PointCloud2', 'Path', 'Odometry')
    odometry = world.record(Odometry, '/deepv2d/odometry')
    world.until(lambda: odometry, 'odometry', LIMIT)
    assert options['Fixed Frame'] == odometry[0].header.frame_id


@pytest.mark.launch(fixture=looping)
def test_every_node_reports_on_diagnostics(world):
    reports = world.record(DiagnosticArray, '/diagnostics')
    wanted = {'player', 'flow', 'deepv2d', 'sparse_depth'}
    world.until(lambda: wanted <= launch_support.reporting(reports), f'diagnostics of {wanted}', LIMIT)


def test_every_argument_is_described():
    assert launch_support.COMMON <= launch_support.described(FILE)


def launched(*arguments: str) -> subprocess.CompletedProcess:
    return launch_support.launched(FILE, 'rviz:=false', *arguments)


def test_a_launch_ends_with_its_recording_and_tells_what_came_of_it(world, beginning):
    done = launched(f'bag:={beginning}')
    assert done.returncode == 0, done.stdout
    assert 'Traceback' not in done.stdout and 'process has died' not in done.stdout
    assert f'played to its end, {BEGINNING} images in' in done.stdout and re.search(r'deepv2d\]: .*published .*on /deepv2d/odometry', done.stdout)
    assert 'out:=FOLDER' in done.stdout and f'--sequence {beginning}' in done.stdout


def test_what_was_made_of_a_recording_is_saved_where_asked_for(world, beginning, tmp_path):
    done = launched(f'bag:={beginning}', f'out:={tmp_path}/results')
    assert done.returncode == 0, done.stdout
    for name in ('trajectory.txt', 'map.ply'):
        assert f'saved {tmp_path}/results/{name}' in done.stdout
    rows = np.loadtxt(tmp_path / 'results/trajectory.txt', ndmin=2)
    assert rows.shape[1] == 8 and np.isfinite(rows).all() and (tmp_path / 'results/map.ply').read_bytes()[:3] == b'ply'


def test_a_result_that_cannot_be_saved_fails_the_launch(world, beginning, tmp_path):
    (tmp_path / 'results').write_text('a file where a folder should be')
    done = launched(f'bag:={beginning}', 'rate:=4.0', f'out:={tmp_path}/results')
    assert done.returncode != 0 and 'Traceback' not in done.stdout
    assert re.search(rf'did not write {tmp_path}/results/trajectory.txt: .*success=False, message=.*results', done.stdout), done.stdout


@pytest.mark.parametrize(('arguments', 'words'), [
    (['bag:={}/absent'], ['bag: {}/absent does not exist']),
    (['bag:=sample', 'params_file:={}/absent.yaml'], ['params_file: cannot read {}/absent.yaml: No such file']),
    (['bag:=sample', 'params_file:={}/bad.yaml'], ['params_file: {}/bad.yaml:']),
    (['bag:=sample', 'params_file:={}/list.yaml'], ['params_file: {}/list.yaml: expected the names of nodes']),
    (['bag:=sample', 'rat:=2.0'], ['deepv2d_slam.launch.py has no argument rat; did you mean rate?']),
    (['bag:=sample', 'rate:=fast'], ["rate: expected a number, got 'fast'"]),
    (['bag:=sample', 'loop:=maybe'], ["'loop'", "'maybe'"])])
def test_what_cannot_be_launched_is_one_error_before_any_node_starts(tmp_path, arguments, words):
    (tmp_path / 'bad.yaml').write_text('/**/flow:\n  ros__parameters: [1, 2\n')
    (tmp_path / 'list.yaml').write_text('- 1\n')
    done = launched(*(argument.format(tmp_path) for argument in arguments))
    errors = [line for line in done.stdout.splitlines() if '[ERROR]' in line]
    assert done.returncode != 0 and len(errors) == 1 and 'Traceback' not in done.stdout and 'process started' not in done.stdout, done.stdout
    assert all(word.format(tmp_path) in errors[0] for word in words), errors


def test_arguments_of_a_launch_file_that_includes_it_are_none_of_its_business(world, beginning, tmp_path):
    outer = tmp_path / 'robot.launch.py'
    outer.write_text(f"""
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    return LaunchDescription([IncludeLaunchDescription(PythonLaunchDescriptionSource({launching.share('launch', FILE)!r}),
                                                       launch_arguments={{'bag': {str(beginning)!r}, 'rate': '8.0', 'rviz': 'false'}}.items())])
""")
    done = launch_support.launched(str(outer), 'wheels:=4')
    assert done.returncode == 0, done.stdout


def test_a_node_that_cannot_start_fails_the_replay_and_says_why(world, beginning, tmp_path):
    parameters = tmp_path / 'bad.yaml'
    parameters.write_text('/**/deepv2d:\n  ros__parameters:\n    width: 3\n')
    done = launched(f'bag:={beginning}', f'params_file:={parameters}')
    assert done.returncode != 0
    assert 'width: expected at least 64 px, got 3' in done.stdout


def test_ctrl_c_ends_a_launch_with_all_its_nodes(world, beginning):
    master, slave = pty.openpty()
    job = subprocess.Popen(launch_support.command(FILE, f'bag:={beginning}', 'loop:=true', 'rviz:=false'), stdin=slave, stdout=slave, stderr=slave,
                           start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.close(slave)
    os.set_blocking(master, False)

    def read_on():      # a full terminal would block the launch
        with contextlib.suppress(OSError):
            os.read(master, 1 << 16)

    try:
        odometry = world.record(Odometry, '/deepv2d/odometry')
        world.repeat(read_on, lambda: odometry, 'odometry', timeout=LIMIT)
        os.killpg(job.pid, signal.SIGINT)
        world.repeat(read_on, lambda: job.poll() is not None, 'the end of the launch')
        assert job.returncode == 0
        with pytest.raises(ProcessLookupError):     # nobody of it is left
            os.killpg(job.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        os.close(master)


def test_large_images_get_shared_memory_on_every_release_unless_the_user_has_a_profile(monkeypatch):
    names = {'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'}
    for name in (*names, 'RMW_IMPLEMENTATION'):
        monkeypatch.delenv(name, raising=False)
    assert len(launching.transport()) == 2
    for name in names:
        with monkeypatch.context() as patch:
            patch.setenv(name, 'mine.xml')
            assert launching.transport() == []
