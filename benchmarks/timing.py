"""Times of calls that take turns, so that what else the machine does weighs on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

WARM_UP = 3


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds (rounds,) of each call, all of them called in turns; the first few are not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + WARM_UP):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if round_ >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}


def told(milliseconds: np.ndarray) -> dict[str, float]:
    """What is told of such times."""
    return {'median': float(np.median(milliseconds)), 'p95': float(np.percentile(milliseconds, 95))}
