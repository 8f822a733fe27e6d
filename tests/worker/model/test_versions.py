"""Which versions a worker keeps, and for how long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import CURRENT_FILE, Registry
from masc_core.errors import ArtifactError, StorageDownError
from masc_core.io.files import atomic_write
from masc_core.sampling.params import SamplingParams
from tests.clock import Clock
from tests.tiny_bundle import GRID, save_tiny_bundle
from worker.engine.engine import Engine
from worker.engine.request import ImageTask
from worker.model.loaded_version import LoadedVersion
from worker.model.versions import RETIRE_SECONDS, ModelReloader, ModelVersions, Refusal, load_first


class ClosingVersion(LoadedVersion):
    """Knows whether it was closed."""

    is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        super().close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root: Path = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return load_bundle(root / "tiny" / "1")


@pytest.fixture
def made(bundle: Bundle) -> Sequence[ClosingVersion]:
    """Versions 1 to 4, with room for two guided images each."""
    return [
        ClosingVersion(
            replace(bundle, manifest=bundle.manifest.model_copy(update={"version": str(number)})),
            Engine(bundle.transformer, bundle.code_sampler, 4),
        )
        for number in range(1, 5)
    ]


def tasks(num: int) -> list[ImageTask]:
    params = SamplingParams(class_id=0, cfg_scale=2.0, seed=0)
    return [ImageTask("j", index, params) for index in range(num)]


def test_jobs_go_to_the_version_that_they_were_made_for_or_else_to_the_newest(
    made: Sequence[ClosingVersion],
) -> None:
    versions = ModelVersions(made[0], Clock())
    assert [versions.get(version) for version in ("1", "2", "")] == [made[0]] * 3
    versions.add(made[1])
    assert versions.newest is made[1]
    assert list(versions) == list(made[:2])
    assert [versions.get(version) for version in ("1", "2", "3", "")] == [made[0], *[made[1]] * 3]


def test_a_version_that_was_superseded_stays_for_a_while_and_goes_when_it_is_idle(
    made: Sequence[ClosingVersion],
) -> None:
    clock = Clock()
    versions = ModelVersions(made[0], clock)
    made[0].add(tasks(1))
    versions.add(made[1])
    clock.now = RETIRE_SECONDS + 1
    versions.close_retired()
    assert not made[0].is_closed  # it has work
    for _ in range(GRID**2):
        made[0].step()
    versions.close_retired()
    assert made[0].is_closed
    assert list(versions) == [made[1]]

    versions.add(made[2])
    clock.now += RETIRE_SECONDS
    versions.close_retired()
    assert not made[1].is_closed  # jobs may still come
    clock.now += 1
    versions.close_retired()
    assert made[1].is_closed
    versions.close_retired()
    assert list(versions) == [made[2]]
    versions.close()
    assert made[2].is_closed


def test_of_many_versions_the_idle_ones_go_at_once(made: Sequence[ClosingVersion]) -> None:
    versions = ModelVersions(made[0], Clock())
    made[0].add(tasks(1))
    for loaded in made[1:]:
        versions.add(loaded)
    versions.close_retired()
    assert [loaded.is_closed for loaded in made] == [False, True, True, False]
    made[0].drop("j")
    versions.close_retired()
    assert not made[0].is_closed  # the only one now; jobs may still come
    versions.close()
    assert [loaded.is_closed for loaded in made] == [True] * 4


def test_rows_are_those_of_the_newest_less_what_waits_for_an_older_one(
    made: Sequence[ClosingVersion],
) -> None:
    versions = ModelVersions(made[0], Clock())
    versions.add(made[1])
    made[0].add(tasks(2))
    assert versions.free_rows == 0  # they wait
    made[0].step()
    assert versions.free_rows == 4  # they run, and take none of the newest's
    made[1].add(tasks(1))
    assert versions.free_rows == 2


class Loader:
    """Makes versions, and remembers them; waits at the gate first. The models of 3 overflow."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: list[ClosingVersion] = []
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, folder: Path) -> LoadedVersion:
        self.asked.append(folder.name)
        self.began.set()
        assert self.gate.wait(10)
        bundle = load_bundle(folder)
        if folder.name == "3":
            bundle.transformer.norm.weight.fill_(torch.inf)
        self.made.append(ClosingVersion(bundle, Engine(bundle.transformer, bundle.code_sampler, 4)))
        return self.made[-1]


@pytest.fixture
def models(tmp_path: Path) -> Registry:
    """Versions 1, the active one, 2 and 3."""
    for seed, version in enumerate("321"):
        save_tiny_bundle(tmp_path, version=version, seed=seed)
    return Registry(tmp_path)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def reloader(models: Registry, loader: Loader) -> ModelReloader:
    return ModelReloader(models, "tiny", "1", loader, poll_seconds=0.001)


def test_a_version_that_is_not_the_active_one_any_more_is_not_offered(
    models: Registry, loader: Loader, reloader: ModelReloader
) -> None:
    models.activate("tiny", "2")
    loader.gate.clear()
    looking = threading.Thread(target=reloader.check)
    looking.start()
    assert loader.began.wait(10)
    models.activate("tiny", "1")
    loader.gate.set()
    looking.join(10)
    assert reloader.take() is None
    assert [loaded.is_closed for loaded in loader.made] == [True]
    assert reloader.refusal == Refusal()


def test_the_version_that_is_served_is_not_loaded_again(
    reloader: ModelReloader, loader: Loader
) -> None:
    reloader.check()
    assert reloader.take() is None
    assert loader.asked == []


def test_another_version_is_made_ready_and_handed_out_once(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    models.activate("tiny", "2")
    for _ in range(2):
        reloader.check()
    assert loader.asked == ["2"]
    loaded = reloader.take()
    assert loaded is loader.made[0]
    assert loaded.manifest.version == "2"
    assert loaded.is_idle
    assert reloader.take() is None
    assert reloader.refusal == Refusal()


def test_the_way_back_is_the_same(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    for version in "21":
        models.activate("tiny", version)
        reloader.check()
        assert reloader.take() is loader.made[-1]
    assert loader.asked == ["2", "1"]


def test_a_version_that_nobody_took_makes_way_for_the_next(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    for version in "21":
        models.activate("tiny", version)
        reloader.check()
    assert [loaded.is_closed for loaded in loader.made] == [True, False]
    assert reloader.take() is loader.made[1]


def test_a_damaged_version_is_refused_with_the_file_and_not_tried_again(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    models.activate("tiny", "2")
    path = models.root / "tiny" / "2" / TRANSFORMER_FILE
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(3):
        reloader.check()
    assert loader.asked == ["2"]
    assert reloader.take() is None
    assert reloader.refusal.version == "2"
    assert TRANSFORMER_FILE in reloader.refusal.reason


def test_a_version_whose_first_image_fails_is_refused_and_let_go(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    models.activate("tiny", "3")
    reloader.check()
    assert reloader.take() is None
    assert reloader.refusal.version == "3"
    assert "the model produced a NaN" in reloader.refusal.reason
    assert [loaded.is_closed for loaded in loader.made] == [True]


def test_a_refusal_ends_when_the_registry_names_another_version(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    for version in "31323":
        models.activate("tiny", version)
        reloader.check()
        refused = "3" if version == "3" else ""
        assert reloader.refusal.version == refused
    assert loader.asked == ["3", "3", "2", "3"]


def test_a_refused_version_that_is_activated_again_is_tried_again(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    models.activate("tiny", "3")
    reloader.check()
    models.rollback("tiny")
    models.activate("tiny", "3")  # before anybody has seen the other one active
    loader.gate.clear()
    looking = threading.Thread(target=reloader.check)
    loader.began.clear()
    looking.start()
    assert loader.began.wait(10)
    assert reloader.refusal == Refusal()  # until it is known what becomes of this try
    loader.gate.set()
    looking.join(10)
    assert reloader.refusal.version == "3"
    models.activate("tiny", "3")
    for _ in range(2):
        reloader.check()
    assert loader.asked == ["3"] * 3


def test_what_nobody_foresaw_is_refused_without_its_text(models: Registry) -> None:
    def load(folder: Path) -> LoadedVersion:
        raise RuntimeError("CUDA out of memory")

    models.activate("tiny", "2")
    reloader = ModelReloader(models, "tiny", "1", load)
    reloader.check()
    assert reloader.refusal == Refusal("2", "see the worker's log")


class Away:
    """Loads versions, the first time of which the storage is away."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self._failures = loader, iter([StorageDownError("s3://b", "is away")])

    def __call__(self, folder: Path) -> LoadedVersion:
        for error in self._failures:
            raise error
        return self._loader(folder)


def test_a_version_is_tried_again_when_its_storage_is_back(
    models: Registry, loader: Loader
) -> None:
    reloader = ModelReloader(models, "tiny", "1", Away(loader))
    models.activate("tiny", "2")
    reloader.check()
    assert (reloader.take(), reloader.refusal) == (None, Refusal())
    reloader.check()
    loaded = reloader.take()
    assert loaded is not None
    assert loaded.manifest.version == "2"
    loaded.close()


def test_a_start_does_not_take_the_version_before_because_the_storage_is_away(
    models: Registry, loader: Loader
) -> None:
    models.activate("tiny", "2")
    with pytest.raises(StorageDownError):
        load_first(models, "tiny", Away(loader))
    assert loader.asked == []


def test_a_start_takes_the_version_before_whatever_the_active_one_fails_with(
    models: Registry, loader: Loader
) -> None:
    def load(folder: Path) -> LoadedVersion:
        if folder.name == "2":
            raise NotImplementedError("of a library")
        return loader(folder)

    models.activate("tiny", "2")
    loaded, refusal = load_first(models, "tiny", load)
    assert (loaded.manifest.version, refusal) == ("1", Refusal("2", "see the worker's log"))
    loaded.close()


def test_a_registry_that_cannot_be_read_changes_nothing(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    models.activate("tiny", "3")
    reloader.check()
    for content in (b"", b"9\n", b"\xff\xfe", b"../1\n"):
        atomic_write(models.root / "tiny" / CURRENT_FILE, content)
        with pytest.raises(ArtifactError):
            models.current("tiny")
        reloader.check()
        assert reloader.refusal.version == "3"
    assert loader.asked == ["3"]


def test_it_looks_by_itself_and_closes_what_nobody_took(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    reloader.start()
    models.activate("tiny", "2")
    assert loader.began.wait(10)
    reloader.close(10.0)
    assert [loaded.is_closed for loaded in loader.made] == [True]
    assert not reloader._thread.is_alive()


def test_an_error_that_nobody_foresaw_does_not_end_it(
    models: Registry,
    loader: Loader,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = iter([PermissionError("not yours")])

    class Unreadable(Registry):
        def current(self, name: str) -> str:
            for error in failures:
                raise error
            return super().current(name)

    reloader = ModelReloader(Unreadable(models.root), "tiny", "1", loader, 0.001)
    models.activate("tiny", "2")
    reloader.start()
    assert loader.began.wait(10)
    reloader.close(10.0)
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "looking for another version has failed"
    ]


def test_its_end_does_not_wait_longer_than_told_and_what_comes_then_is_closed(
    models: Registry, reloader: ModelReloader, loader: Loader
) -> None:
    loader.gate.clear()
    models.activate("tiny", "2")
    reloader.start()
    assert loader.began.wait(10)
    reloader.close(0.0)
    assert reloader._thread.is_alive()
    loader.gate.set()
    reloader._thread.join(10)
    assert reloader.take() is None
    assert [loaded.is_closed for loaded in loader.made] == [True]
