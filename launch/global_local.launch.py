"""Dense depth by the Global-Local network from a camera or a recording: flow, sparse depth, the network, RViz, and tracking where it needs poses."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument

from depth_ros.ros import launching

ADVICE = 'The recording is over. To watch for longer, add passes:=3 or loop:=true; for figures and plots: ' \
         '{ros2} run depth_ros evaluate depth --engine global_local --variant {variant} --sequence {bag}'


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('global_local.yaml'),
        DeclareLaunchArgument('variant', default_value='published', choices=('published', 'pose_aware'),
                              description='The published network, with departures that depth_ros/weights/README.md states: a channel of ones for its generated filters, a global module '
                                          'that sees the pair 32 px wide, a softplus at the end, and training on log depth, dense and synthetic; or the one that also looks at what '
                                          'flow and odometry triangulate'),
        DeclareLaunchArgument('weights', default_value='', description='Checkpoint of the variant; empty: the one that comes with the package'),
        DeclareLaunchArgument('tracking', default_value='auto', choices=launching.AUTO,
                              description='Track the camera with deepv2d; auto: for the pose-aware variant, unless odometry_topic names another odometry. '
                                          'With a single rangefinder the published one needs it too'),
        launching.topic_argument('odometry_topic', launching.TRACKED, 'odometry, metric; tells the pose-aware network its poses, and the scale where no range hits do'),
        *launching.input_arguments(', for tracking alone; "none" tracks by colour and range hits', 'which gives depth its metric scale',
                                   '; so few that they tell it only where odometry, as of tracking:=true, or another of odometry_topic, tells how the camera moved meanwhile'),
        *launching.frame_arguments(),
        launching.output_argument(launching.TRACKING_RESULTS, 'tracking'),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    odometry, tracking = launching.value(context, 'odometry_topic'), launching.value(context, 'tracking')
    if tracking == 'auto':
        tracks = launching.value(context, 'variant') == 'pose_aware' and odometry == launching.TRACKED
    else:
        tracks = tracking == 'true'
    if launching.output_folder(context) and not tracks:
        raise RuntimeError('out: without tracking there is neither a trajectory nor a map to save; add tracking:=true, or leave out away')
    weights = launching.value(context, 'weights')
    network = {'variant': launching.value(context, 'variant')} | ({'weights': str(Path(weights).expanduser().absolute())} if weights else {})
    return [
        *launching.sensing(context),
        *(launching.tracker(context) if tracks else ()),
        *launching.node(context, 'global_local', {launching.TRACKED: odometry}, **network),
        *launching.player(context, launching.TRACKING_RESULTS if tracks else (), ADVICE),
        *launching.rviz(context, 'global_local.rviz'),
    ]
