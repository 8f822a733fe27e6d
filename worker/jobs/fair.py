"""The order of the jobs of one model: interactive before batch, owners by turns.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) gives each job a number for good, its place
among those of its priority: it begins where its owner's job before it ends, its cost further, or at
the virtual time, the number reached by claims, whichever is later. So owners with jobs waiting get
rows in proportion to their weights, whoever has none comes next, and one owner's jobs keep their
order. Interactive jobs go first; but when `BATCH_EVERY` of their rows were claimed for each row of
the batch job that is first of its kind, that one is next.

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
    """Name of an owner's line; no owner's name has a slash."""
    return owner if priority == "interactive" else f"batch/{owner}"


@dataclass(frozen=True, slots=True, order=True)
class PlaceInLine:
    """Where a job stands among those of its priority."""

    number: int
    job_id: str
    flow: str
    cost: int
    rows: int


class FairQueue:
    """The waiting jobs of one model."""

    def __init__(self) -> None:
        self._places: dict[Priority, list[PlaceInLine]] = {one: [] for one in PRIORITIES}
        self._time: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._ends: dict[Priority, dict[str, int]] = {one: {} for one in PRIORITIES}  # of flows
        self._owed = 0  # interactive rows claimed since the latest batch job, while one waited

    def __len__(self) -> int:
        """How many jobs wait."""
        return sum(map(len, self._places.values()))

    def depth(self, priority: Priority) -> int:
        """How many jobs of a priority wait."""
        return len(self._places[priority])

    def depth_of(self, job: Job) -> int:
        """How many jobs of the same owner and priority wait."""
        flow = flow_of(job.owner, job.priority)
        return sum(place.flow == flow for place in self._places[job.priority])

    def add(self, job: Job, weight: float) -> PlaceInLine:
        """Give a new job its place."""
        ends, cost = self._ends[job.priority], cost_of(job, weight)
        flow = flow_of(job.owner, job.priority)
        number = ends.get(flow, 0)
        if number <= self._time[job.priority]:
            # A step, so that owners without a line come in the order of submission.
            number = self._time[job.priority] = self._time[job.priority] + 1
        ends[flow] = number + cost
        place = PlaceInLine(number, job.id, flow, cost, job.request.batch_rows)
        self.put(place, job.priority)
        return place

    def put(self, place: PlaceInLine, priority: Priority) -> None:
        """Let a job wait at its place, again."""
        insort(self._places[priority], place)

    def remove(self, place: PlaceInLine, priority: Priority) -> None:
        """Take a job out that waits, and was not claimed."""
        del self._places[priority][bisect_left(self._places[priority], place)]
        if self._ends[priority].get(place.flow) == place.number + place.cost:
            self._ends[priority][place.flow] = place.number  # its latest: as if it never was

    def position(self, place: PlaceInLine, priority: Priority) -> int:
        """How many jobs are ahead; a batch job is behind all interactive ones."""
        ahead = bisect_left(self._places[priority], place)
        return ahead + (self.depth("interactive") if priority == "batch" else 0)

    def take(self, max_rows: int) -> list[str]:
        """Claim the first jobs that fit together, at least one."""
        taken: list[str] = []
        while max_rows > 0 and (priority := self._next()):
            place = self._places[priority][0]
            if taken and place.rows > max_rows:
                break
            del self._places[priority][0]
            if priority == "batch":
                self._owed = 0
            elif self._places["batch"]:
                self._owed += place.rows
            self._reach(place.number, priority)
            taken.append(place.job_id)
            max_rows -= place.rows
        return taken

    def _next(self) -> Priority | None:
        """Whose turn it is; None if nobody waits."""
        interactive, batch = self._places["interactive"], self._places["batch"]
        if interactive and not (batch and self._owed >= BATCH_EVERY * batch[0].rows):
            return "interactive"
        return "batch" if batch else None

    def _reach(self, number: int, priority: Priority) -> None:
        """Let virtual time go on to the number of a claimed job."""
        if number > self._time[priority]:
            self._time[priority] = number
            ends = self._ends[priority]
            self._ends[priority] = {flow: end for flow, end in ends.items() if end > number}
