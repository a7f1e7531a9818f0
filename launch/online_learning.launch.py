"""A depth network that learns from sparse range hits, from a camera or a recording: flow, sparse depth, tracking, Global-Local, its learner and RViz."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument

from depth_ros.ros import launching, learning_graph


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('online_learning.yaml'),
        *learning_graph.arguments(),
        DeclareLaunchArgument('tracking', default_value='auto', choices=launching.AUTO,
                              description='Track the camera with deepv2d; auto: unless odometry_topic names another odometry'),
        launching.output_argument([learning_graph.LEARNED]),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    tracking = launching.value(context, 'tracking')
    tracks = launching.value(context, 'odometry_topic') == launching.TRACKED if tracking == 'auto' else tracking == 'true'
    return learning_graph.graph(context, 'online_learning.rviz', tracks, [learning_graph.LEARNED])
