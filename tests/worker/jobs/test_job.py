from __future__ import annotations

import dataclasses

import pytest

from worker.jobs.job import MAX_SEED, GenerationRequest, Job

REQUEST = GenerationRequest(model="tiny", class_id=1, cfg_scale=3.0, seed=5)


@pytest.mark.parametrize(
    ("cfg_scale", "num_images", "rows"), [(1.0, 1, 1), (1.0, 16, 16), (1.5, 1, 2), (20.0, 16, 32)]
)
def test_guided_images_take_two_rows(cfg_scale: float, num_images: int, rows: int) -> None:
    request = dataclasses.replace(REQUEST, cfg_scale=cfg_scale, num_images=num_images)
    assert request.num_rows == rows


def test_seeds_count_up_and_wrap_at_the_largest() -> None:
    assert [REQUEST.image_seed(i) for i in range(3)] == [5, 6, 7]
    last = dataclasses.replace(REQUEST, seed=MAX_SEED)
    assert [last.image_seed(i) for i in range(2)] == [MAX_SEED, 0]


def test_jobs_have_ids_of_their_own_and_cannot_be_changed() -> None:
    first, second = Job(REQUEST), Job(REQUEST)
    assert first.id != second.id
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.id = "other"  # type: ignore[misc]
