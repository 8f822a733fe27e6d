from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.rope import no_rotation
from tests.tiny_bundle import tiny_completer

LENGTH = 16
LABELS = torch.tensor([2])
CLUSTERS = torch.arange(LENGTH)[None]


def gpt_l(num_clusters: int, **changes: Any) -> CompleterConfig:
    return CompleterConfig(
        vocab_size=16384, dim=1024, n_layer=24, n_head=16, num_clusters=num_clusters, **changes
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (gpt_l(512, input_rows="codes"), 342_910_976),  # CTF's 343 million
        (gpt_l(512), 326_658_048),
        (gpt_l(8192), 334_522_368),
    ],
)
def test_has_as_many_parameters_as_are_told(config: CompleterConfig, expected: int) -> None:
    with without_memory():
        counted = sum(parameter.numel() for parameter in Completer(config).parameters())
    assert counted == config.num_parameters == expected


@torch.inference_mode()
def test_reads_every_cluster_at_every_position() -> None:
    completer = tiny_completer()
    plain = completer(LABELS, CLUSTERS)
    assert plain.shape == (1, LENGTH, 32)
    for changed in (0, LENGTH - 1):
        other = CLUSTERS.clone()
        other[0, changed] = 5
        assert ((completer(LABELS, other) - plain).abs().amax(-1) > 1e-4).all()
    assert ((completer(LABELS + 1, CLUSTERS) - plain).abs().amax(-1) > 1e-4).all()


@torch.inference_mode()
def test_without_rotation_positions_that_change_places_change_scores_alike() -> None:
    completer = tiny_completer()
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(
        completer(LABELS, CLUSTERS[:, order]), completer(LABELS, CLUSTERS)[:, order], atol=1e-3
    ), "rotations tell positions apart"
    completer.rope.table = no_rotation(1 + LENGTH, completer.config.head_dim)
    expected = completer(LABELS, CLUSTERS)[:, order]
    torch.testing.assert_close(completer(LABELS, CLUSTERS[:, order]), expected)


@torch.inference_mode()
def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    completer = tiny_completer(dim=256, n_head=4, block_size=64)
    clusters, threads = torch.arange(64)[None] % 16, torch.get_num_threads()
    try:
        scores = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            scores.append(completer(LABELS, clusters))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


@torch.inference_mode()
def test_a_table_of_codes_is_read_by_clusters() -> None:
    completer = tiny_completer(input_rows="codes")
    assert completer.tok_embeddings.weight.shape == (32, 16)
    before = completer(LABELS, CLUSTERS)
    completer.tok_embeddings.weight[16:] = torch.nan
    assert torch.equal(completer(LABELS, CLUSTERS), before)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_clusters": 0}, "num_clusters: must be from 1 to 32"),
        ({"num_clusters": 33}, "num_clusters: must be from 1 to 32"),
        ({"softmax": "all"}, "softmax: must be member or full"),
        ({"input_rows": "rows"}, "input_rows: must be clusters or codes"),
        ({"n_head": 3}, "n_head: 16 channels in 3 heads"),
        ({"block_size": 15}, "block_size: 15 is not a square grid"),
    ],
)
def test_refuses_sizes_that_none_can_have(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(tiny_completer().config, **changes)
