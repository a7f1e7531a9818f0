"""`evaluate tracking|depth|deepv2d|compare|online`: score an engine on recorded sequences, or networks on synthetic scenes; leave figures as JSON and plots.

Each task loads what it needs only when it is chosen: torch and the plots take seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from depth_ros.apps import options


def main(argv: list[str] | None = None) -> int:
    """Entry point of `ros2 run depth_ros evaluate`."""
    return options.run(_main, argv)


def _main(argv: list[str]) -> None:
    args = _parser(argv).parse_args(argv)
    args.score(args)


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='evaluate', description=__doc__.partition('\n')[0])
    tasks = parser.add_subparsers(required=True, metavar='|'.join(_TASKS), help='each has a --help of its own')
    for name, (text, add_options) in _TASKS.items():
        task = tasks.add_parser(name, help=text, description=f'Score {text}.')
        if argv[:1] == [name]:
            add_options(task, argv)
    return parser


def _tracking(task: argparse.ArgumentParser, _words: list[str]) -> None:
    from depth_ros.apps import tracking_scores

    tracking_scores.add_options(task)


def _depth(task: argparse.ArgumentParser, words: list[str]) -> None:
    from depth_ros.apps import sequence_scores

    sequence_scores.add_depth_options(task, words)


def _deepv2d(task: argparse.ArgumentParser, _words: list[str]) -> None:
    from depth_ros.apps import deepv2d_studies

    deepv2d_studies.add_options(task)


def _compare(task: argparse.ArgumentParser, _words: list[str]) -> None:
    from depth_ros.apps import compare

    compare.add_options(task)


def _online(task: argparse.ArgumentParser, _words: list[str]) -> None:
    from depth_ros.apps import online

    online.add_options(task)


_TASKS: dict[str, tuple[str, Callable[[argparse.ArgumentParser, list[str]], None]]] = {
    'tracking': ('camera poses of any number of sequences against reference trajectories', _tracking),
    'depth': ('dense depth against the depth sensor', _depth),
    'deepv2d': ('the networks of DeepV2D on unseen synthetic clips, and the studies of its paper', _deepv2d),
    'compare': ('Global-Local against its rivals, and the studies of its paper', _compare),
    'online': ('a network that learns from range hits along a sequence', _online),
}


if __name__ == '__main__':
    sys.exit(main())
