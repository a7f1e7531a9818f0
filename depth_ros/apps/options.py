"""Command-line options made from configuration dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from depth_ros import settings

Config = TypeVar('Config')
_ROS_ARGUMENTS = '--ros-args'


def add(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """Give the parser one option for every setting of a configuration class, under its name."""
    group = parser.add_argument_group(title)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, fact in settings.settings_of(config).items():
        default = defaults[name]
        unit = f' [{fact.unit}]' if fact.unit else ''
        spellings = dict.fromkeys(['--' + name.replace('_', '-'), '--' + name])     # the second is the parameter's own
        group.add_argument(*spellings, dest=name, type=_parser_of(type(default)), default=default,
                           choices=fact.choices or None, metavar=None if fact.choices else type(default).__name__.upper(),
                           help=f'{fact.description}{unit} (default: {default})'.replace('%', '%%'))


def read(args: argparse.Namespace, config: type[Config]) -> Config:
    """The configuration that the parsed options describe. Raises ValueError for a value out of range."""
    made = config(**{name: getattr(args, name) for name in settings.settings_of(config)})
    settings.check(made)
    return made


def run(main: Callable[[list[str]], None], argv: list[str] | None) -> int:
    """Run a program; its exit status. Expected failures (ValueError, OSError) become one line on standard error."""
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s: %(message)s')
    try:
        main(without_ros_arguments(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def without_ros_arguments(argv: list[str]) -> list[str]:
    """The arguments but for `--ros-args ... [--]`, which `ros2 run` and launch files may add."""
    kept, dropping = [], False
    for argument in argv:
        if argument == _ROS_ARGUMENTS:
            dropping = True
        elif not dropping:
            kept.append(argument)
        elif argument == '--':
            dropping = False
    return kept


def _parser_of(kind: type) -> Callable[[str], Any]:
    return _boolean if kind is bool else kind


def _boolean(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError(f'expected true or false, got {text!r}')
    return text.lower() == 'true'
