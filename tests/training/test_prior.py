from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import SemanticTree, build_tree
from masc_core.weights import load_tokenizer, save_tokenizer
from tests.training.stages import prior_config
from training.prior import build_prior


def test_writes_the_tree_and_its_cut(prepared: Path) -> None:
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    tree = SemanticTree.load(prepared / "prior" / "tree.npz")
    assert prior.num_clusters == 16
    assert np.array_equal(tree.cut(16).labels, prior.labels)
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    rows = model.quantize.codebook().detach().numpy()
    assert np.allclose(build_tree(rows).heights, tree.heights)


def test_raw_rows_are_an_option(prepared: Path, tmp_path: Path) -> None:
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    weight = model.quantize.embedding.weight
    weight.data *= torch.arange(1, len(weight) + 1)[:, None]
    save_tokenizer(tmp_path / "t.safetensors", model)
    config = prior_config(prepared, tokenizer=tmp_path / "t.safetensors", out=tmp_path / "p")
    normalised = build_prior(config)
    raw = build_prior(config.model_copy(update={"raw_rows": True}))
    assert np.array_equal(normalised.labels, ClusterMap.load(prepared / "prior/prior.npz").labels)
    expected = build_tree(weight.detach().numpy().astype(float)).cut(16)
    assert np.array_equal(raw.labels, expected.labels)
    assert not np.array_equal(raw.labels, normalised.labels)


def test_more_clusters_than_codes(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_clusters: 33 of 32"):
        build_prior(prior_config(prepared, num_clusters=33, out=tmp_path / "p"))
    assert not (tmp_path / "p").exists()
