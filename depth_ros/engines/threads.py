"""How many threads small tensor operations get, and how a thread or a whole process gives way to others."""
from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_GROUP = Path('/proc/self/autogroup')


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread inside.

    Many small operations on threads that wait for each other are ten times slower as soon as another process wants a core, which on a robot is always.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def give_way(niceness: int) -> None:
    """Lower the priority of the calling thread alone, where the system has such a thing (Linux)."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except (AttributeError, OSError) as error:
        log.warning('the priority of a thread cannot be lowered: %s', error)


def give_way_as_session(niceness: int) -> None:
    """Lower the priority of this whole process if it leads a session, as nodes do that `ros2 launch` starts.

    Linux may share the processor out between sessions first (sched_autogroup): niceness of a thread then counts among the threads of its own node only.
    """
    try:
        if os.getsid(0) == os.getpid() and _GROUP.exists():
            _GROUP.write_text(str(niceness))
    except (AttributeError, OSError) as error:
        log.warning('the priority of this process cannot be lowered: %s', error)
