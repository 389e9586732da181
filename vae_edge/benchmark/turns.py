"""Timing several things so that whatever else the machine does falls on all alike: A B C A B C, each call alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

LEAST_CALLS = 5


def time_in_turns(
    calls: Sequence[Callable[[], object]], seconds: float, burst: int = 4, least: int = LEAST_CALLS
) -> list[list[int]]:
    """Nanoseconds of each call, by `time.perf_counter_ns`, taken in turns for about `seconds` in all.

    The first call of a turn brings a candidate back into the caches and is not counted; `burst` calls are.

    Args:
        least: so many calls of each at least, however slow they are.
    """
    times: list[list[int]] = [[] for _ in calls]
    deadline = time.perf_counter() + seconds
    while calls and (time.perf_counter() < deadline or len(times[-1]) < least):
        for call, taken in zip(calls, times, strict=True):
            call()
            for _ in range(burst):
                start = time.perf_counter_ns()
                call()
                taken.append(time.perf_counter_ns() - start)
    return times
