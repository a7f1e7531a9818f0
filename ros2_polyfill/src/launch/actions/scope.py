"""Launch configurations, the environment, and groups that limit how far they reach."""
from __future__ import annotations

import os
from typing import Any, Iterable, Mapping

from ..action import Action
from ..launch_context import LaunchContext
from ..launch_description_entity import LaunchDescriptionEntity
from ..some_substitutions_type import SomeSubstitutionsType
from ..utilities import normalize_to_list_of_substitutions, perform_substitutions


class _Named(Action):
    """Something with a name and, perhaps, a value."""

    def __init__(self, name: SomeSubstitutionsType, value: SomeSubstitutionsType = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = normalize_to_list_of_substitutions(name)
        self.value = normalize_to_list_of_substitutions(value)

    def _evaluate(self, context: LaunchContext) -> tuple[str, str]:
        return perform_substitutions(context, self.name), perform_substitutions(context, self.value)


class SetLaunchConfiguration(_Named):
    """Set a launch configuration."""

    def __init__(self, name: SomeSubstitutionsType, value: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(name, value, **kwargs)

    def execute(self, context: LaunchContext) -> None:
        name, value = self._evaluate(context)
        context.launch_configurations[name] = value


class UnsetLaunchConfiguration(_Named):
    """Remove a launch configuration if it is there."""

    def execute(self, context: LaunchContext) -> None:
        context.launch_configurations.pop(self._evaluate(context)[0], None)


class SetEnvironmentVariable(_Named):
    """Set an environment variable for the processes that start later."""

    def __init__(self, name: SomeSubstitutionsType, value: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(name, value, **kwargs)

    def execute(self, context: LaunchContext) -> None:
        name, value = self._evaluate(context)
        context.environment[name] = value


class UnsetEnvironmentVariable(_Named):
    """Remove an environment variable if it is there."""

    def execute(self, context: LaunchContext) -> None:
        context.environment.pop(self._evaluate(context)[0], None)


class AppendEnvironmentVariable(_Named):
    """Append to an environment variable that holds a list, or prepend to it."""

    def __init__(self, name: SomeSubstitutionsType, value: SomeSubstitutionsType, prepend: bool = False,
                 separator: str = os.pathsep, **kwargs: Any) -> None:
        super().__init__(name, value, **kwargs)
        self._prepend, self._separator = prepend, separator

    def execute(self, context: LaunchContext) -> None:
        name, value = self._evaluate(context)
        old = context.environment.get(name)
        parts = [value] if not old else [value, old] if self._prepend else [old, value]
        context.environment[name] = self._separator.join(parts)


class PushLaunchConfigurations(Action):
    """Remember the launch configurations."""

    def execute(self, context: LaunchContext) -> None:
        context._push_launch_configurations()


class PopLaunchConfigurations(Action):
    """Restore the launch configurations remembered last."""

    def execute(self, context: LaunchContext) -> None:
        context._pop_launch_configurations()


class PushEnvironment(Action):
    """Remember the environment."""

    def execute(self, context: LaunchContext) -> None:
        context._push_environment()


class PopEnvironment(Action):
    """Restore the environment remembered last."""

    def execute(self, context: LaunchContext) -> None:
        context._pop_environment()


class _ClearLaunchConfigurations(Action):
    """Forget all launch configurations but the forwarded ones."""

    def __init__(self, kept: Mapping[str, SomeSubstitutionsType]) -> None:
        super().__init__()
        self._kept = kept

    def execute(self, context: LaunchContext) -> None:
        kept = {name: perform_substitutions(context, normalize_to_list_of_substitutions(value))
                for name, value in self._kept.items()}
        context.launch_configurations.clear()
        context.launch_configurations.update(kept)


class GroupAction(Action):
    """Visit actions together; where `scoped`, what they set in configurations and environment ends with the group.

    With `forwarding` false only `launch_configurations` is known inside.
    """

    def __init__(self, actions: Iterable[LaunchDescriptionEntity], *, scoped: bool = True, forwarding: bool = True,
                 launch_configurations: Mapping[str, SomeSubstitutionsType] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._actions = list(actions)
        self._scoped, self._forwarding = scoped, forwarding
        self._configurations = dict(launch_configurations or {})

    def get_sub_entities(self) -> list[LaunchDescriptionEntity]:
        first: list[LaunchDescriptionEntity] = [SetLaunchConfiguration(name, value) for name, value in self._configurations.items()]
        if not self._scoped:
            return [*first, *self._actions]
        if not self._forwarding:
            first = [_ClearLaunchConfigurations(self._configurations)]
        return [PushLaunchConfigurations(), PushEnvironment(), *first, *self._actions, PopEnvironment(), PopLaunchConfigurations()]

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return self.get_sub_entities()
