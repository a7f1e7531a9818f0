"""Entry point of the `ros2` command."""
from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Sequence

from .errors import CommandError

_COMMANDS = {
    "launch": "Run a launch file",
    "lifecycle": "Show and change the states of managed nodes",
    "node": "List nodes",
    "param": "Read and set parameters of nodes",
    "pkg": "Find installed packages",
    "run": "Run a package's executable",
    "service": "List and call services",
    "topic": "List, show and measure topics",
}
_ELSEWHERE = ("action", "bag", "component", "control", "daemon", "doctor", "interface", "multicast", "security", "wtf")


def _usage() -> str:
    lines = ["usage: ros2 [-h] COMMAND ...", "", "Commands (ros2 COMMAND --help tells more):"]
    return "\n".join(lines + [f"  {name:10} {text}" for name, text in _COMMANDS.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not words:
        print(_usage())
        return 1
    if words[0] not in _COMMANDS:
        reason = "not provided by ros2_polyfill; a full ROS 2 installation has it" if words[0] in _ELSEWHERE else "unknown"
        print(f"ros2: command '{words[0]}' is {reason}. Known commands: {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    return _run(words[0], words[1:])


def _run(command: str, words: list[str]) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:      # started with & by a script: Ctrl-C must work all the same
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = importlib.import_module(f"ros2cli.verb.{command}").main(words)
        sys.stdout.flush()
        return status or 0
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return int(signal.SIGINT)
    except BrokenPipeError:      # `ros2 topic echo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
