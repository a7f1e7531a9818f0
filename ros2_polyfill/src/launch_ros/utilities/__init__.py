"""Evaluate the parameters and names of a node."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping

from launch import LaunchContext, Substitution
from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
from polyfill_names import unprovided

from ..parameter_descriptions import Parameter, ParameterFile, ParameterValue, check_uniform, load_scalar_or_list

__all__ = ["evaluate_parameters", "make_namespace_absolute", "prefix_namespace"]
__getattr__ = unprovided(__name__)


def evaluate_parameters(context: LaunchContext, parameters: Iterable[Any]) -> list[Path | Parameter | dict[str, Any]]:
    """Parameter files as paths and dictionaries as flat ones with evaluated names and values."""
    evaluated: list[Path | Parameter | dict[str, Any]] = []
    for entry in parameters:
        if isinstance(entry, Mapping):
            evaluated.append(_evaluate_mapping(context, entry, ""))
        elif isinstance(entry, Parameter):
            evaluated.append(entry)
        else:
            evaluated.append((entry if isinstance(entry, ParameterFile) else ParameterFile(entry)).evaluate(context))
    return evaluated


def _evaluate_mapping(context: LaunchContext, mapping: Mapping, prefix: str) -> dict[str, Any]:
    """Flatten nested dictionaries to names joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        name = prefix + perform_substitutions(context, normalize_to_list_of_substitutions(key))
        if isinstance(value, Mapping):
            flat |= _evaluate_mapping(context, value, name + ".")
        else:
            flat[name] = _evaluate_value(context, value, f"parameter '{name}'")
    return flat


def _evaluate_value(context: LaunchContext, value: Any, where: str) -> Any:
    """Plain values keep their type; a substitution, or a list with one, becomes one text read as YAML."""
    if isinstance(value, ParameterValue):
        return value.evaluate(context, where)
    if isinstance(value, Substitution):
        return load_scalar_or_list(perform_substitutions(context, [value]), where)
    if not isinstance(value, (list, tuple)):
        return check_uniform(value, where)
    if any(isinstance(part, Substitution) for part in value) and all(isinstance(part, (str, Substitution, list, tuple)) for part in value):
        return load_scalar_or_list(perform_substitutions(context, normalize_to_list_of_substitutions(value)), where)
    if any(isinstance(part, (list, tuple, Substitution)) for part in value):
        texts = [perform_substitutions(context, normalize_to_list_of_substitutions(part if isinstance(part, (str, Substitution, list, tuple))
                                                                                   else str(part))) for part in value]
        return check_uniform([load_scalar_or_list(text, where) for text in texts], where)
    numbers = {type(part) for part in value}
    return [float(part) for part in value] if numbers == {int, float} else check_uniform(value, where)


def prefix_namespace(base: str | None, namespace: str | None) -> str | None:
    """A namespace within a base; absolute ones stand alone."""
    if namespace is None or namespace.startswith("/"):
        combined = base if namespace is None else namespace
    elif not base:
        combined = namespace
    else:
        combined = f"{base.rstrip('/')}/{namespace}" if namespace else base
    return combined if combined is None or combined == "/" else combined.rstrip("/")


def make_namespace_absolute(namespace: str | None) -> str | None:
    return namespace if namespace is None or namespace.startswith("/") else "/" + namespace
