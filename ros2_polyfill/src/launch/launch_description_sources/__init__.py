"""Launch descriptions from Python files."""
from __future__ import annotations

import importlib.machinery
import importlib.util
from types import ModuleType

from polyfill_names import unprovided

from ..launch_description import LaunchDescription
from ..launch_description_source import LaunchDescriptionSource
from ..some_substitutions_type import SomeSubstitutionsType

__all__ = ["AnyLaunchDescriptionSource", "InvalidLaunchFileError", "InvalidPythonLaunchFileError",
           "PythonLaunchDescriptionSource", "get_launch_description_from_python_launch_file", "load_python_launch_file_as_module"]
__getattr__ = unprovided(__name__)


class InvalidPythonLaunchFileError(Exception):
    """The file has no `generate_launch_description`."""


class InvalidLaunchFileError(Exception):
    """The file is of no known kind."""


def load_python_launch_file_as_module(python_launch_file_path: str) -> ModuleType:
    """Execute a launch file as a module of its own, whatever its suffix, leaving no bytecode beside it."""
    loader = importlib.machinery.SourceFileLoader("python_launch_file", python_launch_file_path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    exec(compile(loader.get_data(python_launch_file_path), python_launch_file_path, "exec", dont_inherit=True), module.__dict__)
    return module


def get_launch_description_from_python_launch_file(python_launch_file_path: str) -> LaunchDescription:
    """What the file's `generate_launch_description` returns."""
    generate = getattr(load_python_launch_file_as_module(python_launch_file_path), "generate_launch_description", None)
    if generate is None:
        raise InvalidPythonLaunchFileError(f"launch file at '{python_launch_file_path}' does not contain the required "
                                           f"function 'generate_launch_description()'")
    return generate()


class PythonLaunchDescriptionSource(LaunchDescriptionSource):
    """A Python launch file."""

    def __init__(self, launch_file_path: SomeSubstitutionsType) -> None:
        super().__init__(None, launch_file_path, "interpreted python launch file")

    def _get_launch_description(self, location: str) -> LaunchDescription:
        return get_launch_description_from_python_launch_file(location)


class AnyLaunchDescriptionSource(PythonLaunchDescriptionSource):
    """A launch file; of the kinds that a full ROS 2 knows, only Python is provided here."""

    def _get_launch_description(self, location: str) -> LaunchDescription:
        if not location.endswith(".py"):
            raise InvalidLaunchFileError(f"'{location}': only Python launch files (.py) are provided by ros2_polyfill; "
                                         f"a full ROS 2 installation reads XML and YAML too")
        return super()._get_launch_description(location)
