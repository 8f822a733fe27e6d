"""What `Batch` promises beyond the plain loop, which `test_generate` runs on it."""

from __future__ import annotations

import pytest
import torch

import masc_core.generation.batch
from masc_core.errors import InvalidFieldError, UnknownClassError
from masc_core.generation.batch import Batch
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import InClusterDecoder
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, tiny_parts

Models = tuple[GPT, InClusterDecoder]

SPECS = [
    SamplingParams(0, 2.0, seed=1, decoding="refine"),
    SamplingParams(1, 1.0, seed=2, top_k=3),
    SamplingParams(2, 3.0, seed=3),
]


@pytest.fixture
def models() -> Models:
    parts = tiny_parts(refiner=True)
    return parts.model, InClusterDecoder(parts.prior, parts.counts, refiner=parts.refiner)


def finish(
    models: Models, batch: Batch, slots: list[int], specs: list[SamplingParams], done: int
) -> None:
    """Step to the end; the images, in order, must become what they become alone."""
    with torch.inference_mode():
        for _ in range(GRID**2 - done):
            assert not batch.step().failed
    codes, _, finite = batch.read(slots).wait()
    assert finite.all()
    for row, spec in zip(codes, specs, strict=True):
        assert torch.equal(row, generate(*models, [spec]).codes[0])


def test_images_are_known_by_the_slots_that_they_get(models: Models) -> None:
    batch = Batch(*models, 8)
    assert batch.join(SPECS) == [0, 2, 3]  # a guided image has a second one, of its null class
    batch.step()
    batch.leave([2])
    batch.step()
    assert batch.tables.position[[0, 2, 3]].tolist() == [2, 1, 2]
    assert batch.join(SPECS[1:2]) == [2]
    assert (len(batch), batch.num_rows) == (3, 5)


def test_a_join_that_fails_changes_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(*models, 6)
    slots = batch.join(SPECS[:2])
    with torch.inference_mode():
        batch.step()
    with pytest.raises(UnknownClassError):
        batch.join([SPECS[0], SamplingParams(99, 1.0, seed=0)])
    with pytest.raises(InvalidFieldError, match="decoding"):
        batch.join([SPECS[1], SamplingParams(0, 1.0, seed=0, decoding="best")])
    with pytest.raises(ValueError, match="4 rows do not fit, 3 are free"):
        batch.join([SPECS[0], SPECS[2]])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(masc_core.generation.batch, "pack_params", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            batch.join([SPECS[2]])
    assert (len(batch), batch.num_rows) == (2, 3)
    finish(models, batch, slots, SPECS[:2], done=1)


def leave_and_step(batch: Batch, slots: list[int]) -> None:
    batch.leave(slots)
    batch.step()


@pytest.mark.parametrize("what", ["_upload", "_arrange"])
def test_a_leave_that_fails_changes_nothing(
    models: Models, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    batch = Batch(*models, 6)
    slots = batch.join(SPECS[:2])
    with torch.inference_mode():
        batch.step()
        with monkeypatch.context() as patch:
            patch.setattr(batch, what, fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                leave_and_step(batch, slots[:1])
        batch.leave(slots[:1])
    finish(models, batch, slots[1:], SPECS[1:2], done=1)
