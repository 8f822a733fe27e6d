from __future__ import annotations

import base64

import pytest

from masc_core.errors import NonFiniteError
from server.answers.job_updates import QueuePosition
from server.openai.events import OpenAIEvents, usage_of
from tests.server.service import GRID, draw, paint
from tests.server.sse import Event, read_events
from worker.jobs.job import GenerationRequest, Job, NumberedEvent, Preview, Progress, Started

JOB = Job(GenerationRequest("tiny", 1, 1.0, 5, num_images=2, format="webp"))


def shown(presenter: OpenAIEvents, *updates: object) -> list[Event]:
    chunks = [chunk for update in updates for chunk in presenter.show(update)]  # type: ignore[arg-type]
    return read_events(b"".join(chunks).decode())


def previews(image: int, num_rows: int) -> list[NumberedEvent]:
    return [
        NumberedEvent(rows, Preview(image, rows, num_rows, "png", b"%d" % rows))
        for rows in range(1, num_rows + 1)
    ]


@pytest.mark.parametrize(
    ("partial_images", "rows"), [(0, []), (1, [4]), (2, [3, 6]), (3, [2, 4, 6])]
)
def test_partial_images_come_at_even_distances(partial_images: int, rows: list[int]) -> None:
    events = shown(OpenAIEvents(JOB, "16x16", partial_images), *previews(0, 8))
    assert [base64.b64decode(event.data["b64_json"]) for event in events] == [
        b"%d" % row for row in rows
    ]
    assert [event.data["partial_image_index"] for event in events] == list(range(partial_images))
    for event in events:
        assert event.name == event.data["type"] == "image_generation.partial_image"
        assert (event.data["output_format"], event.data["size"]) == ("png", "16x16")


def test_images_are_counted_apart() -> None:
    updates = [one for pair in zip(previews(0, 4), previews(1, 4), strict=True) for one in pair]
    events = shown(OpenAIEvents(JOB, "16x16", 1), *updates)
    assert [(e.data["index"], e.data["partial_image_index"]) for e in events] == [(0, 0), (1, 0)]


def test_the_images_are_the_last_events() -> None:
    presenter = OpenAIEvents(JOB, "16x16", 3)
    quiet = [
        QueuePosition(1, None),
        NumberedEvent(1, Started("v1")),
        NumberedEvent(2, Progress(0, 1, 4)),
    ]
    events = shown(presenter, *quiet, paint(JOB))
    assert [event.name for event in events] == ["image_generation.completed"] * 2
    for index, event in enumerate(events):
        assert event.data["index"] == index
        assert event.data["seed"] == 5 + index
        assert base64.b64decode(event.data["b64_json"]) == draw(1, 5 + index, "webp")
        assert event.data["output_format"] == "webp"
        assert event.data["usage"]["output_tokens"] == GRID**2


def test_a_failure_is_an_error() -> None:
    (event,) = read_events(OpenAIEvents(JOB, "16x16", 0).fail(NonFiniteError("a NaN")).decode())
    assert event.name == "error"
    assert event.data["error"]["message"] == "a NaN"
    assert event.data["error"]["type"] == "server_error"


def test_usage_is_what_the_transformer_read_and_wrote() -> None:
    usage = usage_of(*paint(JOB).images)
    assert (usage.input_tokens, usage.output_tokens) == (2, 2 * GRID**2)
    assert usage.total_tokens == 2 + 2 * GRID**2
