"""Helpers for tests."""
from polyfill_names import unprovided

from . import process

__all__ = ["process"]
__getattr__ = unprovided(__name__)
