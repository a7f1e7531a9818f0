"""sensor_msgs_py without a full ROS 2: its module point_cloud2."""
from polyfill_names import unprovided

__getattr__ = unprovided(__name__)
