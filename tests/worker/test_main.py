"""The process of a worker, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

import worker.loop
import worker.main
from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.read import Bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, EngineError, NonFiniteError
from masc_core.generation.batch import Batch
from tests.tiny_bundle import save_tiny_bundle
from tests.worker.tiny_worker import REQUEST, WatchedQueue, make_loop, submit
from worker.engine.cuda_graphs import GraphBatch
from worker.engine.engine import BatchFactory, Engine
from worker.engine.request import EngineOutput
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobResult
from worker.loop import WorkerLoop
from worker.main import LoopThread, build_worker, engine_backends, run_until_signal, serve_metrics
from worker.model.loaded_version import WARM_UP, LoadedVersion
from worker.settings import load_settings


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

    engine = loop._models["tiny"].newest.engine
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
    engine = loop._models["tiny"].newest.engine
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
    engine = loop._models["tiny"].newest.engine
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
    torch.nn.init.constant_(bundle.transformer.norm.weight, torch.nan)
    with pytest.raises(NonFiniteError):
        run_until_signal(make_loop(bundle, MemoryQueue()))


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_are_served_as_long_as_the_context_lasts(bundle: Bundle) -> None:
    before = set(threading.enumerate())
    loop = make_loop(bundle, MemoryQueue())
    with serve_metrics(loop, CollectorRegistry(), "127.0.0.1", 0) as port:
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
            pytest.raises(
                ConfigError, match=f"MASC_METRICS_PORT: 127.0.0.1:{port} cannot be bound"
            ),
            serve_metrics(loop, CollectorRegistry(), "127.0.0.1", port),
        ):
            pass


def build(models: Path, queue: MemoryQueue | None = None, **options: str) -> WorkerLoop:
    settings = load_settings(models_dir=models, **{"device": "cpu", **options})
    return build_worker(settings, queue or MemoryQueue(), CollectorRegistry())


def test_a_worker_serves_the_active_version(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, version="1")
    manifest = save_tiny_bundle(tmp_path, version="2", seed=1)

    async def main() -> object:
        queue = MemoryQueue()
        worker = build(tmp_path, queue)
        thread = threading.Thread(target=worker.run)
        thread.start()
        job = Job(GenerationRequest(model="tiny", class_id=0, cfg_scale=1.0, seed=0))
        await queue.submit(job)
        outcome = await queue.outcome(job.id)
        worker.stop()
        thread.join()
        return outcome

    outcome = asyncio.run(main())
    assert isinstance(outcome, JobResult)
    assert (outcome.model, outcome.version) == ("tiny", "2")
    assert outcome.weights_sha256 == manifest.weights_sha256


@pytest.mark.gpu
def test_a_worker_follows_the_active_version_while_it_works(tmp_path: Path) -> None:
    for seed, version in enumerate("21"):
        save_tiny_bundle(tmp_path, version=version, seed=seed)
    models = Registry(tmp_path)

    async def main() -> None:
        queue = MemoryQueue()
        worker = build(tmp_path, queue, device="cuda")
        thread = threading.Thread(target=worker.run)
        thread.start()
        for version in "1212":
            models.activate("tiny", version)
            served = ""
            while served != version:  # nothing fails while the next one is made ready
                jobs = [Job(replace(REQUEST, seed=seed)) for seed in range(8)]
                for job in jobs:
                    await queue.submit(job)
                for job in jobs:
                    outcome = await queue.outcome(job.id)
                    assert isinstance(outcome, JobResult), outcome
                    served = outcome.version
        worker.stop()
        thread.join()

    asyncio.run(main())


def test_every_thread_that_computes_takes_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[str, torch.device]] = set()

    def use(device: torch.device) -> None:
        used.add((threading.current_thread().name, device))

    for module in (worker.loop, worker.main):
        monkeypatch.setattr(module, "use_device", use)
    for seed, version in enumerate("21"):
        save_tiny_bundle(tmp_path, version=version, seed=seed)
    queue = WatchedQueue()
    consumer = build(tmp_path, queue)
    thread = LoopThread(consumer)
    thread.start()
    queue.await_status(lambda status: status.ready)
    Registry(tmp_path).activate("tiny", "2")
    queue.await_status(lambda status: status.version == "2")
    consumer.stop()
    thread.join()
    names = {threading.current_thread().name, "worker", "reloader"}
    assert used == {(name, torch.device("cpu")) for name in names}


def test_a_worker_computes_on_as_many_cores_as_it_is_told(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    before = torch.get_num_threads()
    try:
        build(tmp_path, threads=str(before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_one_of_several_models_is_named(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, "a")
    save_tiny_bundle(tmp_path, "b")
    with pytest.raises(ConfigError, match="several models"):
        build(tmp_path)
    with pytest.raises(ConfigError, match="no model 'c'"):
        build(tmp_path, default_model="c")
    build(tmp_path, default_model="b")


def test_without_a_usable_bundle_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        build(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no model"):
        build(tmp_path)
    save_tiny_bundle(tmp_path)
    path = tmp_path / "tiny" / "1" / TRANSFORMER_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=TRANSFORMER_FILE):
        build(tmp_path)


def fail_first_image(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """As where logits overflow in the precision of this machine: its weights are finite."""
    warm_up = LoadedVersion.warm_up

    def warm_up_or_fail(self: LoadedVersion) -> None:
        if self.manifest.version == version:
            raise NonFiniteError("the logits have a NaN")
        warm_up(self)

    monkeypatch.setattr(LoadedVersion, "warm_up", warm_up_or_fail)


@pytest.mark.parametrize("fault", ["a damaged file", "no image"])
def test_started_on_a_version_that_cannot_be_served_it_serves_the_one_before(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    for version in ("1", "2"):
        save_tiny_bundle(tmp_path, version=version, seed=int(version))
    if fault == "no image":
        fail_first_image(monkeypatch, "2")
    else:
        path = tmp_path / "tiny" / "2" / TRANSFORMER_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    queue = MemoryQueue()
    loop = build_worker(
        load_settings(models_dir=tmp_path, device="cpu"), queue, CollectorRegistry()
    )
    loop.warm_up()
    (status,) = loop.statuses
    assert status.ready
    assert (status.version, status.refused) == ("1", "2")
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("tiny 2 is refused, the version before it, 1, is served: ")


def test_without_a_version_before_it_one_that_makes_no_image_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_bundle(tmp_path)
    fail_first_image(monkeypatch, "1")
    loop = build(tmp_path)
    with pytest.raises(NonFiniteError):
        loop.warm_up()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    with pytest.raises(ConfigError, match="device: 'cuda:99' is not on this machine"):
        build(tmp_path, device="cuda:99")


def test_steps_are_recorded_on_a_gpu_unless_told_otherwise() -> None:
    def best(device: str, **options: bool) -> BatchFactory:
        return engine_backends(load_settings(**options), torch.device(device))[0].make

    assert best("cpu") is best("cpu", deterministic=True) is Batch
    assert best("cuda") is GraphBatch
    alike = best("cuda", deterministic=True)
    assert isinstance(alike, partial)
    assert (alike.func, alike.keywords) == (GraphBatch, {"deterministic": True})
    assert best("cuda", cuda_graphs=False) is Batch
    with pytest.raises(ConfigError, match="MASC_DETERMINISTIC: needs MASC_CUDA_GRAPHS"):
        best("cuda", cuda_graphs=False, deterministic=True)
