"""Wait for processes and for what they write.

Each helper exists for coroutines and, with `_sync`, for the threads that plain tests run in. `wait_...` return whether it
happened within `timeout` seconds; `assert_...` raise the validator's AssertionError if it did not.
"""
from __future__ import annotations

import asyncio
import time
from typing import Any, Callable

from launch import BaseEventHandler, LaunchContext
from launch.actions import ExecuteProcess
from launch.events.process import ProcessExited, ProcessIO, ProcessStarted
from polyfill_names import unprovided

__all__ = [f"{verb}{suffix}" for suffix in ("", "_sync") for verb in (
    "assert_output", "assert_stderr", "wait_for_exit", "wait_for_output", "wait_for_start", "wait_for_stderr")]
__getattr__ = unprovided(__name__)

_Validator = Callable[[str], Any]


async def _wait(context: LaunchContext, process: ExecuteProcess, event_class: type, condition: Callable[[], bool],
                timeout: float | None) -> bool:
    """Evaluate the condition now and after each of the process's events, until it holds or the time is over."""
    happened = asyncio.Event()
    handler = BaseEventHandler(matcher=lambda event: isinstance(event, event_class) and event.action is process and happened.set())
    deadline = None if timeout is None else time.monotonic() + timeout
    context.register_event_handler(handler, append=True)
    try:
        while not condition():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0.0:
                return False
            try:
                await asyncio.wait_for(happened.wait(), left)
            except asyncio.TimeoutError:
                return condition()
            happened.clear()
        return True
    finally:
        context.unregister_event_handler(handler)


def _sync(waiting: Callable[..., Any], context: LaunchContext, *arguments: Any) -> Any:
    """Wait from another thread than the launch's; once the launch is over, nothing is left to wait for."""
    loop = context.asyncio_loop
    if loop is None:
        return asyncio.run(waiting(context, *arguments[:-1], 0.0))
    return asyncio.run_coroutine_threadsafe(waiting(context, *arguments), loop).result()


def _passes(validate: _Validator, text: Callable[[], str]) -> bool:
    """Whether a validator that asserts accepts the text."""
    try:
        validate(text())
    except AssertionError:
        return False
    return True


async def _assert(context: LaunchContext, process: ExecuteProcess, text: Callable[[], str], validate: _Validator, timeout: float | None) -> None:
    if not await _wait(context, process, ProcessIO, lambda: _passes(validate, text), timeout):
        validate(text())      # raises, and pytest shows what it compared


async def wait_for_output(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                          timeout: float | None = None) -> bool:
    """Wait until the validator, which returns a truth value, accepts all of stdout so far."""
    return await _wait(launch_context, execute_process_action, ProcessIO,
                       lambda: bool(validate_output(execute_process_action.get_stdout())), timeout)


async def wait_for_stderr(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                          timeout: float | None = None) -> bool:
    """Wait until the validator, which returns a truth value, accepts all of stderr so far."""
    return await _wait(launch_context, execute_process_action, ProcessIO,
                       lambda: bool(validate_output(execute_process_action.get_stderr())), timeout)


async def assert_output(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                        timeout: float | None = None) -> None:
    """Wait until the validator, which asserts, accepts all of stdout so far."""
    await _assert(launch_context, execute_process_action, execute_process_action.get_stdout, validate_output, timeout)


async def assert_stderr(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                        timeout: float | None = None) -> None:
    """Wait until the validator, which asserts, accepts all of stderr so far."""
    await _assert(launch_context, execute_process_action, execute_process_action.get_stderr, validate_output, timeout)


async def wait_for_start(launch_context: LaunchContext, execute_process_action: ExecuteProcess, timeout: float | None = None) -> bool:
    """Wait until the process has started."""
    details = lambda: execute_process_action.process_details      # noqa: E731
    return await _wait(launch_context, execute_process_action, ProcessStarted, lambda: "pid" in (details() or ()), timeout)


async def wait_for_exit(launch_context: LaunchContext, execute_process_action: ExecuteProcess, timeout: float | None = None) -> bool:
    """Wait until the process has ended."""
    return await _wait(launch_context, execute_process_action, ProcessExited,
                       lambda: execute_process_action.return_code is not None, timeout)


def wait_for_output_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                         timeout: float | None = None) -> bool:
    return _sync(wait_for_output, launch_context, execute_process_action, validate_output, timeout)


def wait_for_stderr_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                         timeout: float | None = None) -> bool:
    return _sync(wait_for_stderr, launch_context, execute_process_action, validate_output, timeout)


def assert_output_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                       timeout: float | None = None) -> None:
    _sync(assert_output, launch_context, execute_process_action, validate_output, timeout)


def assert_stderr_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, validate_output: _Validator,
                       timeout: float | None = None) -> None:
    _sync(assert_stderr, launch_context, execute_process_action, validate_output, timeout)


def wait_for_start_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, timeout: float | None = None) -> bool:
    return _sync(wait_for_start, launch_context, execute_process_action, timeout)


def wait_for_exit_sync(launch_context: LaunchContext, execute_process_action: ExecuteProcess, timeout: float | None = None) -> bool:
    return _sync(wait_for_exit, launch_context, execute_process_action, timeout)
