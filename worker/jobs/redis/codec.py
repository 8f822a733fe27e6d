"""Jobs, events, outcomes and announcements as bytes: MessagePack by the names of the fields.

A field that is missing gets its default, one that is not known is passed over, so that programs of
neighbouring versions can share a queue. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from worker.jobs.job import Event, Job, Preview, Progress, Started
from worker.jobs.outcome import JobFailure, JobResult, Outcome
from worker.jobs.queue import WorkerStatus

T = TypeVar("T")

CodecError = msgspec.MsgspecError
UnknownValueError = msgspec.ValidationError

_OUTCOMES: Mapping[str, type[Outcome]] = {kind.__name__: kind for kind in (JobResult, JobFailure)}
_EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in (Started, Progress, Preview)}


def encode(value: Job | WorkerStatus) -> bytes:
    """Encode what is the only kind at its place."""
    return msgspec.msgpack.encode(value)


def encode_with_kind(value: Event | Outcome) -> bytes:
    """Encode one of several kinds, with its name."""
    return msgspec.msgpack.encode((type(value).__name__, value))


def decode_job(data: bytes) -> Job:
    """Decode a job.

    Raises
    ------
    CodecError : it is none, as of the others below
    UnknownValueError : it is a job, with a value that this version does not know
    """
    try:
        return _decode(data, Job)
    except UnknownValueError:
        fields = _decode(data, Any)
        if not isinstance(fields, dict) or not isinstance(fields.get("request"), dict):
            raise msgspec.DecodeError("there is no request in it") from None
        raise


def decode_worker(data: bytes) -> WorkerStatus:
    """Decode an announcement."""
    return _decode(data, WorkerStatus)


def decode_outcome(data: bytes) -> Outcome:
    """Decode an outcome."""
    return _decode_by_kind(data, _OUTCOMES)


def decode_event(data: bytes) -> Event:
    """Decode an event."""
    return _decode_by_kind(data, _EVENTS)


def _decode_by_kind(data: bytes, kinds: Mapping[str, type[T]]) -> T:
    name, fields = _decode(data, tuple[str, msgspec.Raw])
    if name not in kinds:
        raise msgspec.ValidationError(f"nothing is known of the kind {name!r}")
    return _decode(fields, kinds[name])


def _decode(data: bytes | msgspec.Raw, kind: Any) -> Any:  # noqa: ANN401 - a type, and one of it
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:  # which msgspec lets through
        raise msgspec.DecodeError(f"{type(error).__name__}: {error}") from error
