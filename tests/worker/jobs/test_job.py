from __future__ import annotations

import dataclasses

import pytest

from masc_core.errors import (
    ArtifactError,
    CapacityError,
    ConfigError,
    EngineError,
    InvalidFieldError,
    MascError,
    NonFiniteError,
    NoWorkerError,
    QueueFullError,
    UnknownClassError,
    UnknownModelError,
)
from worker.jobs.job import MAX_SEED, GenerationRequest, Job, JobFailure

REQUEST = GenerationRequest(model="tiny", class_id=1, cfg_scale=3.0, seed=5)


@pytest.mark.parametrize(
    ("cfg_scale", "num_images", "rows"), [(1.0, 1, 1), (1.0, 16, 16), (1.5, 1, 2), (20.0, 16, 32)]
)
def test_guided_images_take_two_rows(cfg_scale: float, num_images: int, rows: int) -> None:
    request = dataclasses.replace(REQUEST, cfg_scale=cfg_scale, num_images=num_images)
    assert request.num_rows == rows


def test_seeds_count_up_and_wrap_at_the_largest() -> None:
    assert [REQUEST.image_seed(i) for i in range(3)] == [5, 6, 7]
    last = dataclasses.replace(REQUEST, seed=MAX_SEED)
    assert [last.image_seed(i) for i in range(2)] == [MAX_SEED, 0]


def test_jobs_have_ids_of_their_own_and_cannot_be_changed() -> None:
    first, second = Job(REQUEST), Job(REQUEST)
    assert first.id != second.id
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.id = "other"  # type: ignore[misc]


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
