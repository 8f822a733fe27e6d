"""One measured request.

Latency counts from the moment a request was *due*. In an open loop that is its arrival, so what a
slow server or a slow client makes it wait is in the figure ("coordinated omission" leaves it out);
in a closed loop it is the moment it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import aiohttp

from server.bench.answer import Answer, read_answer
from server.bench.client import FAILURES, describe_failure

Outcome = Literal["ok", "rejected", "error"]
Clock = Callable[[], float]  # seconds since the measurement began, negative in the warm-up

REJECTIONS = (429, 503)
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request.

    Attributes
    ----------
    due, sent, finished : seconds on the run's clock
    status : of the answer; `NO_ANSWER` if there is none, or none that can be used
    answer : what it says
    error : why it counts as an error, in few words; one of few texts
    """

    due: float
    sent: float
    finished: float
    status: int
    answer: Answer
    error: str = ""

    @property
    def outcome(self) -> Outcome:
        """Images, an orderly refusal, or neither."""
        return outcome_of(self.status)


def outcome_of(status: int) -> Outcome:
    """Class of a sample's status."""
    if status == 200:
        return "ok"
    return "rejected" if status in REJECTIONS else "error"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what a whole answer holds."""

    session: aiohttp.ClientSession
    url: str
    accept: str
    num_images: int

    async def measure(self, body: bytes, due: float, clock: Clock) -> Sample:
        """Send one request, and wait for all of its answer."""
        sent = clock()
        headers = {"Accept": self.accept, "Content-Type": "application/json"}
        try:
            async with self.session.post(
                self.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except FAILURES as error:
            return Sample(due, sent, clock(), NO_ANSWER, Answer(), describe_failure(error))
        finished = clock()
        answer = read_answer(response.status, response.headers, content)
        return Sample(due, sent, finished, *self._judge(response.status, answer))

    def _judge(self, status: int, answer: Answer) -> tuple[int, Answer, str]:
        if status != 200:
            return status, answer, f"{status} {answer.problem or _phrase(status)}"
        if answer.num_images != self.num_images:
            return NO_ANSWER, Answer(), "200 without the images"
        return status, answer, ""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
