from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.worker.jobs.samples import job, result
from worker.jobs.job import Event, Idempotency, Preview, Progress, Started
from worker.jobs.outcome import JobFailure, Outcome
from worker.jobs.queue import WorkerStatus
from worker.jobs.redis.codec import (
    CodecError,
    decode_event,
    decode_job,
    decode_outcome,
    decode_worker,
    encode,
    encode_with_kind,
)


def test_a_job_survives() -> None:
    for sent in (job(), job(3, 2.5, keep=True, idempotency=Idempotency("größer", "print"))):
        assert decode_job(encode(sent)) == sent


@pytest.mark.parametrize("outcome", [result(), JobFailure("RequestError", "no", "class_id")])
def test_an_outcome_survives(outcome: Outcome) -> None:
    assert decode_outcome(encode_with_kind(outcome)) == outcome


@pytest.mark.parametrize(
    "event", [Started("v1"), Progress(0, 1, 2), Preview(0, 1, 2, "webp", b"\x00\xff")]
)
def test_an_event_survives(event: Event) -> None:
    assert decode_event(encode_with_kind(event)) == event


def test_an_announcement_survives() -> None:
    status = WorkerStatus("a", ready=True, model="tiny", version="v1", detail="d", refused="v2")
    assert decode_worker(encode(status)) == status


def test_neighbouring_versions_understand_each_other() -> None:
    fields = msgspec.msgpack.decode(encode(job(owner="alice")))
    del fields["owner"]
    fields["priority"] = 5
    assert decode_job(msgspec.msgpack.encode(fields)).owner == ""


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x80", encode_with_kind(result())[:-1]])
def test_anything_else_is_an_error(data: bytes) -> None:
    for decode in (decode_job, decode_outcome, decode_event, decode_worker):
        with pytest.raises(CodecError):
            decode(data)


def test_a_kind_that_is_not_known_is_an_error() -> None:
    with pytest.raises(CodecError, match="Rotated"):
        decode_event(msgspec.msgpack.encode(("Rotated", {"degrees": 90})))


@pytest.mark.parametrize("decode", [decode_job, decode_worker, decode_outcome, decode_event])
@pytest.mark.parametrize(
    "data",
    [b"\x81\xa8worker\xffd\xa1w", b"\x92\xa7Started\x81\xa7version\xa1\xff", b"\x91" * 100_000],
)
def test_text_that_is_no_utf_8_and_depth_are_errors_like_any_other(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(CodecError):
        decode(data)
