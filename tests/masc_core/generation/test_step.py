from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masc_core.bundle.read import load_bundle
from masc_core.generation.batch import Batch
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, tiny_parts

SHIPPED = Path(__file__).parents[3] / "models" / "cifar10" / "1"
MAX_OPERATORS = 500

PARAMS = [
    SamplingParams(0, 2.0, seed=1, decoding="refine"),
    SamplingParams(1, 1.0, seed=2, top_k=3, decoding="frequency"),
    SamplingParams(2, 3.0, seed=3, top_p=0.7, temperature=0.8),
]


@pytest.fixture
def models() -> tuple[GPT, CodeSampler]:
    parts = tiny_parts(refiner=True)
    return parts.transformer, CodeSampler(parts.prior, parts.counts, refiner=parts.refiner)


def test_a_step_of_the_shipped_model_is_few_calls() -> None:
    """Most of a small model's step on a CPU would else go into calling."""
    bundle = load_bundle(SHIPPED, torch.device("cpu"), torch.float32)
    batch = Batch(bundle.transformer, bundle.code_sampler, 16)
    for image in range(8):  # at positions of their own
        batch.join([SamplingParams(image, 3.0, seed=image, decoding="frequency")])
        batch.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        batch.step()
    events = profile.events()
    assert events is not None
    assert 50 < len(events) <= MAX_OPERATORS


def test_without_kernels_a_step_draws_the_same(models: tuple[GPT, CodeSampler]) -> None:
    """What serves where Triton does not work is the same step."""
    batch = Batch(*models, 8, kernels=False)
    slots = batch.join(PARAMS)
    for _ in range(GRID**2):
        assert not batch.step().failed
    codes, entropies, *_ = batch.read(slots).wait()
    made = generate(*models, PARAMS)
    assert torch.equal(codes, made.codes)
    torch.testing.assert_close(entropies, made.entropies, rtol=1e-4, atol=1e-4)


def test_what_fills_up_changes_nothing(models: tuple[GPT, CodeSampler]) -> None:
    """Rows of nobody are at the first position of a slot of their own, however long that goes."""
    batch = Batch(*models, 6)
    params = replace(PARAMS[1], decoding="uniform")
    batch.join([params])  # one row, and three that fill up
    for _ in range(GRID**2):
        batch.step()
    assert batch.tables.position.tolist() == [GRID**2, *[0] * 6]
    assert torch.equal(batch.tables.codes[0], generate(*models, [params]).codes[0])
