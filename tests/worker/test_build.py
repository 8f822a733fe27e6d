"""A worker from its settings, and everything that can stop it from starting."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

import worker.build
import worker.loop
from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError
from masc_core.generation.batch import Batch
from tests.tiny_bundle import save_tiny_bundle
from tests.worker.tiny_worker import WatchedQueue
from worker.build import build_worker, choose_batch
from worker.engine.cuda_graphs import GraphBatch
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobResult
from worker.loop import WorkerLoop
from worker.main import LoopThread
from worker.settings import load_settings

REQUEST = GenerationRequest(model="tiny", class_id=0, cfg_scale=2.0, seed=0)


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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_worker_follows_the_active_version_while_it_works(tmp_path: Path, device: str) -> None:
    for seed, version in enumerate("21"):
        save_tiny_bundle(tmp_path, version=version, seed=seed)
    models = Registry(tmp_path)

    async def main() -> None:
        queue = MemoryQueue()
        worker = build(tmp_path, queue, device=device)
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

    for module in (worker.loop, worker.build):
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


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    with pytest.raises(ConfigError, match="device: 'cuda:99' is not on this machine"):
        build(tmp_path, device="cuda:99")


@pytest.mark.gpu
def test_a_worker_on_a_gpu_reports_its_memory(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    registry = CollectorRegistry()
    settings = load_settings(models_dir=tmp_path, device="cuda")
    worker = build_worker(settings, MemoryQueue(), registry)
    worker.warm_up()
    for kind in ("allocated", "reserved"):
        value = registry.get_sample_value("masc_gpu_memory_bytes", {"kind": kind})
        assert value is not None
        assert value > 0


def test_steps_are_recorded_on_a_gpu_unless_told_otherwise() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_batch(load_settings(), cpu) is Batch
    assert choose_batch(load_settings(deterministic=True), cpu) is Batch
    assert getattr(choose_batch(load_settings(), gpu), "func", None) is GraphBatch
    assert choose_batch(load_settings(cuda_graphs=False), gpu) is Batch
    with pytest.raises(ConfigError, match="MASC_DETERMINISTIC: needs MASC_CUDA_GRAPHS"):
        choose_batch(load_settings(cuda_graphs=False, deterministic=True), gpu)
