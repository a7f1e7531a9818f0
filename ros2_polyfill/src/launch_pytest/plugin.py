"""pytest plugin: runs tests marked with `@pytest.mark.launch(fixture=...)` beside the launch or after its end.

A plain test runs in a thread while the launch has the main one; a coroutine runs in the launch's event loop. With
`shutdown=True` a test runs after the launch has ended. A generator runs up to its `yield` beside the launch and on from there
after the end; where the fixture is shared by several tests, the second part is an item of its own, behind all first parts.
"""
from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any, Callable, Iterable, Iterator

import launch
import pytest

from .actions import ReadyToTest
from .fixture import finalize_launch_service, make_fixture

event_loop = make_fixture("event_loop", "function")
launch_service = make_fixture("launch_service", "function")
launch_context = make_fixture("launch_context", "function")


class LaunchTestWarning(pytest.PytestWarning):
    """A launch test is marked wrongly."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "launch(fixture, shutdown=False): run the test beside a launch, or after its end")


# the launch fixture

@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """Start the launch that a launch fixture describes, and wait until it is ready."""
    options = getattr(fixturedef.func, "_launch_pytest_options", None)
    if options is None:
        yield
        return
    where = f"when running launch_pytest fixture '{fixturedef.func.__name__}'"
    service = request.getfixturevalue("launch_service")
    loop = request.getfixturevalue("event_loop")
    outcome = yield
    description = _description(outcome.get_result(), where)
    asyncio.set_event_loop(loop)
    service.include_launch_description(description)
    ready = _ready_action(description)
    fixturedef.addfinalizer(functools.partial(finalize_launch_service, service, where, options["auto_shutdown"]))
    try:
        loop.run_until_complete(_start(service, ready, options["shutdown_when_idle"], where))
    except BaseException as error:
        outcome.force_exception(error)


def _description(result: Any, where: str) -> launch.LaunchDescription:
    first = result[0] if isinstance(result, (list, tuple)) and result else result
    assert isinstance(first, launch.LaunchDescription), \
        f"{where}: return value must be either a launch description or a sequence which first item is a launch description"
    return first


def _find_ready(entities: Iterable[launch.LaunchDescriptionEntity]) -> Iterator[ReadyToTest]:
    for entity in entities:
        if isinstance(entity, ReadyToTest):
            yield entity
        yield from _find_ready(entity.describe_sub_entities())
        for _, group in entity.describe_conditional_sub_entities():
            yield from _find_ready(group)


def _ready_action(description: launch.LaunchDescription) -> ReadyToTest:
    """The description's ReadyToTest action; one is appended where there is none."""
    found = list(_find_ready(description.entities))
    if len(found) > 1:
        raise RuntimeError("launch_pytest fixtures must return a LaunchDescription containing only one ReadyToTest action")
    if not found:
        found = [ReadyToTest()]
        description.add_action(found[0])
    return found[0]


async def _start(service: launch.LaunchService, ready: ReadyToTest, shutdown_when_idle: bool, where: str) -> None:
    """Run the launch up to its ReadyToTest action."""
    event = asyncio.Event()
    ready._add_callback(event.set)
    task = service._launch_pytest_task = asyncio.ensure_future(service.run_async(shutdown_when_idle=shutdown_when_idle))
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    if not event.is_set():
        waiting.cancel()
        service._launch_pytest_task = None      # reported here
        raise RuntimeError(f"{where}: the launch ended before it was ready to test, return code '{task.result()}'")


# collection

def _mark(item: Any) -> pytest.Mark | None:
    return item.get_closest_marker("launch")


def _fixture_of(item: Any) -> Any:
    mark = _mark(item)
    return None if mark is None else mark.kwargs.get("fixture")


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> list[pytest.Item] | None:
    """Give launch tests their fixtures; make a second item of generators that share a launch."""
    if not inspect.isfunction(obj) or not collector.funcnamefilter(name):
        return None
    probe = pytest.Function.from_parent(collector, name=name)
    if _mark(probe) is None:
        return None
    fixture = _fixture_of(probe)
    if fixture is None:
        message = '"fixture" keyword argument is required in a pytest.mark.launch() decorator'
        probe.warn(LaunchTestWarning(message))
        probe.add_marker(pytest.mark.skip(message))
        return [probe]
    pytest.mark.usefixtures(fixture.__name__, "launch_service", "event_loop")(obj)
    items = list(collector._genfunctions(name, obj))
    if not _is_generator(obj) or fixture._launch_pytest_options["scope"] == "function":
        for item in items:
            item._launch_pytest_shutdown = bool(_mark(item).kwargs.get("shutdown", False))
        return items
    seconds = list(collector._genfunctions(name, obj))
    for first, second in zip(items, seconds):
        first._launch_pytest_second, second._launch_pytest_first = second, first
        first._launch_pytest_shutdown, second._launch_pytest_shutdown = False, True
        second.name += "[shutdown_test]"
        second._nodeid += "[shutdown_test]"
    return items + seconds


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what runs after the end of a shared launch behind what runs beside it."""
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        fixture = _fixture_of(item)
        if fixture is not None and fixture._launch_pytest_options["scope"] != "function":
            parameters = getattr(getattr(item, "callspec", None), "params", {}).get(fixture.__name__)
            groups.setdefault((id(fixture), item.module, repr(parameters)), []).append(index)
    for places in groups.values():
        ordered = sorted((items[place] for place in places), key=lambda item: item._launch_pytest_shutdown)
        for place, item in zip(places, ordered):
            items[place] = item


# execution

@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Run a launch test in the right thread and on the right side of the end."""
    fixture = _fixture_of(pyfuncitem)
    if fixture is None:
        yield
        return
    function = pyfuncitem.obj
    if _is_generator(function) and _mark(pyfuncitem).kwargs.get("shutdown", False):
        pytest.fail("generator or async generator based launch test items cannot be marked with shutdown=True")
    end = functools.partial(finalize_launch_service, pyfuncitem.funcargs["launch_service"], f"when running test {function.__name__}",
                            fixture._launch_pytest_options["auto_shutdown"])
    pyfuncitem.obj = functools.wraps(function)(functools.partial(_run, pyfuncitem, function, end))
    yield
    pyfuncitem.obj = function


def _run(item: pytest.Function, function: Callable[..., Any], end: Callable[[], None], **arguments: Any) -> None:
    loop = item.funcargs["event_loop"]
    if not _is_generator(function):
        if item._launch_pytest_shutdown:
            end()
        _step(loop, function, **arguments)
        return
    first = getattr(item, "_launch_pytest_first", None)
    if first is None:
        steps = function(**arguments)
        _advance(loop, steps)
        item._launch_pytest_steps = steps
        if hasattr(item, "_launch_pytest_second"):
            return
    else:
        steps = getattr(first, "_launch_pytest_steps", None)
        if steps is None:
            pytest.skip("shutdown test skipped because the test failed before")
    end()
    if _advance(loop, steps):
        pytest.fail("launch tests using a generator function must stop iteration after yielding once", pytrace=False)


def _step(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Run a coroutine in the loop, a plain function in a thread while the loop runs."""
    if inspect.iscoroutinefunction(function):
        return loop.run_until_complete(function(*args, **arguments))
    return loop.run_until_complete(loop.run_in_executor(None, functools.partial(function, *args, **arguments)))


def _advance(loop: asyncio.AbstractEventLoop, steps: Any) -> bool:
    """Run a generator to its next yield; False where it ended instead."""
    done = object()
    if inspect.isasyncgen(steps):
        async def proceed() -> Any:
            return await anext(steps, done)
        return _step(loop, proceed) is not done
    return _step(loop, next, steps, done) is not done
