"""The graph in which a depth network learns while the robot drives, as two launch files describe it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument

from depth_ros.ros import launching
from depth_ros.ros.launching import Result

LEARNED = Result('learned.safetensors', 'online_learning/save', 'weights_file')
ADVICE = 'The recording is over. What was learned is kept: the next launch goes on from it, unless you add resume:=false. To have it as a file, add out:=FOLDER; ' \
         'to learn for longer, passes:=8 or loop:=true; for figures and a curve: {ros2} run depth_ros evaluate online --sequence {bag} --variant {variant}'


def arguments() -> list[DeclareLaunchArgument]:
    """What both launch files take besides the common arguments."""
    return [
        DeclareLaunchArgument('variant', default_value='pose_aware', choices=('pose_aware', 'published'),
                              description='The network that learns: the one that also looks at what flow and odometry triangulate, or the published one'),
        DeclareLaunchArgument('weights', default_value='', description='Checkpoint of the variant that learning begins with; empty: the one that comes with the package'),
        DeclareLaunchArgument('resume', default_value='true', choices=launching.BOOLEANS,
                              description="Go on from what was learned before, which is kept in the user's cache for each of these weights; false: begin anew and overwrite it"),
        launching.topic_argument('odometry_topic', launching.TRACKED, 'odometry, metric, such as that of the wheels; tells how far the camera moved from image to image'),
        *launching.input_arguments(', for tracking alone: nothing learns from it; "none" tracks by colour and range hits',
                                   'which the network learns from; a recording without one has it cut from one row of its depth'),
        *launching.frame_arguments(),
    ]


def graph(context: LaunchContext, view: str, tracks: bool, results: Sequence[Result]) -> list:
    """Its nodes, the player and RViz with the configuration `view`; `tracks`: with deepv2d."""
    value = lambda name: launching.value(context, name)
    odometry = {launching.TRACKED: value('odometry_topic')}
    network = {'variant': value('variant')} | ({'weights': str(Path(value('weights')).expanduser().absolute())} if value('weights') else {})
    learner = {'resume': value('resume') == 'true', **network, **launching.output_parameters(context, [LEARNED])}
    return [
        *launching.sensing(context),
        *(launching.tracker(context) if tracks else ()),
        *launching.node(context, 'global_local', odometry, **network),
        *launching.node(context, 'online_learning', odometry, **learner),
        *launching.player(context, results, ADVICE),
        *launching.rviz(context, view, launching.other_odometry(context) or value('odom_frame')),
    ]
