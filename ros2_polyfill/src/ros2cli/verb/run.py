"""ros2 run."""
from __future__ import annotations

import argparse
import os
import shlex
import signal
from typing import Sequence

from ament_index_python import PackageNotFoundError

from ..errors import CommandError
from .pkg import executables


def main(words: Sequence[str]) -> int:
    """Become the package's program, so that its signals and exit status are its own."""
    parser = argparse.ArgumentParser(prog="ros2 run", description="Run an executable of a package.",
                                     usage="ros2 run [--prefix COMMAND] PACKAGE EXECUTABLE [ARGUMENT ...] [--ros-args ...]")
    parser.add_argument("--prefix", default="", metavar="COMMAND", help="put this before the program, such as 'gdb -ex run --args'")
    parser.add_argument("package")
    parser.add_argument("executable")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="arguments of the program")
    arguments = parser.parse_args(words)
    command = [*shlex.split(arguments.prefix), _find(arguments.package, arguments.executable), *arguments.argv]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise CommandError(f"cannot run {command[0]}: {error.strerror}") from error


def _find(package: str, name: str) -> str:
    try:
        paths = executables(package)
    except PackageNotFoundError as error:
        raise CommandError(f"Package '{package}' not found") from error
    matching = [path for path in paths if os.path.basename(path) == name]
    if not matching:
        known = ", ".join(sorted(os.path.basename(path) for path in paths))
        raise CommandError(f"No executable found: package '{package}' has no '{name}' (it has: {known or 'none'})")
    return matching[0]
