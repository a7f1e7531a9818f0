"""The end of a node's process: what it took from the machine it gives back."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros_support import LIMIT


def segments(pid: int | str) -> set[Path]:
    """The segments of Fast DDS' shared memory that a process has mapped, its own and those it reads; without the ports, which are everybody's."""
    mapped = {line.split()[-1] for line in Path(f'/proc/{pid}/maps').read_text().splitlines() if '/dev/shm/fastrtps_' in line}
    return {Path(path) for path in mapped if 'port' not in path}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_ended_leaves_no_shared_memory(world, number):
    heard, ours = world.record(DiagnosticArray, '/diagnostics'), segments('self')
    process = subprocess.Popen([sys.executable, '-c', 'from depth_ros.ros import executables; executables.sparse_depth()'],
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        world.until(lambda: heard, 'the node to be at work', LIMIT)
        taken = segments(process.pid) - ours
        if not taken:
            pytest.skip('this middleware takes no shared memory')
        process.send_signal(number)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
    world.forget()
    assert not [path for path in taken if path.exists()]
