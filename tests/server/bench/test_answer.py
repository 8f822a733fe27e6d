from __future__ import annotations

import base64
import json

import pytest
from multidict import CIMultiDict

from server.answers.images import server_timing as write_timing
from server.bench.client import MAX_TEXT, Answer, plain, read_answer, server_timing
from worker.jobs.outcome import Timings

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json; charset=utf-8"}


def test_reads_what_the_server_writes() -> None:
    header = write_timing(Timings(0.001, 0.0025, 1.5, 0.0, 0.25, 1.7535))
    assert server_timing(header) == {
        "queue": 0.001, "prefill": 0.0025, "decode": 1.5, "vq_decode": 0.0, "encode": 0.25,
        "total": 1.7535,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("", {}),
        ("queue", {}),
        ("queue;dur=", {}),
        ("queue;dur=x, total;dur=2", {"total": 0.002}),
        ("queue;dur=nan, encode;dur=inf, total;dur=-1", {}),
        ('queue;desc="a wait";dur="3.5"', {"queue": 0.0035}),
        ("cdn-cache;dur=9, queue ; dur = 1", {"queue": 0.001}),
        ("miss, total;DUR=4", {"total": 0.004}),
    ],
)
def test_server_timing_of_others(header: str, stages: dict[str, float]) -> None:
    assert server_timing(header) == pytest.approx(stages)


def test_a_picture() -> None:
    headers = PNG | {"X-Masc-Model": "tiny/7", "Server-Timing": "total;dur=5"}
    assert read_answer(200, headers, b"\x89PNG") == Answer(1, {"total": 0.005}, "tiny/7")
    assert read_answer(200, headers, b"").num_images == 0


def test_images_in_json_with_timings_in_the_header_or_else_in_the_document() -> None:
    document = {
        "model": {"name": "tiny", "version": "7"},
        "images": [{"b64": base64.b64encode(b"x").decode()}] * 3,
        "timings": {"queue": 0.25, "total": 0.5, "decode": None, "other": 1.0},
    }
    content = json.dumps(document).encode()
    assert read_answer(200, JSON, content) == Answer(3, {"queue": 0.25, "total": 0.5}, "tiny/7")
    headers = JSON | {"Server-Timing": "total;dur=400"}
    assert read_answer(200, headers, content).stages == {"total": 0.4}


def test_refusals_say_why_and_until_when() -> None:
    document = {"title": "The queue is full", "detail": "256 jobs wait"}
    headers = CIMultiDict({"content-type": "application/problem+json", "retry-after": "3"})
    answer = read_answer(503, headers, json.dumps(document).encode())
    assert answer == Answer(retry_after=3.0, problem="The queue is full", detail="256 jobs wait")


@pytest.mark.parametrize("wait", ["", "soon", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number(wait: str) -> None:
    assert read_answer(429, {"Retry-After": wait}, b"").retry_after is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"images": 3, "model": 4}',
        b'{"images": [], "timings": [1]}', b'{"timings": {"total": "x", "queue": 1e999}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 500])
def test_nonsense_holds_nothing(content: bytes, status: int) -> None:
    answer = read_answer(status, JSON, content)
    assert (answer.num_images, answer.stages, answer.problem) == (0, {}, "")


def test_a_servers_words_cannot_command_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\u202e") == "a [2Jb c "
    assert len(plain("x" * 10_000)) == MAX_TEXT
