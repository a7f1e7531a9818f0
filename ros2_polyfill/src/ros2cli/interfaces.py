"""Message and service types by name; messages from YAML and to YAML."""
from __future__ import annotations

import array
import importlib
import re
from typing import Any

import numpy as np
import yaml

from .errors import CommandError


def get_interface(name: str, kind: str) -> Any:
    """Class of a type such as `std_msgs/msg/String`; `std_msgs/String` will do."""
    parts = name.split("/")
    if len(parts) == 2:
        parts.insert(1, kind)
    if len(parts) != 3 or parts[1] != kind or not all(parts):
        raise CommandError(f"The passed {'message' if kind == 'msg' else 'service'} type is invalid: '{name}' "
                           f"(expected, for example, {'std_msgs/msg/String' if kind == 'msg' else 'std_srvs/srv/Trigger'})")
    try:
        return getattr(importlib.import_module(f"{parts[0]}.{kind}"), parts[2])
    except (ImportError, AttributeError) as error:
        raise CommandError(f"The type '{name}' is not known here: {error}") from error


def is_message(value: Any) -> bool:
    return hasattr(value, "get_fields_and_field_types")


def to_plain(value: Any, length: int | None = None, no_arr: bool = False, no_str: bool = False, field_type: str = "") -> Any:
    """Messages as dictionaries, arrays as lists, cut after `length` items."""
    if is_message(value):
        return {name: to_plain(getattr(value, name), length, no_arr, no_str, kind)
                for name, kind in value.get_fields_and_field_types().items()}
    if isinstance(value, str):
        if no_str:
            return f"<string length: <{len(value)}>>"
        return value if length is None or len(value) <= length else value[:length] + "..."
    if isinstance(value, bytes):      # `byte` fields
        return [int(octet) for octet in value] if len(value) != 1 else value[0]
    if isinstance(value, (list, tuple, array.array, np.ndarray)):
        return _plain_sequence(value, length, no_arr, no_str, field_type)
    return value.item() if isinstance(value, np.generic) else value


def _plain_sequence(values: Any, length: int | None, no_arr: bool, no_str: bool, field_type: str) -> Any:
    if no_arr:
        element = re.sub(r"^sequence<([^,>]*).*$|\[.*$", r"\1", field_type)
        return f"<array type: {field_type}>" if field_type.endswith("]") else f"<sequence type: {element}, length: {len(values)}>"
    cut = length is not None and len(values) > length
    part = values[:length] if cut else values
    plain = [to_plain(item, length, no_arr, no_str) for item in (part.tolist() if hasattr(part, "tolist") else part)]
    return plain + ["..."] if cut else plain


def to_yaml(value: Any, *, flow_style: bool = False, **limits: Any) -> str:
    """YAML of a message or of one of its fields, without the closing newline."""
    plain = to_plain(value, **limits)
    if not isinstance(plain, (dict, list)):
        return str(plain)
    return yaml.safe_dump(plain, default_flow_style=flow_style, sort_keys=False, allow_unicode=True, width=float("inf")).rstrip("\n")


def fill(message: Any, values: Any) -> None:
    """Set fields of a message from a dictionary, nested messages from nested ones."""
    if not isinstance(values, dict):
        raise CommandError(f"expected a dictionary with fields of {type(message).__name__}, got {values!r}")
    kinds = message.get_fields_and_field_types()
    for name, value in values.items():
        if name not in kinds:
            raise CommandError(f"{type(message).__name__} has no field '{name}'; its fields: {', '.join(kinds) or 'none'}")
        try:
            setattr(message, name, _converted(getattr(message, name), value, kinds[name]))
        except (AssertionError, TypeError, ValueError) as error:
            raise CommandError(f"field '{name}' ({kinds[name]}) cannot be {value!r}: {error}") from error


def _converted(current: Any, value: Any, kind: str) -> Any:
    """The value in the type that the field has."""
    if is_message(current):
        fill(current, value)
        return current
    if isinstance(current, np.ndarray):
        return np.asarray(value, dtype=current.dtype)
    if isinstance(current, array.array):
        return array.array(current.typecode, value)
    if isinstance(current, list):
        nested = re.match(r"(?:sequence<)?(\w+)/(\w+)", kind)
        if nested is None:
            return list(value)
        items = [get_interface(f"{nested[1]}/msg/{nested[2]}", "msg")() for _ in value]
        for item, entry in zip(items, value):
            fill(item, entry)
        return items
    if isinstance(current, bool):
        if not isinstance(value, bool):
            raise TypeError("expected true or false")
        return value
    return type(current)(value)
