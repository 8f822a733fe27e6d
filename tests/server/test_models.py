"""Several models behind one front end: who is asked, what is refused, and what is told of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.asgi import wait_until
from tests.server.service import Service, assert_problem, draw, write_model
from worker.jobs.queue import WorkerStatus

NAMES = ("big", "idle", "tiny")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Workers for `big` and `tiny`, the default; `idle` only lies in the folder."""
    for name in NAMES:
        write_model(tmp_path / "models", name)
    with Service(tmp_path, default_model="tiny", max_queue=4) as running:
        running.announce()
        for name in ("big", "tiny"):
            running.queue.announce(WorkerStatus(f"host-7/{name}", True, name, "v1"))
        yield running


def test_a_request_goes_to_the_model_that_it_names(service: Service) -> None:
    for name in ("big", "tiny", None):
        named: dict[str, Any] = {} if name is None else {"model": name}
        answers = [
            service.generate(seed=3, **named),
            service.submit(**named),
            service.call("POST", "/v1/images/generations", json={"prompt": "0", **named}),
        ]
        assert [answer.status_code for answer in answers] == [200, 202, 200]
        assert answers[0].json()["model"]["name"] == name or "tiny"
        service.ended(answers[1].headers["location"])
        asked = [request.model for request in service.painter.requests[-3:]]
        assert asked == [name or "tiny"] * 3
    answer = service.generate(seed=3, model="big", accept="image/png")
    assert answer.content == draw(0, 3, "png")
    assert answer.headers["x-masc-model"].startswith("big")


def ask_openai(service: Service, model: str) -> Any:
    body = {"prompt": "0", "model": model}
    return service.call("POST", "/v1/images/generations", json=body)


def test_a_model_that_nobody_serves_is_busy_and_an_unknown_one_is_unknown(
    service: Service,
) -> None:
    reason = "no worker serves the model 'idle', it is only stored; they serve 'big', 'tiny'"
    for answer in (service.generate(model="idle"), service.submit(model="idle")):
        assert assert_problem(answer, 503)["detail"] == reason
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["type"].endswith(":no-worker")
    refused = ask_openai(service, "idle")
    assert refused.status_code == 503
    assert reason in refused.json()["error"]["message"]
    for answer in (service.generate(model="none"), service.submit(model="none")):
        assert assert_problem(answer, 404, "model")["type"].endswith(":unknown-model")
    assert ask_openai(service, "none").status_code == 404


def test_the_list_says_which_are_served_and_by_how_many(service: Service) -> None:
    models = service.get("/models").json()["models"]
    assert [(one["name"], one["ready"], one["workers"], one["default"]) for one in models] == [
        ("big", True, 1, False),
        ("idle", False, 0, False),
        ("tiny", True, 2, True),
    ]
    assert [one["id"] for one in service.get("/v1/models").json()["data"]] == list(NAMES)


def test_ready_is_who_serves_the_default_model_or_the_one_that_is_asked_for(
    service: Service,
) -> None:
    def ready(query: str = "") -> int:
        return service.get(f"/readyz{query}").status_code

    assert (ready(), ready("?model=big"), ready("?model=idle"), ready("?model=none")) == (
        *(200, 200, 503, 404),
    )
    assert service.get("/readyz?model=big").json() == {
        "status": "ready",
        "model": "big",
        "workers": [{"id": "1", "version": "v1"}],
    }
    service.queue.remove_worker("host-7/big")
    assert (ready(), ready("?model=big")) == (200, 503)
    for worker in ("host-7/tiny", "painter"):
        service.queue.remove_worker(worker)
    service.queue.announce(WorkerStatus("host-7/big", True, "big", "v1"))
    assert (ready(), ready("?model=big")) == (503, 200)


def test_a_worker_of_several_models_is_one_worker(service: Service) -> None:
    workers = service.get("/status").json()["workers"]
    assert [(one["id"], one["model"]) for one in workers] == [
        ("1", "big"),
        ("1", "tiny"),
        ("2", "tiny"),
    ]


def test_each_model_has_figures_of_its_own(service: Service) -> None:
    service.painter.gate.clear()
    service.submit(model="tiny")  # which the worker takes
    wait_until(lambda: bool(service.painter.requests))
    for _ in range(3):
        assert service.submit(model="big").status_code == 202
    assert service.submit(model="tiny").status_code == 202
    lines = service.get("/metrics").text.splitlines()
    figures = {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#"}

    def told(name: str) -> dict[str, float]:
        prefix = f'masc_model_{name}{{model="'
        return {
            key.removeprefix(prefix)[:-2]: value
            for key, value in figures.items()
            if key.startswith(prefix)
        }

    assert told("queue_depth") == {"big": 3, "tiny": 1}
    assert told("workers_ready") == {"big": 1, "tiny": 2}
    assert told("jobs_per_second") == {"big": 0, "tiny": 0}
    assert told("queue_oldest_age_seconds").keys() == {"big", "tiny"}
    assert figures["masc_queue_depth"] == 4


def test_a_full_queue_of_one_model_refuses_nobody_else(service: Service) -> None:
    service.painter.gate.clear()
    for _ in range(6):
        answer = service.submit(model="big")
    assert assert_problem(answer, 503)["type"].endswith(":queue-full")
    assert service.submit(model="tiny").status_code == 202


def test_no_label_comes_from_what_clients_ask_for(service: Service) -> None:
    for number in range(5):
        for ask in (service.generate, service.submit):
            assert ask(model=f"made-up-{number}").status_code == 404
        assert service.get(f"/readyz?model=made-up-{number}").status_code == 404
    assert service.generate(model="idle").status_code == 503
    labels = set(re.findall(r'model="([^"]*)"', service.get("/metrics").text))
    assert labels == {"big", "tiny"}
