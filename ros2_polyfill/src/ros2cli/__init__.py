"""The `ros2` command (the part of ROS 2's command line that the first hour with depth_ros needs)."""
from polyfill_names import unprovided

__getattr__ = unprovided(__name__)
