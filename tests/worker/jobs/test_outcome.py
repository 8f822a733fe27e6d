from __future__ import annotations

import pytest

from masc_core.errors import (
    ArtifactError,
    CapacityError,
    ConfigError,
    DeadlineError,
    EngineError,
    InvalidFieldError,
    JobCancelledError,
    MascError,
    NonFiniteError,
    NoWorkerError,
    QueueFullError,
    UnknownClassError,
    UnknownModelError,
)
from worker.jobs.outcome import CANCELLED, EXPIRED, JobFailure, JobResult, Timings, end_state


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a"),
        ArtifactError("models/x", "is truncated"),
        InvalidFieldError("top_p", "too large"),
        UnknownClassError("class_id", "no class 9"),
        UnknownModelError("model", "no model x"),
        QueueFullError("full"),
        NoWorkerError("none"),
        JobCancelledError("cancelled"),
        DeadlineError("too late"),
        EngineError("broke"),
        NonFiniteError("a NaN at position 3"),
        MascError("plain"),
    ],
)
def test_an_error_survives_the_queue(error: MascError) -> None:
    rebuilt = JobFailure.of(error).to_error()
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    if not isinstance(error, CapacityError):
        assert vars(rebuilt) == vars(error)


def test_an_unforeseen_error_keeps_its_text_to_itself() -> None:
    failure = JobFailure.of(KeyError("/etc/secret"))
    assert failure.error == "EngineError"
    assert "secret" not in failure.message


def test_an_unknown_name_becomes_an_engine_error() -> None:
    error = JobFailure("SystemExit", "of a newer version").to_error()
    assert type(error) is EngineError
    assert str(error) == "of a newer version"


def test_an_outcome_tells_how_its_job_ended() -> None:
    assert end_state(JobResult((), "tiny", "v1", "", Timings())) == "ok"
    assert end_state(CANCELLED) == "cancelled"
    assert end_state(EXPIRED) == end_state(JobFailure.of(DeadlineError("late"))) == "expired"
    assert end_state(JobFailure("NonFiniteError", "")) == "error"
    assert isinstance(CANCELLED.to_error(), JobCancelledError)
    assert isinstance(EXPIRED.to_error(), DeadlineError)
