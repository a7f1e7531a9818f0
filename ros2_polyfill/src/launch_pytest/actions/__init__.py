"""Actions for launch descriptions under test."""
from __future__ import annotations

from typing import Any, Callable

from launch import Action, LaunchContext
from polyfill_names import unprovided

__all__ = ["ReadyToTest"]
__getattr__ = unprovided(__name__)


class ReadyToTest(Action):
    """Lets the tests begin."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._callbacks: list[Callable[[], None]] = []

    def _add_callback(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def execute(self, context: LaunchContext) -> None:
        for callback in self._callbacks:
            callback()
