"""A worker whose model changes while it works."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import worker.model.versions
from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import Registry
from tests.tiny_bundle import CLASS_NAMES, GRID, save_tiny_bundle, spoil
from tests.worker.tiny_worker import (
    REQUEST,
    expected,
    failure,
    images,
    make_loaded,
    outcomes,
    running,
    submit,
)
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput
from worker.jobs.job import GenerationRequest
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobResult
from worker.jobs.queue import WorkerStatus
from worker.loop import WorkerLoop
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import LoadedVersion
from worker.model.served import ServedModel
from worker.model.versions import ModelReloader

FOR_1 = replace(REQUEST, version="1", class_name=CLASS_NAMES[REQUEST.class_id])
FOR_2 = replace(FOR_1, version="2")


class Service:
    """A worker of version 1 in a registry with 1 and 2, stepped by hand; no other thread looks."""

    def __init__(self, root: Path, capacity: int, engine: type[Engine] = Engine) -> None:
        for seed, version in enumerate("21"):
            save_tiny_bundle(root, version=version, seed=seed)
        self.models = Registry(root)
        self.queue = MemoryQueue()
        self.metrics_registry = CollectorRegistry()
        self.made: list[LoadedVersion] = []
        self._capacity, self._engine = capacity, engine
        self.reloader = ModelReloader(self.models, "tiny", "1", self._load, 0.001)
        self.loop = WorkerLoop(
            self.queue,
            [ServedModel("tiny", self._load(root / "tiny" / "1"), self.reloader)],
            WorkerMetrics(self.metrics_registry),
            "w1",
        )
        self.loop.warm_up()

    def activate(self, version: str) -> None:
        """Activate a version, whatever is wrong with it, and let the worker look."""
        (self.models.root / "tiny" / "current").write_text(version)
        self.reloader.check()

    def bundle(self, version: str) -> Bundle:
        return load_bundle(self.models.root / "tiny" / version)

    def submit(self, *requests: GenerationRequest) -> Sequence[str]:
        return asyncio.run(submit(self.queue, requests))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.step()

    def results(self, job_ids: Sequence[str]) -> list[JobResult]:
        """Step until they are there."""
        while not all(asyncio.run(self.queue.status(one)).state == "ok" for one in job_ids):
            self.step()
        found = asyncio.run(outcomes(self.queue, job_ids))
        return [outcome for outcome in found if isinstance(outcome, JobResult)]

    @property
    def status(self) -> WorkerStatus:
        (status,) = asyncio.run(self.queue.workers())
        return status

    @property
    def depth(self) -> int:
        return asyncio.run(self.queue.stats()).depth

    def _load(self, folder: Path) -> LoadedVersion:
        self.made.append(make_loaded(load_bundle(folder), self._capacity, self._engine))
        return self.made[-1]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, capacity=4)


def test_what_runs_finishes_on_the_old_version_and_new_jobs_go_to_the_new_one(
    service: Service,
) -> None:
    before = service.submit(FOR_1, replace(FOR_1, seed=8))
    service.step(3)
    service.activate("2")
    after = service.submit(FOR_2, replace(REQUEST, seed=9), FOR_1)
    service.step()
    assert (service.status.ready, service.status.version) == (True, "2")
    results = service.results([*before, *after])
    assert [result.version for result in results] == ["1", "1", "2", "2", "1"]
    asked = [FOR_1, replace(FOR_1, seed=8), FOR_2, replace(REQUEST, seed=9), FOR_1]
    for request, result in zip(asked, results, strict=True):
        bundle = service.bundle(result.version)
        assert [image.data for image in images(result)] == expected(bundle, request)
        assert result.weights_sha256 == bundle.manifest.weights_sha256
    assert results[0].weights_sha256 != results[2].weights_sha256
    labels = service.metrics_registry.collect()
    (served,) = [
        sample.labels["version"]
        for metric in labels
        if metric.name == "masc_model_info"
        for sample in metric.samples
    ]
    assert served == "2"


def test_an_old_version_goes_when_it_has_nothing_to_do_and_the_new_one_takes_its_jobs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.model.versions, "RETIRE_SECONDS", 0.0)
    running_job = service.submit(FOR_1)
    service.step(GRID)
    service.activate("2")
    service.step()
    assert len(list(service.loop._models["tiny"])) == 2
    service.results(running_job)
    service.step()
    assert list(service.loop._models["tiny"]) == [service.made[1]]
    old = service.made.pop(0)
    assert old._pool._shutdown
    weights = weakref.ref(old.bundle.transformer)
    del old
    gc.collect()
    assert weights() is None  # its memory is free

    (same,) = service.submit(FOR_1)
    (result,) = service.results([same])
    assert result.version == "2"
    assert [one.data for one in images(result)] == expected(service.bundle("2"), FOR_1)
    (other,) = service.submit(replace(FOR_1, class_name="another cat"))
    service.step(2)
    (refused,) = asyncio.run(outcomes(service.queue, [other]))
    assert failure(refused).error == "NoWorkerError"


def test_jobs_for_an_old_version_are_not_claimed_without_end(service: Service) -> None:
    ids = service.submit(*[replace(FOR_1, seed=seed) for seed in range(20)])
    service.step()
    assert service.depth == 18  # there is room for two
    service.activate("2")
    service.step(3)
    assert service.depth == 16  # two more wait for the old version's rows
    versions = [result.version for result in service.results(ids)]
    assert versions == ["1"] * 20


@pytest.mark.parametrize("fault", ["altered", "not finite"])
def test_a_version_that_cannot_be_served_is_refused_and_the_old_one_goes_on(
    service: Service, fault: str
) -> None:
    folder = service.models.root / "tiny" / "2"
    if fault == "altered":
        path = folder / TRANSFORMER_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    else:
        spoil(folder)
    ids = service.submit(FOR_1)
    service.step(2)
    service.activate("2")
    service.step()
    status = service.status
    assert (status.ready, status.version, status.refused) == (True, "1", "2")
    assert TRANSFORMER_FILE in status.detail
    ids = [*ids, *service.submit(FOR_1)]
    assert [result.version for result in service.results(ids)] == ["1", "1"]

    service.activate("1")
    service.step()
    status = service.status
    assert (status.ready, status.version, status.refused, status.detail) == (True, "1", "", "")


class PickyEngine(Engine):
    """Cannot run class 4."""

    def step(self) -> Sequence[EngineOutput]:
        if any(task.params.class_id == 4 for task in self.tasks):
            raise RuntimeError("out of memory")
        return super().step()


@pytest.mark.parametrize("failing", ["1", "2"])
def test_an_engine_that_fails_does_not_concern_the_other_versions(
    tmp_path: Path, failing: str
) -> None:
    service = Service(tmp_path, capacity=4, engine=PickyEngine)
    sound = "2" if failing == "1" else "1"
    service.activate("2")
    (good,) = service.submit(replace(FOR_1, version=sound))
    service.step(2)
    poison = replace(FOR_1, version=failing, class_id=4, class_name=CLASS_NAMES[4])
    (bad,) = service.submit(poison)
    service.loop._step_safely()
    (result,) = service.results([good])
    assert result.version == sound
    (outcome,) = asyncio.run(outcomes(service.queue, [bad]))
    assert failure(outcome).error == "EngineError"


def test_a_stopped_worker_hands_back_at_once_what_waits_for_a_version(service: Service) -> None:
    begun = service.submit(*[replace(FOR_1, seed=seed) for seed in range(2)])
    service.step()
    service.activate("2")
    service.submit(*[replace(FOR_1, seed=seed) for seed in range(2, 4)])
    service.step()
    assert service.depth == 0
    service.loop.stop()
    service.step()
    stats = asyncio.run(service.queue.stats())
    assert (stats.depth, stats.running) == (2, 2)
    assert stats.totals.redelivered == {"handed_back": 2}
    assert [result.version for result in service.results(begun)] == ["1", "1"]
    assert service.loop.is_idle
    assert service.depth == 2


def test_versions_change_under_load_and_every_answer_is_of_the_one_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.model.versions, "RETIRE_SECONDS", 0.0)
    service = Service(tmp_path, capacity=8)
    requests = [replace(REQUEST, seed=seed) for seed in range(12)]
    files = {
        version: [expected(service.bundle(version), request) for request in requests]
        for version in "12"
    }
    before = set(threading.enumerate())

    async def main() -> set[str]:
        seen = set[str]()
        for change in range(6):
            version = "21"[change % 2]
            service.models.activate("tiny", version)
            while True:
                ids = await submit(service.queue, requests)
                found = await outcomes(service.queue, ids)
                for index, outcome in enumerate(found):
                    made = [image.data for image in images(outcome)]
                    assert isinstance(outcome, JobResult)
                    assert made == files[outcome.version][index]
                    seen.add(outcome.version)
                if {o.version for o in found if isinstance(o, JobResult)} == {version}:
                    break
        return seen

    with running(service.loop):
        assert asyncio.run(main()) == {"1", "2"}
    assert len(service.made) == 7
    assert all(loaded._pool._shutdown for loaded in service.made)
    assert set(threading.enumerate()) <= before


def test_a_version_is_made_ready_beside_the_work(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    class SlowEngine(Engine):
        is_slow = False

        def prepare(self) -> None:
            if self.is_slow:
                began.set()
                assert go_on.wait(10)

    service = Service(tmp_path, capacity=4, engine=SlowEngine)
    SlowEngine.is_slow = True
    looking = threading.Thread(target=service.activate, args=("2",))
    looking.start()
    assert began.wait(10)
    (result,) = service.results(service.submit(FOR_1))
    assert (result.version, service.status.version) == ("1", "1")
    go_on.set()
    looking.join(10)
    service.step()
    assert service.status.version == "2"
