"""Described and ranged fields for the configuration dataclasses.

A configuration is a frozen dataclass whose fields are made by :func:`setting`. The same description, unit, range and choices then serve the check in
the engine, the options of the command line and the declaration of ROS parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What is known of a configuration field beyond its type and default."""

    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False
    while_active: bool = True      # whether a running node takes a change

    def reason_against(self, value: Any) -> str | None:
        """Why the value is refused, or None if it is fine."""
        if self.choices and value not in self.choices:
            return f'expected one of {", ".join(self.choices)}, got {value!r}'
        if self.low is not None and not value >= self.low:
            return f'expected at least {self.low} {self.unit}'.rstrip() + f', got {value!r}'
        if self.high is not None and not value <= self.high:
            return f'expected at most {self.high} {self.unit}'.rstrip() + f', got {value!r}'
        return None


def setting(default: Any, description: str, unit: str = '', low: float | None = None, high: float | None = None,
            choices: tuple[str, ...] = (), read_only: bool = False, while_active: bool = True) -> Any:
    """A dataclass field with a default and the facts of :class:`Setting`."""
    return dataclasses.field(default=default, metadata={'setting': Setting(description, unit, low, high, choices, read_only, while_active)})


def settings_of(config: Any) -> dict[str, Setting]:
    """The settings of a configuration class or object, by field name, in order."""
    return {f.name: f.metadata['setting'] for f in dataclasses.fields(config) if 'setting' in f.metadata}


def check(config: Any) -> None:
    """Raise ValueError, naming the field, what came and what was wanted, unless every field has its type and lies in its range."""
    for field in dataclasses.fields(config):
        fact: Setting | None = field.metadata.get('setting')
        if fact is None:
            continue
        value, kind = getattr(config, field.name), type(field.default)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f'{field.name}: expected {kind.__name__}, got {value!r}')
        reason = fact.reason_against(value)
        if reason:
            raise ValueError(f'{field.name}: {reason}')


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, for the end of a sentence about a name that is not known; empty where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''


def refuse_unknown(names: Iterable[object], known: Collection[str], what: str = 'unknown key') -> None:
    """Raise ValueError for names that are not among the known ones, which it lists; the nearest last."""
    unknown = [name for name in names if name not in known]
    if unknown:
        near = ''.join(did_you_mean(name, known) for name in unknown)
        raise ValueError(f'{what} {", ".join(map(repr, unknown))}: expected {", ".join(known) or "none at all"}{near}')
