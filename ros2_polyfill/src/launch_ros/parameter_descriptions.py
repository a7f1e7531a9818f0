"""Parameters of nodes: values with a type, files, single parameters."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List

import yaml
from launch import LaunchContext, SomeSubstitutionsType, Substitution
from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
from polyfill_names import unprovided

__all__ = ["Parameter", "ParameterFile", "ParameterValue"]
__getattr__ = unprovided(__name__)

SCALARS = (bool, int, float, str)
_TYPES = {kind: (kind, None) for kind in SCALARS} | {List[kind]: (list, kind) for kind in SCALARS} \
    | {list[kind]: (list, kind) for kind in SCALARS}


def check_uniform(value: Any, where: str) -> Any:
    """Return a parameter's value, or raise where it is neither a scalar nor a non-empty list of one type."""
    if isinstance(value, SCALARS) or isinstance(value, bytes):
        return value
    if isinstance(value, (list, tuple)):
        if value and type(value[0]) in SCALARS and all(type(item) is type(value[0]) for item in value):
            return list(value)
        raise TypeError(f"{where}: expected a non-empty sequence, with items of uniform type (bool, int, float or str), got {value!r}")
    raise TypeError(f"{where}: allowed value types are bool, int, float, str and sequences of one of them, got {value!r}")


def load_scalar_or_list(text: str, where: str) -> Any:
    """Value of text by the rules of YAML, as a full ROS 2 infers a parameter's type from a substitution."""
    try:
        return check_uniform(yaml.safe_load(text), where)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: '{text}' is no YAML: {error}") from error


def _coerce(text: str, kind: type, item: type | None, where: str) -> Any:
    value = text if kind is str else yaml.safe_load(text)
    if kind is list:
        if isinstance(value, (list, tuple)) and all(type(entry) is item or (item is float and type(entry) is int) for entry in value):
            return [item(entry) for entry in value]
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    wanted = kind.__name__ if item is None else f"list of {item.__name__}"
    raise ValueError(f"{where}: cannot convert '{text}' to {wanted}")


class ParameterValue:
    """A value whose text is read as `value_type`; by the rules of YAML where none is given."""

    def __init__(self, value: Any, *, value_type: Any = None) -> None:
        if value_type is not None and value_type not in _TYPES:
            raise TypeError(f"value_type {value_type!r}: expected bool, int, float, str or a List of one of them")
        self._value, self._value_type = value, value_type

    @property
    def value(self) -> Any:
        return self._value

    @property
    def value_type(self) -> Any:
        return self._value_type

    def evaluate(self, context: LaunchContext, where: str = "ParameterValue") -> Any:
        value = self._value
        if not _is_substitutions(value) and not isinstance(value, str):
            text = yaml.safe_dump(value, default_flow_style=True)
            return value if self._value_type is None else _coerce(text.removesuffix("...\n").strip(), *_TYPES[self._value_type], where)
        text = perform_substitutions(context, normalize_to_list_of_substitutions(value))
        if self._value_type is None:
            return load_scalar_or_list(text, where)
        return _coerce(text, *_TYPES[self._value_type], where)


def _is_substitutions(value: Any) -> bool:
    return isinstance(value, Substitution) or (
        isinstance(value, (list, tuple)) and any(isinstance(part, Substitution) for part in value))


class Parameter:
    """One named parameter."""

    def __init__(self, name: SomeSubstitutionsType, value: Any, *, value_type: Any = None) -> None:
        self.name = normalize_to_list_of_substitutions(name)
        self._value = ParameterValue(value, value_type=value_type)

    def evaluate(self, context: LaunchContext) -> tuple[str, Any]:
        name = perform_substitutions(context, self.name)
        return name, self._value.evaluate(context, f"parameter '{name}'")


class ParameterFile:
    """A YAML file with parameters."""

    def __init__(self, param_file: SomeSubstitutionsType | os.PathLike, *, allow_substs: bool | SomeSubstitutionsType = False) -> None:
        if allow_substs is not False:
            raise NotImplementedError("ParameterFile(allow_substs=...) is not provided by ros2_polyfill; a full ROS 2 installation has it")
        self.param_file = normalize_to_list_of_substitutions(os.fspath(param_file) if isinstance(param_file, os.PathLike) else param_file)

    def evaluate(self, context: LaunchContext) -> Path:
        return Path(perform_substitutions(context, self.param_file))
