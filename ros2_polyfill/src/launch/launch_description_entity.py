"""Whatever can stand in a launch description."""
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from .launch_context import LaunchContext


class LaunchDescriptionEntity:
    """Visited by the launch service; may yield further entities and a future that ends when its work does."""

    def visit(self, context: LaunchContext) -> Iterable[LaunchDescriptionEntity] | None:
        raise NotImplementedError

    def describe_sub_entities(self) -> list[LaunchDescriptionEntity]:
        """Entities that this one certainly visits."""
        return []

    def describe_conditional_sub_entities(self) -> list[tuple[str, Iterable[LaunchDescriptionEntity]]]:
        """Entities that this one may visit, each group with the reason in words."""
        return []

    def get_asyncio_future(self) -> asyncio.Future | None:
        return None
