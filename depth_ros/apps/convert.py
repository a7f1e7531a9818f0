"""`convert SOURCE TARGET`: a sequence from one format into another, without changing a bit of it."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from depth_ros import files
from depth_ros.apps import options
from depth_ros.learning.bag_writer import FORMATS, BagWriter
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.tum import open_sequence
from depth_ros.learning.tum_writer import TumWriter

_LOG = logging.getLogger(__name__)
_SUFFIXES = {'.bag': 'bag', '.mcap': 'rosbag2-mcap', '.db3': 'rosbag2-sqlite3'}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `ros2 run depth_ros convert`; the exit status."""
    return options.run(_main, argv)


def _main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    kind = args.format or _SUFFIXES.get(args.target.suffix, 'tum')
    _check_target(args.target, args.source, args.force)
    with open_sequence(args.source) as sequence, files.whole(args.target) as partial:
        _convert(sequence, partial, kind)
        if args.target.exists() and args.target.is_dir() != partial.is_dir():
            _remove(args.target)    # a file and a folder cannot replace each other
    _LOG.info('wrote %s (%s, %d images)', args.target, kind, len(sequence))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='convert', description='Convert a sequence (a TUM folder, a ROS 1 bag, a rosbag2 or the built-in sample) into another '
                                     'format. Images, depth, stamps, ground truth and scans stay what they are, bit for bit.')
    parser.add_argument('source', metavar='SOURCE', help="what to read: `sample`, a TUM folder, a ROS 1 .bag, a rosbag2 folder, a .db3 or a .mcap file")
    parser.add_argument('target', metavar='TARGET', type=Path, help='what to write: a file for a ROS 1 bag, else a folder; appears only when it is complete')
    parser.add_argument('--format', choices=('tum', *FORMATS), help='default: by the end of TARGET (.bag, .mcap, .db3), else tum')
    parser.add_argument('--force', action='store_true', help='replace TARGET if it is there')
    return parser


def _check_target(target: Path, source: str, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise ValueError(f'{target}: exists already; --force replaces it')
    read, written = Path(source).resolve(), target.resolve()
    if written == read or written in read.parents:
        raise ValueError(f'{target}: would replace the source')
    if target.is_dir() and any(target.iterdir()) and not any((target / name).exists() for name in ('rgb.txt', 'metadata.yaml')):
        raise ValueError(f'{target}: is a folder, but no sequence; it is not replaced')


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _convert(sequence: Sequence, target: Path, kind: str) -> None:
    with _writer(target, sequence, kind) as writer:
        for _, event, index in tqdm(sequence.timeline(), desc=f'{sequence.name} to {kind}', unit='message', disable=None):
            writer.add(sequence.event(event, index))


@contextmanager
def _writer(target: Path, sequence: Sequence, kind: str) -> Iterator[TumWriter | BagWriter]:
    if kind == 'tum':
        writer = TumWriter.like(target, sequence)
        yield writer
        writer.close()
        return
    with BagWriter(target, sequence, kind) as bag:
        yield bag


if __name__ == '__main__':
    sys.exit(main())
