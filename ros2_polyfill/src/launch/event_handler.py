"""Answer events with entities or a callback."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from .event import Event
from .some_entities_type import SomeEntitiesType

if TYPE_CHECKING:
    from .launch_context import LaunchContext


class BaseEventHandler:
    """Matches events through `matcher`; unregisters itself after the first one where `handle_once` is set."""

    def __init__(self, *, matcher: Callable[[Event], bool], handle_once: bool = False) -> None:
        self._matcher = matcher
        self.handle_once = handle_once

    def matches(self, event: Event) -> bool:
        return self._matcher(event)

    def handle(self, event: Event, context: LaunchContext) -> SomeEntitiesType | None:
        context.extend_locals({"event": event})
        if self.handle_once:
            context.unregister_event_handler(self)
        return None


class EventHandler(BaseEventHandler):
    """Visits fixed entities when an event matches."""

    def __init__(self, *, matcher: Callable[[Event], bool], entities: SomeEntitiesType | None = None,
                 handle_once: bool = False) -> None:
        super().__init__(matcher=matcher, handle_once=handle_once)
        self._entities = entities

    @property
    def entities(self) -> Any:
        return self._entities

    def handle(self, event: Event, context: LaunchContext) -> SomeEntitiesType | None:
        super().handle(event, context)
        return self._entities


class CallbackOrEntities(BaseEventHandler):
    """Handler whose answer is entities, or a function of the event and the context that may return some."""

    def __init__(self, answer: Any, *, matcher: Callable[[Event], bool], handle_once: bool = False) -> None:
        super().__init__(matcher=matcher, handle_once=handle_once)
        self._answer = answer

    @property
    def entities(self) -> Any:
        return None if callable(self._answer) else self._answer

    def handle(self, event: Event, context: LaunchContext) -> SomeEntitiesType | None:
        super().handle(event, context)
        return self._answer(event, context) if callable(self._answer) else self._answer
