from __future__ import annotations

import random

import pytest

from masc_core.generation.slots import NO_SLOT, Slot, StepShape, allocate, lay_out, num_rows
from masc_core.sampling.params import SamplingParams

PLAIN, GUIDED = SamplingParams(0, 1.0, seed=0), SamplingParams(0, 2.0, seed=0)
REFINED = SamplingParams(0, 1.0, seed=0, decoding="refine")


def test_no_slot_is_given_twice_and_none_is_lost() -> None:
    rng = random.Random(0)
    slots: list[Slot] = []
    for _ in range(2000):
        specs = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(1, 4))]
        if num_rows(slots) + sum(spec.num_rows for spec in specs) > 13:
            with pytest.raises(ValueError, match="do not fit"):
                allocate(specs, slots, 13)
            slots.pop(rng.randrange(len(slots)))
            continue
        slots += allocate(specs, slots, 13)
        taken = [index for slot in slots for index in (slot.index, slot.null) if index != NO_SLOT]
        assert len(set(taken)) == len(taken) == num_rows(slots)
        assert set(taken) <= set(range(13))


def test_every_row_is_somebodys_and_filling_is_nobodys() -> None:
    rng = random.Random(0)
    for _ in range(300):
        specs = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(0, 10))]
        slots = allocate(specs, [], 20)
        rows, images = num_rows(slots) + rng.randint(0, 3), len(slots) + rng.randint(0, 3)
        rows = max(rows, images, 2)
        layout = lay_out(StepShape(rows, images, filters=False), slots, spare=20)
        assert len(layout.slots) == len(layout.owners) == len(layout.is_null) == rows
        assert len(layout.images) == len(layout.partners) == images
        assert not layout.refined
        seen = [slot for slot in layout.slots if slot != 20]
        assert len(set(seen)) == len(seen) == sum(spec.num_rows for spec in specs)
        assert layout.images[len(slots) :] == [20] * (images - len(slots))
        for image, slot in enumerate(slots):
            assert layout.images[image] == layout.slots[image] == slot.index
            assert (layout.owners[image], layout.is_null[image]) == (slot.index, 0)
            partner = layout.partners[image]
            assert layout.owners[partner] == slot.index
            assert layout.is_null[partner] == slot.is_guided
            assert layout.slots[partner] == (slot.null if slot.is_guided else slot.index)


@pytest.mark.parametrize(("num_refined", "expected"), [(2, [1, 3]), (4, [1, 3, 1, 1])])
def test_the_refiner_looks_at_who_asks_for_it(num_refined: int, expected: list[int]) -> None:
    slots = allocate([PLAIN, REFINED, GUIDED, REFINED, PLAIN], [], 8)
    shape = StepShape(8, 5, filters=False, refined=num_refined)
    assert lay_out(shape, slots, spare=8).refined == expected


def test_where_there_is_room_for_all_the_refiner_looks_at_all() -> None:
    slots = allocate([PLAIN, REFINED], [], 8)
    shape = StepShape(4, 4, filters=False, refined=4)
    assert lay_out(shape, slots, spare=8).refined == [0, 1, 2, 3]
