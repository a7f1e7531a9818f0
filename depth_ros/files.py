"""Files that appear whole or not at all, and where made ones are kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def user_cache() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'depth_ros'


@contextlib.contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A temporary path beside target to write a file or make a folder at; renamed to target at the end, removed on any error or Ctrl-C."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    try:
        partial = holder / target.name
        yield partial
        if target.is_dir() and partial.is_dir():
            os.rename(target, holder / '.replaced')     # a folder cannot be renamed over a filled one
        os.replace(partial, target)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
