"""The graph in which a depth network learns while the robot drives, as two launch files describe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument

from depth_ros.ros import launching
from depth_ros.ros.launching import Result

TRACKED = 'deepv2d/odometry'
LEARNED = Result('learned.safetensors', 'online_learning/save', 'weights_file')
ADVICE = 'The recording is over. What was learned is kept: the next launch goes on from it, unless you add resume:=false. To have it as a file, add out:=FOLDER; ' \
         'to learn for longer, loop:=true; for figures and a curve: {ros2} run depth_ros evaluate online --sequence {bag} --variant {variant}'


def arguments() -> list[DeclareLaunchArgument]:
    """What both launch files take besides the common arguments."""
    return [
        DeclareLaunchArgument('variant', default_value='pose_aware', choices=('pose_aware', 'published'),
                              description='The network that learns: the one that also looks at what flow and odometry triangulate, or the published one'),
        DeclareLaunchArgument('weights', default_value='', description='Checkpoint of the variant that learning begins with; empty: the one that comes with the package'),
        DeclareLaunchArgument('resume', default_value='true', choices=launching.BOOLEANS,
                              description="Go on from what was learned before, which is kept in the user's cache for each of these weights; false: begin anew and overwrite it"),
        launching.topic_argument('image_topic', 'camera/rgb/image_color', 'colour image'),
        launching.topic_argument('camera_info_topic', 'camera/rgb/camera_info', 'calibration of the colour image'),
        launching.topic_argument('depth_topic', 'camera/depth/image', 'depth registered to the colour image, for tracking alone: nothing learns from it; "none" tracks by colour and range hits'),
        launching.topic_argument('odometry_topic', TRACKED, 'odometry, metric, such as that of the wheels; tells how far the camera moved from image to image'),
        launching.topic_argument('scan_topic', 'scan', 'scan of a 2D LiDAR, which the network learns from; a recording without one has it cut from one row of its depth'),
        launching.topic_argument('range_topic', 'range', 'readings of a single rangefinder, to the same end'),
        launching.topic_argument('points_topic', 'points', 'sparse points of a 3D sensor, to the same end'),
    ]


def graph(context: LaunchContext, view: str, tracks: bool, tracker: Mapping[str, object], results: Sequence[Result]) -> list:
    """Its nodes, the player and RViz with the configuration `view`; `tracks`: with deepv2d and these parameters of it."""
    value = lambda name: launching.value(context, name)
    camera = {'image': value('image_topic'), 'camera_info': value('camera_info_topic')}
    ranges = {name: value(f'{name}_topic') for name in ('scan', 'range', 'points')}
    odometry = {TRACKED: value('odometry_topic')}
    network = {'variant': value('variant')} | ({'weights': str(Path(value('weights')).expanduser().absolute())} if value('weights') else {})
    learner = {'resume': value('resume') == 'true', **network, **launching.output_parameters(context, [LEARNED])}
    return [
        *launching.node(context, 'flow', camera),
        *launching.node(context, 'sparse_depth', {'camera_info': camera['camera_info'], **ranges}),
        *(launching.node(context, 'deepv2d', {**camera, 'depth': value('depth_topic')}, **tracker) if tracks else ()),
        *launching.node(context, 'global_local', odometry, **network),
        *launching.node(context, 'online_learning', odometry, **learner),
        *launching.player(context, results, ADVICE),
        *launching.rviz(context, view, {'camera/rgb/image_color': camera['image']}),
    ]
