"""Files that appear whole or not at all, and where made ones are kept."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def user_cache() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'depth_ros'


@contextlib.contextmanager
def whole(target: str | Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside target to write a file or make a folder at; renamed to target at the end, removed on any error or Ctrl-C.

    `durable`: a file is on the disk before it takes the target's place, so that not even a power cut leaves less than the old or the new one.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    try:
        partial = holder / target.name
        yield partial
        if durable:
            _flush(partial)
        if target.is_dir() and partial.is_dir():
            os.rename(target, holder / '.replaced')     # a folder cannot be renamed over a filled one
        os.replace(partial, target)
        if durable:
            _flush(target.parent)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def sweep(target: str | Path) -> None:
    """Remove what processes that were killed while they wrote `target` left beside it. Only for who alone writes it."""
    target = Path(target)
    for holder in target.parent.glob(f'.{glob.escape(target.name)}.????????'):
        if holder.is_dir():
            shutil.rmtree(holder, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
