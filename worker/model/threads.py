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
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch

CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
WORTH_IT = 0.9  # more threads must take less than this share of the time of fewer

Result = TypeVar("Result")


class ThreadTuner:
    """Tries numbers of threads in turn, step by step, so that all see the same machine.

    Parameters
    ----------
    numbers : to try, ascending
    clock : monotonic seconds
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


def available_cores(control_groups: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> int:
    """Cores that this process may use: of its affinity, and of its quota of time.

    Parameters
    ----------
    control_groups, own : see `groups_of_process`
    """
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores = len(affinity) or os.cpu_count() or 1
    quotas = [_quota(folder) for folder in groups_of_process("cpu", control_groups, own)]
    return max(1, math.ceil(min(cores, *quotas)))


def groups_of_process(
    controller: str, mounted: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS
) -> Iterator[Path]:
    """Folders of the groups that bound this process, of version 2, or 1 in a controller.

    A container mostly sees its own as the root; otherwise, as under systemd's ``CPUQuota``, it is
    below, and each group above it bounds it too.

    Parameters
    ----------
    controller : ``cpu`` or ``memory``
    mounted : where they are
    own : the file that says which of them this process is in
    """
    try:
        lines = own.read_text("ascii", "replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in [*lines, "0::/", f"0:{controller}:/"]:
        _, controllers, group = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            path = PurePosixPath(group.lstrip("/"))
            yield from (
                mounted / (controller if controllers else "") / part
                for part in (path, *path.parents)
            )


def _quota(folder: Path) -> float:
    """Cores by the quota of one group; infinity without one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text("ascii").strip()
        return math.inf if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or another kernel's
        return math.inf
