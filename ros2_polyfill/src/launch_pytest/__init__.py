"""Tests that run beside a launch (the part of ROS 2's `launch_pytest` that depth_ros uses)."""
from polyfill_names import unprovided

from . import actions, tools
from .fixture import fixture

__all__ = ["actions", "fixture", "tools"]
__getattr__ = unprovided(__name__)
