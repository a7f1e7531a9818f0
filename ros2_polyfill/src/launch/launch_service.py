"""Run launch descriptions."""
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import traceback
from concurrent.futures import Future
from typing import Any, Iterable, Iterator

from . import logging
from .event import Event
from .event_handlers import OnIncludeLaunchDescription, OnShutdown
from .events import IncludeLaunchDescription, Shutdown
from .launch_context import LaunchContext
from .launch_description import LaunchDescription
from .launch_description_entity import LaunchDescriptionEntity
from .substitutions import SubstitutionFailure
from .utilities import normalize_to_list_of_entities, visit_all_entities_and_collect_futures

_logger = logging.get_logger("launch")


def _explain(error: BaseException) -> str:
    """The error's text; for one raised by a launch file itself, with its kind and place."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(os.path.dirname(__file__))]
    user = [frame for frame in frames if frame.filename.endswith(".py") and "site-packages" not in frame.filename]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"
    if isinstance(error, (RuntimeError, SubstitutionFailure)) or not user or user[-1] is not frames[-1]:
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} ({user[-1].filename}, line {user[-1].lineno})"


class LaunchService:
    """Visits launch descriptions and deals with events until it is told to shut down or nothing is left to do."""

    def __init__(self, *, argv: Iterable[str] | None = None, noninteractive: bool = False, debug: bool = False) -> None:
        self._debug = debug
        self._context = LaunchContext(argv=argv, noninteractive=noninteractive)
        self._context.register_event_handler(OnIncludeLaunchDescription())
        self._context.register_event_handler(OnShutdown(on_shutdown=self._on_shutdown))
        self._futures: list[tuple[LaunchDescriptionEntity, asyncio.Future]] = []
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None
        self._shutdown_asked = self._shutting_down = False
        self._return_code = 0

    @property
    def context(self) -> LaunchContext:
        return self._context

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of the running service, None before and after."""
        return self._loop

    @property
    def task(self) -> asyncio.Task | None:
        """The task of `run_async` while it runs."""
        return self._task

    def emit_event(self, event: Event) -> Future | None:
        """Queue an event, from any thread."""
        with self._lock:
            if self._loop is not None:
                return asyncio.run_coroutine_threadsafe(self._context.emit_event(event), self._loop)
            self._context.emit_event_sync(event)
            return None

    def include_launch_description(self, launch_description: LaunchDescription) -> None:
        """Have a description visited, from any thread, now or when the service starts."""
        self.emit_event(IncludeLaunchDescription(launch_description))

    def shutdown(self, force_sync: bool = False) -> None:
        """Ask the service to end, from any thread; nothing happens where it does not run."""
        with self._lock:
            if self._loop is not None:
                self._shutdown("LaunchService.shutdown() called", force_sync=force_sync)

    def run(self, *, shutdown_when_idle: bool = True) -> int:
        """Run to the end; 0, or 1 where the launch itself failed."""
        return asyncio.run(self.run_async(shutdown_when_idle=shutdown_when_idle))

    async def run_async(self, *, shutdown_when_idle: bool = True) -> int:
        """As `run`, within a running event loop."""
        with self._lock:
            if self._loop is not None:
                raise RuntimeError("LaunchService.run_async() is already running")
            self._loop = self._context.asyncio_loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
        self._shutdown_asked, self._shutting_down, self._return_code = False, False, 0
        try:
            with self._signals():
                await self._until_done(shutdown_when_idle)
        finally:
            with self._lock:
                self._loop = self._task = self._context.asyncio_loop = None
        return self._return_code

    async def _until_done(self, shutdown_when_idle: bool) -> None:
        """Deal with events and wait for entities until the service is both idle and shut down."""
        next_event: asyncio.Task | None = None
        try:
            while True:
                pending = self._prune()
                idle = not pending and self._context._event_queue.empty() and (next_event is None or not next_event.done())
                if idle and self._shutting_down:
                    return
                if idle and shutdown_when_idle and not self._shutdown_asked:
                    self._shutdown("idle", force_sync=True)
                if next_event is None:
                    next_event = asyncio.ensure_future(self._context._event_queue.get())
                await asyncio.wait([next_event, *pending], return_when=asyncio.FIRST_COMPLETED)
                if next_event.done():
                    event, next_event = next_event.result(), None
                    self._guarded(self._process, event)
        finally:
            if next_event is not None:
                next_event.cancel()

    def _prune(self) -> list[asyncio.Future]:
        """Forget finished futures, report those that failed, return the others."""
        for _, future in self._futures:
            if future.done() and not future.cancelled() and future.exception() is not None:
                self._fail(future.exception())
        self._futures = [pair for pair in self._futures if not pair[1].done()]
        completions = self._context._completion_futures
        completions[:] = [future for future in completions if not future.done()]
        return [future for _, future in self._futures] + completions

    def _process(self, event: Event) -> None:
        for handler in tuple(self._context._handlers):
            if not handler.matches(event):
                continue
            self._context._push_locals()
            try:
                entities = normalize_to_list_of_entities(handler.handle(event, self._context))
                for entity in entities:
                    if entity is None:
                        continue
                    if not isinstance(entity, LaunchDescriptionEntity):
                        raise RuntimeError(f"expected a LaunchDescriptionEntity from an event handler, got {entity!r}")
                    self._futures += visit_all_entities_and_collect_futures(entity, self._context)
            finally:
                self._context._pop_locals()

    def _guarded(self, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:     # whatever a launch file raises ends the launch, with its children stopped first
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        trace = "".join(traceback.format_exception(error))
        _logger.debug(trace)
        hint = "" if self._debug else " (see debug for traceback)"
        message = f"Caught exception in launch{hint}: {_explain(error)}"
        _logger.error(message)
        self._return_code = 1
        self._shutdown(message, force_sync=True)

    def _on_shutdown(self, event: Shutdown, context: LaunchContext) -> None:
        self._shutdown_asked = self._shutting_down = True
        context.is_shutdown = True

    def _shutdown(self, reason: str, *, due_to_sigint: bool = False, force_sync: bool = False) -> None:
        if not self._shutdown_asked:
            event = Shutdown(reason=reason, due_to_sigint=due_to_sigint)
            if force_sync:
                self._context.emit_event_sync(event)
                self._loop.call_soon_threadsafe(lambda: None)      # wake the loop, should this be another thread
            else:
                self.emit_event(event)
        self._shutdown_asked = True
        self._context.is_shutdown = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM, SIGQUIT and SIGHUP.

        Installing a handler also undoes an inherited "ignore", which children would inherit in turn.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
        saved = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            self._loop.add_signal_handler(number, self._on_signal, number)
        loop = self._loop
        try:
            yield
        finally:
            for number, handler in saved.items():
                loop.remove_signal_handler(number)
                if handler is not None:
                    signal.signal(number, handler)

    def _on_signal(self, number: signal.Signals) -> None:
        what = "user interrupted with ctrl-c (SIGINT)" if number == signal.SIGINT else f"received {number.name}"
        if self._shutdown_asked:
            _logger.warning(f"{what} again, ignoring...")
            return
        _logger.warning(what)
        self._shutdown("ctrl-c (SIGINT)" if number == signal.SIGINT else number.name,
                       due_to_sigint=number == signal.SIGINT, force_sync=True)
