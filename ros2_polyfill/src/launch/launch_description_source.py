"""Where a launch description comes from."""
from __future__ import annotations

import os

from .launch_context import LaunchContext
from .launch_description import LaunchDescription
from .some_substitutions_type import SomeSubstitutionsType
from .utilities import normalize_to_list_of_substitutions, perform_substitutions


class LaunchDescriptionSource:
    """A launch description, given or loaded from a file by a subclass."""

    def __init__(self, launch_description: LaunchDescription | None = None,
                 location: SomeSubstitutionsType = "<script>", method: str = "unspecified mechanism from a script") -> None:
        self._description = launch_description
        self._location = normalize_to_list_of_substitutions(location)
        self._expanded: str | None = None
        self._preview: tuple[str, LaunchDescription] | None = None
        self._method = method

    @property
    def method(self) -> str:
        return self._method

    @property
    def location(self) -> str:
        """Path of the file, or the description of the path before it is known."""
        return self._expanded or " + ".join(part.describe() for part in self._location)

    def get_launch_description(self, context: LaunchContext) -> LaunchDescription:
        """Load once; later calls give the same description."""
        if self._expanded is None:
            self._expanded = perform_substitutions(context, self._location)
        if self._description is None:
            self._description = self._load(os.path.abspath(self._expanded))
        return self._description

    def try_get_launch_description_without_context(self) -> LaunchDescription | None:
        """The description if its path needs no running launch, else None; a launch may still find another path."""
        from .substitutions import SubstitutionFailure
        if self._description is not None:
            return self._description
        try:
            path = perform_substitutions(LaunchContext(), self._location)
        except SubstitutionFailure:
            return None
        return self._load(os.path.abspath(path))

    def _load(self, path: str) -> LaunchDescription:
        """Load a file, or give what was loaded from the same one before."""
        if self._preview is None or self._preview[0] != path:
            self._preview = (path, self._get_launch_description(path))
        return self._preview[1]

    def _get_launch_description(self, location: str) -> LaunchDescription:
        raise NotImplementedError
