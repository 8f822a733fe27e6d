"""Which versions a worker keeps, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.sampling.params import SamplingParams
from tests.clock import Clock
from tests.tiny_bundle import GRID, save_tiny_bundle
from worker.engine.engine import Engine
from worker.engine.request import ImageTask
from worker.model.loaded_model import LoadedModel
from worker.model.versions import RETIRE_SECONDS, ModelVersions


class ClosingModel(LoadedModel):
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
def made(bundle: Bundle) -> Sequence[ClosingModel]:
    """Versions 1 to 4, with room for two guided images each."""
    return [
        ClosingModel(
            replace(bundle, manifest=bundle.manifest.model_copy(update={"version": str(number)})),
            Engine(bundle.model, bundle.decoder, 4),
        )
        for number in range(1, 5)
    ]


def tasks(num: int) -> list[ImageTask]:
    params = SamplingParams(class_id=0, cfg_scale=2.0, seed=0)
    return [ImageTask("j", index, params) for index in range(num)]


def test_jobs_go_to_the_version_that_they_were_made_for_or_else_to_the_newest(
    made: Sequence[ClosingModel],
) -> None:
    versions = ModelVersions(made[0], Clock())
    assert [versions.of(version) for version in ("1", "2", "")] == [made[0]] * 3
    versions.add(made[1])
    assert versions.newest is made[1]
    assert list(versions) == list(made[:2])
    assert [versions.of(version) for version in ("1", "2", "3", "")] == [made[0], *[made[1]] * 3]


def test_a_version_that_was_superseded_stays_for_a_while_and_goes_when_it_is_idle(
    made: Sequence[ClosingModel],
) -> None:
    clock = Clock()
    versions = ModelVersions(made[0], clock)
    made[0].add(tasks(1))
    versions.add(made[1])
    clock.now = RETIRE_SECONDS + 1
    versions.sweep()
    assert not made[0].is_closed  # it has work
    for _ in range(GRID**2):
        made[0].step({"j": "png"})
    versions.sweep()
    assert made[0].is_closed
    assert list(versions) == [made[1]]

    versions.add(made[2])
    clock.now += RETIRE_SECONDS
    versions.sweep()
    assert not made[1].is_closed  # jobs may still come
    clock.now += 1
    versions.sweep()
    assert made[1].is_closed
    versions.sweep()
    assert list(versions) == [made[2]]
    versions.close()
    assert made[2].is_closed


def test_of_many_versions_the_idle_ones_go_at_once(made: Sequence[ClosingModel]) -> None:
    versions = ModelVersions(made[0], Clock())
    made[0].add(tasks(1))
    for loaded in made[1:]:
        versions.add(loaded)
    versions.sweep()
    assert [loaded.is_closed for loaded in made] == [False, True, True, False]
    made[0].drop("j")
    versions.sweep()
    assert not made[0].is_closed  # the only one now; jobs may still come
    versions.close()
    assert [loaded.is_closed for loaded in made] == [True] * 4


def test_rows_are_those_of_the_newest_less_what_waits_for_an_older_one(
    made: Sequence[ClosingModel],
) -> None:
    versions = ModelVersions(made[0], Clock())
    versions.add(made[1])
    made[0].add(tasks(2))
    assert versions.free_rows == 0  # they wait
    made[0].step({"j": "png"})
    assert versions.free_rows == 4  # they run, and take none of the newest's
    made[1].add(tasks(1))
    assert versions.free_rows == 2
