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
from worker.model.loaded_model import Lane
from worker.model.versions import RETIRE_SECONDS, Lanes


class ClosingLane(Lane):
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
def made(bundle: Bundle) -> Sequence[ClosingLane]:
    """Versions 1 to 4, with room for two guided images each."""
    return [
        ClosingLane(
            replace(bundle, manifest=bundle.manifest.model_copy(update={"version": str(number)})),
            Engine(bundle.model, bundle.decoder, 4),
        )
        for number in range(1, 5)
    ]


def tasks(num: int) -> list[ImageTask]:
    spec = SamplingParams(class_id=0, cfg_scale=2.0, seed=0)
    return [ImageTask("j", index, spec) for index in range(num)]


def test_jobs_go_to_the_version_that_they_were_made_for_or_else_to_the_newest(
    made: Sequence[ClosingLane],
) -> None:
    lanes = Lanes(made[0], Clock())
    assert [lanes.of(version) for version in ("1", "2", "")] == [made[0]] * 3
    lanes.add(made[1])
    assert lanes.newest is made[1]
    assert list(lanes) == list(made[:2])
    assert [lanes.of(version) for version in ("1", "2", "3", "")] == [made[0], *[made[1]] * 3]


def test_a_version_that_was_superseded_stays_for_a_while_and_goes_when_it_is_idle(
    made: Sequence[ClosingLane],
) -> None:
    clock = Clock()
    lanes = Lanes(made[0], clock)
    made[0].add(tasks(1))
    lanes.add(made[1])
    clock.now = RETIRE_SECONDS + 1
    lanes.sweep()
    assert not made[0].is_closed  # it has work
    for _ in range(GRID**2):
        made[0].turn({"j": "png"})
    lanes.sweep()
    assert made[0].is_closed
    assert list(lanes) == [made[1]]

    lanes.add(made[2])
    clock.now += RETIRE_SECONDS
    lanes.sweep()
    assert not made[1].is_closed  # jobs may still come
    clock.now += 1
    lanes.sweep()
    assert made[1].is_closed
    lanes.sweep()
    assert list(lanes) == [made[2]]
    lanes.close()
    assert made[2].is_closed


def test_of_many_versions_the_idle_ones_go_at_once(made: Sequence[ClosingLane]) -> None:
    lanes = Lanes(made[0], Clock())
    made[0].add(tasks(1))
    for lane in made[1:]:
        lanes.add(lane)
    lanes.sweep()
    assert [lane.is_closed for lane in made] == [False, True, True, False]
    made[0].drop("j")
    lanes.sweep()
    assert not made[0].is_closed  # the only one now; jobs may still come
    lanes.close()
    assert [lane.is_closed for lane in made] == [True] * 4


def test_rows_are_those_of_the_newest_less_what_waits_for_an_older_one(
    made: Sequence[ClosingLane],
) -> None:
    lanes = Lanes(made[0], Clock())
    lanes.add(made[1])
    made[0].add(tasks(2))
    assert lanes.free_rows == 0  # they wait
    made[0].turn({"j": "png"})
    assert lanes.free_rows == 4  # they run, and take none of the newest's
    made[1].add(tasks(1))
    assert lanes.free_rows == 2
