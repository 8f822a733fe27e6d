"""How many cores a worker's steps take on a CPU.

More are not always faster: steps of a small model take less time than threads need to find each
other, and a front end in the same process wants a core for itself.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import torch

WORTH_IT = 0.9  # more threads must take less than this share of the time of fewer

Result = TypeVar("Result")


class ThreadTrial:
    """Tries numbers of threads in turn, step by step, so that all see the same machine.

    Parameters
    ----------
    numbers : to try, ascending
    clock : seconds from any origin, never going back
    """

    def __init__(
        self, numbers: Sequence[int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._numbers, self._clock = numbers, clock
        self._next_number = cycle(numbers)
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)

    def run(self, work: Callable[[], Result]) -> Result:
        """Do some work with the next number of threads."""
        number = next(self._next_number)
        torch.set_num_threads(number)
        started = self._clock()
        result = work()
        self._seconds[number].append(self._clock() - started)
        return result

    def best(self) -> int:
        """The fewest threads, unless more of them take less than `WORTH_IT` of the time."""
        medians = {number: statistics.median(all_of) for number, all_of in self._seconds.items()}
        best = self._numbers[0]
        for number in self._numbers[1:]:
            if number in medians and medians[number] < WORTH_IT * medians[best]:
                best = number
        return best


def numbers_to_try(cores: int) -> list[int]:
    """One thread, powers of two, and all cores."""
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return [*powers, cores]


def available_cores(control_groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: of its affinity, and of a container's quota of time."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores = len(affinity) or os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(control_groups))))


def _quota(control_groups: Path) -> float:
    """Cores by the quota of cgroups version 2, or 1; infinity without one."""
    try:
        quota, period = (control_groups / "cpu.max").read_text("ascii").split()
    except OSError:
        folder = control_groups / "cpu"
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text("ascii").strip()
        except OSError:
            return math.inf
    return math.inf if quota in {"max", "-1"} else int(quota) / int(period)
