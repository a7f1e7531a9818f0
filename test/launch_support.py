"""What the tests of launch files share: graphs on a recording, launches run to their end, and what RViz shows of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from ros_support import LIMIT, World

from depth_ros.ros import codecs, launching

COMMON = {'bag', 'rate', 'loop', 'passes', 'use_sim_time', 'params_file', 'namespace', 'rviz', 'log_level', 'image_topic', 'camera_info_topic', 'depth_topic',
          'scan_topic', 'range_topic', 'points_topic', 'namespaced_tf', 'base_frame', 'odom_frame', 'fixed_frame', 'publish_tf'}
KINDS = {'Image': 'sensor_msgs/msg/Image', 'PointCloud2': 'sensor_msgs/msg/PointCloud2', 'Path': 'nav_msgs/msg/Path', 'Odometry': 'nav_msgs/msg/Odometry'}


def looping(file: str, bag: Path, **arguments: str) -> LaunchDescription:
    """A launch file at work on a recording that never ends."""
    source = PythonLaunchDescriptionSource(launching.share('launch', file))
    given = {'bag': str(bag), 'loop': 'true', 'rviz': 'false', **arguments}
    return LaunchDescription([IncludeLaunchDescription(source, launch_arguments=given.items()), ReadyToTest()])


def command(file: str, *arguments: str) -> list[str]:
    """The words that launch a file, by its name in the package or by its path."""
    return ['ros2', 'launch', *(() if Path(file).is_absolute() else ('depth_ros',)), file, *arguments]


def launched(file: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A launch run to its end; all that it wrote is in `stdout`."""
    return subprocess.run(command(file, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)


def described(file: str) -> set[str]:
    """Names of a launch file's arguments; fails if one is not described."""
    done = launched(file, '--show-args')
    assert done.returncode == 0 and 'no description' not in done.stdout.lower(), done.stdout
    return set(re.findall(r"^\s+'(\w+)':", done.stdout, re.MULTILINE))


def wraps(messages: list[Any]) -> int:
    """How often the stamps jumped back."""
    stamps = [codecs.stamp_ns(message.header.stamp) for message in messages]
    return sum(b < a for a, b in zip(stamps, stamps[1:]))


def view_of(world: World, configuration: str, *displays: str) -> dict[str, Any]:
    """The global options of a view of RViz that shows such displays, once each of its topics is offered, in the kind that is displayed."""
    view = yaml.safe_load(Path(launching.share('rviz', configuration)).read_text())['Visualization Manager']
    shown = {'/' + d['Topic']['Value']: d['Class'].split('/')[1] for d in view['Displays'] if 'Topic' in d}
    assert set(shown.values()) == set(displays)

    def offered() -> dict[str, list[str]]:
        return {name: types for name, types in world.tester.get_topic_names_and_types() if name in shown and world.tester.count_publishers(name)}

    world.until(lambda: set(offered()) == set(shown), f'publishers of {sorted(shown)}', LIMIT)
    assert offered() == {topic: [KINDS[display]] for topic, display in shown.items()}
    return view['Global Options']


def reporting(reports: list[Any]) -> set[str]:
    """The nodes that told of themselves on /diagnostics."""
    return {status.name.strip('/').split(':')[0].split('/')[0] for report in reports for status in report.status}
