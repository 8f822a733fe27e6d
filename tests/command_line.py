"""`masc` as tests run it: in this process, or serving in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """This process's, with one thread: the tests share their cores."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MASC_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@dataclass(frozen=True)
class Done:
    status: int
    stdout: str
    stderr: str


Masc = Callable[..., Done]


@contextmanager
def service(
    models: Path, *options: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`masc serve` on a free port, ready; ended by its own id."""
    command = [sys.executable, "-m", "masc", "serve", "--port", "0", "--models", str(models)]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env=environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        with httpx.Client(base_url=line[line.index("http://") :].strip(), timeout=30) as client:
            wait_until_ready(client)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the service did not become ready")
