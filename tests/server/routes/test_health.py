from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.auth.test_api_keys import ROOT, write_keys
from tests.server.service import Service, assert_problem
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.outcome import JobFailure
from worker.jobs.queue import WorkerStatus


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Service]:
    """A front end without a worker."""
    with Service(tmp_path, working=False) as running:
        yield running


def value(service: Service, name: str) -> float:
    text = service.get("/metrics").text
    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    assert len(values) == 1
    return values[0]


def test_the_process_is_healthy_with_and_without_a_worker(service: Service, idle: Service) -> None:
    for each in (service, idle):
        assert each.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/"])
def test_head_is_answered_like_get(service: Service, path: str) -> None:
    assert service.call("HEAD", path).status_code == 200


def test_ready_once_a_worker_is(idle: Service) -> None:
    problem = assert_problem(idle.get("/readyz"), 503)
    assert "no worker" in problem["detail"]
    assert value(idle, "masc_ready") == 0

    idle.announce(ready=False, detail="warming up")
    response = idle.get("/readyz")
    detail = assert_problem(response, 503)["detail"]
    assert detail == "no worker is ready for the model 'tiny' (warming up)"
    assert int(response.headers["retry-after"]) >= 1

    idle.announce(model="other")
    detail = assert_problem(idle.get("/readyz"), 503)["detail"]
    assert detail == "no worker serves the model 'tiny', it is only stored; they serve 'other'"

    idle.announce()
    assert idle.get("/readyz").json() == {
        "status": "ready",
        "model": "tiny",
        "workers": [{"id": "1", "version": "v1"}],
    }
    assert value(idle, "masc_ready") == 1

    idle.queue.remove_worker("painter")
    assert_problem(idle.get("/readyz"), 503)


def test_a_probe_is_no_rejection(idle: Service) -> None:
    idle.get("/readyz")
    assert "masc_rejections_total{" not in idle.exposition()


def test_the_gauges_are_those_of_the_queue_now(idle: Service) -> None:
    request = GenerationRequest("tiny", 0, 1.0, 0)
    asyncio.run(idle.queue.submit(Job(request, submitted_at=time.time() - 100)))
    asyncio.run(idle.queue.submit(Job(request)))
    assert value(idle, "masc_queue_depth") == 2
    assert 100 <= value(idle, "masc_queue_oldest_age_seconds") < 105
    idle.queue.claim("tiny", 10, 0.0)
    assert value(idle, "masc_queue_depth") == 0
    assert value(idle, "masc_queue_oldest_age_seconds") == 0


def test_accepted_jobs_are_all_accounted_for(own_service: Service) -> None:
    own_service.generate()
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN")
    own_service.generate()
    own_service.painter.gate.clear()
    hasty = {"X-Masc-Timeout": "0.05"}
    own_service.call("POST", "/generate", json={"class_id": 0}, headers=hasty)
    location = own_service.submit().headers["location"]
    own_service.call("DELETE", location)
    text = own_service.get("/metrics").text
    assert "masc_jobs_accepted_total 4.0" in text
    for outcome in ("ok", "error", "cancelled", "expired"):
        assert f'masc_jobs_ended_total{{outcome="{outcome}"}} 1.0' in text


def test_the_exposition_says_what_it_is(service: Service) -> None:
    response = service.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert list(text_string_to_metric_families(response.text))


def test_version(service: Service) -> None:
    answer = service.get("/version").json()
    assert answer["name"] == "masc"
    assert re.fullmatch(r"\d+\.\d+.*|unknown", answer["version"])


def test_the_status_says_how_queue_and_workers_are(own_service: Service) -> None:
    own_service.generate()
    own_service.queue.announce(WorkerStatus("second", ready=False, detail="loads tiny v1"))
    status = own_service.get("/status").json()
    assert status["default_model"] == "tiny"
    assert status["draining"] is False
    assert status["version"] == own_service.get("/version").json()["version"]
    assert [worker["id"] for worker in status["workers"]] == ["1", "2"]
    assert status["workers"][1] == {
        "id": "2",
        "ready": False,
        "model": "",
        "version": "",
        "detail": "loads tiny v1",
    }
    queue = status["queue"]
    assert (queue["depth"], queue["running"], queue["accepted"]) == (0, 0, 1)
    assert queue["ended"] == {"ok": 1}


def test_jobs_that_wait_are_counted(own_service: Service) -> None:
    own_service.painter.gate.clear()
    for _ in range(3):
        own_service.submit()
    deadline = time.monotonic() + 10
    while (queue := own_service.get("/status").json()["queue"])["running"] != 1:
        assert time.monotonic() < deadline, queue
    assert queue["depth"] == 2
    assert queue["oldest_seconds"] > 0


@pytest.mark.parametrize("refused", ["", "7"])
def test_hosts_and_paths_are_for_admins(tmp_path: Path, refused: str) -> None:
    keys = write_keys(tmp_path)
    detail = "the warm-up image failed: /srv/models/tiny/7/prior.npz: is damaged"
    secrets = ("host-17", "/srv", "prior.npz")
    with Service(tmp_path, working=False, admin_keys_file=keys["admin_keys_file"]) as service:
        announced = WorkerStatus("host-17", False, "tiny", "6", detail, refused)
        service.queue.announce(announced)
        for path in ("/readyz", "/status", "/generate"):
            method = "POST" if path == "/generate" else "GET"
            body = {"json": {"class_id": 0}} if method == "POST" else {}
            for headers in ({}, {"X-API-Key": "of nobody"}):
                text = service.call(method, path, headers=headers, **body).text
                assert not any(secret in text for secret in secrets)
        (worker,) = service.get("/status", **{"X-API-Key": ROOT}).json()["workers"]
        assert (worker["id"], worker["detail"]) == ("host-17", detail)
        (worker,) = service.get("/status").json()["workers"]
        assert worker["detail"] == ("refuses version 7" if refused else "the warm-up image failed")
        service.queue.announce(replace(announced, ready=True))
        assert service.get("/readyz").json()["workers"] == [{"id": "1", "version": "6"}]
        (worker,) = service.get("/readyz", **{"X-API-Key": ROOT}).json()["workers"]
        assert worker["id"] == "host-17"
