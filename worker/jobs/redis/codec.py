"""Jobs, events, outcomes and announcements as bytes: MessagePack by the names of the fields.

A field that is missing gets its default, one that is not known is passed over, so that programs of
neighbouring versions can share a queue. Only of a request none is passed over, for it would be
another image: what has its default is left out, and whatever else is not known makes the job one
for workers of another version. So a default never changes. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from worker.jobs.job import Event, GenerationRequest, Job, Preview, Progress, Started
from worker.jobs.outcome import JobFailure, JobResult, Outcome
from worker.jobs.queue import WorkerStatus

T = TypeVar("T")

CodecError = msgspec.MsgspecError
UnknownValueError = msgspec.ValidationError

_OUTCOMES: Mapping[str, type[Outcome]] = {kind.__name__: kind for kind in (JobResult, JobFailure)}
_EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in (Started, Progress, Preview)}
_REQUEST_DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationRequest)}


class _RequestOnly(msgspec.Struct):
    request: dict[str, Any]


def encode_job(job: Job) -> bytes:
    """Encode a job."""
    fields = msgspec.to_builtins(job)
    request = fields["request"].items()
    fields["request"] = {name: one for name, one in request if one != _REQUEST_DEFAULTS[name]}
    return msgspec.msgpack.encode(fields)


def encode_worker(status: WorkerStatus) -> bytes:
    """Encode an announcement."""
    return msgspec.msgpack.encode(status)


def encode_with_kind(value: Event | Outcome) -> bytes:
    """Encode one of several kinds, with its name."""
    return msgspec.msgpack.encode((type(value).__name__, value))


def decode_job(data: bytes) -> Job:
    """Decode a job.

    Raises
    ------
    CodecError : the bytes are no job; the other decoders raise the same
    UnknownValueError : it is a job that asks for what this version does not know
    """
    try:
        job: Job = _decode(data, Job)
    except UnknownValueError:
        _request_of(data)
        raise
    unknown = _request_of(data).keys() - _REQUEST_DEFAULTS.keys()
    if unknown:
        raise UnknownValueError(f"nothing is known of {', '.join(map(repr, sorted(unknown)))}")
    return job


def _request_of(data: bytes) -> dict[str, Any]:
    try:
        return _decode(data, _RequestOnly).request
    except UnknownValueError:
        raise msgspec.DecodeError("there is no request in it") from None


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


def _decode(data: bytes | msgspec.Raw, kind: Any) -> Any:  # noqa: ANN401 - a type and its value
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:  # which msgspec lets through
        raise msgspec.DecodeError(f"{type(error).__name__}: {error}") from error
