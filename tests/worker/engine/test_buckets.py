from __future__ import annotations

import pytest

from masc_core.generation.batch import StepShape, allocate
from masc_core.sampling.params import SamplingParams
from worker.engine.buckets import buckets, choose

PLAIN, GUIDED = SamplingParams(0, 1.0, seed=0), SamplingParams(0, 2.0, seed=0)


def test_shapes_of_a_capacity() -> None:
    assert [bucket[:2] for bucket in buckets(12) if not bucket.filters] == [
        (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (12, 6), (12, 12),
    ]  # fmt: skip
    assert buckets(1)[-1] == StepShape(2, 2, filters=True)
    assert buckets(33)[-1] == StepShape(34, 34, filters=True)
    assert buckets(12, only_largest=True) == [StepShape(12, 12, False), StepShape(12, 12, True)]
    with_refiner = buckets(12, with_refiner=True)
    assert [shape for shape in with_refiner if not shape.refined] == buckets(12)
    assert len(with_refiner) == 2 * len(buckets(12))


@pytest.mark.parametrize(
    ("params_list", "expected"),
    [
        ([PLAIN], (2, 1, False)),
        ([GUIDED], (2, 1, False)),
        ([PLAIN, PLAIN], (2, 2, False)),
        ([GUIDED, PLAIN], (4, 2, False)),
        ([PLAIN] * 3, (4, 4, False)),
        ([PLAIN] * 3 + [SamplingParams(0, 2.0, seed=0, top_p=0.5)], (8, 4, True)),
        ([SamplingParams(0, 1.0, seed=0, top_k=5)], (2, 1, True)),
        ([GUIDED] * 6, (12, 6, False)),
    ],
)
def test_a_batch_takes_the_smallest_shape(
    params_list: list[SamplingParams], expected: tuple[int, int, bool]
) -> None:
    assert choose(buckets(12), allocate(params_list, [], 12)) == StepShape(*expected)


def test_only_who_asks_for_the_refiner_gets_a_shape_with_it() -> None:
    shapes = buckets(12, with_refiner=True)
    refined = SamplingParams(0, 1.0, seed=0, decoding="refine")
    assert choose(shapes, allocate([PLAIN], [], 12)) == StepShape(2, 1, filters=False, refined=0)
    chosen = choose(shapes, allocate([GUIDED, refined], [], 12))
    assert chosen == StepShape(4, 2, filters=False, refined=2)
