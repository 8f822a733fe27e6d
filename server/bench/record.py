"""The samples of a run, in a table that grows by 100 bytes per request.

Requests of the warm-up are in the table as well, due before time 0: their answers may fall into the
measured time and are part of the throughput then. All counters are of the measured requests alone.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from server.bench.answer import STAGES
from server.bench.sample import Sample

COLUMNS = ("due", "sent", "finished", "status", "num_images", "retry_after", *STAGES)
ROW = np.dtype([(name, np.float64) for name in COLUMNS])
MAX_TEXTS = 50  # a server may word every refusal differently
OTHER_TEXT = "other"

Rows = npt.NDArray[Any]  # of ROW


class Record:
    """What has been measured so far.

    Attributes
    ----------
    sent : measured requests that were sent, answered or not
    ended : when sending and waiting ended; None while they go on
    statuses : answers of each status, `NO_ANSWER` among them
    reasons : refusals and errors by what they say of themselves
    models : images' answers by name and version of the model
    first_detail : what the first error said in detail
    """

    def __init__(self) -> None:
        self.sent = 0
        self.ended: float | None = None
        self.statuses: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.first_detail = ""
        self._values = array("d")

    def add(self, sample: Sample) -> None:
        """Keep one sample."""
        answer = sample.answer
        retry_after = math.nan if answer.retry_after is None else answer.retry_after
        row = (sample.due, sample.sent, sample.finished, sample.status, answer.num_images)
        stages = (answer.stages.get(name, math.nan) for name in STAGES)
        self._values.extend((*row, retry_after, *stages))
        if sample.due >= 0:
            self._count(sample)

    def rows(self) -> Rows:
        """Return the table, in the order of the answers; NaN is what an answer does not tell."""
        return np.array(self._values, np.float64).view(ROW)

    def _count(self, sample: Sample) -> None:
        self.statuses[sample.status] += 1
        if sample.error:
            _count_text(self.reasons, sample.error)
        if sample.answer.model:
            _count_text(self.models, sample.answer.model)
        if sample.outcome == "error" and not self.first_detail:
            self.first_detail = sample.answer.detail


def _count_text(counter: Counter[str], text: str) -> None:
    counter[text if text in counter or len(counter) < MAX_TEXTS else OTHER_TEXT] += 1
