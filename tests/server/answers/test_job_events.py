from __future__ import annotations

import base64
import re

import pytest

from masc_core.errors import JobCancelledError, NonFiniteError
from server.answers.job_events import EVENT_ID, Cursor, JobEvents
from server.answers.queue_position import QueuePosition
from tests.server.service import draw, paint
from tests.server.sse import Event, read_events
from worker.jobs.event import NumberedEvent, Preview, Progress, Started
from worker.jobs.job import GenerationRequest, Job

JOB = Job(GenerationRequest("tiny", 1, 1.0, 5, num_images=3, format="webp"), id="an-id")


def shown(*updates: object, **options: object) -> list[Event]:
    presenter = JobEvents(JOB, **options)  # type: ignore[arg-type]
    chunks = [chunk for update in updates for chunk in presenter.show(update)]  # type: ignore[arg-type]
    return read_events(b"".join(chunks).decode())


@pytest.mark.parametrize(
    ("event_id", "cursor"),
    [
        ("", Cursor()),
        ("7", Cursor(7)),
        ("999999999", Cursor(999_999_999)),
        ("image.0", Cursor(None, 1)),
        ("image.15", Cursor(None, 16)),
        ("done", Cursor(None, 0, True)),
        ("error", Cursor(None, 0, True)),
    ],
)
def test_the_place_behind_an_event(event_id: str, cursor: Cursor) -> None:
    assert re.search(EVENT_ID, event_id)
    assert Cursor.behind(event_id) == cursor


@pytest.mark.parametrize(
    "event_id", ["-1", "1.5", "image", "image.", "image.x", "end", " 1", "\u0661"]
)
def test_what_is_no_id(event_id: str) -> None:
    assert not re.search(EVENT_ID, event_id)


def test_what_is_told_on_the_way() -> None:
    preview = Preview(1, 2, 4, "png", b"data")
    assert shown(
        QueuePosition(3, None),
        QueuePosition(2, 1.5),
        NumberedEvent(1, Started("v9")),
        NumberedEvent(2, Progress(1, 2, 4)),
        NumberedEvent(3, preview),
    ) == [
        Event("queued", {"position": 3, "estimated_start_seconds": None}),
        Event("queued", {"position": 2, "estimated_start_seconds": 1.5}),
        Event("started", {"model": "tiny", "version": "v9"}, "1"),
        Event("progress", {"image": 1, "rows": 2, "num_rows": 4}, "2"),
        Event(
            "preview",
            {"image": 1, "rows": 2, "num_rows": 4, "format": "png", "b64": "ZGF0YQ=="},
            "3",
        ),
    ]


def test_the_images_come_one_by_one() -> None:
    events = shown(paint(JOB))
    assert [event.id for event in events] == ["image.0", "image.1", "image.2", "done"]
    assert [event.data["index"] for event in events[:-1]] == [0, 1, 2]
    assert [event.data["seed"] for event in events[:-1]] == [5, 6, 7]
    assert events[0].data["format"] == "webp"
    assert "entropies" not in events[0].data
    assert events[-1].data["id"] == "an-id"
    assert set(events[-1].data) == {"id", "model", "timings"}
    assert shown(paint(JOB), first_image=2) == events[2:]
    assert shown(paint(JOB), first_image=9) == events[3:]


def test_entropies_come_when_asked_for() -> None:
    assert len(shown(paint(JOB), entropies=True)[0].data["entropies"]) == 16


def test_an_image_is_its_bytes() -> None:
    assert base64.b64decode(shown(paint(JOB))[1].data["b64"]) == draw(1, 6, "webp")


@pytest.mark.parametrize(
    ("error", "status"), [(JobCancelledError("cancelled"), 410), (NonFiniteError("a NaN"), 500)]
)
def test_a_failure_is_a_problem(error: Exception, status: int) -> None:
    (event,) = read_events(JobEvents(JOB).fail(error).decode())  # type: ignore[arg-type]
    assert (event.name, event.id) == ("error", "error")
    assert (event.data["status"], event.data["detail"]) == (status, str(error))
