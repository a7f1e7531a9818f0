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


def take_what_is_left() -> None:
    """Let the calling thread run where a core has nothing else to do, and make way the moment that it has (SCHED_IDLE, Linux).

    The scheduler counts a core with such threads alone as free, so whoever wakes up goes there; beside a thread that is merely nice it would queue behind its equals.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:
        log.warning('a thread cannot be made to wait for idle cores: %s', error)


def give_way_as_session(niceness: int) -> None:
    """Lower the priority of this whole process if it leads a session, as nodes do that `ros2 launch` starts.

    Linux may share the processor out between sessions first (sched_autogroup): niceness of a thread then counts among the threads of its own node only.
    """
    try:
        if os.getsid(0) == os.getpid() and _GROUP.exists():
            _GROUP.write_text(str(niceness))
    except (AttributeError, OSError) as error:
        log.warning('the priority of this process cannot be lowered: %s', error)
