"""The end of a node's process: what it took from the machine it gives back."""

from __future__ import annotations

import ctypes
import os
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


@pytest.mark.skipif(sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'mallopt'), reason='needs glibc')
@pytest.mark.parametrize(('set_by_user', 'keeps'), [({}, True), ({'MALLOC_TRIM_THRESHOLD_': '131072'}, False)])
def test_the_memory_of_an_image_is_kept_for_the_next_unless_the_user_sets_that_otherwise(set_by_user, keeps):
    """Page faults of images that come and go tell."""
    words = 'import numpy as np, resource; from depth_ros.ros.executables import keep_freed_memory; kept = keep_freed_memory()\n' \
            'for _ in range(5): np.ones(5_000_000, np.uint8)\n' \
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n' \
            'for _ in range(20): np.ones(5_000_000, np.uint8)\n' \
            'print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)'
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    kept, faults = subprocess.run([sys.executable, '-c', words], capture_output=True, text=True, env=clean | set_by_user, check=True).stdout.split()
    assert (kept == 'True') is keeps
    if keeps:
        assert int(faults) < 1000       # of 20 x 1220 pages
