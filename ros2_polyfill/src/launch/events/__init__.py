"""Events of the launch itself."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from polyfill_names import unprovided

from ..event import Event
from . import process

if TYPE_CHECKING:
    from ..action import Action
    from ..launch_description import LaunchDescription

__all__ = ["ExecutionComplete", "IncludeLaunchDescription", "Shutdown", "matches_action", "process"]
__getattr__ = unprovided(__name__)


class Shutdown(Event):
    """The launch is to end; `reason` says why."""

    name = "launch.events.Shutdown"

    def __init__(self, *, reason: str = "reason not given", due_to_sigint: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reason = reason
        self.due_to_sigint = due_to_sigint


class IncludeLaunchDescription(Event):
    """A launch description is to be visited."""

    name = "launch.events.IncludeLaunchDescription"

    def __init__(self, launch_description: LaunchDescription) -> None:
        self.launch_description = launch_description


class ExecutionComplete(Event):
    """An action has finished."""

    name = "launch.events.ExecutionComplete"

    def __init__(self, *, action: Action) -> None:
        self.action = action


def matches_action(target_action: Action) -> Callable[[Action], bool]:
    """Matcher that accepts exactly this action."""
    return lambda action: action is target_action
