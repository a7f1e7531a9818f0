"""State of a running launch."""
from __future__ import annotations

import asyncio
import collections
import os
from typing import Any, Iterable, MutableMapping

from .event import Event
from .event_handler import BaseEventHandler
from .substitution import Substitution


class _Locals:
    """Names that the current event brings along, as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"context.locals has no '{name}' here")


class LaunchContext:
    """Launch configurations, environment, locals, event handlers and the queue of events."""

    def __init__(self, *, argv: Iterable[str] | None = None, noninteractive: bool = False) -> None:
        self.argv = list(argv or ())
        self.noninteractive = noninteractive
        self.launch_configurations: dict[str, Any] = {}
        self.asyncio_loop: asyncio.AbstractEventLoop | None = None
        self.is_shutdown = False
        self._configuration_stack: list[dict[str, Any]] = []
        self._environment_stack: list[dict[str, str]] = []
        self._locals: dict[str, Any] = {}
        self._locals_stack: list[dict[str, Any]] = []
        self._globals: dict[str, Any] = {}
        self._handlers: collections.deque[BaseEventHandler] = collections.deque()
        self._event_queue: asyncio.Queue[Event] = asyncio.Queue()
        self._completion_futures: list[asyncio.Future] = []

    @property
    def environment(self) -> MutableMapping[str, str]:
        """Environment that processes inherit: the one of this process."""
        return os.environ

    @property
    def locals(self) -> _Locals:
        return _Locals(self.get_locals_as_dict())

    def get_locals_as_dict(self) -> dict[str, Any]:
        return {**self._globals, **self._locals}

    def extend_locals(self, extensions: dict[str, Any]) -> None:
        """Add names that last until the current event is dealt with."""
        self._locals.update(extensions)

    def extend_globals(self, extensions: dict[str, Any]) -> None:
        """Add names that last as long as the launch."""
        self._globals.update(extensions)

    def _push_locals(self) -> None:
        self._locals_stack.append(dict(self._locals))

    def _pop_locals(self) -> None:
        self._locals = self._locals_stack.pop()

    def _push_launch_configurations(self) -> None:
        self._configuration_stack.append(dict(self.launch_configurations))

    def _pop_launch_configurations(self) -> None:
        self.launch_configurations = self._configuration_stack.pop()

    def _push_environment(self) -> None:
        self._environment_stack.append(dict(os.environ))

    def _pop_environment(self) -> None:
        saved = self._environment_stack.pop()
        for name in set(os.environ) - set(saved):
            del os.environ[name]
        os.environ.update(saved)

    def register_event_handler(self, event_handler: BaseEventHandler, append: bool = False) -> None:
        """Add a handler before the others, or behind them with `append`."""
        (self._handlers.append if append else self._handlers.appendleft)(event_handler)

    def unregister_event_handler(self, event_handler: BaseEventHandler) -> None:
        self._handlers.remove(event_handler)

    def would_handle_event(self, event: Event) -> bool:
        return any(handler.matches(event) for handler in self._handlers)

    def add_completion_future(self, future: asyncio.Future) -> None:
        """Keep the launch from being idle until the future is done."""
        self._completion_futures.append(future)

    def emit_event_sync(self, event: Event) -> None:
        """Queue an event; only from the thread of the event loop."""
        self._event_queue.put_nowait(event)

    async def emit_event(self, event: Event) -> None:
        await self._event_queue.put(event)

    def perform_substitution(self, sub: Substitution) -> str:
        return sub.perform(self)
