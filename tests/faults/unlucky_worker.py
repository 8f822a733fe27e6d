"""A worker that stops or dies at a point of its dealings with the queue.

::

    python -m tests.faults.unlucky_worker claimed | reporting | reported | stopped | poisoned

It is a worker like any other, but that it ends itself (``claimed``: with jobs that it has just
taken, ``reporting``: with images that it has not reported yet, ``reported``: when it has, but does
not know yet that it was heard; ``poisoned``: when it gets a job with the seed `POISON`), or stops
before it reports, until somebody lets it go on (``stopped``).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import masc
from worker.jobs import connect
from worker.jobs.job import Lease
from worker.jobs.outcome import Outcome
from worker.jobs.queue import JobReport
from worker.jobs.redis.queue import RedisQueue

POISON = 666_000


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class UnluckyQueue(RedisQueue):
    point = ""

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        leases = super().claim(model, max_rows, timeout)
        if leases and self.point == "claimed":
            die()
        if self.point == "poisoned" and any(x.job.request.seed == POISON for x in leases):
            die()
        return leases

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        has_end = any(isinstance(report, Outcome) for _, report in reports)
        if has_end and self.point == "reporting":
            die()
        if has_end and self.point == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        accepted = super().report(reports)
        if has_end and self.point == "reported":
            die()
        return accepted


def main() -> None:
    UnluckyQueue.point = sys.argv[1]
    sys.argv[1:] = ["worker"]

    setattr(connect, RedisQueue.__name__, UnluckyQueue)
    masc.main()


if __name__ == "__main__":
    main()
