"""A string that is known only when the launch runs."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch_context import LaunchContext


class Substitution:
    """Base of everything that `perform` turns into text."""

    def describe(self) -> str:
        return repr(self)

    def perform(self, context: LaunchContext) -> str:
        raise NotImplementedError
