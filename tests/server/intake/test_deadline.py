from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.errors import InvalidFieldError
from server.intake.deadline import time_limit
from tests.server.service import Service, assert_problem
from tests.server.sse import read_events


def test_the_client_may_have_less_than_the_service_gives() -> None:
    assert time_limit(None, 300.0) == 300.0
    assert time_limit(0.5, 300.0) == 0.5
    assert time_limit(300.0, 300.0) == 300.0
    with pytest.raises(InvalidFieldError, match="at most 300 seconds") as refusal:
        time_limit(300.1, 300.0)
    assert refusal.value.field == "X-Masc-Timeout"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "301", "1e9"])
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_what_is_no_number_of_seconds_is_refused(tmp_path: Path, path: str, value: str) -> None:
    service = Service(tmp_path, request_timeout=300, job_timeout=300)
    service.announce()
    response = service.call("POST", path, json={"class_id": 0}, headers={"X-Masc-Timeout": value})
    assert_problem(response, 422, "X-Masc-Timeout")
    assert not service.queue._waiting


def test_a_request_is_given_up_in_time(own_service: Service) -> None:
    own_service.painter.gate.clear()
    response = own_service.call(
        "POST", "/generate", json={"class_id": 0}, headers={"X-Masc-Timeout": "0.05"}
    )
    assert "0.05 seconds" in assert_problem(response, 504)["detail"]
    assert not own_service.queue._running
    outcome = {"endpoint": "/generate", "outcome": "timeout"}
    assert own_service.sample("masc_requests_total", **outcome) == 1


def test_a_stream_is_given_up_in_time(own_service: Service) -> None:
    own_service.painter.gate.clear()
    response = own_service.call(
        "POST",
        "/generate",
        json={"class_id": 0, "stream": True},
        headers={"X-Masc-Timeout": "0.05"},
    )
    assert response.status_code == 200
    last = read_events(response.text)[-1]
    assert (last.name, last.data["status"], last.id) == ("error", 504, "error")
    assert not own_service.queue._records
    assert own_service.queue._ends == {"expired": 1}
    outcome = {"endpoint": "/generate", "outcome": "timeout"}
    assert own_service.sample("masc_requests_total", **outcome) == 1


def test_a_job_expires(tmp_path: Path) -> None:
    with Service(tmp_path, job_timeout=50.0) as service:
        service.painter.gate.clear()
        service.submit()  # the worker is busy
        assert service.submit().json()["timeout"] == 50.0
        location = service.submit({"X-Masc-Timeout": "0.05"}).headers["location"]
        answer = service.ended(location)
        assert (answer["state"], answer["timeout"]) == ("expired", 0.05)
        assert answer["error"]["status"] == 504
