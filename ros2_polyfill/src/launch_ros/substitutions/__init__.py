"""Where packages and their programs are."""
from __future__ import annotations

import os

from ament_index_python import get_package_prefix
from launch import LaunchContext, SomeSubstitutionsType, Substitution
from launch.substitutions import SubstitutionFailure
from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
from polyfill_names import unprovided

__all__ = ["ExecutableInPackage", "FindPackage", "FindPackagePrefix", "FindPackageShare"]
__getattr__ = unprovided(__name__)


class FindPackage(Substitution):
    """Base of what finds an installed package by name."""

    def __init__(self, package: SomeSubstitutionsType) -> None:
        self.package = normalize_to_list_of_substitutions(package)

    def describe(self) -> str:
        return f"{type(self).__name__}(pkg={' + '.join(part.describe() for part in self.package)})"

    def find(self, package_name: str) -> str:
        raise NotImplementedError

    def perform(self, context: LaunchContext) -> str:
        return self.find(perform_substitutions(context, self.package))


class FindPackagePrefix(FindPackage):
    """Prefix that a package is installed in."""

    def find(self, package_name: str) -> str:
        return get_package_prefix(package_name)


class FindPackageShare(FindPackage):
    """Share folder of a package."""

    def find(self, package_name: str) -> str:
        return os.path.join(get_package_prefix(package_name), "share", package_name)


class ExecutableInPackage(FindPackagePrefix):
    """Path of a program in a package's lib folder."""

    def __init__(self, executable: SomeSubstitutionsType, package: SomeSubstitutionsType) -> None:
        super().__init__(package)
        self.executable = normalize_to_list_of_substitutions(executable)

    def describe(self) -> str:
        parts = (" + ".join(part.describe() for part in parts) for parts in (self.package, self.executable))
        return "ExecInPkg(pkg={}, exec={})".format(*parts)

    def perform(self, context: LaunchContext) -> str:
        package = perform_substitutions(context, self.package)
        name = perform_substitutions(context, self.executable)
        folder = os.path.join(self.find(package), "lib", package)
        if not os.path.isdir(folder):
            raise SubstitutionFailure(f"package '{package}' found at '{self.find(package)}', but libexec directory '{folder}' does not exist")
        path = os.path.join(folder, name)
        if not (os.path.isfile(path) and os.access(path, os.X_OK)):
            raise SubstitutionFailure(f"executable '{name}' not found on the libexec directory '{folder}'")
        return path
