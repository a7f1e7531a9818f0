"""Waiting, in tests, for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

WAIT = 60.0     # [s] a condition may take on a busy machine; met ones return at once


def until(condition: Callable[[], Any], what: str) -> None:
    """Look every 5 ms until the condition holds; fails, naming what was waited for, when it takes too long."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f'waited {WAIT} s in vain for {what}'
        time.sleep(0.005)
