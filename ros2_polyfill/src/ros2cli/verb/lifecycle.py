"""ros2 lifecycle."""
from __future__ import annotations

import argparse
from typing import Sequence

from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions, GetState
from rclpy.node import Node

from ..errors import CommandError
from ..node import call, direct_node, require_node, settled
from ..parsers import VerbParser, add_discovery

_TIMEOUT = 30.0      # s; configuring may load a model


def main(words: Sequence[str]) -> int | None:
    """Show and change the states of managed nodes."""
    parser = VerbParser("lifecycle", "Show and change the states of managed nodes.")
    add_discovery(parser.add("nodes", _nodes, "Output the names of all managed nodes"))
    get = parser.add("get", _get, "Output the state of a managed node")
    add_discovery(get)
    get.add_argument("node_name")
    change = parser.add("set", _set, "Trigger a transition of a managed node")
    add_discovery(change)
    change.add_argument("node_name")
    change.add_argument("transition", help="name or number of the transition, such as configure, activate, deactivate, cleanup, shutdown")
    return parser.run(words)


def _managed(node: Node) -> list[str]:
    ending = "/get_state"
    return sorted(name[:-len(ending)] for name, kinds in node.get_service_names_and_types()
                  if name.endswith(ending) and "lifecycle_msgs/srv/GetState" in kinds)


def _nodes(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        names = settled(node, lambda: _managed(node), arguments.spin_time)
    if names:
        print("\n".join(names))


def _get(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        name = require_node(node, arguments.node_name, arguments.spin_time)
        state = call(node, node.create_client(GetState, f"{name}/get_state"), GetState.Request(), _TIMEOUT).current_state
    print(f"{state.label} [{state.id}]")


def _set(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        name = require_node(node, arguments.node_name, arguments.spin_time)
        client = node.create_client(GetAvailableTransitions, f"{name}/get_available_transitions")
        available = [item.transition for item in call(node, client, GetAvailableTransitions.Request(), _TIMEOUT).available_transitions]
        chosen = [item for item in available if arguments.transition in (item.label, str(item.id))]
        if not chosen:
            known = ", ".join(f"{item.label} [{item.id}]" for item in available)
            raise CommandError(f"Unknown transition requested: '{arguments.transition}'; available ones are: {known or 'none'}")
        request = ChangeState.Request(transition=chosen[0])
        result = call(node, node.create_client(ChangeState, f"{name}/change_state"), request, _TIMEOUT)
    if not result.success:
        raise CommandError("Transitioning failed")
    print("Transitioning successful")
