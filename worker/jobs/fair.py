"""The order of the jobs of one model: interactive before batch, owners by turns.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), of each priority apart. Start tag =
max(virtual time, finish tag of the owner's previous job); finish = start + cost; virtual time
follows the start tags of claimed jobs. So owners with jobs waiting get rows in proportion to their
weights, whoever has none comes next, and one owner's jobs keep their order. Interactive jobs go
first; the first batch job is next once `BATCH_EVERY` interactive rows were claimed for each of its
own rows.

With n other owners of the same weight and jobs of the same size, the k-th waiting job of an owner
is claimed after at most k n of theirs, and a first batch job after 16 interactive jobs.

This is for the queue in memory; submit.lua and claim.lua do the same in Redis.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from worker.jobs.job import Job
from worker.jobs.priority import PRIORITIES, Priority

ROW = 1000  # virtual time of a row, for an owner of weight 1
BATCH_EVERY = 16


def cost_of(job: Job, weight: float) -> int:
    """Virtual time that a job takes of its owner."""
    return max(1, round(ROW * job.request.batch_rows / weight))


def flow_of(owner: str, priority: Priority) -> str:
    """Name of an owner's flow, its jobs of one priority; no owner's name has a slash."""
    return owner if priority == "interactive" else f"batch/{owner}"


@dataclass(frozen=True, slots=True, order=True)
class QueueTag:
    """Where a job stands among those of its priority, for good: by start tag, then by id."""

    start: int
    job_id: str
    flow: str
    cost: int
    rows: int


class FairQueue:
    """The waiting jobs of one model."""

    def __init__(self) -> None:
        self._waiting: dict[Priority, list[QueueTag]] = {priority: [] for priority in PRIORITIES}
        self._virtual_time: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        # Finish tags of the latest jobs, by flow.
        self._finish_tags: dict[Priority, dict[str, int]] = {
            priority: {} for priority in PRIORITIES
        }
        self._rows_since_batch = 0  # interactive ones that were claimed, while a batch job waited

    def __len__(self) -> int:
        """How many jobs wait."""
        return sum(map(len, self._waiting.values()))

    def depth(self, priority: Priority) -> int:
        """How many jobs of a priority wait."""
        return len(self._waiting[priority])

    def depth_of(self, job: Job) -> int:
        """How many jobs of the same owner and priority wait."""
        flow = flow_of(job.owner, job.priority)
        return sum(tag.flow == flow for tag in self._waiting[job.priority])

    def add(self, job: Job, weight: float) -> QueueTag:
        """Give a new job its tag."""
        finish_tags, cost = self._finish_tags[job.priority], cost_of(job, weight)
        flow = flow_of(job.owner, job.priority)
        start = finish_tags.get(flow, 0)
        if start <= self._virtual_time[job.priority]:
            # A step, so that owners without a line come in the order of submission.
            start = self._virtual_time[job.priority] = self._virtual_time[job.priority] + 1
        finish_tags[flow] = start + cost
        tag = QueueTag(start, job.id, flow, cost, job.request.batch_rows)
        self.put(tag, job.priority)
        return tag

    def put(self, tag: QueueTag, priority: Priority) -> None:
        """Let a job wait where its tag puts it, again."""
        insort(self._waiting[priority], tag)

    def remove(self, tag: QueueTag, priority: Priority) -> None:
        """Take a job out that waits, and was not claimed."""
        del self._waiting[priority][bisect_left(self._waiting[priority], tag)]
        if self._finish_tags[priority].get(tag.flow) == tag.start + tag.cost:
            self._finish_tags[priority][tag.flow] = tag.start  # its latest: as if it never was

    def position(self, tag: QueueTag, priority: Priority) -> int:
        """How many jobs are ahead; a batch job is behind all interactive ones."""
        ahead = bisect_left(self._waiting[priority], tag)
        return ahead + (self.depth("interactive") if priority == "batch" else 0)

    def take(self, max_rows: int) -> list[str]:
        """Claim the first jobs that fit together, at least one."""
        taken: list[str] = []
        while max_rows > 0 and (priority := self._next()):
            tag = self._waiting[priority][0]
            if taken and tag.rows > max_rows:
                break
            del self._waiting[priority][0]
            if priority == "batch":
                self._rows_since_batch = 0
            elif self._waiting["batch"]:
                self._rows_since_batch += tag.rows
            self._reach(tag.start, priority)
            taken.append(tag.job_id)
            max_rows -= tag.rows
        return taken

    def _next(self) -> Priority | None:
        """Whose turn it is; None if nobody waits."""
        interactive, batch = self._waiting["interactive"], self._waiting["batch"]
        if interactive and not (batch and self._rows_since_batch >= BATCH_EVERY * batch[0].rows):
            return "interactive"
        return "batch" if batch else None

    def _reach(self, start: int, priority: Priority) -> None:
        """Let virtual time go on to the start tag of a claimed job."""
        if start > self._virtual_time[priority]:
            self._virtual_time[priority] = start
            ends = self._finish_tags[priority]
            self._finish_tags[priority] = {flow: end for flow, end in ends.items() if end > start}
