from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from masc_core.errors import ConfigError
from masc_core.models.weights import load_transformer
from masc_core.prior import ClusterMap
from tests.training.stage_configs import power_cut, transformer_config
from tests.training.tiny_codes import walk_config
from training.data.cluster_data import ClusterData
from training.data.code_cache import CodeCache, read_index, write_index
from training.loop.batches import item_random_bits
from training.loop.optimizer import adamw
from training.loop.trainer import learning_rate
from training.metrics.step_cost import flops_per_image
from training.stages.configs import TransformerTrainingConfig
from training.stages.sample_sheets import Sheets
from training.stages.transformer import (
    gpt_config,
    require_compiler,
    train_transformer,
)


def cluster_data(config: TransformerTrainingConfig) -> ClusterData:
    return ClusterData(config.codes, config.val_codes, config.prior)


def test_learns_more_than_the_unigram_and_reports_bits(prepared: Path, tmp_path: Path) -> None:
    steps: dict[str, object] = {"epochs": 10, "batch_size": 4, "lr": 1e-2}
    config = transformer_config(prepared, out=tmp_path / "t", token_dropout=0.0, **steps)
    metrics = train_transformer(config)
    assert metrics["bits_per_position"] < metrics["unigram_bits"] < math.log2(16)
    model = load_transformer(config.out / "transformer.safetensors")
    cache = CodeCache.open(prepared / "codes-val")
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    everyone = np.arange(len(cache))
    clusters = torch.from_numpy(prior.encode(cache.take(everyone, everyone * 0)))
    with torch.no_grad():
        logits = model(torch.from_numpy(cache.labels), clusters[:, :-1])
    bits = F.cross_entropy(logits.flatten(0, 1), clusters.flatten()).item() / math.log(2)
    assert bits == pytest.approx(metrics["bits_per_position"], rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_continues_where_it_stopped(prepared: Path, tmp_path: Path, schedule: str) -> None:
    options = {"schedule": schedule, "warmup_steps": 3, "positions": "learned"}
    whole = transformer_config(prepared, out=tmp_path / "whole", **options)
    train_transformer(whole)
    config = transformer_config(prepared, out=tmp_path / "stopped", checkpoint_every=2, **options)
    with power_cut(7) as report:
        train_transformer(config, report)
    train_transformer(config)
    rows = map(json.loads, (config.out / "log.jsonl").read_text().splitlines())
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates == [
        learning_rate(
            step,
            total_steps=12,
            peak=whole.lr,
            min_ratio=whole.min_lr_ratio,
            warmup_steps=3,
            schedule=whole.schedule,
        )
        for step in range(12)
    ]
    expected = load_transformer(whole.out / "transformer.safetensors").state_dict()
    actual = load_transformer(config.out / "transformer.safetensors").state_dict()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it compiles
@pytest.mark.parametrize("with_clusters", [False, True])
def test_compiled_training_reaches_the_same_loss(
    prepared: Path, tmp_path: Path, *, with_clusters: bool
) -> None:
    prior = prepared / "prior" / "prior.npz"
    changes = {"prior": None, "partitions": (prior,)} if with_clusters else {}
    plain = train_transformer(transformer_config(prepared, out=tmp_path / "a", epochs=1, **changes))
    fast = train_transformer(
        transformer_config(prepared, out=tmp_path / "b", epochs=1, compile=True, **changes)
    )
    assert fast["bits_per_position"] == pytest.approx(plain["bits_per_position"], rel=1e-2)


def test_without_a_prior_the_vocabulary_is_flat(prepared: Path) -> None:
    config = transformer_config(prepared, prior=None)
    data = cluster_data(config)
    assert data.prior.num_clusters == 32
    assert gpt_config(config, data).vocab_size == 32


def test_batches_are_the_clusters_of_one_variant(prepared: Path) -> None:
    data = cluster_data(transformer_config(prepared))
    labels, clusters = data.batch(np.array([0, 35, 17]), item_random_bits(0, 0, 3))
    assert labels.tolist() == [0, 2, 1]
    for row, image in zip(clusters, [0, 35, 17], strict=True):
        variants = data.train.take(np.array([image, image]), np.array([0, 1]))
        assert any(np.array_equal(row, data.prior.encode(v)) for v in variants)


def test_unigram_entropy_against_the_plain_sum(prepared: Path) -> None:
    data = cluster_data(transformer_config(prepared))
    counts = np.zeros(16)
    for shard in data.train.codes:
        for code in shard.ravel():
            counts[data.prior.labels[code]] += 1
    p = counts[counts > 0] / counts.sum()
    assert data.unigram_bits() == pytest.approx(float(-(p * np.log2(p)).sum()))


def test_caches_of_two_tokenizers_do_not_mix(prepared: Path, tmp_path: Path) -> None:
    index = read_index(prepared / "codes-val")
    other = tmp_path / "codes-val"
    other.mkdir()
    for path in (prepared / "codes-val").glob("*.npy"):
        (other / path.name).write_bytes(path.read_bytes())
    write_index(other, index.model_copy(update={"tokenizer_sha256": "f" * 64}))
    with pytest.raises(ConfigError, match="another tokenizer_sha256"):
        cluster_data(transformer_config(prepared, val_codes=other))


def test_a_prior_over_another_codebook_is_refused(prepared: Path, tmp_path: Path) -> None:
    ClusterMap.identity(31).save(tmp_path / "p.npz")
    with pytest.raises(ConfigError, match="over 31 codes"):
        cluster_data(transformer_config(prepared, prior=tmp_path / "p.npz"))


def test_decay_is_for_matrices_and_embeddings_alone(prepared: Path) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Embedding(4, 2)])
    decayed, plain = adamw(model, 0.1, 0.05).param_groups
    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 3), (4, 2)]
    assert [tuple(p.shape) for p in plain["params"]] == [(2,)]
    assert decayed["betas"] == (0.9, 0.95)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError, match="compile: needs a compiler"):
        require_compiler(torch.device("cpu"))


def rows(config: TransformerTrainingConfig, kind: str) -> list[dict[str, float]]:
    lines = (config.out / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_the_validation_of_the_log_against_the_kept_weights(walks: Path, tmp_path: Path) -> None:
    config = walk_config(walks, tmp_path, ema_decay=0.5, micro_batch=4)
    metrics = train_transformer(config)
    assert metrics["objective"] == min(row["objective"] for row in rows(config, "validation"))
    model = load_transformer(tmp_path / "transformer.safetensors")
    labels, clusters = ClusterData(walks / "train", walks / "val", None).val_batch(0, 100)
    with torch.no_grad():
        p = model(labels, clusters[:, :-1]).double().softmax(-1)
    entropy = float(-(p * p.log2()).sum(-1).mean())
    bits = float(-p.gather(-1, clusters[..., None]).log2().mean())
    assert metrics["bits_per_position"] == metrics["objective"] == pytest.approx(bits, rel=1e-5)
    assert metrics["teacher_forced_entropy_bits"] == pytest.approx(entropy, rel=1e-5)
    assert metrics["teacher_forced_entropy_ratio"] == pytest.approx(
        entropy / math.log2(12), rel=1e-5
    )


def test_mfu_where_the_peak_is_known(walks: Path, tmp_path: Path) -> None:
    known = walk_config(walks, tmp_path / "known", epochs=1, peak_tflops=2.0)
    train_transformer(known)
    operations = flops_per_image(gpt_config(known, cluster_data(known)))
    for row in rows(known, "train"):
        assert row["mfu"] == pytest.approx(row["items_per_second"] * operations / 2e12)


@pytest.fixture(scope="module")
def plain(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformerTrainingConfig:
    """Of a run that is over, to compare others with."""
    config = walk_config(walks, tmp_path_factory.mktemp("plain"))
    train_transformer(config)
    assert not [row for row in rows(config, "train") if "mfu" in row]  # the peak is not known
    return config


def kept_metrics(config: TransformerTrainingConfig) -> object:
    return json.loads((config.out / "metrics.json").read_text())


def test_another_model_or_prior_does_not_continue_a_run(
    plain: TransformerTrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="was begun otherwise: dim was 16, is 24;"):
        train_transformer(plain.model_copy(update={"dim": 24}))
    ClusterMap.from_labels(np.arange(12) // 2).save(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match=r"begun otherwise: inputs\.prior "):
        train_transformer(plain.model_copy(update={"prior": tmp_path / "other.npz"}))


def test_activations_that_are_computed_again_change_nothing(
    walks: Path, plain: TransformerTrainingConfig, tmp_path: Path
) -> None:
    frugal = walk_config(walks, tmp_path, checkpoint_activations=True)
    assert train_transformer(frugal) == kept_metrics(plain)
    losses = [[row["loss"] for row in rows(config, "train")] for config in (plain, frugal)]
    assert losses[0] == losses[1]


def test_sheets_of_the_epochs_that_were_asked_for_do_not_change_the_run(
    walks: Path, plain: TransformerTrainingConfig, tmp_path: Path
) -> None:
    config = walk_config(
        walks,
        tmp_path,
        sheet_epochs=(1, 3, 9),
        sheet_tokenizer=walks / "tokenizer.safetensors",
    )
    assert train_transformer(config) == kept_metrics(plain)
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert [path.name for path in sheets] == ["epoch-0001.png", "epoch-0003.png"]
    with Image.open(sheets[0]) as first, Image.open(sheets[1]) as last:
        assert first.size == last.size == (3 * 96 + 2 * 2, 96 + 14)
        assert first.tobytes() != last.tobytes()


def test_a_tokenizer_is_needed_and_has_to_be_the_codes_own(walks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sheet_tokenizer: is needed"):
        train_transformer(walk_config(walks, tmp_path, sheet_epochs=(1,)))
    with pytest.raises(ConfigError, match="has another codebook"):
        Sheets(walks / "tokenizer.safetensors", ClusterMap.identity(13), ("one",))
