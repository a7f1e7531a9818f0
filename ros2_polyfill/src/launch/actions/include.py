"""Include another launch file."""
from __future__ import annotations

import os
from typing import Any, Iterable

from ..action import Action
from ..launch_context import LaunchContext
from ..launch_description import LaunchDescription
from ..launch_description_entity import LaunchDescriptionEntity
from ..launch_description_source import LaunchDescriptionSource
from ..some_substitutions_type import SomeSubstitutionsType
from ..substitutions import TextSubstitution
from ..utilities import normalize_to_list_of_substitutions, perform_substitutions
from .arguments import DeclareLaunchArgument
from .basic import OpaqueFunction
from .scope import SetLaunchConfiguration

_FILE, _FOLDER = "current_launch_file_path", "current_launch_file_directory"


class IncludeLaunchDescription(Action):
    """Visit another launch description, with launch arguments as (name, value) pairs."""

    def __init__(self, launch_description_source: LaunchDescriptionSource | SomeSubstitutionsType, *,
                 launch_arguments: Iterable[tuple[SomeSubstitutionsType, SomeSubstitutionsType]] | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(launch_description_source, LaunchDescriptionSource):
            from ..launch_description_sources import AnyLaunchDescriptionSource
            launch_description_source = AnyLaunchDescriptionSource(launch_description_source)
        self.launch_description_source = launch_description_source
        self.launch_arguments = tuple(launch_arguments or ())

    def describe(self) -> str:
        return f"IncludeLaunchDescription({self.launch_description_source.location})"

    def get_sub_entities(self) -> list[LaunchDescriptionEntity]:
        description = self.launch_description_source.try_get_launch_description_without_context()
        return [] if description is None else [description]

    def _constant_argument_names(self) -> frozenset[str]:
        names = [normalize_to_list_of_substitutions(name) for name, _ in self.launch_arguments]
        return frozenset("".join(part.text for part in parts) for parts in names
                         if all(isinstance(part, TextSubstitution) for part in parts))

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        description = self.launch_description_source.get_launch_description(context)
        before = {name: context.get_locals_as_dict().get(name) for name in (_FILE, _FOLDER)}
        path = os.path.abspath(self.launch_description_source.location)
        context.extend_locals({_FILE: path, _FOLDER: os.path.dirname(path)})
        self._check_required(description, context)
        # configurations are set after the values of all of them are known to be given, and the locals restored at the end
        return [*(SetLaunchConfiguration(name, value) for name, value in self.launch_arguments), description,
                OpaqueFunction(function=lambda context: context.extend_locals(before))]

    def _check_required(self, description: LaunchDescription, context: LaunchContext) -> None:
        given = {perform_substitutions(context, normalize_to_list_of_substitutions(name)) for name, _ in self.launch_arguments}
        for entity in description.entities:
            if not isinstance(entity, DeclareLaunchArgument) or entity.condition is not None:
                continue
            if entity.default_value is None and entity.name not in given and entity.name not in context.launch_configurations:
                raise RuntimeError(f"Included launch description missing required argument '{entity.name}' "
                                   f"(description: '{entity.description}'), given: [{', '.join(sorted(given))}]")
