"""Exercise the service that `docker compose up` has started, and measure it.

`python -m tests.compose.probe [FILE.md]` in the folder of docker-compose.yml, with a Docker engine
at hand and every service up. It brings the service down and up again, and kills a worker; volumes
stay. What it found goes to standard output, and as a table to the file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from masc_core.io.files import atomic_write
from tests.command_line import ROOT
from tests.compose.containers import (
    SERVICE,
    docker,
    generate,
    http,
    num_workers,
    post_job,
    prometheus,
    query,
    redeliveries,
    state,
    until,
)
from tests.compose.expressions import Expression, expressions, panels
from tests.docs.markdown import Document

IMAGES, BASE = ("masc-server", "masc-worker"), "python:3.12-slim-bookworm"
NUM_WORKERS = 3
WORKERS = 'masc_ready{job="masc-worker"}'
MEBIBYTE = 2**20


def main() -> None:
    """Run every check; the first that fails ends the program."""
    rows = ["| check | found | s |", "|---|---|---|"]
    for check in (
        images_are_what_they_should_be,
        first_image_comes_soon,
        containers_have_few_rights,
        images_are_generated,
        a_killed_worker_costs_no_job,
        every_target_is_scraped,
        a_service_without_workers_says_so,
        every_query_has_an_answer,
        the_manual_can_be_followed,
    ):
        started = time.monotonic()
        found, what = check(), check.__name__.replace("_", " ")
        rows.append(f"| {what} | {found} | {time.monotonic() - started:.1f} |")
        print(f"[probe] {what}: {found}", flush=True)  # noqa: T201 - a program
    if sys.argv[1:]:
        atomic_write(Path(sys.argv[1]), "\n".join([*rows, ""]).encode())


def images_are_what_they_should_be() -> str:
    """The front end is without torch; sizes are told."""
    in_server = docker("compose", "exec", "-T", "server", "python", "-c", "import torch", ok=False)
    assert "ModuleNotFoundError" in in_server, in_server
    sizes = {image: size_of(image) for image in IMAGES}
    added = ", ".join(f"{image} {size - size_of(BASE):.0f} MiB" for image, size in sizes.items())
    return f"{added} above {BASE}"


def size_of(image: str) -> float:
    """MiB of all its layers."""
    return int(docker("image", "inspect", "-f", "{{.Size}}", image)) / MEBIBYTE


def first_image_comes_soon() -> str:
    """From nothing but volumes to an image.

    Prometheus goes first, as in a power cut: it does not see the others go.
    """
    until("a worker in Prometheus", lambda: bool(query(WORKERS)))
    docker("compose", "kill", "prometheus")
    docker("compose", "down", "-t", "30")
    started = time.monotonic()
    docker("compose", "up", "-d", "--no-build", "--pull", "never")
    up = time.monotonic() - started
    until("an image", first_image)
    return f"compose up took {up:.1f} s, the first image {time.monotonic() - started:.1f} s"


def first_image() -> bool:
    """Whether there is one already."""
    try:
        return generate(class_id=0).status_code == 200
    except httpx.TransportError:
        return False


def containers_have_few_rights() -> str:
    """Nobody is root, nothing but volumes can be written, only loopback is listened on."""
    containers = json.loads(docker("inspect", *docker("compose", "ps", "-q").split()))
    for container in containers:
        name, host = container["Name"], container["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["CapAdd"] is None, name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0, name
        assert container["State"]["Health"], name
        for bindings in (host["PortBindings"] or {}).values():
            assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}, name
    for service in ("server", "worker", "redis", "prometheus", "grafana"):
        script = "id -u; touch /x 2>&1"
        uid, refused = docker("compose", "exec", "-T", service, "sh", "-c", script, ok=False).split(
            "\n", 1
        )
        assert int(uid) != 0, service
        assert "Read-only file system" in refused, (service, refused)
    return f"{len(containers)} containers"


def images_are_generated() -> str:
    """As a file, as JSON, as a stream, and the same each time."""
    headers = {"Accept": "image/png"}
    first, again = (generate(headers, class_name="ship", seed=3) for _ in range(2))
    assert first.content.startswith(b"\x89PNG"), first.text
    assert first.content == again.content
    answer = generate(class_id=1, num_images=2, cfg_scale=3.0).json()
    assert len(answer["images"]) == 2, answer
    assert "event: preview" in generate(class_id=2, stream=True).text
    return f"{answer['model']['name']} {answer['model']['version']}"


def a_killed_worker_costs_no_job() -> str:
    """Jobs end well although their worker was killed with them; three others take over."""
    before = redeliveries()
    jobs = [post_job(class_id=i, num_images=16, seed=i) for i in range(6)]
    until("a job that runs", lambda: any(state(job) == "running" for job in jobs), pause=0.02)
    (worker,) = docker("compose", "ps", "-q", "worker").split()
    docker("kill", worker)
    killed = time.monotonic()
    assert any(state(job) in {"waiting", "running"} for job in jobs)
    docker(
        *("compose", "up", "-d", "--no-build", "--pull", "never", "--no-recreate", "--wait"),
        *("--scale", f"worker={NUM_WORKERS}"),
    )
    until(f"{NUM_WORKERS} workers", lambda: num_workers() == NUM_WORKERS)
    until("the end of all jobs", lambda: all(state(job) in {"ok", "error"} for job in jobs))
    ended = time.monotonic() - killed
    assert [state(job) for job in jobs] == ["ok"] * len(jobs)
    again = redeliveries() - before
    assert again >= 1, "no job was lost with the worker: it was killed too late"
    assert http.get(f"{SERVICE}{jobs[0]}/images/15").content.startswith(b"\x89PNG")
    return f"{again:.0f} jobs delivered anew, all {len(jobs)} done {ended:.1f} s after the kill"


def every_target_is_scraped() -> str:
    """Prometheus has found every process there is."""
    wanted = {"masc-server": 1, "masc-worker": NUM_WORKERS, "prometheus": 1}

    def scraped() -> bool:
        # What went while Prometheus was down is no target any more, but has a value for a while.
        values = {labels["instance"]: value for labels, value in query("up")}
        up: dict[str, int] = {}
        for target in prometheus("targets", state="active")["activeTargets"]:
            job, instance = target["labels"]["job"], target["labels"]["instance"]
            is_up = target["health"] == "up" and values.get(instance) == 1.0
            up[job] = up.get(job, 0) + is_up
        return up == wanted

    until(f"targets {wanted}", scraped, told=lambda: query("up"))
    return f"{sum(wanted.values())} targets"


def a_service_without_workers_says_so() -> str:
    """Requests are refused, and the dashboard's tiles tell how it is now, not how it was."""
    tiles = {panel["title"]: panel["targets"][0]["expr"] for panel in panels() if is_tile(panel)}
    docker("compose", "stop", "worker")
    until("a refusal", lambda: generate(class_id=0).status_code == 503)
    until("no service", lambda: value_of(tiles["Service"]) == 0)
    until("no worker", lambda: value_of(tiles["Workers ready"]) == 0)
    docker("compose", "start", "worker")
    until(f"{NUM_WORKERS} workers", lambda: num_workers() == NUM_WORKERS)
    until("all of them", lambda: value_of(tiles["Workers ready"]) == NUM_WORKERS)
    return f"{len(tiles)} tiles"


def is_tile(panel: dict[str, Any]) -> bool:
    """Whether a panel shows one number of this moment."""
    return bool(panel["type"] == "stat" and all(target["instant"] for target in panel["targets"]))


def value_of(text: str) -> float:
    """The one value of a query."""
    ((_, value),) = query(text)
    return value


def every_query_has_an_answer() -> str:
    """After some traffic every panel and every recording rule has data, every alert its metrics."""
    asked = [expression for expression in expressions() if not expression.is_silent]
    names = {name for expression in asked for name in expression.metrics}
    missing: list[str] = []

    def answered() -> bool:
        generate(class_id=3, num_images=2, stream=True)
        known = set(prometheus("label/__name__/values"))
        missing[:] = [f"{e.kind} {e.name}: {e.text}" for e in asked if not has_data(e)]
        missing[:0] = sorted(names - known - {"ALERTS"})
        return not missing

    until("data", answered, pause=2.0, told=lambda: "\n".join(missing))
    for group in prometheus("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    return f"{len(asked)} expressions over {len(names)} metrics"


def the_manual_can_be_followed() -> str:
    """Every command of docs/operating.md works as written, in another folder than the project's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "models").symlink_to(ROOT / "models")
        script = "\n".join(["set -euo pipefail", *manual_blocks()])
        files = {"COMPOSE_FILE": str(ROOT / "docker-compose.yml")}
        done = subprocess.run(
            ["bash", "-xc", script],
            cwd=folder,
            env=os.environ | files,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"docs/operating.md: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        members = subprocess.run(
            ["tar", "-tf", "models.tar"], cwd=folder, capture_output=True, text=True, check=True
        )
        assert "./cifar10/1/manifest.json" in members.stdout.split(), members.stdout
        assert any(Path(folder, "redis-backup").rglob("*.aof")), "nothing of Redis was kept"
    until("an image", first_image)
    return f"{len(manual_blocks())} blocks of commands"


def manual_blocks() -> list[str]:
    """Blocks of commands, but for GPUs, and those that have not ended before somebody ends them."""
    blocks = Document(ROOT / "docs" / "operating.md").blocks("sh")
    return [
        block.replace("cifar10/2", "cifar10/1")  # the one version that there is
        .replace("cifar10 2", "cifar10 1")
        .replace("logs -f", "logs")
        for block in blocks
        if "gpu.yml" not in block and block != "docker compose up\n"
    ]


def has_data(expression: Expression) -> bool:
    """Whether it gives a number. Alerts give none while all is well: their metrics are asked."""
    if expression.kind == "alert" or expression.metrics == {"ALERTS"}:
        return True
    return any(not math.isnan(value) for _, value in query(expression.text))


if __name__ == "__main__":
    main()
