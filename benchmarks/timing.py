"""Times of calls that take turns, so that what else the machine does weighs on all of them alike; and what the machine's cores are worth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import cv2
import numpy as np

WARM_UP = 3
SECONDS = 2.0           # of work whose amount tells what cores are worth


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


def worth_of_cores() -> float:
    """How many times the work of one process this machine does with one on each core: near their number, or little more than 1 where they are two threads of one core."""
    cores, context = len(os.sched_getaffinity(0)), get_context('spawn')
    with ProcessPoolExecutor(cores, context, initializer=_meet, initargs=(context.Barrier(cores),)) as pool:
        list(pool.map(_flows_found, [0.1] * cores))
        alone = pool.submit(_flows_found, SECONDS).result()
        together = sum(pool.map(_flows_found, [SECONDS] * cores))
    return together / alone


def _meet(others: Barrier) -> None:
    """Wait until all processes have started, which takes some of them seconds."""
    others.wait()


def _flows_found(seconds: float) -> int:
    """How often flow is found between two images of noise and multiplied, in that time."""
    cv2.setNumThreads(1)
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (192, 256)).astype(np.uint8), (0, 0), 2)
    flow, count, until = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        found = flow.calc(noise, np.roll(noise, 3, 1), None)
        np.einsum('ijk,ijl->kl', found, found)
        count += 1
    return count
