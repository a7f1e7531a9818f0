"""A list of entities, usually what a launch file returns."""
from __future__ import annotations

from typing import TYPE_CHECKING, Iterable

from .launch_context import LaunchContext
from .launch_description_entity import LaunchDescriptionEntity

if TYPE_CHECKING:
    from .actions import DeclareLaunchArgument


class LaunchDescription(LaunchDescriptionEntity):
    """Entities in the order in which they are visited."""

    def __init__(self, initial_entities: Iterable[LaunchDescriptionEntity] | None = None) -> None:
        self.entities: list[LaunchDescriptionEntity] = list(initial_entities or ())

    def visit(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return self.entities

    def describe_sub_entities(self) -> list[LaunchDescriptionEntity]:
        return self.entities

    def add_entity(self, entity: LaunchDescriptionEntity) -> None:
        self.entities.append(entity)

    add_action = add_entity

    def get_launch_arguments(self, conditional_inclusion: bool = False) -> list[DeclareLaunchArgument]:
        """Arguments declared anywhere in it, included files too, each name once.

        Those behind a condition carry `_conditionally_included`, as with `conditional_inclusion` all do.
        """
        found: dict[str, DeclareLaunchArgument] = {}
        _collect_arguments(self.entities, conditional_inclusion, frozenset(), found)
        return list(found.values())


def _collect_arguments(entities: Iterable[LaunchDescriptionEntity], conditional: bool, given: frozenset[str],
                       found: dict[str, DeclareLaunchArgument]) -> None:
    from .actions import DeclareLaunchArgument, IncludeLaunchDescription
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            if entity.name not in found and entity.name not in given:
                entity._conditionally_included = conditional or entity.condition is not None
                found[entity.name] = entity
            continue
        hidden = given
        if isinstance(entity, IncludeLaunchDescription):
            # what the including file passes is no question to the user
            hidden = given | entity._constant_argument_names()
        _collect_arguments(entity.describe_sub_entities(), conditional, hidden, found)
        for _, group in entity.describe_conditional_sub_entities():
            _collect_arguments(group, True, hidden, found)
