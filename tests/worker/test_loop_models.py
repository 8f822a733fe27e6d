"""Several models in one worker, and several workers of one model each at one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, EngineError
from tests.tiny_bundle import CLASS_NAMES, GRID, save_tiny_bundle, spoil
from tests.worker.tiny_worker import (
    REQUEST,
    WatchedQueue,
    expected,
    images,
    make_loaded,
    outcomes,
    running,
    submit,
)
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobResult, Outcome
from worker.jobs.queue import JobConsumer, QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue
from worker.loop import WorkerLoop
from worker.main import build_worker
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import WARM_UP, LoadedVersion
from worker.model.served import ServedModel
from worker.settings import load_settings

L = GRID**2
NAMES = ("a", "b")
OF = {name: replace(REQUEST, model=name) for name in NAMES}
LIMITS = QueueLimits()
Service = Callable[[Mapping[str, Bundle], str], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two models, which draw other images of the same class and seed."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save_tiny_bundle(folder, name, seed=seed)
    return folder


@pytest.fixture
def bundles(root: Path) -> Mapping[str, Bundle]:
    return {name: load_bundle(root / name / "1") for name in NAMES}


def loop_of(
    loaded: Mapping[str, LoadedVersion], queue: JobConsumer, worker_id: str = "w"
) -> WorkerLoop:
    models = [ServedModel(name, one) for name, one in loaded.items()]
    return WorkerLoop(queue, models, WorkerMetrics(CollectorRegistry()), worker_id)


def build(root: Path, queue: JobConsumer, **options: object) -> WorkerLoop:
    settings = load_settings(models_dir=root, device="cpu", served_models="all", **options)
    return build_worker(settings, queue, CollectorRegistry())


def statuses(loop: WorkerLoop) -> dict[str, WorkerStatus]:
    return {status.model: status for status in loop.statuses}


@contextmanager
def two_workers(bundles: Mapping[str, Bundle], url: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name, bundle in bundles.items():
            queue = stack.enter_context(closing(RedisQueue(url, LIMITS)))
            loop = loop_of({name: make_loaded(bundle)}, queue, f"w-{name}")
            stack.enter_context(running(loop))
        yield


@contextmanager
def one_worker(bundles: Mapping[str, Bundle], url: str) -> Iterator[None]:
    with closing(RedisQueue(url, LIMITS)) as queue:
        loaded = {name: make_loaded(bundle) for name, bundle in bundles.items()}
        with running(loop_of(loaded, queue)):
            yield


@pytest.mark.parametrize("service", [one_worker, two_workers])
def test_each_job_is_drawn_by_the_model_that_it_names(
    service: Service, redis_url: str, bundles: Mapping[str, Bundle]
) -> None:
    requests = [replace(OF[NAMES[i % 2]], seed=i) for i in range(12)]

    async def main() -> tuple[list[Outcome], list[WorkerStatus]]:
        async with RedisQueue(redis_url, LIMITS) as front:
            jobs = [Job(request) for request in requests]
            for job in jobs:
                await front.submit(job)
            with service(bundles, redis_url):
                waiting = (front.outcome(job.id) for job in jobs)
                found = await asyncio.wait_for(asyncio.gather(*waiting), 60)
                workers = list(await front.workers())
            async with asyncio.timeout(5.0):
                while await front.workers():  # noqa: ASYNC110 - they are read, not told
                    await asyncio.sleep(0.01)
            return found, workers

    found, workers = asyncio.run(main())
    for request, outcome in zip(requests, found, strict=True):
        assert isinstance(outcome, JobResult)
        assert outcome.model == request.model
        assert [one.data for one in images(outcome)] == expected(bundles[request.model], request)
    assert images(found[0])[0].data != expected(bundles["b"], replace(requests[0], model="b"))[0]
    prefix = "w/" if service is one_worker else "w-"
    assert {(one.worker_id, one.model, one.ready) for one in workers} == {
        (prefix + name, name, True) for name in NAMES
    }


def test_a_job_does_not_wait_for_the_jobs_of_another_model(bundles: Mapping[str, Bundle]) -> None:
    """Between two steps of a model with work there is one step of each other model at most."""
    order: list[str] = []

    class NotingEngine(Engine):
        name = ""

        def step(self) -> Sequence[EngineOutput]:
            if any(task.job_id != WARM_UP for task in self.tasks):
                order.append(self.name)
            return super().step()

    loaded = {}
    for name, bundle in bundles.items():
        loaded[name] = make_loaded(bundle, 4, NotingEngine)
        loaded[name].engine.name = name  # type: ignore[attr-defined]
    queue = MemoryQueue()
    loop = loop_of(loaded, queue)
    asyncio.run(submit(queue, [replace(OF["a"], num_images=16)] * 8))
    for _ in range(3):
        loop.step()
    (late,) = asyncio.run(submit(queue, [OF["b"]]))
    order.clear()
    for _ in range(L + 2):
        loop.step()
    assert asyncio.run(queue.status(late)).state == "ok"
    assert order.count("b") == L
    assert "aa" not in "".join(order).rpartition("b")[0]
    assert asyncio.run(queue.stats()).models["a"].depth > 0


def test_versions_of_one_model_change_and_the_other_is_not_concerned(tmp_path: Path) -> None:
    for name in NAMES:
        for seed, version in enumerate("321"):
            save_tiny_bundle(tmp_path, name, version, seed=seed)
    spoil(tmp_path / "b" / "3")
    models, queue = Registry(tmp_path), WatchedQueue()

    async def versions() -> dict[str, str]:
        ids = await submit(queue, list(OF.values()))
        found = await outcomes(queue, ids)
        return {one.model: one.version for one in found if isinstance(one, JobResult)}

    loop = build(tmp_path, queue)
    with running(loop):
        queue.await_status(lambda status: status.ready)
        assert asyncio.run(versions()) == {"a": "1", "b": "1"}
        models.activate("a", "2")
        queue.await_status(lambda status: (status.model, status.version) == ("a", "2"))
        assert asyncio.run(versions()) == {"a": "2", "b": "1"}
        models.activate("b", "3")
        refusal = queue.await_status(lambda status: status.refused == "3")
        assert (refusal.model, refusal.ready, refusal.version) == ("b", True, "1")
        assert statuses(loop)["a"].refused == ""
        models.rollback("a")
        queue.await_status(lambda status: (status.model, status.version) == ("a", "1"))
        assert asyncio.run(versions()) == {"a": "1", "b": "1"}


@pytest.mark.parametrize("fault", ["a damaged file", "no image"])
def test_a_model_that_cannot_be_served_waits_for_another_version_and_the_others_are_served(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in NAMES:
        save_tiny_bundle(tmp_path, name)
    if fault == "no image":
        spoil(tmp_path / "b" / "1")
    else:
        path = tmp_path / "b" / "1" / TRANSFORMER_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    queue = WatchedQueue()
    loop = build(tmp_path, queue)
    with running(loop):
        queue.await_status(lambda status: status.ready)
        broken = queue.await_status(lambda status: status.model == "b")
        assert not broken.ready
        assert "transformer.safetensors" in broken.detail or "NaN" in broken.detail
        assert any("b is not served" in record.message for record in caplog.records)
        first, second = asyncio.run(submit(queue, [OF["a"], OF["b"]]))
        assert images(asyncio.run(outcomes(queue, [first]))[0])
        assert asyncio.run(queue.status(second)).state == "waiting"
        manifest = save_tiny_bundle(tmp_path, "b", "2", seed=1)
        queue.await_status(lambda status: (status.model, status.version) == ("b", "2"))
        (outcome,) = asyncio.run(outcomes(queue, [second]))
        assert isinstance(outcome, JobResult)
        assert outcome.weights_sha256 == manifest.weights_sha256
    assert asyncio.run(queue.workers()) == ()


def test_without_any_model_that_can_be_loaded_a_worker_does_not_start(tmp_path: Path) -> None:
    for name in NAMES:
        save_tiny_bundle(tmp_path, name)
        path = tmp_path / name / "1" / TRANSFORMER_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match=TRANSFORMER_FILE):
        build(tmp_path, MemoryQueue())


def test_a_model_whose_engine_fails_again_and_again_ends_the_worker_though_others_make_images(
    bundles: Mapping[str, Bundle],
) -> None:
    class BrokenEngine(Engine):
        def step(self) -> Sequence[EngineOutput]:
            if any(task.job_id != WARM_UP for task in self.tasks):
                raise RuntimeError("out of memory")
            return super().step()

    queue = MemoryQueue()
    loop = loop_of(
        {"a": make_loaded(bundles["a"]), "b": make_loaded(bundles["b"], 2, BrokenEngine)}, queue
    )
    loop.warm_up()

    for _ in range(2):
        good, bad = asyncio.run(submit(queue, [OF["a"], OF["b"]]))
        while asyncio.run(queue.status(good)).state != "ok":
            loop._step_safely()
        assert asyncio.run(queue.status(bad)).state == "error"
    asyncio.run(submit(queue, [OF["b"]]))
    with pytest.raises(EngineError, match="the engine fails again and again"):
        loop._step_safely()
    assert [status.ready for status in loop.statuses] == [False, False]


def test_a_request_for_a_version_of_the_other_model_is_done_by_its_own(
    bundles: Mapping[str, Bundle],
) -> None:
    queue = MemoryQueue()
    loaded = {name: make_loaded(bundle) for name, bundle in bundles.items()}
    request: GenerationRequest = replace(
        OF["b"], version="1", class_name=CLASS_NAMES[REQUEST.class_id]
    )
    with running(loop_of(loaded, queue)):
        ids = asyncio.run(submit(queue, [request]))
        (outcome,) = asyncio.run(outcomes(queue, ids))
    assert [one.data for one in images(outcome)] == expected(bundles["b"], request)


def test_models_are_named_or_all_are_served(root: Path) -> None:
    def served(**options: str) -> list[str]:
        settings = load_settings(models_dir=root, device="cpu", **options)
        loop = build_worker(settings, MemoryQueue(), CollectorRegistry())
        return [status.worker_id.partition("/")[2] for status in loop.statuses]

    assert served(served_models="all") == ["a", "b"]
    assert served(served_models=" b, a,b ,", default_model="a") == ["b", "a"]
    assert served(served_models="b", default_model="a") == [""]
    assert served(default_model="a") == [""]
    with pytest.raises(ConfigError, match=r"no model 'c' in .*; there are: a, b"):
        served(served_models="a,c")
    with pytest.raises(ConfigError, match="several models"):
        served(served_models=",")
