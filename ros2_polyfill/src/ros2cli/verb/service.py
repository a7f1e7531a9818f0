"""ros2 service."""
from __future__ import annotations

import argparse
from typing import Sequence

import yaml

from ..errors import CommandError
from ..interfaces import fill, get_interface
from ..node import call, direct_node, full_name, is_hidden, settled, wait_until
from ..parsers import VerbParser, add_discovery, positive_seconds


def main(words: Sequence[str]) -> int | None:
    """List and call services."""
    parser = VerbParser("service", "List and call services.")
    listing = parser.add("list", _list, "Output the names of all services")
    add_discovery(listing)
    listing.add_argument("-t", "--show-types", action="store_true", help="show the type of each")
    listing.add_argument("-a", "--include-hidden-services", action="store_true", help="show hidden services too")
    kind = parser.add("type", _type, "Output a service's type")
    add_discovery(kind)
    kind.add_argument("service_name")
    calling = parser.add("call", _call, "Call a service")
    add_discovery(calling)
    calling.add_argument("service_name", help="for example /deepv2d/reset")
    calling.add_argument("service_type", help="for example std_srvs/srv/Trigger")
    calling.add_argument("values", nargs="?", default="{}", help="fields of the request in YAML, such as '{data: true}'")
    calling.add_argument("--timeout", type=positive_seconds, default=60.0, metavar="SECONDS",
                         help="longest time to wait for the answer (default: %(default)s)")
    return parser.run(words)


def _list(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        services = settled(node, lambda: sorted(node.get_service_names_and_types()), arguments.spin_time)
    for name, kinds in services:
        if arguments.include_hidden_services or not is_hidden(name):
            print(f"{name} [{', '.join(kinds)}]" if arguments.show_types else name)


def _type(arguments: argparse.Namespace) -> None:
    with direct_node() as node:
        name = full_name(node, arguments.service_name)
        kinds = wait_until(node, lambda: dict(node.get_service_names_and_types()).get(name), arguments.spin_time)
    if not kinds:
        raise CommandError(f"service '{name}' is not known")
    print("\n".join(kinds))


def _call(arguments: argparse.Namespace) -> None:
    service = get_interface(arguments.service_type, "srv")
    request = service.Request()
    try:
        values = yaml.safe_load(arguments.values)
    except yaml.YAMLError as error:
        raise CommandError(f"the request is no YAML: {error}") from error
    fill(request, {} if values is None else values)
    with direct_node() as node:
        client = node.create_client(service, full_name(node, arguments.service_name))
        if not client.service_is_ready():
            print("waiting for service to become available...", flush=True)
        print(f"requester: making request: {request!r}\n", flush=True)
        response = call(node, client, request, arguments.timeout)
    print(f"response:\n{response!r}\n")
