"""What `Batch` promises beyond the plain loop, which `test_generate` runs on it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import masc_core.generation.batch
from masc_core.errors import InvalidFieldError, UnknownClassError
from masc_core.generation.batch import (
    NO_SLOT,
    Batch,
    SlotAssignment,
    StepShape,
    allocate,
    batch_rows,
    lay_out,
)
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, tiny_parts

Models = tuple[GPT, CodeSampler]

PARAMS = [
    SamplingParams(0, 2.0, seed=1, decoding="refine"),
    SamplingParams(1, 1.0, seed=2, top_k=3),
    SamplingParams(2, 3.0, seed=3),
]


@pytest.fixture(scope="module")
def models() -> Models:
    parts = tiny_parts(refiner=True)
    return parts.transformer, CodeSampler(parts.prior, parts.counts, refiner=parts.refiner)


def finish(
    models: Models, batch: Batch, slots: list[int], params_list: list[SamplingParams], done: int
) -> None:
    """Step to the end; the images, in order, must become what they become alone."""
    with torch.inference_mode():
        for _ in range(GRID**2 - done):
            assert not batch.step().failed
    codes, _, finite, _ = batch.read(slots).wait()
    assert finite.all()
    for row, params in zip(codes, params_list, strict=True):
        assert torch.equal(row, generate(*models, [params]).codes[0])


def test_images_are_known_by_the_slots_that_they_get(models: Models) -> None:
    batch = Batch(*models, 8)
    assert batch.join(PARAMS) == [0, 2, 3]  # a guided image has a second one, of its null class
    batch.step()
    batch.leave([2])
    batch.step()
    assert batch.tables.position[[0, 2, 3]].tolist() == [2, 1, 2]
    assert batch.join(PARAMS[1:2]) == [2]
    assert (len(batch), batch.batch_rows) == (3, 5)


def test_a_join_that_fails_changes_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(*models, 6)
    slots = batch.join(PARAMS[:2])
    with torch.inference_mode():
        batch.step()
    with pytest.raises(UnknownClassError):
        batch.join([PARAMS[0], SamplingParams(99, 1.0, seed=0)])
    best: Any = "best"
    with pytest.raises(InvalidFieldError, match="decoding"):
        batch.join([PARAMS[1], SamplingParams(0, 1.0, seed=0, decoding=best)])
    with pytest.raises(ValueError, match="4 rows do not fit, 3 are free"):
        batch.join([PARAMS[0], PARAMS[2]])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(masc_core.generation.batch, "pack_params", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            batch.join([PARAMS[2]])
    assert (len(batch), batch.batch_rows) == (2, 3)
    finish(models, batch, slots, PARAMS[:2], done=1)


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
    slots = batch.join(PARAMS[:2])
    with torch.inference_mode():
        batch.step()
        with monkeypatch.context() as patch:
            patch.setattr(batch, what, fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                leave_and_step(batch, slots[:1])
        batch.leave(slots[:1])
    finish(models, batch, slots[1:], PARAMS[1:2], done=1)


PLAIN, GUIDED = SamplingParams(0, 1.0, seed=0), SamplingParams(0, 2.0, seed=0)
REFINED = SamplingParams(0, 1.0, seed=0, decoding="refine")


def test_no_slot_is_given_twice_and_none_is_lost() -> None:
    rng = random.Random(0)
    slots: list[SlotAssignment] = []
    for _ in range(2000):
        params_list = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(1, 4))]
        if batch_rows(slots) + sum(params.batch_rows for params in params_list) > 13:
            with pytest.raises(ValueError, match="do not fit"):
                allocate(params_list, slots, 13)
            slots.pop(rng.randrange(len(slots)))
            continue
        slots += allocate(params_list, slots, 13)
        taken = [
            index for slot in slots for index in (slot.slot, slot.uncond_slot) if index != NO_SLOT
        ]
        assert len(set(taken)) == len(taken) == batch_rows(slots)
        assert set(taken) <= set(range(13))


def test_every_row_is_somebodys_and_filling_is_nobodys() -> None:
    rng = random.Random(0)
    for _ in range(300):
        params_list = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(0, 10))]
        slots = allocate(params_list, [], 20)
        rows, images = batch_rows(slots) + rng.randint(0, 3), len(slots) + rng.randint(0, 3)
        rows = max(rows, images, 2)
        layout = lay_out(StepShape(rows, images, has_filters=False), slots, padding_slot=20)
        assert len(layout.slots) == len(layout.slot_of_row) == len(layout.is_uncond) == rows
        assert len(layout.images) == len(layout.uncond_rows) == images
        assert not layout.refined
        seen = [slot for slot in layout.slots if slot != 20]
        assert len(set(seen)) == len(seen) == sum(params.batch_rows for params in params_list)
        assert layout.images[len(slots) :] == [20] * (images - len(slots))
        for image, slot in enumerate(slots):
            assert layout.images[image] == layout.slots[image] == slot.slot
            assert (layout.slot_of_row[image], layout.is_uncond[image]) == (slot.slot, 0)
            uncond_row = layout.uncond_rows[image]
            assert layout.slot_of_row[uncond_row] == slot.slot
            assert layout.is_uncond[uncond_row] == (slot.uncond_slot != NO_SLOT)
            assert layout.slots[uncond_row] == (
                slot.uncond_slot if slot.uncond_slot != NO_SLOT else slot.slot
            )


@pytest.mark.parametrize(("num_refined", "expected"), [(2, [1, 3]), (4, [1, 3, 1, 1])])
def test_the_refiner_looks_at_who_asks_for_it(num_refined: int, expected: list[int]) -> None:
    slots = allocate([PLAIN, REFINED, GUIDED, REFINED, PLAIN], [], 8)
    shape = StepShape(8, 5, has_filters=False, refined=num_refined)
    assert lay_out(shape, slots, padding_slot=8).refined == expected


def test_where_there_is_room_for_all_the_refiner_looks_at_all() -> None:
    slots = allocate([PLAIN, REFINED], [], 8)
    shape = StepShape(4, 4, has_filters=False, refined=4)
    assert lay_out(shape, slots, padding_slot=8).refined == [0, 1, 2, 3]
