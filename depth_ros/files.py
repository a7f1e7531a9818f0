"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
