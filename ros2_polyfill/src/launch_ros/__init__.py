"""Launch ROS nodes (the part of ROS 2's `launch_ros` that depth_ros uses)."""
from polyfill_names import unprovided

from . import actions, descriptions, parameter_descriptions, substitutions

__all__ = ["actions", "descriptions", "parameter_descriptions", "substitutions"]
__getattr__ = unprovided(__name__)
