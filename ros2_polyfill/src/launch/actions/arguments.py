"""Arguments of a launch file."""
from __future__ import annotations

from typing import Any, Iterable

from ..action import Action
from ..launch_context import LaunchContext
from ..some_substitutions_type import SomeSubstitutionsType
from ..substitutions import TextSubstitution
from ..utilities import normalize_to_list_of_substitutions, perform_substitutions


class DeclareLaunchArgument(Action):
    """Declare an argument; its default becomes the launch configuration of that name unless one was given."""

    def __init__(self, name: str, *, default_value: SomeSubstitutionsType | None = None, description: str | None = None,
                 choices: Iterable[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.choices = None if choices is None else list(choices)
        if self.choices == []:
            raise ValueError(f"Provided choices for launch argument '{name}' must not be empty")
        self.default_value = None if default_value is None else normalize_to_list_of_substitutions(default_value)
        self._check_default()
        self.description = description if description is not None else "no description given"
        if self.choices is not None:
            self.description = f"{self.description.rstrip('.')}. Valid choices are: {self.choices}"
        self._conditionally_included = False

    def _check_default(self) -> None:
        constant = self.default_value is not None and all(isinstance(part, TextSubstitution) for part in self.default_value)
        if self.choices is None or not constant:
            return
        value = "".join(part.text for part in self.default_value)
        if value not in self.choices:
            raise ValueError(f"Provided default_value '{value}' is not in provided choices {self.choices}")

    def execute(self, context: LaunchContext) -> None:
        if self.name not in context.launch_configurations:
            if self.default_value is None:
                raise RuntimeError(f"Required launch argument '{self.name}' (description: '{self.description}') was not provided")
            context.launch_configurations[self.name] = perform_substitutions(context, self.default_value)
        value = context.launch_configurations[self.name]
        if self.choices is not None and value not in self.choices:
            raise RuntimeError(f"Argument '{self.name}' provided value '{value}' is not valid. Valid options are: {self.choices}")
