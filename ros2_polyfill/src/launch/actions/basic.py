"""Actions that log, call, emit, handle, wait."""
from __future__ import annotations

import asyncio
from typing import Any, Callable, Iterable

from .. import logging
from ..action import Action
from ..event import Event
from ..event_handler import BaseEventHandler
from ..event_handlers import OnShutdown
from ..events import ExecutionComplete, IncludeLaunchDescription
from ..events import Shutdown as ShutdownEvent
from ..events.process import ProcessExited
from ..launch_context import LaunchContext
from ..launch_description import LaunchDescription
from ..launch_description_entity import LaunchDescriptionEntity
from ..some_entities_type import SomeEntitiesType
from ..some_substitutions_type import SomeSubstitutionsType
from ..utilities import normalize_to_list_of_entities, normalize_to_list_of_substitutions, perform_substitutions


class LogInfo(Action):
    """Log a message."""

    def __init__(self, *, msg: SomeSubstitutionsType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.msg = normalize_to_list_of_substitutions(msg)

    def execute(self, context: LaunchContext) -> None:
        logging.get_logger("launch.user").info(perform_substitutions(context, self.msg))


class OpaqueFunction(Action):
    """Call `function(context, *args, **kwargs)`, which may return entities to visit."""

    def __init__(self, *, function: Callable[..., SomeEntitiesType | None], args: Iterable[Any] = (),
                 kwargs: dict[str, Any] | None = None, **action_kwargs: Any) -> None:
        super().__init__(**action_kwargs)
        self._call = lambda context: function(context, *args, **(kwargs or {}))

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity] | None:
        entities = self._call(context)
        return None if entities is None else normalize_to_list_of_entities(entities)


class EmitEvent(Action):
    """Queue an event."""

    def __init__(self, *, event: Event, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(event, Event):
            raise RuntimeError(f"EmitEvent() expected an event instance, got {event!r}")
        self.event = event

    def execute(self, context: LaunchContext) -> None:
        context.emit_event_sync(self.event)


class Shutdown(EmitEvent):
    """End the launch."""

    def __init__(self, *, reason: str = "reason not given", **kwargs: Any) -> None:
        super().__init__(event=ShutdownEvent(reason=reason), **kwargs)

    def execute(self, context: LaunchContext) -> None:
        if context.is_shutdown:
            return
        event = context.get_locals_as_dict().get("event")
        if isinstance(event, ProcessExited):
            logging.get_logger("launch").info(f"process[{event.process_name}] was required: shutting down launched system")
        super().execute(context)


ShutdownAction = Shutdown


class RegisterEventHandler(Action):
    """Add an event handler."""

    def __init__(self, event_handler: BaseEventHandler, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.event_handler = event_handler

    def describe_conditional_sub_entities(self) -> list[tuple[str, Iterable[LaunchDescriptionEntity]]]:
        entities = getattr(self.event_handler, "entities", None)
        return [] if not entities else [(f"On event, by {self.describe()}", normalize_to_list_of_entities(entities))]

    def execute(self, context: LaunchContext) -> None:
        context.register_event_handler(self.event_handler)


class UnregisterEventHandler(Action):
    """Remove an event handler."""

    def __init__(self, event_handler: BaseEventHandler, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.event_handler = event_handler

    def execute(self, context: LaunchContext) -> None:
        context.unregister_event_handler(self.event_handler)


class TimerAction(Action):
    """Visit entities after `period` seconds."""

    def __init__(self, *, period: float | SomeSubstitutionsType, actions: Iterable[LaunchDescriptionEntity],
                 cancel_on_shutdown: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.period = normalize_to_list_of_substitutions(str(period) if isinstance(period, (int, float)) else period)
        self.actions = list(actions)
        self._cancel_on_shutdown = cancel_on_shutdown
        self._task: asyncio.Task | None = None

    def describe_conditional_sub_entities(self) -> list[tuple[str, Iterable[LaunchDescriptionEntity]]]:
        return [(f"After a time, by {self.describe()}", self.actions)]

    def get_asyncio_future(self) -> asyncio.Future | None:
        return self._task

    def cancel(self) -> None:
        """Never visit the entities."""
        if self._task is not None:
            self._task.cancel()

    def execute(self, context: LaunchContext) -> None:
        seconds = float(perform_substitutions(context, self.period))
        self._task = context.asyncio_loop.create_task(self._fire(seconds, context))
        if self._cancel_on_shutdown:
            context.register_event_handler(OnShutdown(on_shutdown=lambda event, context: self.cancel()))

    async def _fire(self, seconds: float, context: LaunchContext) -> None:
        await asyncio.sleep(seconds)
        context.emit_event_sync(IncludeLaunchDescription(LaunchDescription(self.actions)))
        context.emit_event_sync(ExecutionComplete(action=self))
