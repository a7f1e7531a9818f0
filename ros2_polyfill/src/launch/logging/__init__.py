"""Where the launch and its processes write: the screen and `launch.log`."""
from __future__ import annotations

import datetime
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from polyfill_names import unprovided

__all__ = ["get_logger", "get_output_loggers", "launch_config"]
__getattr__ = unprovided(__name__)

_ROOT = "launch_output"      # own tree of loggers: a user's logging set-up neither doubles nor hides these lines
_RAW = "launch_raw"


class _Screen(logging.Handler):
    """Writes to whatever sys.stdout or sys.stderr is at the time."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self._stream)
        try:
            stream.write(self.format(record) + "\n")
            stream.flush()
        except (BrokenPipeError, ValueError):     # reader gone or stream closed: the log file still has the line
            pass


class _Format(logging.Formatter):
    """`[INFO] [name]: message`, with the time in front for the file; the text alone for a process's own lines."""

    def __init__(self, timed: bool) -> None:
        super().__init__()
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        time = f"{record.created:.7f} " if self._timed else ""
        if record.name.startswith(_RAW):
            return time + record.getMessage()
        name = record.name[len(_ROOT) + 1:] or "launch"
        return f"{time}[{record.levelname}] [{name}]: {record.getMessage()}"


class LaunchConfig:
    """Level and directory of the log; the directory is made when first asked for."""

    def __init__(self) -> None:
        self._log_dir: str | None = None
        self._file: logging.Handler | None = None
        self._screen: dict[str, logging.Handler] = {}
        for stream in ("stdout", "stderr"):
            self._screen[stream] = _Screen(stream)
            self._screen[stream].setFormatter(_Format(timed=False))
        logger = logging.getLogger(_ROOT)
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.addHandler(self._screen["stdout"])

    @property
    def level(self) -> int:
        return logging.getLogger(_ROOT).level

    @level.setter
    def level(self, level: int | str) -> None:
        logging.getLogger(_ROOT).setLevel(level)

    @property
    def log_dir(self) -> str:
        """A folder of this launch under ROS_LOG_DIR, or under ROS_HOME/log (~/.ros/log)."""
        if self._log_dir is None:
            base = os.environ.get("ROS_LOG_DIR") or os.path.join(os.environ.get("ROS_HOME") or "~/.ros", "log")
            stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
            folder = Path(base).expanduser() / f"{stamp}-{socket.gethostname()}-{os.getpid()}"
            folder.mkdir(parents=True, exist_ok=True)
            self._log_dir = str(folder)
        return self._log_dir

    @log_dir.setter
    def log_dir(self, folder: str) -> None:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
        self._log_dir = str(Path(folder).expanduser())

    def log_to_file(self) -> None:
        """Write `launch.log` from now on; a folder that cannot be written costs a warning, not the launch."""
        if self._file is not None:
            return
        try:
            self._file = logging.FileHandler(os.path.join(self.log_dir, "launch.log"))
        except OSError as error:
            get_logger("launch").warning(f"cannot write a log file: {error}")
            return
        self._file.setFormatter(_Format(timed=True))
        logging.getLogger(_ROOT).addHandler(self._file)

    def handlers(self, targets: set[str]) -> list[logging.Handler]:
        chosen = [self._screen[target] for target in ("stdout", "stderr") if target in targets]
        return chosen + ([self._file] if "log" in targets and self._file is not None else [])


launch_config = LaunchConfig()


def get_logger(name: str | None = None) -> logging.Logger:
    """Logger whose lines read `[LEVEL] [name]: message`."""
    return logging.getLogger(f"{_ROOT}.{name}" if name else _ROOT)


# What `output` means: for each of a process's streams, where its lines go.
_OUTPUT_CONFIGS = {
    "screen": {"stdout": {"screen"}, "stderr": {"screen"}},
    "log": {"stdout": {"log"}, "stderr": {"log", "screen"}},
    "both": {"both": {"log", "screen"}},
    "own_log": {"both": {"log"}},
    "full": {"both": {"log", "screen"}},
}


def get_output_loggers(process_name: str, output_config: str | dict[str, Any]) -> tuple[logging.Logger, logging.Logger]:
    """Loggers for a process's stdout and stderr."""
    if isinstance(output_config, str):
        if output_config not in _OUTPUT_CONFIGS:
            raise ValueError(f"'{output_config}' is not a valid output configuration; known: {', '.join(_OUTPUT_CONFIGS)}")
        output_config = _OUTPUT_CONFIGS[output_config]
    loggers = []
    for stream in ("stdout", "stderr"):
        wanted = _as_set(output_config.get("both", ())) | _as_set(output_config.get(stream, ()))
        targets = {stream if target == "screen" else "log" for target in wanted}
        logger = logging.getLogger(f"{_RAW}.{process_name}.{stream}")
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.handlers[:] = launch_config.handlers(targets)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
        loggers.append(logger)
    return loggers[0], loggers[1]


def _as_set(targets: Any) -> set[str]:
    return {targets} if isinstance(targets, str) else set(targets)
