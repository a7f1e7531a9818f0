"""Events of processes."""
from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Callable

from polyfill_names import unprovided

from ...event import Event

if TYPE_CHECKING:
    from ...actions import ExecuteProcess

__all__ = ["ProcessExited", "ProcessIO", "ProcessStarted", "ProcessStderr", "ProcessStdout", "RunningProcessEvent",
           "ShutdownProcess", "SignalProcess"]
__getattr__ = unprovided(__name__)


class RunningProcessEvent(Event):
    """Something that a process did; `process_name` is unique in the launch."""

    name = "launch.events.process.RunningProcessEvent"

    def __init__(self, *, action: ExecuteProcess, name: str, cmd: list[str], cwd: str | None, env: dict[str, str] | None,
                 pid: int) -> None:
        self.action = action
        self.execute_process_action = action
        self.process_name = name
        self.cmd, self.cwd, self.env, self.pid = cmd, cwd, env, pid


class ProcessStarted(RunningProcessEvent):
    """A process has started."""

    name = "launch.events.process.ProcessStarted"


class ProcessExited(RunningProcessEvent):
    """A process has ended with `returncode` (minus the signal's number if one killed it)."""

    name = "launch.events.process.ProcessExited"

    def __init__(self, *, returncode: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.returncode = returncode


class ProcessIO(RunningProcessEvent):
    """A process wrote `text` (bytes) to the descriptor `fd`."""

    name = "launch.events.process.ProcessIO"

    def __init__(self, *, text: bytes, fd: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.text, self.fd = text, fd

    @property
    def from_stdout(self) -> bool:
        return self.fd == 1

    @property
    def from_stderr(self) -> bool:
        return self.fd == 2


class ProcessStdout(ProcessIO):
    """A process wrote to stdout."""

    name = "launch.events.process.ProcessStdout"

    def __init__(self, *, text: bytes, **kwargs) -> None:
        super().__init__(text=text, fd=1, **kwargs)


class ProcessStderr(ProcessIO):
    """A process wrote to stderr."""

    name = "launch.events.process.ProcessStderr"

    def __init__(self, *, text: bytes, **kwargs) -> None:
        super().__init__(text=text, fd=2, **kwargs)


class ShutdownProcess(Event):
    """The processes that `process_matcher` accepts are to end (SIGINT, then SIGTERM, then SIGKILL)."""

    name = "launch.events.process.ShutdownProcess"

    def __init__(self, *, process_matcher: Callable[[ExecuteProcess], bool]) -> None:
        self.process_matcher = process_matcher


class SignalProcess(ShutdownProcess):
    """The processes that `process_matcher` accepts are to get a signal."""

    name = "launch.events.process.SignalProcess"

    def __init__(self, *, signal_number: str | int | signal.Signals,
                 process_matcher: Callable[[ExecuteProcess], bool]) -> None:
        super().__init__(process_matcher=process_matcher)
        self.signal = signal.Signals[signal_number] if isinstance(signal_number, str) else signal.Signals(signal_number)

    @property
    def signal_name(self) -> str:
        return self.signal.name
