"""The figures of an evaluation, for programs and for eyes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from depth_ros import files


def write(out: Path, figures: Mapping[str, object], details: Mapping[str, object] = MappingProxyType({})) -> None:
    """metrics.json in a folder, and the same, but for what is only detail, as a table on the terminal."""
    with files.whole(out / 'metrics.json') as partial:
        partial.write_text(json.dumps({**figures, **details}, indent=2) + '\n')
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f'{name:<{width}}  {value:.4f}' if isinstance(value, float) else f'{name:<{width}}  {value}')
    print(f'written to {out}')
