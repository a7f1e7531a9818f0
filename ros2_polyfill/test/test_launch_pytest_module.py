"""What launch_pytest promises with one launch for a whole module."""
from __future__ import annotations

import sys

import launch
import launch_pytest
import pytest
from launch.actions import ExecuteProcess

STARTED: list[ExecuteProcess] = []
ORDER: list[str] = []


@launch_pytest.fixture(scope='module')
def shared():
    STARTED.append(ExecuteProcess(cmd=[sys.executable, '-c', 'import time; time.sleep(300)']))
    return launch.LaunchDescription([STARTED[-1]])


@pytest.mark.launch(fixture=shared, shutdown=True)
def test_after_the_end():
    ORDER.append('after')
    assert STARTED[0].return_code is not None


@pytest.mark.launch(fixture=shared)
def test_generator():
    ORDER.append('first part')
    assert STARTED[0].return_code is None
    yield
    ORDER.append('second part')
    assert STARTED[0].return_code is not None


@pytest.mark.launch(fixture=shared)
async def test_coroutine(launch_context):
    ORDER.append('coroutine')
    assert STARTED[0].return_code is None and not launch_context.is_shutdown


def test_that_all_shared_one_launch_in_the_right_order():
    assert len(STARTED) == 1
    assert set(ORDER[:2]) == {'first part', 'coroutine'} and set(ORDER[2:]) == {'after', 'second part'}
