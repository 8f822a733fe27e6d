from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.loop.test_distributed import NO_DROPOUT, train_and_signal
from tests.training.rank_processes import all_well, run_ranks
from tests.training.tiny_codes import walk_config
from training.stages.configs import TransformerTrainingConfig
from training.stages.transformer import train_transformer

pytestmark = pytest.mark.gpu

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def rows(config: TransformerTrainingConfig, kind: str) -> list[dict[str, Any]]:
    lines = (config.out / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def losses(config: TransformerTrainingConfig) -> list[float]:
    return [row["loss"] for row in rows(config, "train")]


@pytest.mark.parametrize("changes", [{}, {"compile": True, "checkpoint_activations": True}])
def test_low_precision_on_a_gpu_follows_the_processor(
    walks: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    slow = walk_config(walks, tmp_path / "cpu", **NO_DROPOUT)
    fast = walk_config(
        walks, tmp_path / "gpu", device="cuda", precision="bfloat16", **NO_DROPOUT, **changes
    )
    train_transformer(slow)
    all_well(1, train_transformer, fast)
    assert losses(fast) == pytest.approx(losses(slow), rel=0.02)
    assert all(0 < row["mfu"] < 1 for row in rows(fast, "train"))


def test_a_killed_run_repeats_on_a_gpu(walks: Path, tmp_path: Path) -> None:
    whole = walk_config(walks, tmp_path / "whole", device="cuda")
    killed = walk_config(walks, tmp_path / "killed", device="cuda")
    all_well(1, train_transformer, whole)
    (ended,) = run_ranks(1, train_and_signal, killed, 7, 0, signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    all_well(1, train_transformer, killed)
    # Embeddings sum their gradients in any order there.
    assert losses(killed) == pytest.approx(losses(whole), rel=1e-4)


@two_gpus
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_gpus_do_as_one(walks: Path, tmp_path: Path, parallel: str) -> None:
    common: dict[str, Any] = NO_DROPOUT | {"device": "cuda", "ema_decay": 0.5}
    alone = walk_config(walks, tmp_path / "alone", **common)
    both = walk_config(walks, tmp_path / "both", **common, parallel=parallel, micro_batch=2)
    all_well(1, train_transformer, alone)
    all_well(2, train_transformer, both)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-3)
