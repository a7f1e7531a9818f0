"""Camera tracking and dense depth from a camera or a recording: flow, sparse depth, DeepV2D and RViz."""

from launch import LaunchContext, LaunchDescription

from depth_ros.ros import launching

ADVICE = 'The recording is over. To keep what was made of it, add out:=FOLDER; to watch for longer, loop:=true; ' \
         'for figures, plots and the truth beside it: {ros2} run depth_ros evaluate tracking --sequence {bag}'


def generate_launch_description() -> LaunchDescription:
    """Arguments first, then the graph that they describe."""
    return launching.description(__file__, [
        *launching.common_arguments('deepv2d_slam.yaml'),
        launching.topic_argument('image_topic', 'camera/rgb/image_color', 'colour image'),
        launching.topic_argument('camera_info_topic', 'camera/rgb/camera_info', 'calibration of the colour image'),
        launching.topic_argument('depth_topic', 'camera/depth/image', 'depth registered to the colour image; where nothing publishes it, and with "none", depth is estimated from colour'),
        launching.topic_argument('scan_topic', 'scan', 'scan of a 2D LiDAR, which gives estimated depth its metric scale'),
        launching.topic_argument('range_topic', 'range', 'readings of a single rangefinder, to the same end'),
        launching.topic_argument('points_topic', 'points', 'sparse points of a 3D sensor, to the same end'),
        launching.output_argument(launching.TRACKING_RESULTS),
    ], _graph)


def _graph(context: LaunchContext) -> list:
    camera = {'image': launching.value(context, 'image_topic'), 'camera_info': launching.value(context, 'camera_info_topic')}
    ranges = {'scan': launching.value(context, 'scan_topic'), 'range': launching.value(context, 'range_topic'),
              'points': launching.value(context, 'points_topic')}
    return [
        *launching.node(context, 'flow', camera),
        *launching.node(context, 'sparse_depth', {'camera_info': camera['camera_info'], **ranges}),
        *launching.node(context, 'deepv2d', {**camera, 'depth': launching.value(context, 'depth_topic')}, **launching.output_parameters(context, launching.TRACKING_RESULTS)),
        *launching.player(context, launching.TRACKING_RESULTS, ADVICE),
        *launching.rviz(context, 'deepv2d_slam.rviz', {'camera/rgb/image_color': camera['image']}),
    ]
