"""Argument parsers with the same manners in every command."""
from __future__ import annotations

import argparse
from typing import Any, Callable, Sequence

_RAW = argparse.RawDescriptionHelpFormatter


class VerbParser:
    """A command made of verbs, such as `ros2 topic list`."""

    def __init__(self, command: str, description: str) -> None:
        self._parser = argparse.ArgumentParser(prog=f"ros2 {command}", description=description, formatter_class=_RAW,
                                               epilog="Further verbs are not provided by ros2_polyfill; a full ROS 2 installation has them.")
        self._verbs = self._parser.add_subparsers(metavar="VERB", dest="verb", required=True)

    def add(self, name: str, function: Callable[[argparse.Namespace], int | None], description: str) -> argparse.ArgumentParser:
        """Add a verb that calls the function with the parsed arguments."""
        parser = self._verbs.add_parser(name, help=description, description=description, formatter_class=_RAW)
        parser.set_defaults(function=function)
        return parser

    def run(self, words: Sequence[str]) -> Any:
        arguments = self._parser.parse_args(words)
        return arguments.function(arguments)


def positive_int(text: str) -> int:
    """Type of an option that counts something."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError("value must be a positive integer")
    return value


def positive_seconds(text: str) -> float:
    """Type of an option that is a duration."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0.0:
        raise argparse.ArgumentTypeError("value must be a positive number of seconds")
    return value


def add_discovery(parser: argparse.ArgumentParser) -> None:
    """Options of every verb that looks at the graph."""
    parser.add_argument("--spin-time", type=positive_seconds, default=5.0, metavar="SECONDS",
                        help="longest time to look for nodes and topics (default: %(default)s)")
    parser.add_argument("--no-daemon", action="store_true", help="accepted for compatibility: there is no daemon here")
