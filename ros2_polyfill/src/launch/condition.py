"""A predicate that is evaluated when the launch runs."""
from __future__ import annotations

from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from .launch_context import LaunchContext


class Condition:
    """Calls `predicate(context)`; an action whose condition is false is skipped."""

    def __init__(self, *, predicate: Callable[[LaunchContext], bool] | None = None) -> None:
        self._predicate = predicate

    def describe(self) -> str:
        return type(self).__name__

    def evaluate(self, context: LaunchContext) -> bool:
        return self._predicate is None or self._predicate(context)
