"""All of it on a robot with a camera and a 2D LiDAR: tracking with TF, path and map, dense depth by Global-Local, and a network that learns from the scans."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument

from depth_ros.ros import launching, learning_graph

RESULTS = *launching.TRACKING_RESULTS, learning_graph.LEARNED


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('robot.yaml'),
        *learning_graph.arguments(),
        DeclareLaunchArgument('base_frame', default_value='', description="The robot's frame, such as base_link: odometry and TF are then of it, and TF must tell where on it the camera "
                                                                          'is; empty: they are of the camera'),
        DeclareLaunchArgument('publish_tf', default_value='auto', choices=launching.AUTO,
                              description='Have deepv2d publish TF from odom; auto: unless odometry_topic names another odometry, which is then taken to do so'),
        launching.output_argument(RESULTS),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    publishes = launching.value(context, 'publish_tf')
    tells = launching.value(context, 'odometry_topic') == learning_graph.TRACKED if publishes == 'auto' else publishes == 'true'
    tracker = {'base_frame': launching.value(context, 'base_frame'), 'publish_tf': tells, **launching.output_parameters(context, launching.TRACKING_RESULTS)}
    return learning_graph.graph(context, 'robot.rviz', True, tracker, RESULTS)
