"""What `ImageBatch` promises beyond the plain loop, which `test_generate` runs on it."""

from __future__ import annotations

import pytest
import torch

import masc_core.generation.batch
from masc_core.errors import InvalidFieldError, UnknownClassError
from masc_core.generation.batch import ImageBatch
from masc_core.generation.generate import generate
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from tests.tiny_bundle import GRID, tiny_parts

Models = tuple[GPT, InClusterDecoder]

SPECS = [
    ImageSpec(0, 2.0, seed=1, decoding="refine"),
    ImageSpec(1, 1.0, seed=2, top_k=3),
    ImageSpec(2, 3.0, seed=3),
]


@pytest.fixture
def models() -> Models:
    parts = tiny_parts(refiner=True)
    return parts.model, InClusterDecoder(parts.prior, parts.counts, refiner=parts.refiner)


def finish(models: Models, batch: ImageBatch, specs: list[ImageSpec], done: int) -> None:
    """Step to the end; the images, in order, must become what they become alone."""
    with torch.inference_mode():
        codes = torch.stack([batch.step().codes for _ in range(GRID**2 - done)], dim=1)
    for row, spec in zip(codes, specs, strict=True):
        assert torch.equal(row, generate(*models, [spec]).codes[0, done:])


def test_images_are_known_by_the_slots_that_they_get(models: Models) -> None:
    batch = ImageBatch(*models, 8)
    assert batch.join(SPECS) == [0, 1, 2]
    with torch.inference_mode():
        assert batch.step().slots.tolist() == [0, 1, 2]
        batch.leave([1])
        assert batch.step().slots.tolist() == [0, 2]
    assert batch.join(SPECS[1:2]) == [1]
    assert (len(batch), batch.num_rows) == (3, 5)


def test_a_join_that_fails_changes_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ImageBatch(*models, 6)
    batch.join(SPECS[:2])
    with torch.inference_mode():
        batch.step()
    with pytest.raises(UnknownClassError):
        batch.join([SPECS[0], ImageSpec(99, 1.0, seed=0)])
    with pytest.raises(InvalidFieldError, match="decoding"):
        batch.join([SPECS[1], ImageSpec(0, 1.0, seed=0, decoding="best")])
    with pytest.raises(ValueError, match="4 rows do not fit, 3 are free"):
        batch.join([SPECS[0], SPECS[2]])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(masc_core.generation.batch, "columns_of", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            batch.join([SPECS[2]])
    assert (len(batch), batch.num_rows) == (2, 3)
    finish(models, batch, SPECS[:2], done=1)


def leave_and_step(batch: ImageBatch, slots: list[int]) -> None:
    batch.leave(slots)
    batch.step()


@pytest.mark.parametrize("what", ["_tensor", "_arrange"])
def test_a_leave_that_fails_changes_nothing(
    models: Models, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    batch = ImageBatch(*models, 6)
    slots = batch.join(SPECS[:2])
    with torch.inference_mode():
        batch.step()
        with monkeypatch.context() as patch:
            patch.setattr(batch, what, fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                leave_and_step(batch, slots[:1])
        batch.leave(slots[:1])
    finish(models, batch, SPECS[1:2], done=1)
