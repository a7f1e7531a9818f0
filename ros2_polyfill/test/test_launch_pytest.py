"""What launch_pytest promises with a launch for each test."""
from __future__ import annotations

import sys

import launch
import launch_pytest
import pytest
from launch.actions import ExecuteProcess, TimerAction
from launch_pytest.actions import ReadyToTest
from launch_pytest.tools import process as process_tools


@pytest.fixture
def greeter():
    source = 'import sys, time; print("hello", flush=True); print("careful", file=sys.stderr, flush=True); time.sleep(300)'
    return ExecuteProcess(cmd=[sys.executable, '-c', source], cached_output=True)


@launch_pytest.fixture
def description(greeter):
    return launch.LaunchDescription([greeter, ReadyToTest()])


def greets(text):
    assert 'hello' in text


@pytest.mark.launch(fixture=description)
def test_a_plain_test_runs_beside_the_launch(greeter, launch_context):
    process_tools.assert_output_sync(launch_context, greeter, greets, timeout=30)
    assert process_tools.wait_for_stderr_sync(launch_context, greeter, lambda text: 'careful' in text, timeout=30)
    assert greeter.return_code is None


@pytest.mark.launch(fixture=description)
async def test_a_coroutine_runs_in_the_loop_of_the_launch(greeter, launch_context):
    await process_tools.assert_output(launch_context, greeter, greets, timeout=30)
    assert greeter.return_code is None


@pytest.mark.launch(fixture=description)
def test_what_never_comes_is_waited_for_no_longer_than_asked(greeter, launch_context):
    assert not process_tools.wait_for_output_sync(launch_context, greeter, lambda text: 'goodbye' in text, timeout=0.05)
    with pytest.raises(AssertionError, match='never said'):
        def says_goodbye(text):
            assert 'goodbye' in text, 'never said'
        process_tools.assert_output_sync(launch_context, greeter, says_goodbye, timeout=0.05)


@pytest.mark.launch(fixture=description)
def test_a_generator_goes_on_after_the_end(greeter, launch_context):
    process_tools.assert_output_sync(launch_context, greeter, greets, timeout=30)
    yield
    assert greeter.return_code is not None and 'hello' in greeter.get_stdout()


@pytest.mark.launch(fixture=description)
async def test_an_async_generator_goes_on_after_the_end(greeter, launch_context):
    await process_tools.assert_output(launch_context, greeter, greets, timeout=30)
    yield
    assert greeter.return_code is not None


@pytest.mark.launch(fixture=description, shutdown=True)
def test_a_shutdown_test_runs_after_the_end(greeter):
    assert greeter.return_code is not None


@pytest.fixture
def short():
    return ExecuteProcess(cmd=[sys.executable, '-c', 'raise SystemExit(4)'])


@launch_pytest.fixture
def late(short):
    """Ready only when a timer says so; what else belongs to it follows the description."""
    return launch.LaunchDescription([TimerAction(period=0.2, actions=[ReadyToTest(), short])]), {'extra': 1}


@pytest.mark.launch(fixture=late)
def test_readiness_and_exit_are_waited_for(late, short, launch_context):
    process_tools.wait_for_exit_sync(launch_context, short, timeout=30)
    assert late[1] == {'extra': 1}
    yield
    assert short.return_code == 4
