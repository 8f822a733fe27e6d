"""The process of a worker, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry

import worker.loop
import worker.main
from masc_core.bundle.read import Bundle
from masc_core.errors import ConfigError, EngineError, NonFiniteError
from tests.worker.tiny_worker import REQUEST, make_loop, submit
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput
from worker.jobs.memory import MemoryQueue
from worker.main import exposed, run_until_signal
from worker.model.loaded_model import WARM_UP


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in worker.main.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class CallingEngine(Engine):
    """Calls once, in the first step of a job."""

    call: Callable[[], None] | None = None

    def step(self) -> Sequence[EngineOutput]:
        call = self.call
        if call is not None and any(task.job_id != WARM_UP for task in self.tasks):
            self.call = None
            call()
        return super().step()


def state(queue: MemoryQueue, job_id: str) -> str:
    return asyncio.run(queue.status(job_id)).state


@pytest.mark.parametrize("number", worker.main.SIGNALS)
def test_a_signal_lets_the_loop_end_what_it_has_begun(bundle: Bundle, number: int) -> None:
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 2, CallingEngine)

    def call() -> None:
        os.kill(os.getpid(), number)
        assert loop._stopping.wait(10)

    engine = loop._versions.newest.engine
    assert isinstance(engine, CallingEngine)
    engine.call = call
    begun, other = asyncio.run(submit(queue, [REQUEST] * 2))
    run_until_signal(loop)
    assert (state(queue, begun), state(queue, other)) == ("ok", "waiting")
    assert asyncio.run(queue.workers()) == ()


def test_a_second_signal_ends_the_process_at_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, statuses, ended = MemoryQueue(), list[int](), threading.Event()
    loop = make_loop(bundle, queue, 2, CallingEngine)

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    def call() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert loop._stopping.wait(10)
        assert not statuses
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10)

    monkeypatch.setattr(os, "_exit", end)
    engine = loop._versions.newest.engine
    assert isinstance(engine, CallingEngine)
    engine.call = call
    asyncio.run(submit(queue, [REQUEST]))
    run_until_signal(loop)
    assert statuses == [128 + signal.SIGTERM]


def test_a_step_that_hangs_does_not_keep_the_process(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.main, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(worker.loop, "END_SECONDS", 0.05)
    go_on = threading.Event()

    def call() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert go_on.wait(30)

    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 2, CallingEngine, drain_seconds=0.05)
    engine = loop._versions.newest.engine
    assert isinstance(engine, CallingEngine)
    engine.call = call
    (job_id,) = asyncio.run(submit(queue, [REQUEST]))
    with pytest.raises(EngineError, match="a step hangs"):
        run_until_signal(loop)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "worker"]
    assert thread.daemon
    go_on.set()
    thread.join(10)
    assert state(queue, job_id) == "waiting"


def test_what_ended_the_loop_is_raised(bundle: Bundle) -> None:
    torch.nn.init.constant_(bundle.model.norm.weight, torch.nan)
    with pytest.raises(NonFiniteError):
        run_until_signal(make_loop(bundle, MemoryQueue()))


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_are_served_as_long_as_the_context_lasts(bundle: Bundle) -> None:
    before = set(threading.enumerate())
    loop = make_loop(bundle, MemoryQueue())
    with exposed(loop, CollectorRegistry(), "127.0.0.1", 0) as port:
        assert {"masc_ready 0.0", "masc_draining 0.0"} <= set(scrape(port).splitlines())
        loop.warm_up()
        assert {"masc_ready 1.0", "masc_draining 0.0"} <= set(scrape(port).splitlines())
        loop.stop()
        assert {"masc_ready 0.0", "masc_draining 1.0"} <= set(scrape(port).splitlines())
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_an_address_that_cannot_be_had_names_its_variable(bundle: Bundle) -> None:
    loop = make_loop(bundle, MemoryQueue())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"MASC_METRICS_PORT: 127.0.0.1:{port} cannot be had"),
            exposed(loop, CollectorRegistry(), "127.0.0.1", port),
        ):
            pass
