"""ros2 param."""
from __future__ import annotations

import argparse
import sys
from typing import Any, Sequence

import yaml
from rcl_interfaces.msg import ParameterDescriptor, ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter, get_parameter_value, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient

from ..errors import CommandError
from ..node import direct_node, is_hidden, node_names, require_node, settled, wait_for
from ..parsers import VerbParser, add_discovery, positive_seconds

_LABELS = {
    ParameterType.PARAMETER_BOOL: ("Boolean value is:", "boolean"),
    ParameterType.PARAMETER_INTEGER: ("Integer value is:", "integer"),
    ParameterType.PARAMETER_DOUBLE: ("Double value is:", "double"),
    ParameterType.PARAMETER_STRING: ("String value is:", "string"),
    ParameterType.PARAMETER_BYTE_ARRAY: ("Byte values are:", "byte array"),
    ParameterType.PARAMETER_BOOL_ARRAY: ("Boolean values are:", "boolean array"),
    ParameterType.PARAMETER_INTEGER_ARRAY: ("Integer values are:", "integer array"),
    ParameterType.PARAMETER_DOUBLE_ARRAY: ("Double values are:", "double array"),
    ParameterType.PARAMETER_STRING_ARRAY: ("String values are:", "string array"),
    ParameterType.PARAMETER_NOT_SET: ("Parameter not set.", "not set"),
}


def main(words: Sequence[str]) -> int | None:
    """Read and set parameters of nodes."""
    parser = VerbParser("param", "Read and set parameters of nodes.")
    get = _add(parser, "get", _get, "Output a parameter's value", "parameter_name")
    get.add_argument("--hide-type", action="store_true", help="show the value alone")
    setting = _add(parser, "set", _set, "Set a parameter", "parameter_name")
    setting.add_argument("value", help="in YAML: 3, 0.5, true, text, [1.0, 2.0]")
    listing = parser.add("list", _list, "Output the parameters of a node, or of all nodes")
    listing.add_argument("node_name", nargs="?")
    _common(listing)
    describing = _add(parser, "describe", _describe, "Output descriptions, types and ranges of parameters")
    describing.add_argument("parameter_names", nargs="+")
    _add(parser, "dump", _dump, "Output all parameters of a node as a parameter file")
    return parser.run(words)


def _add(parser: VerbParser, name: str, function: Any, description: str, *positionals: str) -> argparse.ArgumentParser:
    verb = parser.add(name, function, description)
    for positional in ("node_name", *positionals):
        verb.add_argument(positional)
    _common(verb)
    return verb


def _common(verb: argparse.ArgumentParser) -> None:
    add_discovery(verb)
    verb.add_argument("--timeout", type=positive_seconds, default=10.0, metavar="SECONDS",
                      help="longest time to wait for the node's answer (default: %(default)s)")


class _Remote:
    """The parameters of one node."""

    def __init__(self, node: Node, name: str, arguments: argparse.Namespace) -> None:
        self._node, self._seconds = node, arguments.timeout
        self.name = require_node(node, name, arguments.spin_time)
        self._client = AsyncParameterClient(node, self.name)
        if not self._client.wait_for_services(timeout_sec=arguments.timeout):
            raise CommandError(f"node '{self.name}' offers no parameter services")

    def _answer(self, future: Any) -> Any:
        return wait_for(self._node, future, self._seconds, f"node '{self.name}'")

    def names(self) -> list[str]:
        return sorted(self._answer(self._client.list_parameters([], 0)).result.names)

    def values(self, names: Sequence[str]) -> list[Any]:
        return list(self._answer(self._client.get_parameters(list(names))).values)

    def describe(self, names: Sequence[str]) -> list[ParameterDescriptor]:
        return list(self._answer(self._client.describe_parameters(list(names))).descriptors)

    def set(self, name: str, text: str) -> Any:
        parameter = Parameter(name, value=parameter_value_to_python(get_parameter_value(text)))
        return self._answer(self._client.set_parameters([parameter])).results[0]


def _python(value: Any) -> Any:
    plain = parameter_value_to_python(value)
    return plain if plain is None or isinstance(plain, (bool, int, float, str)) else list(plain)


def _get(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        values = _Remote(node, arguments.node_name, arguments).values([arguments.parameter_name])
    if not values or values[0].type == ParameterType.PARAMETER_NOT_SET:
        raise CommandError(f"Parameter not set: '{arguments.node_name}' has no value for '{arguments.parameter_name}'")
    text = str(_python(values[0]))
    print(text if arguments.hide_type else f"{_LABELS[values[0].type][0]} {text}")


def _set(arguments: argparse.Namespace) -> int:
    with direct_node() as node:
        result = _Remote(node, arguments.node_name, arguments).set(arguments.parameter_name, arguments.value)
    if result.successful:
        print("Set parameter successful" + (f": {result.reason}" if result.reason else ""))
        return 0
    print("Setting parameter failed" + (f": {result.reason}" if result.reason else ""), file=sys.stderr)
    return 1


def _list(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        if arguments.node_name is not None:
            for name in _Remote(node, arguments.node_name, arguments).names():
                print(f"  {name}")
            return
        names = settled(node, lambda: [name for name in node_names(node) if not is_hidden(name)], arguments.spin_time)
        for node_name in names:
            print(f"{node_name}:")
            for name in _Remote(node, node_name, arguments).names():
                print(f"  {name}")


def _describe(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        descriptors = _Remote(node, arguments.node_name, arguments).describe(arguments.parameter_names)
    if len(descriptors) != len(arguments.parameter_names):
        raise CommandError(f"'{arguments.node_name}' does not have all of the parameters {', '.join(arguments.parameter_names)}")
    for descriptor in descriptors:
        _print_descriptor(descriptor)


def _print_descriptor(descriptor: ParameterDescriptor) -> None:
    print(f"Parameter name: {descriptor.name}\n  Type: {_LABELS[descriptor.type][1]}")
    if descriptor.description:
        print(f"  Description: {descriptor.description}")
    print("  Constraints:" if _has_constraints(descriptor) else "  Constraints: none")
    if descriptor.read_only:
        print("    Read only: true")
    for limits in [*descriptor.floating_point_range, *descriptor.integer_range]:
        print(f"    Min value: {limits.from_value}\n    Max value: {limits.to_value}")
        if limits.step:
            print(f"    Step: {limits.step}")
    if descriptor.additional_constraints:
        print(f"    Additional constraints: {descriptor.additional_constraints}")


def _has_constraints(descriptor: ParameterDescriptor) -> bool:
    return bool(descriptor.read_only or descriptor.floating_point_range or descriptor.integer_range or descriptor.additional_constraints)


def _dump(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        remote = _Remote(node, arguments.node_name, arguments)
        names = remote.names()
        values = {name: _python(value) for name, value in zip(names, remote.values(names))}
    print(yaml.safe_dump({remote.name: {"ros__parameters": values}}, default_flow_style=False), end="")
