"""ros2 pkg."""
from __future__ import annotations

import argparse
import os
from typing import Sequence

from ament_index_python import PackageNotFoundError, get_package_prefix, get_packages_with_prefixes

from ..errors import CommandError
from ..parsers import VerbParser


def main(words: Sequence[str]) -> int | None:
    """Find installed packages."""
    parser = VerbParser("pkg", "Find installed packages.")
    parser.add("list", _list, "Output the names of all packages")
    prefix = parser.add("prefix", _prefix, "Output the prefix path of a package")
    prefix.add_argument("package_name")
    prefix.add_argument("--share", action="store_true", help="show the share folder instead")
    programs = parser.add("executables", _executables, "Output the executables of a package, or of all")
    programs.add_argument("package_name", nargs="?")
    programs.add_argument("--full-path", action="store_true", help="show the path of each")
    return parser.run(words)


def executables(package: str) -> list[str]:
    """Paths of the programs in a package's lib folder."""
    try:
        folder = os.path.join(get_package_prefix(package), "lib", package)
    except PackageNotFoundError:
        raise
    except (EnvironmentError, ValueError) as error:
        raise CommandError(f"Package '{package}' not found: {error}") from error
    paths = [os.path.join(root, file) for root, _, files in os.walk(folder) for file in files]
    return sorted(path for path in paths if os.access(path, os.X_OK))


def _packages() -> dict[str, str]:
    try:
        return get_packages_with_prefixes()
    except EnvironmentError as error:
        raise CommandError(f"no package can be found: {error}; source a ROS 2 environment or use ./rosenv") from error


def _list(_: argparse.Namespace) -> None:
    print("\n".join(sorted(_packages())))


def _prefix(arguments: argparse.Namespace) -> None:
    packages = _packages()
    if arguments.package_name not in packages:
        raise CommandError("Package not found")
    prefix = packages[arguments.package_name]
    print(os.path.join(prefix, "share", arguments.package_name) if arguments.share else prefix)


def _executables(arguments: argparse.Namespace) -> None:
    names = sorted(_packages()) if arguments.package_name is None else [arguments.package_name]
    for name in names:
        try:
            paths = executables(name)
        except PackageNotFoundError as error:
            raise CommandError(f"Package '{name}' not found") from error
        for path in paths:
            print(path if arguments.full_path else f"{name} {os.path.basename(path)}")
