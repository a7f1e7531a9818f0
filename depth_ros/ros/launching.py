"""What the launch files share: the common arguments, and the actions made from them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, LogInfo, OpaqueFunction, RegisterEventHandler, SetEnvironmentVariable
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch.utilities import perform_substitutions
from launch_ros.actions import Node

from depth_ros.learning.tum import is_sample
from depth_ros.settings import did_you_mean

PACKAGE = 'depth_ros'
BOOLEANS = ('true', 'false')
AUTO = ('auto', *BOOLEANS)
TRACKED = 'deepv2d/odometry'    # the odometry of this package
RESPAWN_DELAY = 2.0     # [s]
_MOST_PASSES = 1000000  # that the player takes
_OWN_PARAMETERS = 'own_params_file'     # launch configuration: the default of params_file


@dataclass(frozen=True)
class Result:
    """What a node saves when asked to."""

    file: str           # in the folder that `out` names
    service: str        # std_srvs/srv/Trigger
    parameter: str      # of the node, that holds the path


# What deepv2d saves.
TRACKING_RESULTS = Result('trajectory.txt', 'deepv2d/save_trajectory', 'trajectory_file'), Result('map.ply', 'deepv2d/save_map', 'map_file')


def output_argument(results: Sequence[Result], maker: str = '') -> DeclareLaunchArgument:
    """The argument that has results saved; `maker` tells what makes them where that may be absent."""
    files = ' and '.join(result.file for result in results) + (f' of {maker}' if maker else '')
    return DeclareLaunchArgument('out', default_value='', description=f'Folder for {files}, saved when the recording ends; on live topics, when its service is called')


def output_folder(context: LaunchContext) -> Path | None:
    """Where results are saved, if they are."""
    folder = value(context, 'out')
    return Path(folder).expanduser().absolute() if folder else None


def output_parameters(context: LaunchContext, results: Sequence[Result]) -> dict[str, str]:
    """Parameters that tell a node where to save its results."""
    folder = output_folder(context)
    return {result.parameter: str(folder / result.file) for result in results} if folder else {}


def share(*parts: str) -> str:
    """Path of a file that the package installs."""
    return str(Path(get_package_share_directory(PACKAGE), *parts))


def description(file: str, arguments: Sequence[DeclareLaunchArgument], graph: Callable[[LaunchContext], list]) -> LaunchDescription:
    """What a launch file describes: its arguments, checked, and the graph that they make."""
    def prepare(context: LaunchContext) -> None:
        check(context, Path(file).name, [argument.name for argument in arguments])
        own = next(argument.default_value for argument in arguments if argument.name == 'params_file')
        context.launch_configurations[_OWN_PARAMETERS] = perform_substitutions(context, own)

    return LaunchDescription([*arguments, OpaqueFunction(function=prepare), *transport(), OpaqueFunction(function=graph)])


def check(context: LaunchContext, file: str, known: Sequence[str]) -> None:
    """Raise RuntimeError, naming it, for an argument that nobody knows and for files that cannot be read, before any node starts."""
    # Included by another launch file, this one must not judge the arguments of the command line: they are the other's.
    given = context.argv if any(Path(word).name == file for word in sys.argv) else ()
    for name in (word.partition(':=')[0] for word in given if ':=' in word):
        if name not in known:
            raise RuntimeError(f'{file} has no argument {name}' + (did_you_mean(name, known) or f'; it has {", ".join(known)}'))
    bag = value(context, 'bag')
    if bag and not is_sample(bag) and not Path(bag).expanduser().exists():
        raise RuntimeError(f'bag: {bag} does not exist')
    _check_passes(value(context, 'passes'), bool(given), bag, value(context, 'loop') == 'true')
    _check_parameters(Path(value(context, 'params_file')).expanduser())


def _check_passes(passes: str, given: bool, bag: str, loop: bool) -> None:
    if not passes.isdecimal() or not 1 <= int(passes) <= _MOST_PASSES:
        raise RuntimeError(f'passes: expected a whole number from 1 to {_MOST_PASSES}, got {passes!r}')
    if given and int(passes) > 1 and (loop or not bag):
        raise RuntimeError(f'passes: {"a loop goes on for ever" if loop else "live topics do not end"}, so passes:={passes} says nothing' + (': give one of the two' if loop else ''))


def _check_parameters(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeError(f'params_file: cannot read {path}: {getattr(error, "strerror", None) or error}') from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        where = f'{path}:{mark.line + 1}' if mark else str(path)
        raise RuntimeError(f'params_file: {where}: {getattr(error, "problem", None) or "no YAML"}') from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise RuntimeError(f'params_file: {path}: expected the names of nodes, with ros__parameters under each')


def common_arguments(parameters: str) -> list[DeclareLaunchArgument]:
    """The arguments of every launch file; parameters names its YAML file in config/."""
    return [
        DeclareLaunchArgument('bag', default_value='', description='What to replay: empty for live topics, "sample" for the built-in sequence, or the path of '
                              'a TUM folder, a ROS 1 .bag or a rosbag2'),
        DeclareLaunchArgument('rate', default_value='1.0', description='Speed of the replay, 1.0 being real time'),
        DeclareLaunchArgument('loop', default_value='false', choices=BOOLEANS, description='Replay for ever; otherwise the launch ends with the recording'),
        DeclareLaunchArgument('passes', default_value='1', description='How many times to replay before the launch ends; not together with loop'),
        DeclareLaunchArgument('use_sim_time', default_value='auto', choices=AUTO, description='Follow /clock; auto: only while replaying'),
        DeclareLaunchArgument('params_file', default_value=share('config', parameters), description='Parameters of the nodes (YAML), above those of the default'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the nodes and their relative topics'),
        DeclareLaunchArgument('namespaced_tf', default_value='false', choices=BOOLEANS,
                              description='Have TF on tf and tf_static of the namespace, as Nav2 has it for several robots; false: on /tf and /tf_static'),
        DeclareLaunchArgument('rviz', default_value='auto', choices=AUTO, description='Show the result in RViz; auto: only if rviz2 is installed'),
        DeclareLaunchArgument('log_level', default_value='info', choices=('debug', 'info', 'warn', 'error', 'fatal'), description='Severity from which on nodes log'),
    ]


def topic_argument(name: str, default: str, what: str) -> DeclareLaunchArgument:
    """An argument for one input topic."""
    return DeclareLaunchArgument(name, default_value=default, description=f'Input topic: {what}')


def input_arguments(depth: str, hits: str, single: str = '') -> list[DeclareLaunchArgument]:
    """The arguments for camera and range sensors; what depth and hits are for, and what a single rangefinder needs besides."""
    return [
        topic_argument('image_topic', 'camera/rgb/image_color', 'colour image'),
        topic_argument('camera_info_topic', 'camera/rgb/camera_info', 'calibration of the colour image'),
        topic_argument('depth_topic', 'camera/depth/image', f'depth registered to the colour image{depth}'),
        topic_argument('scan_topic', 'scan', f'scan of a 2D LiDAR, {hits}'),
        topic_argument('range_topic', 'range', f'readings of a single rangefinder, to the same end{single}'),
        topic_argument('points_topic', 'points', 'sparse points of a 3D sensor, to the same end'),
    ]


def frame_arguments() -> list[DeclareLaunchArgument]:
    """The arguments that fit tracking into the frames of a robot."""
    return [
        DeclareLaunchArgument('base_frame', default_value='', description="The robot's uppermost frame, such as base_link: odometry and TF of deepv2d are then of it, and TF must tell where "
                                                                          'on it the camera is; empty: they are of the camera'),
        DeclareLaunchArgument('fixed_frame', default_value='', description='Frame of another odometry, which TF has, such as odom of the wheels: each beam is then placed at its own time; '
                                                                           'empty: odom where odometry_topic names another odometry, else none'),
        DeclareLaunchArgument('odom_frame', default_value='', description='Fixed frame of deepv2d; empty: odom, or visual_odom beside another odometry'),
        DeclareLaunchArgument('publish_tf', default_value='auto', choices=AUTO,
                              description='Have deepv2d publish TF from its fixed frame; auto: unless there is another odometry, which is then taken to do so'),
    ]


def other_odometry(context: LaunchContext) -> str:
    """The fixed frame of another odometry than deepv2d's, if there is one."""
    foreign = context.launch_configurations.get('odometry_topic', TRACKED) != TRACKED
    return value(context, 'fixed_frame') or ('odom' if foreign else '')


def own_frame(context: LaunchContext) -> str:
    """The fixed frame that deepv2d is told to use, if it is: two odometries must not share one."""
    return value(context, 'odom_frame') or ('visual_odom' if other_odometry(context) else '')


def transport() -> list[SetEnvironmentVariable]:
    """Give Fast DDS segments of shared memory that hold whole images, unless the user chose a profile or another middleware."""
    names = 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'      # of Fast DDS 2 (Jazzy), of Fast DDS 3 (Kilted)
    if any(name in os.environ for name in names) or os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        return []
    return [SetEnvironmentVariable(name, share('config', 'fastdds.xml')) for name in names]


def value(context: LaunchContext, name: str) -> str:
    """What a launch argument is set to."""
    return LaunchConfiguration(name).perform(context)


def number(context: LaunchContext, name: str) -> float:
    """What a numeric launch argument is set to. Raises ValueError naming it."""
    try:
        return float(value(context, name))
    except ValueError:
        raise ValueError(f'{name}: expected a number, got {value(context, name)!r}') from None


def node(context: LaunchContext, executable: str, topics: dict[str, str] | None = None, on_end: Callable[[ProcessExited, LaunchContext], list | None] | None = None,
         **parameters: object) -> list[Node | RegisterEventHandler]:
    """A node of the package under the common arguments; topics maps the node's names to ours.

    On live topics a node that dies is started again; in a replay it ends the launch, for half a graph would replay to no purpose. Where it ended well,
    `on_end` tells what follows.
    """
    replay = bool(value(context, 'bag'))
    made = Node(
        package=PACKAGE, executable=executable, name=executable, namespace=value(context, 'namespace'), output='screen',
        parameters=[*_parameter_files(context), {'use_sim_time': sim_time(context), **parameters}],
        remappings=[*(topics or {}).items(), *_tf_topics(context)], ros_arguments=['--log-level', value(context, 'log_level')],
        respawn=not replay, respawn_delay=RESPAWN_DELAY)
    on_exit = lambda event, context: _on_end(event, context, on_end or _shut_down)
    return [made, RegisterEventHandler(OnProcessExit(target_action=made, on_exit=on_exit))] if replay else [made]


def _tf_topics(context: LaunchContext) -> list[tuple[str, str]]:
    return [('/tf', 'tf'), ('/tf_static', 'tf_static')] if value(context, 'namespaced_tf') == 'true' else []


def _camera(context: LaunchContext) -> dict[str, str]:
    return {'image': value(context, 'image_topic'), 'camera_info': value(context, 'camera_info_topic')}


def sensing(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    """Flow of the camera, and the hits of the range sensors in its image."""
    camera, fixed = _camera(context), other_odometry(context)
    ranges = {name: value(context, f'{name}_topic') for name in ('scan', 'range', 'points')}
    return [*node(context, 'flow', camera),
            *node(context, 'sparse_depth', {'camera_info': camera['camera_info'], **ranges}, **({'fixed_frame': fixed} if fixed else {}))]


def tracker(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    """deepv2d in the frames that arguments tell; beside another odometry it neither takes its frame's name nor publishes TF by itself."""
    other, tells = other_odometry(context), value(context, 'publish_tf')
    frames = {'base_frame': value(context, 'base_frame'), 'odom_frame': own_frame(context)}
    parameters: dict[str, object] = {name: frame for name, frame in frames.items() if frame}     # what nobody asked for is left to params_file
    if tells != 'auto' or other:
        parameters['publish_tf'] = tells == 'true'
    return node(context, 'deepv2d', {**_camera(context), 'depth': value(context, 'depth_topic')}, **parameters, **output_parameters(context, TRACKING_RESULTS))


def _parameter_files(context: LaunchContext) -> list[str]:
    """The launch file's own parameters and, above them, the user's: whoever changes one must not lose the others."""
    own, given = context.launch_configurations.get(_OWN_PARAMETERS), str(Path(value(context, 'params_file')).expanduser())
    return [given] if own in (None, given) else [own, given]


def sim_time(context: LaunchContext) -> bool:
    """Whether nodes follow /clock."""
    wanted = value(context, 'use_sim_time')
    return bool(value(context, 'bag')) if wanted == 'auto' else wanted == 'true'


def filled(context: LaunchContext, advice: str) -> str:
    """Advice with the values of launch arguments where it has their names in braces, and for {ros2} how ros2 is called from where the user stands."""
    return advice.format_map({**context.launch_configurations, 'ros2': './rosenv ros2' if 'ROSENV_ACTIVE' in os.environ else 'ros2'})


def player(context: LaunchContext, results: Sequence[Result] = (), advice: str = '') -> list[LogInfo | Node | RegisterEventHandler]:
    """The player, whose end ends the launch, once the results are saved where `out` asks for them, else with advice; nothing when the topics are live."""
    bag, loop = value(context, 'bag'), value(context, 'loop') == 'true'
    if not bag:
        return []
    path = bag if is_sample(bag) else str(Path(bag).expanduser().absolute())
    began, hint = time.time(), filled(context, advice)

    def on_end(event: ProcessExited, context: LaunchContext) -> list:
        if results and output_folder(context):
            return _save(context, list(results), began)
        return [*([LogInfo(msg=hint)] if hint else ()), *_shut_down(event, context)]

    services = ' and '.join(result.service for result in results)
    told = [LogInfo(msg=f'a loop has no end at which out:= could save: call {services} before you stop it, or give passes:=8 in its place')] if loop and results and output_folder(context) else []
    return [*told, *node(context, 'player', on_end=on_end, bag=path, rate=number(context, 'rate'), loop=loop, passes=int(value(context, 'passes')))]


def rviz(context: LaunchContext, configuration: str, frame: str = '') -> list[Node]:
    """RViz with a configuration of rviz/, and another fixed frame than that says, where wanted and installed."""
    wanted, installed = value(context, 'rviz'), shutil.which('rviz2') is not None
    if wanted == 'true' and not installed:
        raise RuntimeError('rviz:=true, but rviz2 is not installed, which is a part of a full ROS 2; leave the argument out')
    if wanted == 'false' or not installed:
        return []
    return [Node(package='rviz2', executable='rviz2', name='rviz', namespace=value(context, 'namespace'), output='log', parameters=[{'use_sim_time': sim_time(context)}],
                 arguments=['-d', share('rviz', configuration), *(('-f', frame) if frame else ())],
                 remappings=[('camera/rgb/image_color', value(context, 'image_topic')), *_tf_topics(context)])]


def _on_end(event: ProcessExited, context: LaunchContext, follow: Callable[[ProcessExited, LaunchContext], list | None]) -> list | None:
    """End the replay with any of its nodes, which is the player when all is well; one that failed or died makes `ros2 launch` fail as well."""
    if context.is_shutdown:
        return None
    if event.returncode not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise RuntimeError(f'{event.process_name} ended with status {event.returncode}; its own message above says why')
    return follow(event, context)


def _shut_down(event: ProcessExited, _context: LaunchContext) -> list:
    return [EmitEvent(event=Shutdown(reason=f'{event.process_name} has ended'))]


def _save(context: LaunchContext, results: list[Result], began: float) -> list:
    """Call the service of each result in turn, then shut down; one that does not write its file fails the launch."""
    result, rest = results[0], results[1:]
    path = output_folder(context) / result.file
    service = '/'.join(['', *filter(None, (value(context, 'namespace').strip('/'), result.service))])
    call = ExecuteProcess(cmd=['ros2', 'service', 'call', service, 'std_srvs/srv/Trigger'], output='log', cached_output=True)

    def on_exit(event: ProcessExited, context: LaunchContext) -> list | None:
        if context.is_shutdown:
            return None
        if not path.exists() or path.stat().st_mtime < began:
            answer = call.get_stdout().rpartition('response:')[2].strip()
            raise RuntimeError(f'{service} did not write {path}: {answer or "no answer; the log of this launch tells more"}')
        return [LogInfo(msg=f'saved {path}'), *(_save(context, rest, began) if rest else _shut_down(event, context))]

    return [RegisterEventHandler(OnProcessExit(target_action=call, on_exit=on_exit)), call]
