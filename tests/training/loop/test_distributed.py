from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from masc_core.io.files import sha256_file
from tests.training.rank_processes import all_well, run_ranks
from tests.training.tiny_codes import walk_config
from training.data.cluster_data import ClusterData
from training.loop.checkpoint import latest_checkpoint, latest_step
from training.loop.distributed import Ranks
from training.loop.run_dir import lock_folder
from training.stages.configs import TransformerTrainingConfig
from training.stages.transformer import train_transformer

LAST = 12
MODES: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp", "micro_batch": 2},
    "fsdp": {
        "parallel": "fsdp",
        "micro_batch": 2,
        "ema_decay": 0.5,
        "checkpoint_activations": True,
    },
}
NO_DROPOUT = dict.fromkeys(("token_dropout", "resid_dropout", "ffn_dropout", "class_dropout"), 0.0)


def train_and_signal(config: TransformerTrainingConfig, at: int, rank: int, number: int) -> None:
    def report(step: int, total: int, text: str) -> None:
        if step == at and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)

    train_transformer(config, report)


def train_until_the_disk_is_full(config: TransformerTrainingConfig, at: int, rank: int) -> None:
    def report(step: int, total: int, text: str) -> None:
        if step == at and os.environ["RANK"] == str(rank):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))

    train_transformer(config, report)


def train_in_folders_of_their_own(config: TransformerTrainingConfig) -> None:
    own = config.out / os.environ["RANK"]
    train_transformer(config.model_copy(update={"out": own}))


def history(folder: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss", row.get("objective"))) for row in rows]


def last_state(folder: Path) -> dict[tuple[str, int], Tensor]:
    """Tensors of the last checkpoint by name and part, and the weights that were kept.

    Of a copied model it is not fixed which rank writes which tensor.
    """
    path = latest_checkpoint(folder)
    assert path is not None
    assert latest_step(path) == LAST
    state: dict[tuple[str, int], Tensor] = {}
    for file in [*sorted(path.glob("*.safetensors")), folder / "transformer.safetensors"]:
        for name, value in load_file(file).items():
            state[name, sum(other == name for other, _ in state)] = value
    return state


@pytest.fixture(scope="module")
def alone(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process without dropout, which every number of ranks repeats."""
    config = walk_config(walks, tmp_path_factory.mktemp("alone"), **NO_DROPOUT, ema_decay=0.5)
    train_transformer(config)
    return config.out


@pytest.mark.parametrize(
    ("count", "mode", "at", "victim"),
    [(2, "ddp", 3, 1), (2, "fsdp", 9, 0)],
)
def test_a_run_whose_rank_is_killed_repeats_exactly(
    walks: Path, tmp_path: Path, count: int, mode: str, at: int, victim: int
) -> None:
    sheets = {"sheet_epochs": (3,), "sheet_tokenizer": walks / "tokenizer.safetensors"}
    whole = walk_config(walks, tmp_path / "whole", **MODES[mode], **sheets)
    all_well(count, train_transformer, whole)
    killed = walk_config(walks, tmp_path / "killed", **MODES[mode], **sheets)
    ended = run_ranks(count, train_and_signal, killed, at, victim, signal.SIGKILL)
    assert ended[victim].status == -signal.SIGKILL
    assert all(rank.status for rank in ended)
    assert latest_step(latest_checkpoint(killed.out)) == at - 1
    all_well(count, train_transformer, killed)
    assert history(killed.out) == history(whole.out)
    expected, actual = last_state(whole.out), last_state(killed.out)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    sheet = Path("sheets", "epoch-0003.png")
    assert (killed.out / sheet).read_bytes() == (whole.out / sheet).read_bytes()


def test_a_run_goes_on_with_other_ranks_up_to_rounding(
    walks: Path, alone: Path, tmp_path: Path
) -> None:
    for count, mode, at in ((2, "fsdp", 3), (1, "ddp", 7), (2, "ddp", LAST + 1)):
        changes = NO_DROPOUT | MODES[mode] | {"ema_decay": 0.5}
        config = walk_config(walks, tmp_path, **changes)
        run_ranks(count, train_and_signal, config, at, 0, signal.SIGKILL)
        assert latest_step(latest_checkpoint(tmp_path)) == min(at - 1, LAST)
    for actual, expected in zip(history(tmp_path), history(alone), strict=True):
        assert actual[:2] == expected[:2]
        assert actual[2] == pytest.approx(expected[2], rel=1e-4)
    weights = load_file(alone / "transformer.safetensors")
    for name, value in load_file(tmp_path / "transformer.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-3)


def test_a_signal_to_one_rank_stops_all_after_they_have_saved(walks: Path, tmp_path: Path) -> None:
    config = walk_config(walks, tmp_path, checkpoint_every=100)
    ended = run_ranks(2, train_and_signal, config, 3, 1, signal.SIGTERM)
    assert ["KeyboardInterrupt" in rank.message for rank in ended] == [True, True]
    assert latest_step(latest_checkpoint(tmp_path)) == 3


def test_a_second_run_in_the_folder_is_refused_on_every_rank(walks: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        ended = run_ranks(2, train_transformer, walk_config(walks, tmp_path))
    assert [rank.status for rank in ended] == [2, 2]
    assert "another run is using this folder" in ended[0].message
    assert "failed on another rank" in ended[1].message


def test_a_disk_that_is_full_for_one_rank_leaves_the_earlier_checkpoint(
    walks: Path, tmp_path: Path
) -> None:
    config = walk_config(walks, tmp_path, parallel="fsdp")  # each rank writes its part
    for rank in run_ranks(2, train_until_the_disk_is_full, config, 3, 1):
        assert rank.status == 2
        assert "0000004: cannot be written ([Errno 27] File too large)" in rank.message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000002"]
    all_well(2, train_transformer, config)


def test_the_main_rank_alone_reads_the_code_caches_through(
    walks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: set[tuple[int, str]] = set()
    for rank in (0, 1):

        def noted(path: Path, rank: int = rank) -> str:
            hashed.add((rank, path.name))
            return sha256_file(path)

        monkeypatch.setattr("training.data.code_cache.sha256_file", noted)
        ClusterData(walks / "train", walks / "val", None, Ranks(torch.device("cpu"), rank, 2))
    assert hashed == {(0, "codes-00000.npy"), (0, "labels-00000.npy")}


def test_a_damaged_cache_is_refused_on_every_rank(walks: Path, tmp_path: Path) -> None:
    shutil.copytree(walks / "train", tmp_path / "damaged")
    codes = tmp_path / "damaged" / "codes-00000.npy"
    codes.write_bytes(codes.read_bytes()[:-1] + b"\xff")
    config = walk_config(walks, tmp_path / "run").model_copy(update={"codes": tmp_path / "damaged"})
    ended = run_ranks(2, train_transformer, config)
    assert "codes-00000.npy: does not hold what was written to it" in ended[0].message
    assert ended[1].message.startswith("reading the code caches failed on another rank")
    assert [rank.status for rank in ended] == [2, 2]


def test_ranks_that_do_not_share_a_folder_are_refused(walks: Path, tmp_path: Path) -> None:
    first = walk_config(walks, tmp_path / "0", epochs=1)
    train_transformer(first)
    ended = run_ranks(2, train_in_folders_of_their_own, first.model_copy(update={"out": tmp_path}))
    assert ["is not the same folder on every rank" in rank.message for rank in ended] == [True] * 2
