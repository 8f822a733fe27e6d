from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.loop.batches import Batches, MicroBatch, epoch_order, item_random_bits
from training.loop.task import Indices, ItemRandomBits


def as_tensors(indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(indices), torch.from_numpy(random_bits.astype(np.int64))


def batches(rank: int = 0, world_size: int = 1, micro: int = 12, seed: int = 5) -> Batches:
    return Batches(as_tensors, 50, seed, 12, micro, rank, world_size)


def joined(parts: list[MicroBatch]) -> list[tuple[object, ...]]:
    """Items with their words."""
    rows = [
        (int(index), *random_bits.tolist())
        for part in parts
        for index, random_bits in zip(part[0], part[1], strict=True)
    ]
    return sorted(rows)


@given(
    step=st.integers(0, 30),
    layout=st.sampled_from([(1, 12), (1, 3), (2, 6), (2, 2), (3, 4), (4, 1), (12, 1)]),
)
def test_the_ranks_share_the_items_and_words_of_one_batch(
    step: int, layout: tuple[int, int]
) -> None:
    world_size, micro = layout
    shares = [batches(rank, world_size, micro).of_step(step) for rank in range(world_size)]
    assert all(len(part[0]) == micro for share in shares for part in share)
    assert joined([part for share in shares for part in share]) == joined(batches().of_step(step))


def test_an_epoch_has_every_item_but_those_left_over_once() -> None:
    made = batches()
    assert made.steps_per_epoch == 4
    for epoch in (0, 1):
        items = torch.cat([made.of_step(4 * epoch + i)[0][0] for i in range(4)]).numpy()
        assert np.array_equal(items, epoch_order(50, 5, epoch)[:48])


def test_words_differ_by_seed_step_and_place() -> None:
    random_bits = np.concatenate(
        [item_random_bits(seed, step, 9) for seed in (0, 1) for step in (0, 1, 2)]
    )
    assert random_bits.dtype == np.uint64
    assert len(np.unique(random_bits)) == random_bits.size == 2 * 3 * 9 * 4
    assert np.array_equal(item_random_bits(1, 2, 9), random_bits[-9:])
    assert np.array_equal(item_random_bits(1, 2, 4), random_bits[-9:-5])


def test_words_are_uniform() -> None:
    random_bits = item_random_bits(3, 7, 20_000).reshape(-1)
    counts = np.bincount((random_bits >> np.uint64(60)).astype(np.int64), minlength=16)
    expected = random_bits.size / 16
    assert (((counts - expected) ** 2) / expected).sum() < 37.7  # chi-square, 15 degrees, 0.1 %


def test_ahead_gives_the_steps_in_order() -> None:
    made = batches()
    with closing(made.prefetch(2, 9)) as steps:
        ahead = list(steps)
    assert [joined(step) for step in ahead] == [joined(made.of_step(i)) for i in range(2, 9)]


def test_an_error_in_the_thread_comes_out_and_the_thread_ends() -> None:
    def broken(indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, ...]:
        raise ValueError("unreadable")

    made = Batches(broken, 50, 0, 12, 12)
    with pytest.raises(ValueError, match="unreadable"), closing(made.prefetch(0, 4)) as steps:
        next(steps)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
