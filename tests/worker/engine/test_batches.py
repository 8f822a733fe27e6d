from __future__ import annotations

import math

import pytest
import torch

from masc_core.generation.batch import Batch
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, tiny_parts
from worker.engine.cuda_graphs import GraphBatch
from worker.engine.engine import BatchFactory

Models = tuple[GPT, CodeSampler]

PARAMS = [
    SamplingParams(0, 2.0, seed=1),
    SamplingParams(1, 1.0, seed=2, top_k=3, cluster_top_k=2),
    SamplingParams(3, 3.0, seed=3),
]
BATCHES = pytest.mark.parametrize("make", [Batch, GraphBatch])


@pytest.fixture
def models() -> Models:
    parts = tiny_parts(partitions=(5,))
    (partition,) = parts.partitions
    return parts.transformer.eval(), CodeSampler(
        parts.prior, parts.counts, coarse_partition=partition
    )


@BATCHES
def test_it_remembers_what_was_drawn(models: Models, make: BatchFactory) -> None:
    batch = make(*models, 8)
    batch.prepare()
    first, second = batch.join(PARAMS[:2])
    with torch.inference_mode():
        for _ in range(3):
            assert not batch.step().failed
        (third,) = batch.join(PARAMS[2:])
        assert batch.batch_rows == 5
        for _ in range(GRID**2 - 3):
            batch.step()
        batch.leave([first, second])
        for _ in range(3):
            batch.step()
        codes, entropies, finite, of_clusters = batch.read([third, first, second]).wait()
    assert finite.all()
    for i, params in enumerate([PARAMS[2], *PARAMS[:2]]):
        made = generate(*models, [params])
        assert torch.equal(codes[i], made.codes[0])
        torch.testing.assert_close(entropies[i], made.entropies[0])
        torch.testing.assert_close(of_clusters[i], made.cluster_entropies[0])


@BATCHES
def test_slots_of_those_who_left_are_given_again(models: Models, make: BatchFactory) -> None:
    batch = make(*models, 4)
    slots = batch.join([PARAMS[1]] * 4)
    with pytest.raises(ValueError, match="1 rows do not fit, 0 are free"):
        batch.join(PARAMS[1:2])
    batch.leave(slots[1:3])
    assert batch.batch_rows == 2
    assert batch.join(PARAMS[:1]) == [slots[1]]


@BATCHES
@pytest.mark.parametrize("position", [0, GRID**2 - 1])
def test_who_is_not_finite_is_told_by_a_step_or_at_the_end(
    models: Models, make: BatchFactory, position: int
) -> None:
    batch = make(*models, 8)
    slots = batch.join(PARAMS)
    failed: set[int] = set()
    with torch.inference_mode():
        for step in range(GRID**2):
            if step == position:
                models[0].cls_embedding.embedding_table.weight[3] = math.nan
                batch.leave(slots[2:])  # it comes anew, and is the only one of its class
                slots[2:] = batch.join(PARAMS[2:])
            failed |= set(batch.step().failed)
        if position:
            failed |= {
                s for s, ok in zip(slots, batch.read(slots).wait()[2], strict=True) if not ok
            }
    assert failed == {slots[2]}
