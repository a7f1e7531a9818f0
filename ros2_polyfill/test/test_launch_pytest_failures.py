"""launch_pytest reports what goes wrong: each case is a run of pytest of its own."""
from __future__ import annotations

import re
import subprocess
import sys

import launch_pytest
import pytest

HEAD = '''
import sys
import launch, launch_pytest, pytest
from launch.actions import ExecuteProcess, OpaqueFunction

@launch_pytest.fixture
def good():
    return launch.LaunchDescription([ExecuteProcess(cmd=[sys.executable, '-c', 'import time; time.sleep(300)'])])

def fail(context):
    raise RuntimeError('broken on purpose')
'''

CASES = {
    'a failing part beside the launch': ('''
@pytest.mark.launch(fixture=good)
def test_it():
    assert 1 == 2
''', {'failed': 1}, 'assert 1 == 2'),
    'a failing part after the end': ('''
@pytest.mark.launch(fixture=good)
def test_it():
    yield
    assert 3 == 4
''', {'failed': 1}, 'assert 3 == 4'),
    'a generator that yields twice': ('''
@pytest.mark.launch(fixture=good)
def test_it():
    yield
    yield
''', {'failed': 1}, 'yielding once'),
    'a generator marked as a shutdown test': ('''
@pytest.mark.launch(fixture=good, shutdown=True)
def test_it():
    yield
''', {'failed': 1}, 'shutdown=True'),
    'a mark without a fixture': ('''
@pytest.mark.launch
def test_it():
    pass
''', {'skipped': 1}, 'fixture'),
    'a fixture without a description': ('''
@launch_pytest.fixture
def bad():
    return 3

@pytest.mark.launch(fixture=bad)
def test_it():
    pass
''', {'errors': 1}, 'launch description'),
}
if hasattr(launch_pytest, '__getattr__'):      # a full ROS 2 waits for ever for a launch that has failed
    CASES['a launch that fails'] = ('''
@launch_pytest.fixture
def bad():
    return launch.LaunchDescription([OpaqueFunction(function=fail)])

@pytest.mark.launch(fixture=bad)
def test_it():
    pass
''', {'errors': 1}, 'broken on purpose')


@pytest.mark.parametrize('source, outcome, text', CASES.values(), ids=list(CASES))
def test_failures_are_reported(tmp_path, request, source, outcome, text):
    (tmp_path / 'test_case.py').write_text(HEAD + source)
    plugin = [] if request.config.pluginmanager.has_plugin('launch_pytest') else ['-p', 'launch_pytest.plugin']
    run = subprocess.run([sys.executable, '-m', 'pytest', *plugin, '-p', 'no:cacheprovider', '--junit-xml=out.xml', '-rs', '-W', 'default', 'test_case.py'],
                         cwd=tmp_path, capture_output=True, text=True, timeout=120)
    counted = re.search(r'errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', (tmp_path / 'out.xml').read_text())
    expected = [outcome.get(kind, 0) for kind in ('errors', 'failed', 'skipped')]
    assert [int(number) for number in counted.groups()[:3]] == expected, run.stdout
    assert text in run.stdout
