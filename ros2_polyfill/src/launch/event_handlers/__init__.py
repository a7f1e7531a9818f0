"""Handlers for the events of processes and of the launch."""
from __future__ import annotations

from typing import Any, Callable

from polyfill_names import unprovided

from ..event import Event
from ..event_handler import BaseEventHandler, CallbackOrEntities
from ..events import ExecutionComplete, IncludeLaunchDescription, Shutdown
from ..events.process import ProcessExited, ProcessIO, ProcessStarted
from ..launch_context import LaunchContext
from ..some_entities_type import SomeEntitiesType

__all__ = ["OnExecutionComplete", "OnIncludeLaunchDescription", "OnProcessExit", "OnProcessIO", "OnProcessStart", "OnShutdown"]
__getattr__ = unprovided(__name__)


class _OnActionEvent(CallbackOrEntities):
    """Answers events of one class, of one action or of those that a function accepts, or of all."""

    event_class: type = Event

    def __init__(self, target_action: Any, answer: Any, handle_once: bool = False) -> None:
        from ..action import Action
        if target_action is not None and not callable(target_action) and not isinstance(target_action, Action):
            raise TypeError(f"{type(self).__name__}: target_action must be an action or a function of one, "
                            f"got {target_action!r}")
        self._target = target_action
        super().__init__(answer, matcher=self._accepts, handle_once=handle_once)

    def _accepts(self, event: Event) -> bool:
        if not isinstance(event, self.event_class):
            return False
        if self._target is None:
            return True
        return self._target(event.action) if callable(self._target) else event.action is self._target


class OnProcessStart(_OnActionEvent):
    """Answers the start of a process."""

    event_class = ProcessStarted

    def __init__(self, *, target_action: Any = None, on_start: Any, handle_once: bool = False) -> None:
        super().__init__(target_action, on_start, handle_once)


class OnProcessExit(_OnActionEvent):
    """Answers the end of a process."""

    event_class = ProcessExited

    def __init__(self, *, target_action: Any = None, on_exit: Any, handle_once: bool = False) -> None:
        super().__init__(target_action, on_exit, handle_once)


class OnExecutionComplete(_OnActionEvent):
    """Answers the end of a timer or another lasting action."""

    event_class = ExecutionComplete

    def __init__(self, *, target_action: Any = None, on_completion: Any, handle_once: bool = False) -> None:
        super().__init__(target_action, on_completion, handle_once)


class OnProcessIO(_OnActionEvent):
    """Calls a function of the event for what a process writes."""

    event_class = ProcessIO

    def __init__(self, *, target_action: Any = None, on_stdout: Callable[[ProcessIO], Any] | None = None,
                 on_stderr: Callable[[ProcessIO], Any] | None = None, handle_once: bool = False) -> None:
        self._by_fd = {1: on_stdout, 2: on_stderr}
        super().__init__(target_action, self._dispatch, handle_once)

    def _dispatch(self, event: ProcessIO, _: LaunchContext) -> SomeEntitiesType | None:
        callback = self._by_fd[event.fd]
        return None if callback is None else callback(event)


class OnShutdown(CallbackOrEntities):
    """Answers the end of the launch."""

    def __init__(self, *, on_shutdown: Any, handle_once: bool = False) -> None:
        super().__init__(on_shutdown, matcher=lambda event: isinstance(event, Shutdown), handle_once=handle_once)


class OnIncludeLaunchDescription(BaseEventHandler):
    """Visits the launch description that an event carries."""

    def __init__(self) -> None:
        super().__init__(matcher=lambda event: isinstance(event, IncludeLaunchDescription))

    def handle(self, event: IncludeLaunchDescription, context: LaunchContext) -> SomeEntitiesType:
        super().handle(event, context)
        return event.launch_description
