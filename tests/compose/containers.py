"""The service that `docker compose up` has started, asked from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

SERVICE, PROMETHEUS = "http://127.0.0.1:8000", "http://127.0.0.1:9090"
SECONDS = 120.0  # for anything that is waited for

http = httpx.Client(timeout=60)


def generate(headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """POST /generate."""
    return http.post(f"{SERVICE}/generate", json=body, headers=headers or {})


def post_job(**body: Any) -> str:
    """Path of a new job."""
    answer = http.post(f"{SERVICE}/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


def state(job: str) -> str:
    """Where a job is."""
    return str(http.get(f"{SERVICE}{job}").json()["state"])


def num_workers() -> int:
    """Workers that are ready."""
    answer = http.get(f"{SERVICE}/readyz")
    return len(answer.json()["workers"]) if answer.status_code == 200 else 0


def redeliveries() -> float:
    """Jobs delivered anew because their worker was lost."""
    start = 'masc_jobs_redelivered_total{reason="lease_expired"} '
    lines = http.get(f"{SERVICE}/metrics").text.splitlines()
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def prometheus(path: str, **parameters: str) -> Any:
    """Ask Prometheus' API."""
    answer = http.get(f"{PROMETHEUS}/api/v1/{path}", params=parameters)
    assert answer.status_code == 200, (parameters, answer.text)
    return answer.json()["data"]


def query(text: str) -> list[tuple[dict[str, str], float]]:
    """Labels and values of a query, now."""
    result = prometheus("query", query=text)["result"]
    return [(series["metric"], float(series["value"][1])) for series in result]


def docker(*arguments: str, ok: bool = True) -> str:
    """Output of a command; one that is not ``ok`` may fail."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if ok and done.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr}")
    return (done.stdout if ok else done.stdout + done.stderr).strip()


def until(
    what: str,
    condition: Callable[[], bool],
    pause: float = 0.2,
    told: Callable[[], object] = lambda: "",
) -> None:
    """Wait for something."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {SECONDS:.0f} s: {what} {told()}")
        time.sleep(pause)
