"""A whole service as processes of this machine: Redis, front ends and workers, each to be killed.

Nothing is simulated. Processes are started as a user starts them, on free ports of loopback, with
their logs in a folder, and ended by their own ids.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models"
START_SECONDS, STOP_SECONDS = 90.0, 10.0
NICENESS = 10  # of workers: elsewhere they do not share their processors with front ends


class Process:
    """One process and its log."""

    def __init__(
        self, arguments: list[str], log: Path, variables: Mapping[str, str], niceness: int = 0
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MASC_")}
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                ["nice", "-n", str(niceness), sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**kept, "OMP_WAIT_POLICY": "passive", **variables},
                stdout=file,
                stderr=file,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    @property
    def resident_bytes(self) -> int:
        """Memory that it has of the machine's."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it, with all its threads."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def hang(self) -> None:
        """Stop it, until `go_on`."""
        self.send(signal.SIGSTOP)
        until = time.monotonic() + STOP_SECONDS
        while not self.is_stopped:
            assert time.monotonic() < until, f"{self.pid} does not stop"
            time.sleep(0.001)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for its end."""
        return self._process.wait(seconds)

    def find(self, text: str, seconds: float = START_SECONDS) -> str:
        """Wait for a line of the log that holds a text."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line
            assert self.status is None, self.log.read_text(errors="replace")
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.log.read_text(errors='replace')}")


class FrontEnd(Process):
    """`masc serve` with a queue outside."""

    @property
    def url(self) -> str:
        line = self.find("MASC on http://")
        return line[line.index("http://") :].strip()


class Cluster:
    """Runs between enter and exit.

    Parameters
    ----------
    folder : of the logs
    models : folder of the bundles, or its address
    redis : the queue
    settings : of all processes, as variables without the prefix
    """

    def __init__(
        self, folder: Path, models: str | Path, redis: RedisServer, **settings: str | float | Path
    ) -> None:
        self._folder, self.redis = folder, redis
        common = {"queue_url": redis.url, "models_dir": models, "threads": 1, **settings}
        self._variables = {f"MASC_{name.upper()}": str(value) for name, value in common.items()}
        self.processes: list[Process] = []
        self.front_ends: list[FrontEnd] = []
        self.workers: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        if kind is not None:
            for process in self.processes:
                sys.stdout.write(
                    f"=== {process.log.name}\n{process.log.read_text(errors='replace')[-3000:]}\n"
                )

    def run_code_of(self, folder: Path) -> None:
        """Let processes that are started from now on run the code in a folder."""
        self._variables |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

    def start_worker(self, module: str = "masc", *arguments: str, **settings: str) -> Process:
        """Start a worker; with a module of the tests, one that behaves otherwise."""
        command = [module, *(arguments or ("worker",))]
        variables = self._variables | _named(settings)
        worker = Process(command, self._log("worker"), variables, NICENESS)
        self.processes.append(worker)
        self.workers.append(worker)
        return worker

    def start_front_end(self, **settings: str) -> FrontEnd:
        """Start a front end on a free port, and wait until it listens."""
        command = ["masc", "serve", "--port", "0"]
        front_end = FrontEnd(command, self._log("front-end"), self._variables | _named(settings))
        self.processes.append(front_end)
        self.front_ends.append(front_end)
        assert front_end.url
        return front_end

    def start(self, *, workers: int = 1, front_ends: int = 1) -> Self:
        """Start some of each, and wait until all workers are ready."""
        for _ in range(workers):
            self.start_worker()
        for _ in range(front_ends):
            self.start_front_end()
        self.wait_for_workers(workers)
        return self

    def wait_for_workers(self, num: int, seconds: float = START_SECONDS) -> None:
        """Wait until a front end knows of so many workers that are ready."""
        until = time.monotonic() + seconds
        while self.num_ready_workers() != num:
            assert time.monotonic() < until, f"not {num} workers within {seconds} s"
            time.sleep(0.05)

    def num_ready_workers(self) -> int:
        answer = httpx.get(f"{self.front_ends[-1].url}/readyz", timeout=10)
        return len(answer.json()["workers"]) if answer.status_code == 200 else 0

    def samples(self, name: str) -> dict[str, float]:
        """Values of one of the queue's counters, by their label (or by an empty text)."""
        text = httpx.get(f"{self.front_ends[-1].url}/metrics", timeout=10).text
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    @contextmanager
    def another_front_end(self) -> Iterator[FrontEnd]:
        """One more front end, for as long as the context lasts."""
        front_end = self.start_front_end()
        self.front_ends.remove(front_end)  # it may be lost, so another one is asked for figures
        try:
            yield front_end
        finally:
            front_end.kill()

    def assert_at_rest(self) -> None:
        """Whatever was accepted has ended, and nothing waits or runs."""
        until = time.monotonic() + 30
        while True:
            accepted = self.samples("masc_jobs_accepted_total").get("", 0.0)
            ended = self.samples("masc_jobs_ended_total")
            waiting = self.samples("masc_queue_depth")[""] + self.samples("masc_jobs_running")[""]
            if accepted == sum(ended.values()) and not waiting:
                return
            assert time.monotonic() < until, (accepted, ended, waiting)
            time.sleep(0.1)

    def _log(self, kind: str) -> Path:
        return self._folder / f"{kind}-{len(self.processes)}.log"


def _named(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"MASC_{name.upper()}": str(value) for name, value in settings.items()}
