from __future__ import annotations

import random

import pytest

from masc_core.generation.slots import seat
from masc_core.image_spec import ImageSpec
from worker.engine.buckets import Bucket, buckets, choose, lay_out

PLAIN, GUIDED = ImageSpec(0, 1.0, seed=0), ImageSpec(0, 2.0, seed=0)


def test_shapes_of_a_capacity() -> None:
    assert [bucket[:2] for bucket in buckets(12) if not bucket.filters] == [
        (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (12, 6), (12, 12),
    ]  # fmt: skip
    assert buckets(1)[-1] == Bucket(2, 2, filters=True)
    assert buckets(33)[-1] == Bucket(34, 34, filters=True)
    assert buckets(12, only_largest=True) == [Bucket(12, 12, False), Bucket(12, 12, True)]
    with_refiner = buckets(12, with_refiner=True)
    assert [bucket for bucket in with_refiner if not bucket.refine] == buckets(12)
    assert len(with_refiner) == 2 * len(buckets(12))


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([PLAIN], (2, 1, False)),
        ([GUIDED], (2, 1, False)),
        ([PLAIN, PLAIN], (2, 2, False)),
        ([GUIDED, PLAIN], (4, 2, False)),
        ([PLAIN] * 3, (4, 4, False)),
        ([PLAIN] * 3 + [ImageSpec(0, 2.0, seed=0, top_p=0.5)], (8, 4, True)),
        ([ImageSpec(0, 1.0, seed=0, top_k=5)], (2, 1, True)),
        ([GUIDED] * 6, (12, 6, False)),
    ],
)
def test_a_batch_takes_the_smallest_shape(
    specs: list[ImageSpec], expected: tuple[int, int, bool]
) -> None:
    assert choose(buckets(12), seat(specs, [], 12, 0)) == Bucket(*expected)


def test_only_who_asks_for_the_refiner_gets_a_shape_with_it() -> None:
    shapes = buckets(12, with_refiner=True)
    refined = ImageSpec(0, 1.0, seed=0, decoding="refine")
    assert choose(shapes, seat([PLAIN], [], 12, 0)) == Bucket(2, 1, filters=False, refine=False)
    chosen = choose(shapes, seat([GUIDED, refined], [], 12, 0))
    assert chosen == Bucket(4, 2, filters=False, refine=True)


def test_every_row_is_somebodys_and_filling_is_nobodys() -> None:
    rng = random.Random(0)
    for _ in range(300):
        specs = [rng.choice([PLAIN, GUIDED]) for _ in range(rng.randint(0, 10))]
        members = seat(specs, [], 20, 0)
        bucket = choose(buckets(20), members)
        layout = lay_out(bucket, members, spare=20)
        assert len(layout.slots) == len(layout.owners) == len(layout.is_null) == bucket.rows
        assert len(layout.images) == len(layout.partners) == bucket.images
        seen = [slot for slot in layout.slots if slot != 20]
        assert len(set(seen)) == len(seen) == sum(spec.num_rows for spec in specs)
        assert layout.images[len(members) :] == [20] * (bucket.images - len(members))
        for image, member in enumerate(members):
            assert layout.images[image] == layout.slots[image] == member.slot
            assert (layout.owners[image], layout.is_null[image]) == (member.slot, 0)
            partner = layout.partners[image]
            assert layout.owners[partner] == member.slot
            assert layout.is_null[partner] == member.is_guided
            assert layout.slots[partner] == (member.null if member.is_guided else member.slot)
