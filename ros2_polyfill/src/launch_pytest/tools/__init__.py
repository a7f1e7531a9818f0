"""Helpers for tests."""
from ros2_polyfill import unprovided

from . import process

__all__ = ["process"]
__getattr__ = unprovided(__name__)
