"""Run a process, log its lines, end it with the launch."""
from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import shlex
import signal
from typing import Any, Iterable, Mapping

from .. import logging
from ..action import Action
from ..conditions import evaluate_condition_expression
from ..event import Event
from ..event_handler import BaseEventHandler
from ..event_handlers import OnProcessExit, OnShutdown
from ..events import Shutdown
from ..events.process import ProcessExited, ProcessStarted, ProcessStderr, ProcessStdout, ShutdownProcess, SignalProcess
from ..launch_context import LaunchContext
from ..launch_description_entity import LaunchDescriptionEntity
from ..some_substitutions_type import SomeSubstitutionsType
from ..substitution import Substitution
from ..substitutions import LaunchConfiguration, TextSubstitution
from ..utilities import normalize_to_list_of_entities, normalize_to_list_of_substitutions, perform_substitutions
from .process_stream import OutputStream

_numbers = itertools.count(1)      # names are unique across all launches of this interpreter, as `talker-1`


class ExecuteProcess(Action):
    """Start a command; end it on shutdown with SIGINT, then SIGTERM, then SIGKILL.

    Every process leads a session of its own, so that a Ctrl-C in the terminal reaches the launch alone, which passes it
    on: each process gets exactly one SIGINT however the launch was interrupted.
    """

    def __init__(
        self, *, cmd: Iterable[SomeSubstitutionsType], name: SomeSubstitutionsType | None = None,
        prefix: SomeSubstitutionsType | None = None, cwd: SomeSubstitutionsType | None = None,
        env: Mapping[SomeSubstitutionsType, SomeSubstitutionsType] | None = None,
        additional_env: Mapping[SomeSubstitutionsType, SomeSubstitutionsType] | None = None,
        shell: bool = False,
        sigterm_timeout: SomeSubstitutionsType = LaunchConfiguration("sigterm_timeout", default=5),
        sigkill_timeout: SomeSubstitutionsType = LaunchConfiguration("sigkill_timeout", default=5),
        emulate_tty: bool | SomeSubstitutionsType = False, output: SomeSubstitutionsType | dict[str, Any] = "log",
        output_format: str = "[{this._details[name]}] {line}", cached_output: bool = False, log_cmd: bool = False,
        on_exit: Any = None, respawn: bool | SomeSubstitutionsType = False, respawn_delay: float | None = None,
        respawn_max_retries: int = -1, **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._cmd = [normalize_to_list_of_substitutions(part) for part in cmd]
        self._name = None if name is None else normalize_to_list_of_substitutions(name)
        self._prefix = normalize_to_list_of_substitutions(LaunchConfiguration("launch-prefix", default="") if prefix is None else prefix)
        self._cwd = None if cwd is None else normalize_to_list_of_substitutions(cwd)
        self._env, self._additional_env = env, additional_env
        self._shell = shell
        self._timeouts = [(signal.SIGTERM, sigterm_timeout), (signal.SIGKILL, sigkill_timeout)]
        self._emulate_tty = emulate_tty
        self._output, self._output_format, self._cached = output, output_format, cached_output
        self._log_cmd = log_cmd
        self._on_exit = on_exit
        self._respawn, self._respawn_delay, self._retries_left = respawn, respawn_delay, respawn_max_retries
        self._details: dict[str, Any] | None = None
        self._return_code: int | None = None
        self._texts = {1: io.StringIO(), 2: io.StringIO()}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task | None = None
        self._ending: asyncio.Event | None = None

    # what others may read

    @property
    def cmd(self) -> list[list[Substitution]]:
        """The command: as substitutions before, as constant ones after the process has started."""
        return self._cmd if self._details is None else [[TextSubstitution(text=part)] for part in self._details["cmd"]]

    @property
    def process_details(self) -> dict[str, Any] | None:
        """name, cmd, cwd, env, pid (once there is one) and action; None before the action is executed."""
        return self._details

    @property
    def return_code(self) -> int | None:
        """Exit status, minus the signal's number if one killed it; None while it runs."""
        return self._return_code

    @property
    def output(self) -> Any:
        return self._output

    @property
    def shell(self) -> bool:
        return self._shell

    def get_stdout(self) -> str:
        """All of stdout so far; needs `cached_output`."""
        return self._cached_text(1)

    def get_stderr(self) -> str:
        """All of stderr so far; needs `cached_output`."""
        return self._cached_text(2)

    def _cached_text(self, fd: int) -> str:
        if not self._cached:
            raise RuntimeError("cached output must be true to be able to get the output of a process")
        return self._texts[fd].getvalue()

    def get_asyncio_future(self) -> asyncio.Future | None:
        return self._task

    def get_sub_entities(self) -> list[LaunchDescriptionEntity]:
        return [] if self._on_exit is None or callable(self._on_exit) else normalize_to_list_of_entities(self._on_exit)

    def describe(self) -> str:
        return f"{type(self).__name__}({' '.join(''.join(part.describe() for part in word) for word in self._cmd)})"

    def describe_sub_entities(self) -> list[LaunchDescriptionEntity]:
        return []

    def describe_conditional_sub_entities(self) -> list[tuple[str, Iterable[LaunchDescriptionEntity]]]:
        entities = self.get_sub_entities()
        return [(f"On exit of {self.describe()}", entities)] if entities else []

    # the life of the process

    def execute(self, context: LaunchContext) -> None:
        if self._task is not None:
            raise RuntimeError("ExecuteProcess action executed more than once")
        if context.is_shutdown:
            return None
        self._prepare(context)
        self._ending = asyncio.Event()
        handlers = [OnShutdown(on_shutdown=self._on_shutdown), _OnRequest(self)]
        for handler in handlers:
            context.register_event_handler(handler)
        if self._on_exit is not None:
            context.register_event_handler(OnProcessExit(target_action=self, on_exit=self._on_exit))
        self._task = context.asyncio_loop.create_task(self._live(context, handlers))
        return None

    def _prepare(self, context: LaunchContext) -> None:
        """Evaluate all substitutions, so that a mistake in them ends the launch before anything starts."""
        prefix = shlex.split(perform_substitutions(context, self._prefix))
        cmd = prefix + [perform_substitutions(context, word) for word in self._cmd]
        base = os.path.basename(cmd[0] if not self._shell or len(cmd) > 1 else cmd[0].split()[0])
        name = base if self._name is None else perform_substitutions(context, self._name)
        self._details = {
            "name": f"{name}-{next(_numbers)}", "cmd": cmd, "action": self,
            "cwd": None if self._cwd is None else perform_substitutions(context, self._cwd),
            "env": self._environment(context),
        }
        self._logger = logging.get_logger(self._details["name"])
        output = self._output
        if not isinstance(output, dict):
            output = perform_substitutions(context, normalize_to_list_of_substitutions(output))
        output = os.environ.get("OVERRIDE_LAUNCH_PROCESS_OUTPUT", output)
        self._line_loggers = dict(zip((1, 2), logging.get_output_loggers(self._details["name"], output)))
        self._seconds = [(number, float(perform_substitutions(context, normalize_to_list_of_substitutions(timeout))))
                         for number, timeout in self._timeouts]
        self._tty = self._truth(context, self._emulate_tty)
        self._respawns = self._truth(context, self._respawn)

    def _environment(self, context: LaunchContext) -> dict[str, str]:
        environment = dict(context.environment) if self._env is None else {}
        for name, value in [*(self._env or {}).items(), *(self._additional_env or {}).items()]:
            key = perform_substitutions(context, normalize_to_list_of_substitutions(name))
            environment[key] = perform_substitutions(context, normalize_to_list_of_substitutions(value))
        return environment

    @staticmethod
    def _truth(context: LaunchContext, value: bool | SomeSubstitutionsType) -> bool:
        return value if isinstance(value, bool) else evaluate_condition_expression(context, value)

    async def _live(self, context: LaunchContext, handlers: list[BaseEventHandler]) -> None:
        try:
            while await self._run_once(context) and self._may_respawn(context):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), self._respawn_delay or 0.0)
                if self._ending.is_set() or context.is_shutdown:
                    break
                self._retries_left -= 1
        finally:
            for handler in handlers:
                context.unregister_event_handler(handler)

    def _may_respawn(self, context: LaunchContext) -> bool:
        return self._respawns and self._retries_left != 0 and not self._ending.is_set() and not context.is_shutdown

    async def _run_once(self, context: LaunchContext) -> bool:
        """Start the process and wait for its end; False where it could not start."""
        details = self._details
        if self._log_cmd:
            self._logger.info(f"process details: cmd={details['cmd']}, cwd={details['cwd']}")
        streams = [OutputStream(fd, self._tty, self._on_output, context) for fd in (1, 2)]
        options = {"cwd": details["cwd"], "env": details["env"], "start_new_session": True, "stdin": asyncio.subprocess.DEVNULL,
                   "stdout": streams[0].write_end, "stderr": streams[1].write_end}
        try:
            if self._shell:
                self._process = await asyncio.create_subprocess_shell(" ".join(details["cmd"]), **options)
            else:
                self._process = await asyncio.create_subprocess_exec(*details["cmd"], **options)
        except OSError as error:
            self._logger.error(f"exception occurred while executing process: {error}")
            for stream in streams:
                stream.finish()
            return False
        details["pid"] = self._process.pid
        self._return_code = None
        for stream in streams:
            stream.listen()
        self._logger.info(f"process started with pid [{self._process.pid}]")
        context.emit_event_sync(ProcessStarted(**self._event_arguments()))
        await self._wait_for_end()
        for stream in streams:
            stream.finish()
        self._report_end(context)
        return True

    async def _wait_for_end(self) -> None:
        """Wait for the process; once its end is asked for, escalate from SIGINT to SIGKILL."""
        end = asyncio.ensure_future(self._process.wait())
        asked = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait([end, asked], return_when=asyncio.FIRST_COMPLETED)
            last = signal.SIGINT
            if not end.done():
                self._logger.info(f"sending signal 'SIGINT' to process[{self._details['name']}]")
                self._signal(signal.SIGINT)
            for number, seconds in self._seconds:
                await asyncio.wait([end], timeout=seconds)
                if end.done():
                    break
                self._logger.error(f"process[{self._details['name']}] failed to terminate '{seconds:g}' seconds after receiving "
                                   f"'{last.name}', escalating to '{number.name}'")
                self._signal(number)
                last = number
            self._return_code = await end
        finally:
            asked.cancel()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process and what it has started in its session, as a terminal would."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _report_end(self, context: LaunchContext) -> None:
        pid, code = self._process.pid, self._return_code
        if code == 0:
            self._logger.info(f"process has finished cleanly [pid {pid}]")
        else:
            self._logger.error(f"process has died [pid {pid}, exit code {code}, cmd '{' '.join(self._details['cmd'])}'].")
        context.emit_event_sync(ProcessExited(returncode=code, **self._event_arguments()))

    def _event_arguments(self) -> dict[str, Any]:
        return {key: self._details[key] for key in ("action", "name", "cmd", "cwd", "env", "pid")}

    def _on_output(self, context: LaunchContext, fd: int, data: bytes, text: str, lines: list[str]) -> None:
        for line in lines:
            self._line_loggers[fd].info("%s", self._output_format.format(line=line, this=self))
        if self._cached:
            self._texts[fd].write(text)
        if data:
            event_class = ProcessStdout if fd == 1 else ProcessStderr
            context.emit_event_sync(event_class(text=data, **self._event_arguments()))

    def _on_shutdown(self, event: Shutdown, context: LaunchContext) -> None:
        self._ending.set()

    def _on_request(self, event: Event) -> None:
        """Obey ShutdownProcess and SignalProcess events that mean this process."""
        if not event.process_matcher(self):
            return
        if isinstance(event, SignalProcess):
            self._logger.info(f"sending signal '{event.signal_name}' to process[{self._details['name']}]")
            self._signal(event.signal)
        else:
            self._ending.set()


class _OnRequest(BaseEventHandler):
    """Passes requests for processes on to one process."""

    def __init__(self, process: ExecuteProcess) -> None:
        super().__init__(matcher=lambda event: isinstance(event, ShutdownProcess))
        self._process_action = process

    def handle(self, event: Event, context: LaunchContext) -> None:
        super().handle(event, context)
        self._process_action._on_request(event)
