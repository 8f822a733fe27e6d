from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from masc_core.sampling.rng import gumbel
from masc_core.sampling.sampler import (
    Filters,
    Partition,
    apply_cfg,
    apply_temperature,
    coarse_logits,
    draw,
    entropy_bits,
    filter_coarse,
    filter_logits,
    sample,
)
from tests.golden_files import assert_close, load_golden

# temperature, top k, top p; all of the golden file's cases, the last one on its tied logits
SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 10, 1.0),
    (1.0, 1, 1.0),
    (1.0, 500, 1.0),
    (1.0, 0, 0.9),
    (1.0, 0, 0.5),
    (1.3, 0, 0.999),
    (1.0, 0, 1e-6),
    (0.9, 20, 0.8),
    (1.0, 5, 1.0),
]
TIED = 10


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_rows, vocab_size, generator=generator)


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_filters_are_upstreams(case: int) -> None:
    golden = load_golden("sampling/filter.safetensors")
    logits = golden["logits_tied" if case == TIED else "logits"]
    temperature, top_k, top_p = SETTINGS[case]
    filtered = filter_logits(
        apply_temperature(logits, torch.full((4,), temperature)),
        torch.full((4,), top_k),
        torch.full((4,), top_p),
    )
    assert_close(filtered, golden[f"case{case:02}.filtered"], atol=1e-5, rtol=1e-5)
    assert_close(filtered.softmax(-1), golden[f"case{case:02}.probs"], atol=1e-6, rtol=1e-5)


def test_rows_have_parameters_of_their_own() -> None:
    golden = load_golden("sampling/filter.safetensors")
    temperatures, top_ks, top_ps = (torch.tensor(column) for column in zip(*SETTINGS, strict=True))
    logits = golden["logits"][:1].expand(len(SETTINGS), -1)
    mixed = filter_logits(apply_temperature(logits, temperatures), top_ks, top_ps)
    for case in range(TIED):
        expected = golden[f"case{case:02}.filtered"][0]
        assert_close(mixed[case], expected, atol=1e-5, rtol=1e-5)


def test_mixed_rows_have_the_bits_of_single_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = random_logits(40, 300)
    top_k = torch.tensor([0, 0, 1, 7, 299, 300, 1000, 50]).repeat(5)
    top_p = torch.tensor([1.0, 0.9, 0.3, 1.0, 0.99], dtype=torch.float64).repeat(8)
    temperature = torch.rand(40, generator=generator) + 0.5
    mixed = filter_logits(apply_temperature(logits, temperature), top_k, top_p)
    entropies = entropy_bits(logits)
    for i in range(40):
        row = slice(i, i + 1)
        tempered = apply_temperature(logits[row], temperature[row])
        assert torch.equal(filter_logits(tempered, top_k[row], top_p[row]), mixed[row])
        assert torch.equal(entropy_bits(logits[row]), entropies[row])


def test_filters_that_no_row_uses_cost_nothing() -> None:
    logits = random_logits(3, 20)
    assert filter_logits(logits, None, None) is logits
    top_k, top_p = torch.tensor([0, 3, 20]), torch.tensor([1.0, 0.5, 0.8])
    only_k = filter_logits(logits, top_k, torch.ones(3))
    only_p = filter_logits(logits, torch.zeros(3, dtype=torch.int64), top_p)
    assert torch.equal(filter_logits(logits, top_k, None), only_k)
    assert torch.equal(filter_logits(logits, None, top_p), only_p)


def test_top_p_of_one_keeps_what_rounding_would_lose() -> None:
    logits = 10 * random_logits(20, 5000)
    sums = logits.sort(descending=True).values.double().softmax(-1).cumsum(-1)
    assert (sums[:, :-1] > 1).any()
    filters = torch.ones(20)
    filters[0] = 0.5
    assert filter_logits(logits, None, filters)[1:].isfinite().all()


def test_top_p_keeps_the_token_that_reaches_it_and_one_more() -> None:
    filtered = filter_logits(torch.zeros(3, 4), None, torch.tensor([0.5, 0.49, 0.24]))
    assert filtered.isfinite().tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, False, False, False],
    ]


def a_partition(vocab_size: int, num_clusters: int) -> Partition:
    """One cluster has half of the tokens, some have one."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, num_clusters, vocab_size) * rng.integers(0, 2, vocab_size)
    labels[:num_clusters] = np.arange(num_clusters)
    return Partition(torch.tensor(labels), num_clusters)


def exactly_kept(logits: list[float], labels: list[int], top_k: int, top_p: float) -> set[int]:
    """Tokens of the kept clusters, in fractions; the exponentials alone are rounded."""
    most = max(logits)
    sums = dict.fromkeys(range(max(labels) + 1), Fraction(0))
    for label, logit in zip(labels, logits, strict=True):
        sums[label] += Fraction(math.exp(logit - most))
    order = sorted(sums, key=lambda cluster: -sums[cluster])
    order = order[: top_k or None]  # there are no ties
    total, before, kept = sum(sums[cluster] for cluster in order), Fraction(0), set()
    for cluster in order:
        if before / total <= Fraction(top_p) or top_p == 1:
            kept.add(cluster)
        before += sums[cluster]
    return {token for token, label in enumerate(labels) if label in kept}


@pytest.mark.parametrize("top_k", [0, 1, 3, 30, 31])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_filters_of_clusters_are_those_of_fractions(top_k: int, top_p: float) -> None:
    logits, partition = random_logits(4, 200), a_partition(200, 30)
    rows = torch.full((4,), top_k), torch.full((4,), top_p, dtype=torch.float64)
    filtered = filter_coarse(logits, partition, *rows)
    for row, kept in zip(logits, filtered, strict=True):
        expected = exactly_kept(row.tolist(), partition.labels.tolist(), top_k, top_p)
        assert {*kept.isfinite().nonzero().flatten().tolist()} == expected
        assert torch.equal(kept[kept.isfinite()], row[kept.isfinite()])


def test_clusters_are_filtered_before_tokens_and_after_the_temperature() -> None:
    logits, partition = random_logits(64, 200), a_partition(200, 30)
    ones, scale = torch.ones(64, dtype=torch.float64), torch.full((64,), 0.7)
    few = torch.full((64,), 3)
    noise = gumbel(torch.arange(64), torch.zeros(64, dtype=torch.int64), 200)
    filters = Filters(few, ones, few, 0.5 * ones)
    drawn = sample(logits, logits, scale / scale, scale, filters, noise, partition)
    for i, row in enumerate(logits / 0.7):
        kept = exactly_kept(row.tolist(), partition.labels.tolist(), 3, 0.5)
        likeliest = sorted(kept, key=lambda token: -row[token])[:3]
        assert drawn.tokens[i] == max(likeliest, key=lambda token: row[token] + noise[i, token])


def test_entropies_of_clusters_are_scipys_of_summed_probabilities() -> None:
    logits, partition = random_logits(6, 1000), a_partition(1000, 40)
    logits[3] *= 30  # nearly sure
    logits[4, 40:] = -math.inf
    found = entropy_bits(coarse_logits(logits, partition))
    for row, bits in zip(logits.double().softmax(-1).numpy(), found, strict=True):
        sums = np.bincount(partition.labels.numpy(), row, 40)
        assert bits == pytest.approx(stats.entropy(sums, base=2), rel=1e-6, abs=1e-9)


def test_clusters_of_mixed_rows_have_the_bits_of_single_rows() -> None:
    logits, partition = random_logits(40, 300), a_partition(300, 20)
    top_k = torch.tensor([0, 0, 1, 7, 19, 20, 1000, 5]).repeat(5)
    top_p = torch.tensor([1.0, 0.9, 0.3, 1.0, 0.99], dtype=torch.float64).repeat(8)
    sums, mixed = (
        coarse_logits(logits, partition),
        filter_coarse(logits, partition, top_k, top_p),
    )
    for i in range(40):
        row = slice(i, i + 1)
        assert torch.equal(coarse_logits(logits[row], partition), sums[row])
        alone = filter_coarse(logits[row], partition, top_k[row], top_p[row])
        assert torch.equal(alone, mixed[row])
        if top_k[i] == 0 and top_p[i] == 1:
            assert torch.equal(mixed[i], logits[i])


def test_guidance() -> None:
    cond, uncond = random_logits(3, 7), random_logits(3, 7, seed=1)
    guided = apply_cfg(cond, uncond, torch.tensor([0.0, 1.0, 2.5]))
    assert_close(guided[0], uncond[0], atol=0, rtol=0)
    assert_close(guided[1], cond[1], atol=1e-6, rtol=1e-6)
    assert_close(guided[2], 2.5 * cond[2] - 1.5 * uncond[2], atol=1e-5, rtol=1e-5)


def test_entropy_is_scipys() -> None:
    logits = random_logits(6, 1000)
    expected = stats.entropy(logits.double().softmax(-1).numpy(), base=2, axis=1)
    np.testing.assert_allclose(entropy_bits(logits), expected, rtol=1e-6)
    assert entropy_bits(logits).dtype == torch.float32


def test_entropy_of_the_extremes() -> None:
    logits = torch.zeros(4, 1024)
    logits[1, 3] = 1e4  # all probability on one
    logits[2, 512:] = -math.inf
    logits[3, 1:] = -math.inf
    assert entropy_bits(logits).tolist() == [10.0, 0.0, 9.0, 0.0]


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -math.inf, 1.0, -2.0, 0.5])
    expected = logits.double().softmax(-1).numpy()
    num = 20_000
    rows = logits.expand(num, -1)
    for seeds, positions in (
        (torch.arange(num), torch.full((num,), 5)),
        (torch.full((num,), 2**40 + 1), torch.arange(num)),
    ):
        drawn = np.bincount(draw(rows, gumbel(seeds, positions, 6)).numpy(), minlength=6)
        assert drawn[2] == 0
        possible = expected > 0
        assert stats.chisquare(drawn[possible], expected[possible] * num).pvalue > 1e-3


def test_draw_belongs_to_seed_and_position() -> None:
    logits = random_logits(1, 50).expand(64, -1)
    seeds = torch.arange(64)
    drawn = draw(logits, gumbel(seeds, 2, 50))
    assert drawn.dtype == torch.int64
    assert torch.equal(draw(logits, gumbel(seeds.flip(0), 2, 50)).flip(0), drawn)
    assert torch.equal(draw(logits[:1], gumbel(seeds[7:8], 2, 50)), drawn[7:8])
    assert torch.equal(draw(logits, gumbel(seeds, torch.full((64,), 2), 50)), drawn)
    assert not torch.equal(draw(logits, gumbel(seeds, 3, 50)), drawn)


def test_no_temperature_takes_the_most_probable() -> None:
    logits = random_logits(50, 300)
    cold = apply_temperature(logits, torch.zeros(50))
    assert cold.isfinite().all()
    assert torch.equal(draw(cold, gumbel(torch.arange(50), 0, 300)), logits.argmax(-1))
