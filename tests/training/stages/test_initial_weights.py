from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from masc_core.bundle.write import BundleParts
from masc_core.errors import ArtifactError, ConfigError
from masc_core.models.gpt import GPT
from masc_core.models.weights import load_tokenizer, load_transformer, save_model
from masc_core.prior import ClusterMap
from masc_core.tree import SemanticTree
from tests.golden_files import load_golden
from tests.golden_gpt import GOLDEN_CONFIG, golden_gpt
from tests.tiny_bundle import save_bundle, tiny_card
from tests.training.pretrained.checkpoints import save_checkpoint
from tests.training.stage_configs import transformer_config
from training.data.cluster_data import ClusterData
from training.stages.configs import TransformerTrainingConfig
from training.stages.initial_weights import InitialWeights, merge_rows
from training.stages.transformer import gpt_config, train_transformer

FLAT = {"prior": None, "epochs": 20}


@pytest.fixture(scope="module")
def flat(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run over the codes themselves, 32 of them."""
    out = tmp_path_factory.mktemp("flat") / "transformer"
    train_transformer(transformer_config(prepared, out=out, **FLAT))
    return out


def data_of(config: TransformerTrainingConfig) -> ClusterData:
    return ClusterData(config.codes, config.val_codes, config.prior)


def start_from(
    path: Path,
    model: GPT,
    prior: ClusterMap,
    inputs: Mapping[str, str],
    counts: NDArray[np.int64] | None = None,
) -> None:
    InitialWeights.open(path, model.config, prior, inputs).fill(model, prior, counts)


@torch.no_grad()
def validation_loss(model: GPT, data: ClusterData) -> float:
    """Nats a position."""
    labels, clusters = data.val_batch(0, len(data.val))
    logits = model.eval()(labels, clusters[:, :-1])
    return float(cross_entropy(logits.flatten(0, 1), clusters.flatten()))


def test_rows_are_weighted_means_and_single_rows_exact() -> None:
    rows = torch.randn(4, 3)
    merged = merge_rows(rows, np.array([0, 1, 0, 0]), np.array([1.0, 0.3, 2.0, 0.0]))
    assert torch.equal(merged[1], rows[1])
    torch.testing.assert_close(merged[0], (rows[0] + 2 * rows[2]) / 3)


def test_the_flat_vocabulary_reproduces_the_logits_exactly(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "gpt.pt", golden_gpt().state_dict(), "ddp")
    prior, model = ClusterMap.identity(96), GPT(GOLDEN_CONFIG).eval()
    start_from(path, model, prior, {}, counts=np.arange(96))
    io = load_golden("gpt/io.safetensors")
    labels, tokens = io["labels"].long(), torch.randint(96, (len(io["labels"]), 15))
    assert torch.equal(model(labels, tokens), golden_gpt()(labels, tokens))


def test_clusters_start_far_below_a_random_model(prepared: Path, flat: Path) -> None:
    config = transformer_config(prepared)
    data = data_of(config)
    torch.manual_seed(0)
    random = GPT(gpt_config(config, data))
    unweighted, weighted = GPT(gpt_config(config, data)), GPT(gpt_config(config, data))
    start_from(flat, unweighted, data.prior, data.inputs)
    start_from(flat, weighted, data.prior, data.inputs, data.train.counts())
    chance = validation_loss(random, data)
    assert chance == pytest.approx(np.log(16), abs=1e-4)
    assert validation_loss(weighted, data) < 0.8 * chance
    assert validation_loss(weighted, data) < validation_loss(unweighted, data)


def test_training_begins_with_them(prepared: Path, flat: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"epochs": 1, "lr": 1e-6}
    started = train_transformer(
        transformer_config(prepared, out=tmp_path / "a", init=flat, **short)
    )
    fresh = train_transformer(transformer_config(prepared, out=tmp_path / "b", **short))
    assert started["bits_per_position"] < 0.8 * fresh["bits_per_position"]
    with pytest.raises(ConfigError, match=r"was begun otherwise: inputs\.init was .*, is absent"):
        train_transformer(
            transformer_config(prepared, out=tmp_path / "a", **short | {"init": None})
        )


def test_the_same_clusters_are_continued(prepared: Path, tmp_path: Path) -> None:
    config = transformer_config(prepared, out=tmp_path / "a", epochs=1)
    train_transformer(config)
    data, first = data_of(config), load_transformer(tmp_path / "a" / "transformer.safetensors")
    model = GPT(gpt_config(config, data))
    start_from(tmp_path / "a", model, data.prior, data.inputs, data.train.counts())
    state = model.state_dict()
    assert all(torch.equal(state[name], one) for name, one in first.state_dict().items())


def test_a_finer_prior_of_a_bundle_is_merged_and_another_one_refused(
    prepared: Path, tmp_path: Path
) -> None:
    config = transformer_config(prepared, out=tmp_path / "a", epochs=1)
    data = data_of(config)
    train_transformer(config)
    trained = load_transformer(tmp_path / "a" / "transformer.safetensors")
    tokenizer = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    parts = BundleParts(trained, tokenizer, data.prior)
    card = tiny_card().model_copy(update={"class_names": ("a", "b", "c")})
    save_bundle(tmp_path / "bundle", card, parts, weights_dtype=torch.float32)
    tree = SemanticTree.load(prepared / "prior" / "tree.npz")
    coarser, finer = tree.cut(8), tree.cut(24)
    model = GPT(replace(trained.config, vocab_size=8))
    start_from(tmp_path / "bundle", model, coarser, {})
    group = np.flatnonzero(coarser.labels == coarser.labels[0])
    rows = trained.output.weight[np.unique(data.prior.labels[group])]
    torch.testing.assert_close(model.output.weight[coarser.labels[0]], rows.mean(0))
    model = GPT(replace(trained.config, vocab_size=24))
    with pytest.raises(ConfigError, match="not keep whole: it divides the cluster of"):
        start_from(tmp_path / "bundle", model, finer, {})
    with pytest.raises(ConfigError, match="is over 32 codes, the new model over 24"):
        start_from(tmp_path / "bundle", model, ClusterMap.identity(24), {})


def test_other_classes_keep_their_own_embeddings(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "gpt.pt", golden_gpt().state_dict(), "fsdp")
    model = GPT(replace(GOLDEN_CONFIG, num_classes=4))
    before = model.cls_embedding.embedding_table.weight.clone()
    start_from(path, model, ClusterMap.identity(96), {})
    assert torch.equal(model.cls_embedding.embedding_table.weight, before)
    assert torch.equal(model.norm.weight, golden_gpt().norm.weight)


def test_what_does_not_fit_is_refused(prepared: Path, flat: Path, tmp_path: Path) -> None:
    config = transformer_config(prepared)
    data = data_of(config)
    model = GPT(gpt_config(config, data))
    file = flat / "transformer.safetensors"
    with pytest.raises(ConfigError, match="was trained with another tokenizer"):
        InitialWeights.open(file, model.config, data.prior, data.inputs | {"tokenizer": "other"})
    save_model(tmp_path / "t.safetensors", model, data.inputs | {"prior": "another"})
    with pytest.raises(ConfigError, match="was trained over another prior, which it does not hold"):
        start_from(tmp_path / "t.safetensors", model, data.prior, data.inputs)
    with pytest.raises(ArtifactError, match="cannot be read"):
        start_from(tmp_path / "none.pt", model, data.prior, data.inputs)
    wrong: dict[str, dict[str, Any]] = {
        "dim: must be 32": {"dim": 64},
        "n_layer: must be 2": {"n_layer": 3},
        "n_head: must be 2": {"n_head": 4},
        "positions: must be rope2d": {"positions": "learned"},
    }
    for key, changes in wrong.items():
        other = GPT(gpt_config(transformer_config(prepared, **changes), data))
        with pytest.raises(ConfigError, match=key):
            start_from(flat, other, data.prior, data.inputs)
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        train_transformer(transformer_config(prepared, out=tmp_path / "x", init=tmp_path / "none"))
