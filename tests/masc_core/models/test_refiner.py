from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.kv_cache import KVLayer
from masc_core.models.refiner import Refiner, RefinerConfig
from tests.masc_core.rows import rows_at

# N = 16384, K = 8192, width 512: the paper's, on LlamaGen's widths.
PAPER = RefinerConfig(num_codes=16384, num_clusters=8192, hidden_dim=1024)
SMALL = RefinerConfig(
    num_codes=24, num_clusters=10, hidden_dim=12, block_size=9, width=16, n_head=2, ffn_dim=20
)


def random_refiner(config: RefinerConfig = SMALL) -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(config).eval()
    for parameter in refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return refiner


@pytest.mark.parametrize(
    ("hidden_dim", "autoregressive", "expected"),
    [
        (1024, True, 24_780_800),
        (768, True, 24_649_728),
        (1280, True, 24_911_872),
        (1024, False, 16_261_120),
    ],
)
def test_has_as_many_parameters_as_the_paper_says(
    hidden_dim: int, autoregressive: bool, expected: int
) -> None:
    config = replace(PAPER, hidden_dim=hidden_dim, autoregressive=autoregressive)
    with without_memory():
        counted = sum(parameter.numel() for parameter in Refiner(config).parameters())
    assert counted == config.num_parameters == expected


@pytest.mark.parametrize("autoregressive", [True, False])
@torch.inference_mode()
def test_steps_are_the_forward_pass(autoregressive: bool) -> None:
    refiner = random_refiner(replace(SMALL, autoregressive=autoregressive))
    hidden = torch.randn(3, 9, 12)
    clusters, codes = torch.randint(10, (3, 9)), torch.randint(24, (3, 9))
    expected = refiner(hidden, clusters, codes)
    refiner.pack()
    layer = KVLayer((3, 2, 9, 8), torch.float32, torch.device("cpu"))
    for position in range(9):
        before = codes[:, position - 1]  # the last ones at position 0, where nothing is before
        rows = rows_at(position, before)
        vectors = refiner.step(hidden[:, position], clusters[:, position], rows, layer)
        torch.testing.assert_close(vectors, expected[:, position], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_reads_what_is_before_and_no_more() -> None:
    refiner = random_refiner()
    hidden = torch.randn(1, 9, 12)
    clusters, codes = torch.zeros(1, 9, dtype=torch.int64), torch.zeros(1, 9, dtype=torch.int64)
    plain = refiner(hidden, clusters, codes)
    for changed, first in [
        (refiner(hidden, clusters, codes.index_fill(1, torch.tensor(4), 7)), 5),
        (refiner(hidden, clusters.index_fill(1, torch.tensor(4), 7), codes), 4),
        (refiner(hidden.index_fill(1, torch.tensor(4), 2.0), clusters, codes), 4),
    ]:
        differs = (changed != plain).any(-1)[0].tolist()
        assert differs == [False] * first + [True] * (9 - first)


def test_a_parallel_one_reads_no_codes() -> None:
    refiner = random_refiner(replace(SMALL, autoregressive=False))
    hidden, clusters = torch.randn(2, 9, 12), torch.randint(10, (2, 9))
    codes = torch.randint(24, (2, 2, 9))
    assert torch.equal(refiner(hidden, clusters, codes[0]), refiner(hidden, clusters, codes[1]))


def test_a_new_one_has_no_preference() -> None:
    refiner = Refiner(SMALL)
    assert not refiner.code_scores.weight.any()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"width": 0}, "width: must be at least 1"),
        ({"num_codes": 0}, "num_codes: must be at least 1"),
        ({"n_head": 3}, "n_head: 16 channels in 3 heads"),
        ({"n_head": 16}, "n_head: 16 channels in 16 heads"),
        ({"dropout": 1.0}, r"dropout: must be in \[0, 1\)"),
    ],
)
def test_sizes_that_no_refiner_has_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(SMALL, **change)
