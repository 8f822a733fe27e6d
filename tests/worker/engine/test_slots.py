from __future__ import annotations

import random

import pytest

from masc_core.image_batch import NO_SLOT
from masc_core.image_spec import ImageSpec
from masc_core.models.rows import grouped
from worker.engine.slots import Slots

PLAIN, GUIDED = ImageSpec(0, 1.0, seed=0), ImageSpec(0, 2.0, seed=0)


def test_images_that_join_together_lie_side_by_side() -> None:
    taken = Slots(8).take([GUIDED, PLAIN, GUIDED])
    assert taken == [(0, 6), (1, NO_SLOT), (2, 7)]
    conditional, null = [slot for slot, _ in taken], [6, 7]
    assert len(grouped(conditional + null, [0] * 5)) == 2


def test_no_slot_is_given_twice_and_none_is_lost() -> None:
    rng = random.Random(0)
    slots, given = Slots(13), list[tuple[int, int]]()
    for _ in range(2000):
        specs = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(1, 4))]
        if sum(spec.num_rows for spec in specs) > slots.free:
            with pytest.raises(ValueError, match="do not fit"):
                slots.take(specs)
            slots.give_back(given.pop(rng.randrange(len(given))))
            continue
        given += slots.take(specs)
        taken = [slot for pair in given for slot in pair if slot != NO_SLOT]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(13))
        assert len(taken) + slots.free == 13
