"""Codes that the completer draws, in the plain loop; what serves is compared with it elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from masc_core.errors import InvalidFieldError, NonFiniteError
from masc_core.generation.batch import Batch
from masc_core.generation.generate import Generated, generate
from masc_core.models.completer import Completer
from masc_core.models.gpt import GPT
from masc_core.prior import ClusterMap
from masc_core.sampling.completion import complete_codes
from masc_core.sampling.in_cluster import CodeSampler, sample_index
from masc_core.sampling.params import SamplingParams, check_given
from masc_core.sampling.rng import code_bits
from tests.tiny_bundle import GRID, NUM_CODES, tiny_completer, tiny_parts

PARTS = tiny_parts()
PLAIN = SamplingParams(class_id=0, cfg_scale=2.0, seed=1, decoding="complete")
PARAMS = [
    PLAIN,
    replace(PLAIN, class_id=3, cfg_scale=1.0, seed=2, code_temperature=0.7, code_top_k=2),
    SamplingParams(class_id=1, cfg_scale=1.0, seed=3),
    replace(PLAIN, class_id=4, seed=4, temperature=0.0, code_cfg_scale=3.0),
    replace(PLAIN, class_id=2, seed=2**63 - 1, code_temperature=0.0, code_cfg_scale=1.5),
]


def decoder_of(completer: Completer | None) -> CodeSampler:
    return CodeSampler(PARTS.prior, PARTS.counts, completer=completer)


def make(params: Sequence[SamplingParams], **changes: Any) -> Generated:
    return generate(PARTS.transformer, decoder_of(tiny_completer(**changes)), params)


@torch.inference_mode()
def slow_definition(completer: Completer, params: SamplingParams, clusters: Tensor) -> list[int]:
    """A softmax of one position after another, of members that are listed one by one."""
    logits = completer(torch.tensor([params.class_id]), clusters[None])[0]
    uncond = completer(torch.tensor([completer.config.num_classes]), clusters[None])[0]
    logits = uncond + params.code_cfg_scale * (logits - uncond)
    drawn = []
    for position, cluster in enumerate(clusters.tolist()):
        members = np.flatnonzero(PARTS.prior.labels == cluster)
        if completer.config.softmax == "full":
            members = np.arange(NUM_CODES)
        scores = logits[position, members] / max(params.code_temperature, 1e-5)
        if 0 < params.code_top_k < len(members):
            scores[scores < scores.topk(params.code_top_k).values[-1]] = -math.inf
        bits = code_bits(torch.tensor([params.seed]), position)
        index = sample_index(scores[None], bits, torch.tensor([params.code_temperature]))
        drawn.append(int(members[index]))
    return drawn


@pytest.mark.parametrize("softmax", ["member", "full"])
def test_is_the_slow_definition(softmax: str) -> None:
    made = make(PARAMS, softmax=softmax)
    completer = tiny_completer(softmax=softmax)
    for params, clusters, codes in zip(PARAMS, made.clusters, made.codes, strict=True):
        if params.decoding == "complete":
            assert codes.tolist() == slow_definition(completer, params, clusters)


def test_clusters_and_other_images_do_not_change() -> None:
    made = make(PARAMS)
    uniform = make([replace(params, decoding="uniform") for params in PARAMS])
    assert torch.equal(made.clusters, uniform.clusters)
    assert torch.equal(made.entropies, uniform.entropies)
    differs = (made.codes != uniform.codes).any(1).tolist()
    assert differs == [True, True, False, True, True]


def test_an_image_is_the_same_in_any_company() -> None:
    together = make(PARAMS).codes
    alone = torch.cat([make([params]).codes for params in PARAMS])
    backwards = make(PARAMS[::-1]).codes.flip(0)
    assert torch.equal(alone, together)
    assert torch.equal(backwards, together)


def test_a_code_is_of_its_cluster_unless_the_softmax_is_over_all() -> None:
    many = [replace(PLAIN, class_id=i % 5, seed=i) for i in range(40)]
    labels = torch.tensor(PARTS.prior.labels)
    made = make(many)
    assert torch.equal(labels[made.codes], made.clusters)
    free = make(many, softmax="full")
    outside = (labels[free.codes] != free.clusters).double().mean()
    assert 0.5 < outside < 1, "random weights know nothing of clusters"


def test_of_clusters_of_one_code_nothing_is_left_to_draw() -> None:
    sizes = {"vocab_size": NUM_CODES, "num_clusters": NUM_CODES}
    model = GPT(replace(PARTS.transformer.config, vocab_size=NUM_CODES)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    flat = ClusterMap.identity(NUM_CODES)
    code_sampler = CodeSampler(flat, completer=tiny_completer(**sizes))
    codes = generate(model, code_sampler, PARAMS).codes
    plain = generate(model, CodeSampler(flat), [replace(p, decoding="uniform") for p in PARAMS])
    assert torch.equal(codes, plain.codes)


def test_draws_follow_the_softmax() -> None:
    completer = tiny_completer()
    params = [replace(PLAIN, seed=seed) for seed in range(1000)]
    clusters = torch.arange(16).repeat(len(params), 1)
    codes = torch.tensor(PARTS.prior.members[PARTS.prior.offsets[:-1]])[clusters]
    drawn = complete_codes(decoder_of(completer), codes, params)
    with torch.inference_mode():
        logits = completer(torch.tensor([0]), clusters[:1])[0]
    tested = 0
    for position, cluster in enumerate(range(16)):
        members = np.flatnonzero(PARTS.prior.labels == cluster)
        expected = logits[position, members].double().softmax(0).numpy() * len(params)
        counts = np.bincount(drawn[:, position], minlength=NUM_CODES)[members]
        if len(members) > 1 and expected.min() > 5:
            assert stats.chisquare(counts, expected).pvalue > 1e-4
            tested += 1
    assert tested > 3


def test_partial_codes_of_the_loop_are_those_of_frequency() -> None:
    code_sampler = decoder_of(tiny_completer())
    batch = Batch(PARTS.transformer, code_sampler, PLAIN.batch_rows)
    slots = batch.join([PLAIN])
    for _ in range(GRID**2):
        batch.step()
    frequency = generate(
        PARTS.transformer, code_sampler, [replace(PLAIN, decoding="frequency")]
    ).codes
    assert torch.equal(batch.tables.codes[slots], frequency)


def test_which_scores_are_not_finite_is_told() -> None:
    completer = tiny_completer()
    completer.cls_embedding.embedding_table.weight.data[4] = torch.nan
    with pytest.raises(NonFiniteError, match=r"completer's scores of image 3$"):
        generate(PARTS.transformer, decoder_of(completer), PARAMS)


def test_without_a_completer_it_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="decoding must be 'uniform' or 'frequency'"):
        generate(PARTS.transformer, decoder_of(None), [PLAIN])


def test_settings_of_a_completer_are_of_no_other_decoding() -> None:
    check_given({"code_top_k": 3, "top_k": 3}, "constant", "complete")
    check_given({"top_k": 3}, "constant", "uniform")
    with pytest.raises(InvalidFieldError, match="code_top_k is of the decoding complete"):
        check_given({"code_top_k": 3}, "constant", "uniform")


@pytest.mark.parametrize(
    "changes",
    [{"code_temperature": -1.0}, {"code_temperature": math.inf}, {"code_top_k": -1},
     {"code_cfg_scale": 0.5}, {"code_cfg_scale": math.nan}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(InvalidFieldError, match=f"{name} must be"):
        replace(PLAIN, **changes)
