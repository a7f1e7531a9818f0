"""Node parameters: one frozen dataclass a node, declared, checked and changed in one place.

A parameter class is made of :func:`depth_ros.settings.setting` fields and may include engine configurations with :func:`included`; their fields
become parameters of the node under the same names that the command-line programs use.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from depth_ros import settings
from depth_ros.settings import Setting

Config = TypeVar('Config')
_OF_RCLPY = ('use_sim_time', 'start_type_description_service')      # declared by every node
_INTEGER_LIMIT = 2 ** 62    # of ranges open to one side, within the message's int64


@dataclass(frozen=True)
class Fact:
    """One parameter: where it lives in the configuration, its default and what is known of it."""

    path: tuple[str, ...]
    default: Any
    setting: Setting


def included(config_class: type[Config], prefix: str = '', **defaults: Any) -> Config:
    """A field that includes the settings of another configuration class, with other defaults where given."""
    return dataclasses.field(default_factory=lambda: config_class(**defaults), metadata={'prefix': prefix})


def facts_of(config_class: type) -> dict[str, Fact]:
    """Every parameter of a configuration class by name, included ones too; ValueError if two share a name."""
    found: dict[str, Fact] = {}
    for name, fact in _walk(config_class(), '', ()):
        if name in found:
            raise ValueError(f'{config_class.__name__}: parameter {name} is defined by {found[name].path} and {fact.path}')
        found[name] = fact
    return found


def _walk(config: Any, prefix: str, path: tuple[str, ...]) -> Iterable[tuple[str, Fact]]:
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*path, field.name)
        if 'prefix' in field.metadata:
            yield from _walk(value, prefix + field.metadata['prefix'], here)
        elif 'setting' in field.metadata:
            yield prefix + field.name, Fact(here, value, field.metadata['setting'])


def build(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """A checked configuration from values by parameter name, defaults elsewhere; ValueError names the parameter, what came and what was wanted."""
    facts = facts_of(config_class)
    unknown = sorted(set(values) - set(facts))
    if unknown:
        raise ValueError(f'unknown parameter {", ".join(unknown)}; known are {", ".join(facts)}')
    for name, value in values.items():
        reason = _reason_against(facts[name], value)
        if reason:
            raise ValueError(f'{name}: {reason}')
    return _assemble(config_class(), {facts[name].path: type(facts[name].default)(value) for name, value in values.items()})


def _assemble(config: Any, values: dict[tuple[str, ...], Any]) -> Any:
    changes = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        changes[name] = _assemble(getattr(config, name), {path[1:]: value for path, value in values.items() if path[0] == name})
    changed = dataclasses.replace(config, **changes)
    settings.check(changed)
    return changed


def _reason_against(fact: Fact, value: Any) -> str | None:
    kind = type(fact.default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f'expected {kind.__name__}, got {value!r}'
    return fact.setting.reason_against(value)


def descriptor(fact: Fact, dynamic_typing: bool = False) -> ParameterDescriptor:
    """What `ros2 param describe` shows of a parameter."""
    known = fact.setting
    text = known.description + (f' [{known.unit}]' if known.unit else '')
    message = ParameterDescriptor(description=text, read_only=known.read_only and not dynamic_typing, dynamic_typing=dynamic_typing)
    constraints = [f'one of: {", ".join(known.choices)}'] if known.choices else []
    message.additional_constraints = '; '.join([*constraints, *([] if known.while_active else ['not while the node is active'])])
    if known.low is None and known.high is None or dynamic_typing:
        return message
    if isinstance(fact.default, int):
        low, high = (-_INTEGER_LIMIT if known.low is None else int(known.low)), (_INTEGER_LIMIT if known.high is None else int(known.high))
        message.integer_range = [IntegerRange(from_value=low, to_value=high)]
    else:
        low, high = (-sys.float_info.max if known.low is None else float(known.low)), (sys.float_info.max if known.high is None else float(known.high))
        message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return message


def declare(node: Node, config_class: type[Config]) -> Config:
    """Declare every parameter of a configuration class on a node and return its values; ValueError for a bad one.

    A parameter is first declared without a type, so that a whole number for a float (`rate:=2`) is taken and a wrong type named. A node that declares what it
    is given by itself (`automatically_declare_parameters_from_overrides`) has done so already.
    """
    values = {}
    for name, fact in facts_of(config_class).items():
        given = (node.get_parameter(name) if node.has_parameter(name) else node.declare_parameter(name, fact.default, descriptor(fact, dynamic_typing=True))).value
        node.undeclare_parameter(name)
        reason = _reason_against(fact, given)
        if reason:
            raise ValueError(f'parameter {name}: {reason}')
        values[name] = type(fact.default)(given)
        node.declare_parameter(name, values[name], descriptor(fact), ignore_override=True)
    return build(config_class, values)


def drop_unknown(node: Node, config_class: type) -> list[str]:
    """Undeclare what a node was given and declared by itself but does not know, a misspelt name most likely; a sentence for each, with the names near it."""
    known = facts_of(config_class)
    told = []
    for name in sorted(node.get_parameters_by_prefix('')):
        if name in known or name in _OF_RCLPY or name.startswith('qos_overrides.'):
            continue
        node.undeclare_parameter(name)
        told.append(f'unknown parameter {name} is ignored{settings.did_you_mean(name, known)}')
    return told


def changed(config: Config, parameters: Iterable[Parameter], active: bool = False) -> Config:
    """The configuration with parameters changed, those of others left out; ValueError says why one is refused, as some are while the node is active."""
    facts = facts_of(type(config))
    values = {name: value_of(config, fact) for name, fact in facts.items()}
    wanted = {p.name: p.value for p in parameters if p.name in facts}
    fixed = [name for name, value in wanted.items() if active and not facts[name].setting.while_active and value != values[name]]
    if fixed:
        raise ValueError(f'{", ".join(fixed)}: cannot change while the node is active; deactivate it first (`ros2 lifecycle set NODE deactivate`)')
    return build(type(config), values | wanted)


def value_of(config: Any, fact: Fact) -> Any:
    """What a parameter is set to in a configuration."""
    for name in fact.path:
        config = getattr(config, name)
    return config
