"""The HTTP client of the load generator: one request sent, and its answer read.

Latency counts from the moment a request was *due*. In an open loop that is its arrival, so what a
slow server or a slow client makes it wait is in the figure ("coordinated omission" leaves it out);
in a closed loop it is the moment it is sent.

Connections are not limited: a limit would delay requests that are due. A server may send anything,
so reading an answer never raises: what cannot be read is left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
from pydantic import SecretStr

from masc_core.errors import ConfigError
from masc_core.settings import ProcessSettings, read_settings

STAGES = ("queue", "prefill", "decode", "complete", "vq_decode", "encode", "total")
MAX_TEXT = 200  # of a problem, characters
REJECTIONS = (429, 503)
NO_ANSWER = 0
FAILURES = (aiohttp.ClientError, OSError)  # time-outs are among the latter

NAMES: Mapping[type[Exception], str] = {
    TimeoutError: "timed out",
    aiohttp.InvalidURL: "no such address",
    aiohttp.ClientSSLError: "no secure connection",
    aiohttp.ClientConnectorDNSError: "unknown host",
    aiohttp.ServerDisconnectedError: "the connection was closed",
    aiohttp.ClientPayloadError: "the answer broke off",
}

# Seconds; servers close idle connections after 5 or more, and a request must not meet that.
KEEP_ALIVE = 2.0

StatusClass = Literal["ok", "rejected", "error"]
Clock = Callable[[], float]  # seconds since the measurement began, negative in the warm-up


def open_session(timeout: float, api_key: SecretStr | None = None) -> aiohttp.ClientSession:
    """Return a session whose requests are given up after ``timeout`` seconds."""
    headers = {"User-Agent": "masc-bench"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(total=timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    )


def describe_failure(error: Exception) -> str:
    """Say in a few words why there is no answer; one of few texts, whatever the address."""
    named = next((text for kind, text in NAMES.items() if isinstance(error, kind)), None)
    if named is not None:
        return named
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number else type(error).__name__


class BenchSettings(ProcessSettings):
    """What the environment tells the load generator: the key that the service asks for."""

    api_key: SecretStr | None = None


def load_api_key(given: str | None) -> SecretStr | None:
    """Return the given key, or that of ``MASC_API_KEY``; `ConfigError` if it fits no header."""
    key = read_settings(BenchSettings, {"api_key": given}).api_key
    if key is not None and not _fits_header(key.get_secret_value()):
        raise ConfigError("MASC_API_KEY: must be printable ASCII without spaces")
    return key


def _fits_header(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


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
    def status_class(self) -> StatusClass:
        """Class of its status."""
        return status_class(self.status)


def status_class(status: int) -> StatusClass:
    """Images, an orderly refusal, or neither."""
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
        return Sample(due, sent, finished, *self._checked(response.status, answer))

    def _checked(self, status: int, answer: Answer) -> tuple[int, Answer, str]:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read.

    Attributes
    ----------
    num_images : images in it
    stages : seconds in each of `STAGES` that the server tells of
    model : name and version of what made the images, with a slash between
    retry_after : seconds after which a refused client may come again
    problem, detail : title and detail of a problem document
    """

    num_images: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    retry_after: float | None = None
    problem: str = ""
    detail: str = ""


def read_answer(status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    """Read one answer; ``headers`` are looked up without regard to case."""
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status != 200:
        return _refusal(headers, _document(content) if media_type.endswith("json") else {})
    stages = server_timing(headers.get("Server-Timing", ""))
    if media_type.startswith("image/"):
        return Answer(int(bool(content)), stages, plain(headers.get("X-Masc-Model", "")))
    document = _document(content)
    images = document.get("images")
    return Answer(
        num_images=len(images) if isinstance(images, list) else 0,
        stages=stages or _timings(document.get("timings")),
        model=_model(document.get("model")),
    )


def server_timing(header: str) -> dict[str, float]:
    """Seconds of each known stage in a Server-Timing header, which has milliseconds."""
    stages = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            seconds = _seconds(value.strip().strip('"'))
            if name in STAGES and key.strip().lower() == "dur" and seconds is not None:
                stages[name] = seconds / 1000
    return stages


def plain(text: object) -> str:
    """Return what a terminal can show of a server's word, without escape sequences or line ends."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_TEXT])


def _refusal(headers: Mapping[str, str], document: Mapping[str, Any]) -> Answer:
    title, detail = (plain(document.get(name, "")) for name in ("title", "detail"))
    retry_after = _seconds(headers.get("Retry-After", ""))
    return Answer(retry_after=retry_after, problem=title, detail=detail)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):  # nested too deeply
        return {}
    return document if isinstance(document, dict) else {}


def _model(model: object) -> str:
    if not isinstance(model, dict):
        return ""
    return plain(f"{model.get('name')}/{model.get('version')}")


def _timings(timings: object) -> dict[str, float]:
    if not isinstance(timings, dict):
        return {}
    given = {name: _seconds(timings.get(name)) for name in STAGES}
    return {name: seconds for name, seconds in given.items() if seconds is not None}


def _seconds(value: object) -> float | None:
    """Return a finite, not negative number; None for anything else, a date too."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
