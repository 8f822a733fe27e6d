"""Jobs, events, outcomes and announcements as bytes: MessagePack by the names of the fields.

A field that is missing gets its default, one that is not known is passed over, so that programs of
neighbouring versions can share a queue. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from worker.jobs.job import Event, Job, Preview, Progress, Started
from worker.jobs.outcome import JobFailure, JobResult, Outcome
from worker.jobs.queue import WorkerStatus

T = TypeVar("T")

CodecError = msgspec.MsgspecError

_OUTCOMES: Mapping[str, type[Outcome]] = {kind.__name__: kind for kind in (JobResult, JobFailure)}
_EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in (Started, Progress, Preview)}


def encode_job(job: Job) -> bytes:
    """Encode a job."""
    return msgspec.msgpack.encode(job)


def decode_job(data: bytes) -> Job:
    """Decode a job; raises `CodecError` if it is none."""
    return msgspec.msgpack.decode(data, type=Job)


def encode_worker(status: WorkerStatus) -> bytes:
    """Encode an announcement."""
    return msgspec.msgpack.encode(status)


def decode_worker(data: bytes) -> WorkerStatus:
    """Decode an announcement; raises `CodecError` if it is none."""
    return msgspec.msgpack.decode(data, type=WorkerStatus)


def encode_outcome(outcome: Outcome) -> bytes:
    """Encode an outcome."""
    return _encode_with_name(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """Decode an outcome; raises `CodecError` if it is none."""
    return _decode_by_name(data, _OUTCOMES)


def encode_event(event: Event) -> bytes:
    """Encode an event."""
    return _encode_with_name(event)


def decode_event(data: bytes) -> Event:
    """Decode an event; raises `CodecError` if it is none."""
    return _decode_by_name(data, _EVENTS)


def _encode_with_name(value: object) -> bytes:
    return msgspec.msgpack.encode((type(value).__name__, value))


def _decode_by_name(data: bytes, kinds: Mapping[str, type[T]]) -> T:
    name, fields = msgspec.msgpack.decode(data, type=tuple[str, msgspec.Raw])
    try:
        kind = kinds[name]
    except KeyError:
        raise msgspec.ValidationError(f"nothing is known of the kind {name!r}") from None
    return msgspec.msgpack.decode(fields, type=kind)
