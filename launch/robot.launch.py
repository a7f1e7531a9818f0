"""All of it on a robot with a camera and a 2D LiDAR: tracking with TF, path and map, dense depth by Global-Local, and a network that learns from the scans."""

from launch import LaunchContext, LaunchDescription

from depth_ros.ros import launching, learning_graph

RESULTS = *launching.TRACKING_RESULTS, learning_graph.LEARNED


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('online_learning.yaml'),
        *learning_graph.arguments(),
        launching.output_argument(RESULTS),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    return learning_graph.graph(context, 'robot.rviz', True, RESULTS)
