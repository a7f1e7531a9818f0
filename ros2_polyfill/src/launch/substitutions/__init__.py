"""Strings that are known only when the launch runs."""
from __future__ import annotations

import importlib
import math
import os
import shutil
from typing import Any, Callable, Iterable

from polyfill_names import unprovided

from ..launch_context import LaunchContext
from ..some_substitutions_type import SomeSubstitutionsType
from ..substitution import Substitution
from ..utilities import normalize_to_list_of_substitutions, perform_substitutions
from .substitution_failure import SubstitutionFailure

__all__ = [
    "AllSubstitution", "AndSubstitution", "AnySubstitution", "EnvironmentVariable", "EqualsSubstitution", "FindExecutable",
    "IfElseSubstitution", "LaunchConfiguration", "LocalSubstitution", "NotEqualsSubstitution", "NotSubstitution",
    "OrSubstitution", "PathJoinSubstitution", "PythonExpression", "SubstitutionFailure", "TextSubstitution", "ThisLaunchFile",
    "ThisLaunchFileDir",
]
__getattr__ = unprovided(__name__)


def _describe(parts: Iterable[Substitution]) -> str:
    return " + ".join(part.describe() for part in parts)


class TextSubstitution(Substitution):
    """Constant text."""

    def __init__(self, *, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"TextSubstitution expected text, got {text!r} of type {type(text).__name__}")
        self.text = text

    def describe(self) -> str:
        return f"'{self.text}'"

    def perform(self, context: LaunchContext) -> str:
        return self.text


class LaunchConfiguration(Substitution):
    """Value of a launch argument or configuration, or the default where it is not set."""

    def __init__(self, variable_name: SomeSubstitutionsType, *, default: Any = None) -> None:
        self.variable_name = normalize_to_list_of_substitutions(variable_name)
        if default is not None and not isinstance(default, (str, Substitution, list, tuple)):
            default = str(default)
        self.default = None if default is None else normalize_to_list_of_substitutions(default)

    def describe(self) -> str:
        return f"LaunchConfig({_describe(self.variable_name)})"

    def perform(self, context: LaunchContext) -> str:
        name = perform_substitutions(context, self.variable_name)
        if name in context.launch_configurations:
            return context.launch_configurations[name]
        if self.default is None:
            raise SubstitutionFailure(f"launch configuration '{name}' does not exist")
        return perform_substitutions(context, self.default)


class PathJoinSubstitution(Substitution):
    """Join path components, each text, a substitution or a list of them."""

    def __init__(self, substitutions: Iterable[SomeSubstitutionsType]) -> None:
        self.substitutions = [normalize_to_list_of_substitutions(part) for part in substitutions]

    def describe(self) -> str:
        return f"PathJoin({', '.join(_describe(part) for part in self.substitutions)})"

    def perform(self, context: LaunchContext) -> str:
        return os.path.join(*(perform_substitutions(context, part) for part in self.substitutions))


class EnvironmentVariable(Substitution):
    """Value of an environment variable, or the default where it is not set."""

    def __init__(self, name: SomeSubstitutionsType, *, default_value: SomeSubstitutionsType | None = None) -> None:
        self.name = normalize_to_list_of_substitutions(name)
        self.default_value = None if default_value is None else normalize_to_list_of_substitutions(default_value)

    def describe(self) -> str:
        return f"EnvVar({_describe(self.name)})"

    def perform(self, context: LaunchContext) -> str:
        name = perform_substitutions(context, self.name)
        if name in context.environment:
            return context.environment[name]
        if self.default_value is None:
            raise SubstitutionFailure(f"environment variable '{name}' does not exist")
        return perform_substitutions(context, self.default_value)


class PythonExpression(Substitution):
    """Value of a Python expression as text; the names of `python_modules` (math) are known in it."""

    def __init__(self, expression: SomeSubstitutionsType, python_modules: SomeSubstitutionsType = ("math",)) -> None:
        self.expression = normalize_to_list_of_substitutions(expression)
        modules = [python_modules] if isinstance(python_modules, (str, Substitution)) else python_modules
        self.python_modules = [normalize_to_list_of_substitutions(module) for module in modules]

    def describe(self) -> str:
        return f"PythonExpr({_describe(self.expression)})"

    def perform(self, context: LaunchContext) -> str:
        names = {}
        for parts in self.python_modules:
            module = importlib.import_module(perform_substitutions(context, parts))
            names[module.__name__] = module
            if module is math:
                names.update(vars(math))      # `pi` as well as `math.pi`
        text = perform_substitutions(context, self.expression)
        try:
            return str(eval(text, names))
        except Exception as error:
            raise SubstitutionFailure(f"python expression '{text}' failed: {type(error).__name__}: {error}") from error


class ThisLaunchFile(Substitution):
    """Path of the launch file being visited."""

    def describe(self) -> str:
        return "ThisLaunchFile()"

    def perform(self, context: LaunchContext) -> str:
        path = context.get_locals_as_dict().get("current_launch_file_path")
        if path is None:
            raise SubstitutionFailure("ThisLaunchFile used outside of a launch file (in a script)")
        return path


class ThisLaunchFileDir(ThisLaunchFile):
    """Folder of the launch file being visited."""

    def describe(self) -> str:
        return "ThisLaunchFileDir()"

    def perform(self, context: LaunchContext) -> str:
        return os.path.dirname(super().perform(context))


class LocalSubstitution(Substitution):
    """Value of an expression on `context.locals`, such as `event.returncode`."""

    def __init__(self, expression: str, description: str | None = None) -> None:
        self.expression = expression
        self.description = description

    def describe(self) -> str:
        return f"LocalVar('{self.description or self.expression}')"

    def perform(self, context: LaunchContext) -> str:
        return str(eval("context.locals." + self.expression, {"context": context}))


class FindExecutable(Substitution):
    """Path of a program on PATH."""

    def __init__(self, *, name: SomeSubstitutionsType) -> None:
        self.name = normalize_to_list_of_substitutions(name)

    def describe(self) -> str:
        return f"FindExec({_describe(self.name)})"

    def perform(self, context: LaunchContext) -> str:
        name = perform_substitutions(context, self.name)
        path = shutil.which(name, path=context.environment.get("PATH"))
        if path is None:
            raise SubstitutionFailure(f"executable '{name}' not found on the PATH")
        return path


_TRUE, _FALSE = ("true", "1", "on"), ("false", "0", "off")


def _to_bool(text: str, where: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in _TRUE + _FALSE:
        raise SubstitutionFailure(f"{where}: '{text}' is not a boolean")
    return lowered in _TRUE


def _to_text(value: bool) -> str:
    return "true" if value else "false"


def _equal(left: str, right: str) -> bool:
    """Equal as text, as truth values or as numbers."""
    if left == right:
        return True
    truths = {"true": True, "1": True, "false": False, "0": False}
    if left.lower() in truths and right.lower() in truths:
        return truths[left.lower()] == truths[right.lower()]
    try:
        return math.isclose(float(left), float(right))
    except ValueError:
        return False


class _Operands(Substitution):
    """A function of other substitutions' texts."""

    def __init__(self, *operands: Any) -> None:
        self.operands = [normalize_to_list_of_substitutions(str(operand) if isinstance(operand, (bool, int, float)) else operand)
                         for operand in operands]

    def describe(self) -> str:
        return f"{type(self).__name__}({', '.join(_describe(operand) for operand in self.operands)})"

    def _texts(self, context: LaunchContext) -> list[str]:
        return [perform_substitutions(context, operand) for operand in self.operands]

    def _truths(self, context: LaunchContext) -> list[bool]:
        return [_to_bool(text, type(self).__name__) for text in self._texts(context)]


class EqualsSubstitution(_Operands):
    """'true' where both sides are equal as text, truth values or numbers."""

    def __init__(self, left: Any, right: Any) -> None:
        super().__init__(left, right)

    def perform(self, context: LaunchContext) -> str:
        return _to_text(_equal(*self._texts(context)))


class NotEqualsSubstitution(EqualsSubstitution):
    """'true' where EqualsSubstitution is 'false'."""

    def perform(self, context: LaunchContext) -> str:
        return _to_text(not _equal(*self._texts(context)))


class NotSubstitution(_Operands):
    """'true' where the operand is false."""

    def __init__(self, value: SomeSubstitutionsType) -> None:
        super().__init__(value)

    def perform(self, context: LaunchContext) -> str:
        return _to_text(not self._truths(context)[0])


class AllSubstitution(_Operands):
    """'true' where every operand is."""

    _reduce: Callable[[Iterable[bool]], bool] = staticmethod(all)

    def perform(self, context: LaunchContext) -> str:
        return _to_text(self._reduce(self._truths(context)))


class AnySubstitution(AllSubstitution):
    """'true' where one of the operands is."""

    _reduce = staticmethod(any)


class AndSubstitution(AllSubstitution):
    """'true' where both sides are."""

    def __init__(self, left: SomeSubstitutionsType, right: SomeSubstitutionsType) -> None:
        super().__init__(left, right)


class OrSubstitution(AnySubstitution):
    """'true' where one of both sides is."""

    def __init__(self, left: SomeSubstitutionsType, right: SomeSubstitutionsType) -> None:
        super().__init__(left, right)


class IfElseSubstitution(_Operands):
    """One of two values, chosen by a condition."""

    def __init__(self, condition: SomeSubstitutionsType, if_value: SomeSubstitutionsType = "",
                 else_value: SomeSubstitutionsType = "") -> None:
        super().__init__(condition, if_value, else_value)

    def perform(self, context: LaunchContext) -> str:
        condition, if_value, else_value = self.operands
        chosen = if_value if _to_bool(perform_substitutions(context, condition), "IfElseSubstitution") else else_value
        return perform_substitutions(context, chosen)
