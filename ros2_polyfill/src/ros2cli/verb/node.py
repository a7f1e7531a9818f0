"""ros2 node."""
from __future__ import annotations

import argparse
from typing import Sequence

from ..node import direct_node, is_hidden, node_names, settled
from ..parsers import VerbParser, add_discovery


def main(words: Sequence[str]) -> int | None:
    """List nodes."""
    parser = VerbParser("node", "List nodes.")
    verb = parser.add("list", _list, "Output the names of all nodes")
    add_discovery(verb)
    verb.add_argument("-a", "--all", action="store_true", help="show hidden nodes too")
    verb.add_argument("-c", "--count-nodes", action="store_true", help="show only how many there are")
    return parser.run(words)


def _list(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        names = settled(node, lambda: node_names(node), arguments.spin_time)
        own = f"{node.get_namespace().rstrip('/')}/{node.get_name()}"
    shown = [name for name in names if name != own and (arguments.all or not is_hidden(name))]
    if arguments.count_nodes:
        print(len(shown))
    elif shown:
        print("\n".join(shown))
