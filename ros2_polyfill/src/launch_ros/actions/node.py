"""Start a ROS node as a process."""
from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Iterable

import yaml
from launch import LaunchContext, SomeSubstitutionsType
from launch import logging
from launch.actions import ExecuteProcess
from launch.utilities import ensure_argument_type, normalize_to_list_of_substitutions, perform_substitutions
from rclpy.validate_namespace import validate_namespace
from rclpy.validate_node_name import validate_node_name

from ..parameter_descriptions import Parameter
from ..substitutions import ExecutableInPackage
from ..utilities import evaluate_parameters, make_namespace_absolute, prefix_namespace

_UNNAMED = "<node_name_unspecified>"


class Node(ExecuteProcess):
    """Run a package's executable with ROS arguments made from name, namespace, parameters and remappings.

    `parameters` is a list of dictionaries, YAML files and ParameterFiles; later ones win. A relative namespace is within
    the pushed one.
    """

    def __init__(
        self, *, executable: SomeSubstitutionsType, package: SomeSubstitutionsType | None = None,
        name: SomeSubstitutionsType | None = None, namespace: SomeSubstitutionsType | None = None, exec_name: SomeSubstitutionsType | None = None,
        parameters: Iterable[Any] | None = None, remappings: Iterable[tuple[SomeSubstitutionsType, SomeSubstitutionsType]] | None = None,
        ros_arguments: Iterable[SomeSubstitutionsType] | None = None, arguments: Iterable[SomeSubstitutionsType] | None = None,
        **kwargs: Any,
    ) -> None:
        program = executable if package is None else ExecutableInPackage(package=package, executable=executable)
        if parameters is not None:
            ensure_argument_type(parameters, (list, tuple), "parameters", "Node")
        super().__init__(cmd=[program, *(arguments or ())], name=exec_name, **kwargs)
        self._node_name = None if name is None else normalize_to_list_of_substitutions(name)
        self._namespace = None if namespace is None else normalize_to_list_of_substitutions(namespace)
        self._parameters = list(parameters or ())
        self._remappings = [(normalize_to_list_of_substitutions(old), normalize_to_list_of_substitutions(new))
                            for old, new in remappings or ()]
        self._ros_arguments = [normalize_to_list_of_substitutions(word) for word in ros_arguments or ()]
        self._full_name: str | None = None

    @property
    def node_name(self) -> str:
        """Full name of the node; known once the action has been executed."""
        if self._full_name is None:
            raise RuntimeError("cannot access 'node_name' before executing action")
        return self._full_name

    def is_node_name_fully_specified(self) -> bool:
        return _UNNAMED not in self.node_name

    def execute(self, context: LaunchContext) -> None:
        self._cmd += [normalize_to_list_of_substitutions(word) for word in self._compose_ros_arguments(context)]
        return super().execute(context)

    def _compose_ros_arguments(self, context: LaunchContext) -> list[str]:
        """Words behind the program's own arguments: name, namespace, global then own parameters, remappings."""
        configurations = context.launch_configurations
        words = ["--ros-args", *(perform_substitutions(context, word) for word in self._ros_arguments)]
        words += self._compose_names(context)
        for parameter in configurations.get("global_params", ()):
            words += ["--params-file", parameter] if isinstance(parameter, str) else _as_argument(*parameter)
        for parameter in evaluate_parameters(context, self._parameters):
            words += self._compose_parameters(context, parameter)
        own = [tuple(perform_substitutions(context, side) for side in rule) for rule in self._remappings]
        for old, new in [*configurations.get("ros_remaps", ()), *own]:
            words += ["-r", f"{old}:={new}"]
        return words

    def _compose_names(self, context: LaunchContext) -> list[str]:
        name = None if self._node_name is None else perform_substitutions(context, self._node_name)
        namespace = None if self._namespace is None else perform_substitutions(context, self._namespace)
        namespace = make_namespace_absolute(prefix_namespace(context.launch_configurations.get("ros_namespace"), namespace or None))
        words = []
        if name is not None:
            validate_node_name(name)
            words += ["-r", f"__node:={name}"]
        if namespace is not None:
            validate_namespace(namespace)
            words += ["-r", f"__ns:={namespace}"]
        self._full_name = f"{(namespace or '').rstrip('/')}/{name or _UNNAMED}"
        return words

    def _compose_parameters(self, context: LaunchContext, parameter: Any) -> list[str]:
        if isinstance(parameter, Parameter):
            return _as_argument(*parameter.evaluate(context))
        if isinstance(parameter, dict):
            parameter = _write_parameters(self.node_name if self.is_node_name_fully_specified() else "/**", parameter)
        elif not os.path.isfile(parameter):
            logging.get_logger("launch_ros.actions.node").warning(f"Parameter file path is not a file: {parameter}")
        return ["--params-file", str(parameter)]


def _as_argument(name: str, value: Any) -> list[str]:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()
    return ["-p", f"{name}:={text}"]


def _write_parameters(node_name: str, parameters: dict[str, Any]) -> Path:
    """Write a temporary parameter file for one node; it is removed when the launch's interpreter ends."""
    with tempfile.NamedTemporaryFile("w", prefix="launch_params_", delete=False) as file:
        yaml.safe_dump({node_name: {"ros__parameters": parameters}}, file, default_flow_style=False)
    atexit.register(_remove, file.name)
    return Path(file.name)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
