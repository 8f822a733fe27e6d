from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from masc_core.errors import ConfigError
from masc_core.models.gpt import GPT
from masc_core.models.weights import (
    load_refiner,
    load_transformer,
    read_inputs,
    save_model,
)
from masc_core.prior import ClusterMap
from tests.training.rank_processes import all_well
from tests.training.stage_configs import power_cut, refiner_config, transformer_config
from training.data.cluster_data import ClusterData
from training.data.code_cache import CodeCache
from training.stages.configs import RefinerTrainingConfig
from training.stages.refiner import train_refiner
from training.stages.transformer import train_transformer


@pytest.fixture(scope="module")
def transformer(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "transformer"
    train_transformer(transformer_config(prepared, out=out, epochs=1))
    return out / "transformer.safetensors"


def config(
    prepared: Path, transformer: Path, out: Path, **changes: object
) -> RefinerTrainingConfig:
    return refiner_config(prepared, transformer, out=out, **changes)


def test_needs_fewer_bits_than_decoding_without_a_model(
    prepared: Path, transformer: Path, tmp_path: Path
) -> None:
    stage = config(prepared, transformer, tmp_path / "refiner")
    metrics = train_refiner(stage)
    assert metrics["in_cluster_bits"] < metrics["frequency_bits"] < metrics["uniform_bits"]
    assert metrics["in_cluster_bits_where_open"] == pytest.approx(
        metrics["in_cluster_bits"] / metrics["open_positions"]
    )
    path = stage.out / "refiner.safetensors"
    assert load_refiner(path).config.hidden_dim == 32
    assert {"transformer", "prior", "tokenizer", "codes"} <= read_inputs(path).keys()
    rows = [json.loads(line) for line in (stage.out / "log.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["kind"] == "validation")
    assert metrics["in_cluster_bits"] < first["in_cluster_bits"]


def test_continues_where_it_stopped(prepared: Path, transformer: Path, tmp_path: Path) -> None:
    short = {"epochs": 2, "checkpoint_every": 2, "log_every": 1}
    whole = config(prepared, transformer, tmp_path / "whole", **short)
    train_refiner(whole)
    stopped = config(prepared, transformer, tmp_path / "stopped", **short)
    with power_cut(5) as report:
        train_refiner(stopped, report)
    train_refiner(stopped)
    expected = load_refiner(whole.out / "refiner.safetensors").state_dict()
    actual = load_refiner(stopped.out / "refiner.safetensors").state_dict()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_parts_that_do_not_belong_together_are_refused(
    prepared: Path, transformer: Path, tmp_path: Path
) -> None:
    ClusterMap.identity(32).save(tmp_path / "flat.npz")
    with pytest.raises(ConfigError, match="trained with another prior"):
        train_refiner(config(prepared, transformer, tmp_path / "r", prior=tmp_path / "flat.npz"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"block_size": 9}, "is for 9 positions, the caches hold 16"),
        ({"num_classes": 7}, "is for 7 classes, the caches hold 3"),
    ],
)
def test_a_transformer_of_other_images_is_refused(
    prepared: Path, transformer: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    sizes = replace(load_transformer(transformer).config, **changes)
    other = tmp_path / "other.safetensors"
    save_model(other, GPT(sizes), read_inputs(transformer))
    with pytest.raises(ConfigError, match=complaint):
        train_refiner(config(prepared, other, tmp_path / "r"))


def train_and_count(stage: RefinerTrainingConfig) -> None:
    seen: list[int] = []
    original = ClusterData.val_code_batch

    def counted(data: ClusterData, start: int, stop: int) -> tuple[Tensor, Tensor]:
        labels, codes = original(data, start, stop)
        seen.append(len(labels))
        return labels, codes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterData, "val_code_batch", counted)
        train_refiner(stage)
    (stage.out / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def test_two_ranks_learn_what_one_learns(prepared: Path, transformer: Path, tmp_path: Path) -> None:
    same = {"dropout": 0.0, "epochs": 1}
    alone = config(prepared, transformer, tmp_path / "alone", **same)
    shared = config(prepared, transformer, tmp_path / "shared", **same)
    expected = train_refiner(alone)
    all_well(2, train_and_count, shared)
    metrics = json.loads((shared.out / "metrics.json").read_text())
    assert metrics == pytest.approx(expected, rel=1e-4)
    validated = [json.loads((shared.out / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(map(sum, validated)) == len(CodeCache.open(shared.val_codes))
    assert all(validated)


def test_a_flat_vocabulary_has_nothing_to_refine(prepared: Path, tmp_path: Path) -> None:
    ClusterMap.identity(32).save(tmp_path / "flat.npz")
    flat = {"prior": tmp_path / "flat.npz", "epochs": 1}
    train_transformer(transformer_config(prepared, out=tmp_path / "t", **flat))
    weights = tmp_path / "t" / "transformer.safetensors"
    with pytest.raises(ConfigError, match="nothing to refine"):
        train_refiner(config(prepared, weights, tmp_path / "r", prior=tmp_path / "flat.npz"))
