"""Codes that the refiner draws in the plain loop; the engines are compared with it elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler, sample_index
from masc_core.sampling.params import SamplingParams
from masc_core.sampling.rng import code_bits
from tests.tiny_bundle import GRID, tiny_parts

PARTS = tiny_parts(refiner=True)
PARAMS = [
    SamplingParams(class_id=0, cfg_scale=2.0, seed=1, decoding="refine"),
    SamplingParams(class_id=3, cfg_scale=1.0, seed=2, temperature=0.7, top_k=9, decoding="refine"),
    SamplingParams(class_id=1, cfg_scale=1.0, seed=3),
    SamplingParams(class_id=4, cfg_scale=4.0, seed=4, temperature=0.0, decoding="refine"),
]


def decoder_with(refiner: Refiner | None) -> CodeSampler:
    return CodeSampler(PARTS.prior, PARTS.counts, refiner=refiner)


def refiner() -> Refiner:
    assert PARTS.refiner is not None
    return PARTS.refiner


def test_is_the_slow_definition() -> None:
    """The whole image anew at every position, and a softmax over all codes of which few stay."""
    made = generate(PARTS.transformer, decoder_with(refiner()), PARAMS)
    labels = torch.tensor(PARTS.prior.labels)
    for params, clusters, codes in zip(PARAMS, made.clusters, made.codes, strict=True):
        if params.decoding != "refine":
            continue
        with torch.inference_mode():
            hidden = PARTS.transformer.hidden(torch.tensor([params.class_id]), clusters[None, :-1])
        drawn = torch.zeros(1, GRID**2, dtype=torch.int64)
        for position in range(GRID**2):
            with torch.inference_mode():
                vectors = refiner()(hidden, clusters[None], drawn)[0, position]
                scores = refiner().code_scores.weight @ vectors
            scores = scores.masked_fill(labels != clusters[position], -math.inf)
            bits = code_bits(torch.tensor([params.seed]), position)
            temperature = torch.tensor([params.temperature])
            drawn[0, position] = sample_index(scores[None], bits, temperature)
        assert torch.equal(codes, drawn[0])


def test_no_cluster_depends_on_it() -> None:
    made = generate(PARTS.transformer, decoder_with(refiner()), PARAMS)
    plain = generate(
        PARTS.transformer,
        decoder_with(None),
        [replace(params, decoding="uniform") for params in PARAMS],
    )
    assert torch.equal(made.clusters, plain.clusters)
    assert np.array_equal(PARTS.prior.encode(made.codes.numpy()), made.clusters)
    different = (made.codes != plain.codes).any(1)
    assert different.tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_refined_image_has_the_same_bits_at_the_papers_width(
    num_threads: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    sizes = GPTConfig(64, dim=256, n_layer=1, n_head=4, num_classes=5, block_size=4)
    model = GPT(sizes).to(dtype).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    wide = Refiner(RefinerConfig(512, 64, 256, block_size=4)).to(dtype).eval()
    torch.nn.init.normal_(wide.code_scores.weight, std=0.1)
    prior = ClusterMap.from_labels(np.random.default_rng(0).permutation(np.arange(512) % 64))
    code_sampler = CodeSampler(prior, refiner=wide)
    params_list = [SamplingParams(i % 5, 1.0, seed=i, decoding="refine") for i in range(21)]
    torch.set_num_threads(num_threads)
    with recorded_vectors(wide) as together:
        codes = generate(model, code_sampler, params_list).codes
    for images in ([0], [9], [20, 3], list(range(17))):
        with recorded_vectors(wide) as alone:
            made = generate(model, code_sampler, [params_list[i] for i in images])
        assert torch.equal(made.codes, codes[images])
        for few, many in zip(alone, together, strict=True):
            assert torch.equal(few[: len(images)], many[images])


@contextmanager
def recorded_vectors(refiner: Refiner) -> Iterator[list[Tensor]]:
    """What the last norm gives at each position, with padding: a code hides most differences."""
    seen: list[Tensor] = []
    hook = refiner.norm.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    yield seen
    hook.remove()


class NoRefiner(Refiner):
    """Cannot be asked."""

    def pack(self) -> None:
        raise AssertionError


def test_who_does_not_ask_does_not_pay() -> None:
    code_sampler = decoder_with(NoRefiner(refiner().config))
    generate(PARTS.transformer, code_sampler, PARAMS[2:3])
    with pytest.raises(AssertionError):
        generate(PARTS.transformer, code_sampler, PARAMS)


def test_draws_follow_the_softmax() -> None:
    scores = torch.tensor([0.5, -1.0, -math.inf, 2.0, 0.0])
    bits = code_bits(torch.arange(20_000), 0)
    drawn = sample_index(scores.expand(20_000, -1), bits, torch.ones(20_000))
    counts = torch.bincount(drawn, minlength=5)
    assert counts[2] == 0
    kept = [0, 1, 3, 4]
    expected = scores[kept].softmax(0) * 20_000
    assert stats.chisquare(counts[kept], expected, sum_check=False).pvalue > 1e-3


def test_the_ends_of_the_words_are_codes() -> None:
    scores = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]).expand(2, -1)
    drawn = sample_index(scores, torch.tensor([0, 2**32 - 1]), torch.ones(2))
    assert drawn.tolist() == [1, 2]


def test_no_temperature_takes_the_most_probable_code() -> None:
    scores = torch.tensor([[0.0, 0.1, -5.0]]).expand(100, -1)
    drawn = sample_index(scores, code_bits(torch.arange(100), 0), torch.zeros(100))
    assert (drawn == 1).all()


def test_what_is_not_finite_still_draws_a_code() -> None:
    scores = torch.tensor([[math.nan, math.nan, -math.inf], [0.0, math.inf, -math.inf]])
    drawn = sample_index(scores, torch.tensor([2**31, 2**31]), torch.ones(2))
    assert ((drawn >= 0) & (drawn < 2)).all()
