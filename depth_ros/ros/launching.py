"""What the launch files share: the common arguments, and the actions made from them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, SetEnvironmentVariable
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGE = 'depth_ros'
BOOLEANS = ('true', 'false')
AUTO = ('auto', *BOOLEANS)
RESPAWN_DELAY = 2.0     # [s]


def share(*parts: str) -> str:
    """Path of a file that the package installs."""
    return str(Path(get_package_share_directory(PACKAGE), *parts))


def common_arguments(parameters: str) -> list[DeclareLaunchArgument]:
    """The arguments of every launch file; parameters names its YAML file in config/."""
    return [
        DeclareLaunchArgument('bag', default_value='', description='What to replay: empty for live topics, "sample" for the built-in sequence, or the path of '
                              'a TUM folder, a ROS 1 .bag or a rosbag2'),
        DeclareLaunchArgument('rate', default_value='1.0', description='Speed of the replay, 1.0 being real time'),
        DeclareLaunchArgument('loop', default_value='false', choices=BOOLEANS, description='Replay for ever; otherwise the launch ends with the recording'),
        DeclareLaunchArgument('use_sim_time', default_value='auto', choices=AUTO, description='Follow /clock; auto: only while replaying'),
        DeclareLaunchArgument('params_file', default_value=share('config', parameters), description='Parameters of the nodes (YAML)'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the nodes and their relative topics'),
        DeclareLaunchArgument('rviz', default_value='auto', choices=AUTO, description='Show the result in RViz; auto: only if rviz2 is installed'),
        DeclareLaunchArgument('log_level', default_value='info', choices=('debug', 'info', 'warn', 'error', 'fatal'), description='Severity from which on nodes log'),
    ]


def topic_argument(name: str, default: str, what: str) -> DeclareLaunchArgument:
    """An argument for one input topic."""
    return DeclareLaunchArgument(name, default_value=default, description=f'Input topic: {what}')


def transport() -> list[SetEnvironmentVariable]:
    """Give Fast DDS segments of shared memory that hold whole images, unless the user chose a profile or another middleware."""
    if 'FASTRTPS_DEFAULT_PROFILES_FILE' in os.environ or os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        return []
    return [SetEnvironmentVariable('FASTRTPS_DEFAULT_PROFILES_FILE', share('config', 'fastdds.xml'))]


def value(context: LaunchContext, name: str) -> str:
    """What a launch argument is set to."""
    return LaunchConfiguration(name).perform(context)


def number(context: LaunchContext, name: str) -> float:
    """What a numeric launch argument is set to. Raises ValueError naming it."""
    try:
        return float(value(context, name))
    except ValueError:
        raise ValueError(f'{name}: expected a number, got {value(context, name)!r}') from None


def node(context: LaunchContext, executable: str, topics: dict[str, str] | None = None, **parameters: object) -> list[Node | RegisterEventHandler]:
    """A node of the package under the common arguments; topics maps the node's names to ours.

    On live topics a node that dies is started again; in a replay it ends the launch, for half a graph would replay to no purpose.
    """
    replay = bool(value(context, 'bag'))
    made = Node(
        package=PACKAGE, executable=executable, name=executable, namespace=value(context, 'namespace'), output='screen',
        parameters=[value(context, 'params_file'), {'use_sim_time': sim_time(context), **parameters}],
        remappings=list((topics or {}).items()), ros_arguments=['--log-level', value(context, 'log_level')],
        respawn=not replay, respawn_delay=RESPAWN_DELAY)
    return [made, RegisterEventHandler(OnProcessExit(target_action=made, on_exit=_on_end))] if replay else [made]


def sim_time(context: LaunchContext) -> bool:
    """Whether nodes follow /clock."""
    wanted = value(context, 'use_sim_time')
    return bool(value(context, 'bag')) if wanted == 'auto' else wanted == 'true'


def player(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    """The player, whose end ends the launch; nothing when the topics are live."""
    bag = value(context, 'bag')
    if not bag:
        return []
    path = bag if bag == 'sample' else str(Path(bag).expanduser().absolute())
    return node(context, 'player', bag=path, rate=number(context, 'rate'), loop=value(context, 'loop') == 'true')


def rviz(context: LaunchContext, configuration: str, topics: dict[str, str]) -> list[Node]:
    """RViz with a configuration of rviz/, where wanted and installed; topics maps the configuration's names to ours."""
    wanted = value(context, 'rviz')
    if wanted == 'false' or (wanted == 'auto' and shutil.which('rviz2') is None):
        return []
    return [Node(package='rviz2', executable='rviz2', name='rviz', namespace=value(context, 'namespace'), arguments=['-d', share('rviz', configuration)], output='log',
                 parameters=[{'use_sim_time': sim_time(context)}], remappings=list(topics.items()))]


def _on_end(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
    """End the replay with any of its nodes, which is the player when all is well; one that failed or died makes `ros2 launch` fail as well."""
    if context.is_shutdown:
        return None
    if event.returncode not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise RuntimeError(f'{event.process_name} ended with status {event.returncode}; its own message above says why')
    return EmitEvent(event=Shutdown(reason=f'{event.process_name} has ended'))
