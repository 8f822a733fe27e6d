from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.registry import Registry
from server.app import create_app
from tests.clock import Clock
from tests.server.asgi import Exchange, until, wait_until
from tests.server.service import GRID, WEIGHTS, Service, assert_problem, draw
from tests.server.sse import Event, read_events
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.outcome import JobFailure


def done(service: Service, **fields: Any) -> str:
    """Path of a job that has ended."""
    location = service.submit(**fields).headers["location"]
    service.ended(location)
    return location


def test_a_job_is_accepted(own_service: Service) -> None:
    own_service.painter.gate.clear()
    before = time.time()
    response = own_service.submit(class_name="teapot", seed=7, num_images=2, format="webp")
    assert response.status_code == 202
    job = response.json()
    assert re.fullmatch(r"/jobs/[0-9a-f]{32}", response.headers["location"])
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] in {"waiting", "running"}
    created = dt.datetime.fromisoformat(job["created"])
    assert before - 1 < created.timestamp() < time.time() + 1
    assert job["timeout"] == 3600.0
    assert job["events"] == f"/jobs/{job['id']}/events"
    assert job["request"] == {
        "model": "tiny",
        "version": "v1",
        "class_id": 3,
        "class_name": "teapot",
        "cfg_scale": 3.0,
        "cfg_schedule": "constant",
        "cfg_start": 0.18,
        "cluster_top_k": 0,
        "cluster_top_p": 1.0,
        "num_images": 2,
        "seed": 7,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "decoding": "uniform",
        "code_temperature": 1.0,
        "code_top_k": 0,
        "code_cfg_scale": 1.0,
        "format": "webp",
    }
    assert not {"images", "model", "timings", "error"} & set(job)


def test_a_job_ends_with_its_images(own_service: Service) -> None:
    location = done(own_service, class_id=2, seed=7, num_images=2, format="webp")
    response = own_service.get(location)
    assert response.headers["cache-control"] == "no-store"
    job = response.json()
    assert (job["state"], job["position"], job["estimated_start_seconds"]) == ("ok", None, None)
    assert job["model"] == {"name": "tiny", "version": "v1", "weights_sha256": WEIGHTS}
    assert job["timings"]["total"] == 0.015
    assert [image["seed"] for image in job["images"]] == [7, 8]
    for image in job["images"]:
        assert set(image) == {"index", "url", "seed", "format", "entropy_bits", "entropy_ratio"}
        answer = own_service.get(image["url"])
        assert answer.content == draw(2, image["seed"], "webp")
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["x-masc-seed"] == str(image["seed"])
        assert answer.headers["x-masc-model"] == "tiny/v1"
    images = own_service.get(f"{location}?entropies=true").json()["images"]
    assert [len(image["entropies"]) for image in images] == [GRID**2] * 2


def test_an_image_that_is_there_already_is_not_sent_again(own_service: Service) -> None:
    url = done(own_service, seed=1) + "/images/0"
    first = own_service.get(url)
    again = own_service.get(url, **{"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert own_service.get(url, **{"If-None-Match": '"other"'}).content == first.content
    other = own_service.get(done(own_service, seed=2) + "/images/0")
    assert other.headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"class_id": 99}, 404, "class_id"),
        ({"model": "huge"}, 404, "model"),
        ({"num_images": 17}, 422, "num_images"),
        ({"stream": True}, 422, "stream"),
        ({"previews": 1}, 422, "previews"),
    ],
)
def test_a_job_is_checked_like_a_request(
    service: Service, fields: dict[str, Any], status: int, named: str
) -> None:
    assert_problem(service.submit(**fields), status, named)


def test_the_position_and_when_it_may_start(own_service: Service) -> None:
    own_service.painter.gate.clear()
    locations = [own_service.submit().headers["location"] for _ in range(4)]
    wait_until(lambda: len(own_service.painter.requests) == 1)
    jobs = [own_service.get(location).json() for location in locations]
    assert [job["state"] for job in jobs] == ["running", *["waiting"] * 3]
    assert [job["position"] for job in jobs] == [None, 0, 1, 2]
    assert {job["estimated_start_seconds"] for job in jobs} == {None}
    own_service.queue._rates["tiny"].count()
    starts = [own_service.get(location).json()["estimated_start_seconds"] for location in locations]
    assert starts[0] is None
    assert 0 < starts[1] < starts[2] < starts[3]


def test_a_job_that_fails_says_why(own_service: Service) -> None:
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN at position 3")
    location = done(own_service)
    job = own_service.get(location).json()
    assert job["state"] == "error"
    assert job["error"]["status"] == 500
    assert job["error"]["detail"] == "a NaN at position 3"
    assert "images" not in job
    assert "'error'" in assert_problem(own_service.get(f"{location}/images/0"), 404)["detail"]


def test_an_image_that_there_is_not(service: Service) -> None:
    location = done(service)
    for index in (1, 16, 10**30):
        assert_problem(service.get(f"{location}/images/{index}"), 404)
    for no_index in ("-1", "x", "1.5", "9" * 5000):
        assert_problem(service.get(f"{location}/images/{no_index}"), 422, "index")


def test_images_that_are_not_there_yet(own_service: Service) -> None:
    own_service.painter.gate.clear()
    location = own_service.submit().headers["location"]
    assert_problem(own_service.get(f"{location}/images/0"), 404)


def test_cancelling(own_service: Service) -> None:
    own_service.painter.gate.clear()
    running = own_service.submit().headers["location"]
    wait_until(lambda: len(own_service.painter.requests) == 1)
    waiting = own_service.submit().headers["location"]
    for location in (waiting, running, running):
        response = own_service.call("DELETE", location)
        assert (response.status_code, response.content) == (204, b"")
        job = own_service.get(location).json()
        assert (job["state"], job["error"]["status"]) == ("cancelled", 410)
    own_service.painter.gate.set()
    ended = done(own_service)
    assert own_service.call("DELETE", ended).status_code == 204
    assert own_service.get(ended).json()["state"] == "ok"
    assert len(own_service.painter.requests) == 2


OF_A_JOB = [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0")]


@pytest.mark.parametrize(("method", "rest"), OF_A_JOB)
@pytest.mark.parametrize("job_id", ["0" * 32, "x", "%00", "%ff", "a%2Fb"])
def test_an_unknown_job(service: Service, method: str, rest: str, job_id: str) -> None:
    response = service.call(method, f"/jobs/{job_id}{rest}")
    assert_problem(response, 404, *(["id"] if "%2F" not in job_id else []))


@pytest.mark.parametrize(("method", "rest"), OF_A_JOB)
def test_the_job_of_somebody_else_is_unknown(own_service: Service, method: str, rest: str) -> None:
    foreign = Job(GenerationRequest("other", 0, 1.0, 0), owner="bob", keep=True)
    asyncio.run(own_service.queue.submit(foreign))
    response = own_service.call(method, f"/jobs/{foreign.id}{rest}")
    unknown = own_service.call(method, f"/jobs/{'0' * 32}{rest}")
    assert_problem(response, 404, "id")
    assert response.text.replace(foreign.id, "0" * 32) == unknown.text
    assert own_service.queue._waiting


def test_results_are_kept_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    with Service(tmp_path, clock=clock, result_seconds=0.5) as service:
        service.queue._limits = dataclasses.replace(service.queue._limits, tombstone_seconds=2.0)
        location = done(service)
        assert service.get(f"{location}/images/0").status_code == 200
        clock.now = 0.55
        for rest in ("", "/events", "/images/0"):
            assert_problem(service.get(location + rest), 410, "id")
        assert service.call("DELETE", location).status_code == 204
        clock.now = 2.05
        for method, rest in OF_A_JOB:
            assert_problem(service.call(method, location + rest), 404, "id")


def test_what_one_front_end_took_another_one_tells(own_service: Service) -> None:
    location = done(own_service, seed=4)
    own_service.app = create_app(
        own_service.settings, own_service.queue, Registry(own_service.root), CollectorRegistry()
    )
    assert own_service.get(location).json()["state"] == "ok"
    assert own_service.get(f"{location}/images/0").content == draw(0, 4, "png")


# Events


def told(service: Service, location: str, **headers: str) -> list[Event]:
    response = service.get(f"{location}/events", **headers)
    assert response.status_code == 200
    return read_events(response.text)


def test_coming_back_behind_any_event_gives_exactly_the_rest(own_service: Service) -> None:
    location = done(own_service, num_images=2)
    events = told(own_service, location)
    image = ["progress", "preview"] * GRID
    assert [event.name for event in events] == ["started", *image, *image, "image", "image", "done"]
    assert told(own_service, location) == events
    ids = [event.id for event in events]
    assert len(set(ids)) == len(ids) == 2 + 1 + 2 * 2 * GRID + 1
    for i, event in enumerate(events[:-1], 1):
        assert event.id is not None
        assert told(own_service, location, **{"Last-Event-ID": event.id}) == events[i:]
        by_query = own_service.get(f"{location}/events?last_event_id={event.id}")
        assert read_events(by_query.text) == events[i:]
    end = own_service.get(f"{location}/events", **{"Last-Event-ID": "done"})
    assert (end.status_code, end.content) == (204, b"")


def test_the_header_wins_over_the_query(own_service: Service) -> None:
    location = done(own_service)
    query = f"{location}/events?last_event_id=1"
    events = read_events(own_service.get(query, **{"Last-Event-ID": "image.0"}).text)
    assert [event.name for event in events] == ["done"]


def test_what_is_no_event_s_id_is_refused(service: Service) -> None:
    location = done(service)
    for event_id in ("x", "-1", "image", "1e3", "9" * 10):
        response = service.get(f"{location}/events", **{"Last-Event-ID": event_id})
        assert_problem(response, 422, "Last-Event-ID")
        response = service.get(f"{location}/events?last_event_id={event_id}")
        assert_problem(response, 422, "last_event_id")


def test_events_come_as_they_happen_to_everyone(own_service: Service) -> None:
    own_service.painter.gate.clear()
    location = own_service.submit().headers["location"]

    async def run() -> list[Exchange]:
        readers = [Exchange([b""], path=f"{location}/events", method="GET") for _ in range(3)]
        requests = [asyncio.ensure_future(one.run(own_service.app)) for one in readers]
        await until(lambda: all(b"event: started" in one.body for one in readers))
        readers[0].gone.set()
        await asyncio.wait_for(requests[0], 5.0)
        assert own_service.queue._running  # others may come for it
        readers[1].takes.clear()
        own_service.painter.gate.set()
        await asyncio.wait_for(requests[2], 5.0)  # whatever the second one does
        assert b"event: image" not in readers[1].body
        readers[1].takes.set()
        await asyncio.wait_for(requests[1], 5.0)
        return readers

    gone, slow, quick = (read_events(one.body.decode()) for one in asyncio.run(run()))
    assert gone[-1].name == "started"
    assert slow == quick
    assert quick[-1].name == "done"
    labels = {"endpoint": "/jobs/{id}/events"}
    assert own_service.sample("masc_requests_total", **labels, outcome="ok") == 2
    assert own_service.sample("masc_requests_total", **labels, outcome="cancelled") == 1
    assert not own_service.queue._watchers.watched


def test_a_job_without_previews_tells_its_images_alone(own_service: Service) -> None:
    location = done(own_service, previews=False)
    assert [event.name for event in told(own_service, location)] == ["image", "done"]


def test_entropies_of_events(own_service: Service) -> None:
    location = done(own_service)
    (image, _) = read_events(
        own_service.get(f"{location}/events?entropies=true&last_event_id=9").text
    )
    assert len(image.data["entropies"]) == GRID**2
    assert base64.b64decode(image.data["b64"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_the_events_of_a_job_without_images(own_service: Service, ending: str) -> None:
    if ending == "failed":
        own_service.painter.failure = JobFailure("NonFiniteError", "a NaN")
        location = done(own_service)
    else:
        own_service.painter.gate.clear()
        location = own_service.submit().headers["location"]
        wait_until(lambda: bool(own_service.painter.requests))
        own_service.call("DELETE", location)
    first, last = told(own_service, location)
    assert (first.name, last.name, last.id) == ("started", "error", "error")
    assert last.data["status"] == (500 if ending == "failed" else 410)
    assert own_service.get(f"{location}/events", **{"Last-Event-ID": "error"}).status_code == 204


def test_a_body_where_none_is_due_is_limited_too(tmp_path: Path) -> None:
    with Service(tmp_path, max_body_bytes=1024) as service:
        location = done(service)
        response = service.call("GET", f"{location}/events", content=b"x" * 2000)
        assert_problem(response, 413)
