from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.worker.jobs.samples import job, result
from worker.jobs.job import Event, GenerationRequest, Idempotency, Job, Preview, Progress, Started
from worker.jobs.outcome import JobFailure, Outcome
from worker.jobs.queue import WorkerStatus
from worker.jobs.redis.codec import (
    CodecError,
    UnknownValueError,
    decode_event,
    decode_job,
    decode_outcome,
    decode_worker,
    encode_job,
    encode_with_kind,
    encode_worker,
)


def test_a_job_survives() -> None:
    for sent in (job(), job(3, 2.5, keep=True, idempotency=Idempotency("größer", "print"))):
        assert decode_job(encode_job(sent)) == sent


@pytest.mark.parametrize("outcome", [result(), JobFailure("RequestError", "no", "class_id")])
def test_an_outcome_survives(outcome: Outcome) -> None:
    assert decode_outcome(encode_with_kind(outcome)) == outcome


@pytest.mark.parametrize(
    "event", [Started("v1"), Progress(0, 1, 2), Preview(0, 1, 2, "webp", b"\x00\xff")]
)
def test_an_event_survives(event: Event) -> None:
    assert decode_event(encode_with_kind(event)) == event


def test_a_request_tells_what_differs_from_defaults_that_never_change() -> None:
    sent = Job(GenerationRequest("tiny", 3, 2.5, seed=7, top_k=5))
    request = msgspec.msgpack.decode(encode_job(sent))["request"]
    needed: dict[str, Any] = {"model": "tiny", "class_id": 3, "cfg_scale": 2.5, "seed": 7}
    assert request == needed | {"top_k": 5}
    # What other versions take a field for that is left out.
    assert dataclasses.asdict(GenerationRequest(**needed)) == needed | {
        "num_images": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "decoding": "uniform",
        "format": "png",
        "version": "",
        "class_name": "",
        "cfg_schedule": "constant",
        "cfg_start": 0.18,
        "code_temperature": 1.0,
        "code_top_k": 0,
        "code_cfg_scale": 1.0,
        "cluster_top_k": 0,
        "cluster_top_p": 1.0,
    }


@pytest.mark.parametrize("request_of", [None, 7, ["x"], {1: 2}])
def test_a_job_without_a_request_is_damaged(request_of: object) -> None:
    fields = msgspec.msgpack.decode(encode_job(job()))
    fields["request"] = request_of
    with pytest.raises(CodecError) as refusal:
        decode_job(msgspec.msgpack.encode(fields))
    assert not isinstance(refusal.value, UnknownValueError)


def test_an_announcement_survives() -> None:
    status = WorkerStatus("a", ready=True, model="tiny", version="v1", detail="d", refused="v2")
    assert decode_worker(encode_worker(status)) == status


def test_neighbouring_versions_understand_each_other() -> None:
    fields = msgspec.msgpack.decode(encode_job(job(owner="alice")))
    del fields["owner"]
    fields["deadline_class"] = 5
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
