"""What a process writes, line by line."""
from __future__ import annotations

import asyncio
import codecs
import os
import pty
import tty
from typing import Callable

from ..launch_context import LaunchContext

_Callback = Callable[[LaunchContext, int, bytes, str, "list[str]"], None]


class OutputStream:
    """A pipe or pseudo-terminal; calls back with the bytes as they come, their text and the lines that they complete."""

    def __init__(self, fd: int, emulate_tty: bool, callback: _Callback, context: LaunchContext) -> None:
        self._fd, self._callback, self._context = fd, callback, context
        if emulate_tty:
            self._read_end, self.write_end = pty.openpty()
            tty.setraw(self.write_end)      # newlines stay as they are
        else:
            self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""
        self._open = True

    def listen(self) -> None:
        """Read from now on; our copy of the process's end is closed."""
        os.close(self.write_end)
        self.write_end = -1
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def finish(self) -> None:
        """Read what is left without waiting for processes that may still hold the other end, and close."""
        if self.write_end >= 0:
            os.close(self.write_end)
        else:
            while self._open and self._read():
                pass
        self._stop()
        if self._partial:
            self._callback(self._context, self._fd, b"", "", [self._partial])
            self._partial = ""

    def _read(self) -> bool:
        try:
            data = os.read(self._read_end, 65536)
        except BlockingIOError:
            return False
        except OSError:      # a pseudo-terminal whose last user is gone
            data = b""
        if not data:
            self._stop()
            return False
        text = self._decoder.decode(data)      # a character may be split between two reads
        *lines, self._partial = (self._partial + text).split("\n")
        self._callback(self._context, self._fd, data, text, [line.rstrip("\r") for line in lines])
        return True

    def _stop(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._read_end)
            os.close(self._read_end)
