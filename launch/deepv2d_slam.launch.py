"""Camera tracking and dense depth from a camera or a recording: flow, sparse depth, DeepV2D and RViz."""

from launch import LaunchContext, LaunchDescription

from depth_ros.ros import launching

ADVICE = 'The recording is over. To keep what was made of it, add out:=FOLDER; to watch for longer, passes:=3 or loop:=true; ' \
         'for figures, plots and the truth beside it: {ros2} run depth_ros evaluate tracking --sequence {bag}'


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('deepv2d_slam.yaml'),
        *launching.input_arguments('; where nothing publishes it, and with "none", depth is estimated from colour', 'which gives estimated depth its metric scale'),
        *launching.frame_arguments(),
        launching.output_argument(launching.TRACKING_RESULTS),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    return [
        *launching.sensing(context),
        *launching.tracker(context),
        *launching.player(context, launching.TRACKING_RESULTS, ADVICE),
        *launching.rviz(context, 'deepv2d_slam.rviz', launching.own_frame(context)),
    ]
