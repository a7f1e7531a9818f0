"""Namespaces, parameters and remappings for all nodes that follow in the group or file."""
from __future__ import annotations

from typing import Any

from launch import Action, LaunchContext, SomeSubstitutionsType
from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions

from ..parameter_descriptions import Parameter, ParameterFile
from ..utilities import make_namespace_absolute, prefix_namespace


def _append(context: LaunchContext, name: str, item: Any) -> None:
    """Append to a list among the launch configurations without changing the list an outer scope holds."""
    context.launch_configurations[name] = [*context.launch_configurations.get(name, ()), item]


class PushRosNamespace(Action):
    """Put the nodes that follow into a namespace."""

    def __init__(self, namespace: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.namespace = normalize_to_list_of_substitutions(namespace)

    def execute(self, context: LaunchContext) -> None:
        pushed = perform_substitutions(context, self.namespace)
        combined = make_namespace_absolute(prefix_namespace(context.launch_configurations.get("ros_namespace"), pushed))
        if combined and combined != "/":
            context.launch_configurations["ros_namespace"] = combined
        else:
            context.launch_configurations.pop("ros_namespace", None)


PushROSNamespace = PushRosNamespace


class SetParameter(Action):
    """Give a parameter to the nodes that follow; a node's own parameters win."""

    def __init__(self, name: SomeSubstitutionsType, value: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parameter = Parameter(name, value)

    def execute(self, context: LaunchContext) -> None:
        _append(context, "global_params", self._parameter.evaluate(context))


class SetUseSimTime(SetParameter):
    """Let the nodes that follow take their time from /clock, or not."""

    def __init__(self, value: Any, **kwargs: Any) -> None:
        super().__init__("use_sim_time", value, **kwargs)


class SetParametersFromFile(Action):
    """Give a parameter file to the nodes that follow."""

    def __init__(self, filename: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._file = ParameterFile(filename)

    def execute(self, context: LaunchContext) -> None:
        _append(context, "global_params", str(self._file.evaluate(context)))


class SetRemap(Action):
    """Remap a name for the nodes that follow."""

    def __init__(self, src: SomeSubstitutionsType, dst: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.src, self.dst = normalize_to_list_of_substitutions(src), normalize_to_list_of_substitutions(dst)

    def execute(self, context: LaunchContext) -> None:
        _append(context, "ros_remaps", (perform_substitutions(context, self.src), perform_substitutions(context, self.dst)))
