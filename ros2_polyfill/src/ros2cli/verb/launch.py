"""ros2 launch."""
from __future__ import annotations

import argparse
import os
from typing import Sequence

import launch
from ament_index_python import PackageNotFoundError, get_package_prefix
from launch.launch_description_sources import AnyLaunchDescriptionSource

from ..errors import CommandError


def main(words: Sequence[str]) -> int:
    """Run a launch file, or show its arguments; 0 also when it was interrupted."""
    parser = argparse.ArgumentParser(prog="ros2 launch", description="Run a launch file of a package, or one given by its path.",
                                     usage="ros2 launch [options] (PACKAGE FILE | PATH) [NAME:=VALUE ...]")
    parser.add_argument("words", nargs="+", metavar="PACKAGE FILE | PATH | NAME:=VALUE",
                        help="package and name of its launch file, or path of a launch file; then its arguments")
    parser.add_argument("-s", "--show-args", "--show-arguments", action="store_true", help="show the file's arguments and end")
    parser.add_argument("-d", "--debug", action="store_true", help="log more, with tracebacks of errors in launch files")
    parser.add_argument("-n", "--noninteractive", action="store_true", help="accepted for compatibility: every launch here behaves so")
    parser.add_argument("--launch-prefix", metavar="COMMAND", help="put this before every process, such as 'gdb -ex run --args'")
    arguments = parser.parse_intermixed_args(words)
    path, pairs = _find(arguments.words)
    if arguments.show_args:
        return _show_arguments(path)
    launch.logging.launch_config.level = "DEBUG" if arguments.debug else "INFO"
    launch.logging.launch_config.log_to_file()
    logger = launch.logging.get_logger("launch")
    logger.info(f"All log files can be found below {launch.logging.launch_config.log_dir}")
    logger.info(f"Default logging verbosity is set to {'DEBUG' if arguments.debug else 'INFO'}")
    if arguments.launch_prefix:
        pairs.append(("launch-prefix", arguments.launch_prefix))
    service = launch.LaunchService(argv=[f"{name}:={value}" for name, value in pairs], debug=arguments.debug,
                                   noninteractive=arguments.noninteractive)
    include = launch.actions.IncludeLaunchDescription(AnyLaunchDescriptionSource(path), launch_arguments=pairs)
    service.include_launch_description(launch.LaunchDescription([include]))
    try:
        return service.run()
    except KeyboardInterrupt:      # before the first process, or after the last
        return 0


def _find(words: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Path of the launch file and its arguments."""
    if os.path.isfile(words[0]):
        return os.path.abspath(words[0]), _parse_arguments(words[1:])
    if len(words) < 2 or ":=" in words[1]:
        raise CommandError(f"'{words[0]}' is not a launch file; to launch a package's file give both: ros2 launch PACKAGE FILE")
    return _find_in_package(words[0], words[1]), _parse_arguments(words[2:])


def _find_in_package(package: str, name: str) -> str:
    try:
        share = os.path.join(get_package_prefix(package), "share", package)
    except (PackageNotFoundError, ValueError) as error:
        raise CommandError(f"Package '{package}' not found: {error}") from error
    except EnvironmentError as error:
        raise CommandError(f"Package '{package}' not found: {error}; source a ROS 2 environment or use ./rosenv") from error
    files = [os.path.join(folder, file) for folder, _, files in os.walk(share) for file in files]
    found = sorted(file for file in files if os.path.basename(file) == name)
    if len(found) > 1:
        raise CommandError(f"file '{name}' was found more than once in the share directory of package '{package}': {', '.join(found)}")
    if not found:
        known = sorted({os.path.basename(file) for file in files if file.endswith((".launch.py", "_launch.py"))})
        raise CommandError(f"file '{name}' was not found in the share directory of package '{package}' which is at '{share}'; "
                           f"launch files there: {', '.join(known) or 'none'}")
    return found[0]


def _parse_arguments(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition(":=")
        if not sign or not name or not value:
            raise CommandError(f"malformed launch argument '{word}', expected format '<name>:=<value>'")
        pairs[name] = value
    return list(pairs.items())


def _show_arguments(path: str) -> int:
    """Print name, description and default of every argument."""
    try:
        description = AnyLaunchDescriptionSource(path).get_launch_description(launch.LaunchContext())
        declared = description.get_launch_arguments()
    except Exception as error:      # anything that the user's file raises
        raise CommandError(f"{path}: {type(error).__name__}: {error}") from error
    print("Arguments (pass arguments as '<name>:=<value>'):")
    for argument in declared:
        print(f"\n    '{argument.name}':{'*' if argument._conditionally_included else ''}")
        print(f"        {argument.description}")
        if argument.default_value is not None:
            print(f"        (default: {' + '.join(part.describe() for part in argument.default_value)})")
    if not declared:
        print("\n  No arguments.")
    elif any(argument._conditionally_included for argument in declared):
        print("\n* argument(s) which are only used if specific conditions occur")
    return 0
