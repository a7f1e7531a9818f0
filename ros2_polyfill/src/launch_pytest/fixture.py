"""Fixtures that hold a running launch."""
from __future__ import annotations

import asyncio
import sys
from typing import Any, Callable, Iterator

import launch
import pytest

_SCOPES = ("function", "class", "module", "package", "session")


def finalize_launch_service(launch_service: launch.LaunchService, where: str, auto_shutdown: bool = True) -> None:
    """End the launch if it still runs, and fail if it failed."""
    task = getattr(launch_service, "_launch_pytest_task", None)
    if task is None:
        return
    launch_service._launch_pytest_task = None      # its return code is reported once
    if auto_shutdown:
        launch_service.shutdown(force_sync=True)
    code = task.get_loop().run_until_complete(task)
    assert code == 0, f"{where}: launch service failed when finishing, return code '{code}'"


def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of the launch and of coroutine tests."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    asyncio.set_event_loop(None)


def _launch_service(event_loop: asyncio.AbstractEventLoop) -> Iterator[launch.LaunchService]:
    """The launch service under test."""
    service = launch.LaunchService()
    yield service
    finalize_launch_service(service, "when tearing down launch_service fixture")


def _launch_context(launch_service: launch.LaunchService) -> launch.LaunchContext:
    """The context of the launch under test."""
    return launch_service.context


_MAKERS: dict[str, Callable[..., Any]] = {"event_loop": _event_loop, "launch_service": _launch_service, "launch_context": _launch_context}


def make_fixture(name: str, scope: str) -> Any:
    """One of the plugin's own fixtures, in a scope."""
    made = pytest.fixture(_MAKERS[name], scope=scope, name=name)
    made._launch_pytest_made_for = scope
    return made


def fixture(decorated: Callable[..., Any] | None = None, *, shutdown_when_idle: bool = True, auto_shutdown: bool = True, **kwargs: Any) -> Any:
    """As pytest.fixture, for a function that returns a LaunchDescription, or a sequence that begins with one.

    The launch runs as long as the fixture lives. `shutdown_when_idle`: it ends when nothing is left to do; `auto_shutdown`:
    it is ended after the tests. In a module with a wider scope, the plugin's own fixtures get that scope too.
    """
    scope = kwargs.get("scope", "function")
    if scope != "function":
        module = sys._getframe(1).f_globals
        for name in _MAKERS:
            made_for = getattr(module.get(name), "_launch_pytest_made_for", None)
            if name not in module or (made_for is not None and _SCOPES.index(made_for) < _SCOPES.index(scope)):
                module[name] = make_fixture(name, scope)

    def decorate(function: Callable[..., Any]) -> Any:
        function._launch_pytest_options = {"shutdown_when_idle": shutdown_when_idle, "auto_shutdown": auto_shutdown, "scope": scope}
        made = pytest.fixture(function, **kwargs)
        made._launch_pytest_options = function._launch_pytest_options
        return made

    return decorate if decorated is None else decorate(decorated)
