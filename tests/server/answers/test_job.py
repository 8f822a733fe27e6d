from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.answers.job import EVENT_ID, Cursor, JobEventEncoder
from server.auth.api_keys import hash_key
from server.schemas.job import QueuedEvent
from tests.server.auth.test_api_keys import ALICE, BOB, write_keys
from tests.server.service import Service, assert_problem, draw, paint
from tests.server.sse import Event, read_events
from worker.jobs.job import GenerationRequest, Job, NumberedEvent, Preview, Progress, Started

OPENAI = "/v1/images/generations"
OF_A_JOB = [("GET", ""), ("GET", "/events"), ("GET", "/images/0"), ("DELETE", "")]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("guarded")
    with Service(root, **write_keys(root)) as service:
        yield service


def key(secret: str) -> dict[str, str]:
    return {"X-API-Key": secret}


@pytest.mark.parametrize(("method", "rest"), OF_A_JOB)
def test_a_job_is_its_owner_s_alone(guarded: Service, method: str, rest: str) -> None:
    submitted = guarded.submit(key(ALICE))
    location = submitted.headers["location"]
    told = guarded.get(f"{location}/events", **key(ALICE))
    assert read_events(told.text)[-1].name == "done"
    assert_problem(guarded.call(method, location + rest, headers=key(BOB)), 404, "id")
    assert_problem(guarded.call(method, location + rest), 401)
    assert guarded.call(method, location + rest, headers=key(ALICE)).status_code in {200, 204}


def test_a_new_key_under_a_revoked_name_has_none_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.auth.api_keys.CHECK_SECONDS", 0.0)
    files = write_keys(tmp_path)
    with Service(tmp_path, **files) as service:
        order = {"Idempotency-Key": "order-7"}
        first = service.submit(key(ALICE) | order)
        path = files["api_keys_file"]
        path.write_text(path.read_text().replace(hash_key(ALICE), hash_key("another")))
        for method, rest in OF_A_JOB:
            location = first.headers["location"] + rest
            assert_problem(service.call(method, location, headers=key("another")), 404, "id")
        assert service.submit(key("another") | order).headers["location"] != location


def test_an_idempotency_key_is_its_owner_s_alone(guarded: Service) -> None:
    answers = [
        guarded.submit(key(who) | {"Idempotency-Key": "order-7"}, class_id=class_id)
        for class_id, who in enumerate((ALICE, BOB))
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len({answer.headers["location"] for answer in answers}) == 2
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_a_key_is_wanted_before_anything_else(guarded: Service, path: str) -> None:
    assert_problem(guarded.call("POST", path, content=b"{"), 401)


def test_a_client_of_openai_s_brings_its_key_in_its_own_way(guarded: Service) -> None:
    body = {"prompt": "ship"}
    refused = guarded.call("POST", OPENAI, json=body, headers={"Authorization": "Bearer no"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert refused.headers["www-authenticate"] == "Bearer"
    taken = guarded.call("POST", OPENAI, json=body, headers={"Authorization": f"Bearer {ALICE}"})
    assert taken.status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/jobs", OPENAI])
def test_a_rate_limit_is_for_all_that_starts_work(tmp_path: Path, path: str) -> None:
    body = {"prompt": "ship"} if path == OPENAI else {"class_id": 5}
    with Service(tmp_path, rate_limit=2) as service:
        answers = [service.call("POST", path, json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers[:2]] == [
            202 if path == "/jobs" else 200
        ] * 2
        assert answers[2].status_code == 429
        assert int(answers[2].headers["retry-after"]) >= 1
        assert service.get("/jobs/x").status_code == 404


JOB = Job(GenerationRequest("tiny", 1, 1.0, 5, num_images=3, format="webp"), id="an-id")


def shown(*updates: object, **options: object) -> list[Event]:
    encoder = JobEventEncoder(JOB, **options)  # type: ignore[arg-type]
    chunks = [chunk for update in updates for chunk in encoder.encode(update)]  # type: ignore[arg-type]
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
    assert Cursor.from_last_event_id(event_id) == cursor


@pytest.mark.parametrize(
    "event_id", ["-1", "1.5", "image", "image.", "image.x", "end", " 1", "\u0661"]
)
def test_what_is_no_id(event_id: str) -> None:
    assert not re.search(EVENT_ID, event_id)


def test_what_is_told_on_the_way() -> None:
    preview = Preview(1, 2, 4, "png", b"data")
    assert shown(
        QueuedEvent(position=3, estimated_start_seconds=None),
        QueuedEvent(position=2, estimated_start_seconds=1.5),
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
    assert base64.b64decode(events[1].data["b64"]) == draw(1, 6, "webp")
    assert "entropies" not in events[0].data
    assert events[-1].data["id"] == "an-id"
    assert set(events[-1].data) == {"id", "model", "timings"}
    assert shown(paint(JOB), first_image=2) == events[2:]
    assert shown(paint(JOB), first_image=9) == events[3:]
