"""Weights of epochs are kept, measured, published, and compared by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.models.weights import load_transformer
from tests.command_line import Masc
from tests.training.rank_processes import all_well
from tests.training.stage_configs import power_cut, prior_config, transformer_config
from training.stages.configs import EvaluateConfig, PublishConfig
from training.stages.evaluate import evaluate
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.transformer import train_transformer


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "transformer"
    train_transformer(transformer_config(prepared, out=out, epochs=4, keep_every=2))
    return out


@pytest.fixture(scope="module")
def models(prepared: Path, run: Path) -> Path:
    publish(publish_config(prepared, run, run.parent / "models", version="1"))
    return run.parent / "models"


def publish_config(
    prepared: Path, transformer: Path, models: Path, **changes: object
) -> PublishConfig:
    values: dict[str, object] = {
        "name": "shapes",
        "models": models,
        "tokenizer": prepared / "tokenizer",
        "prior": prepared / "prior",
        "codes": prepared / "codes-train",
        "transformer": transformer,
    }
    return PublishConfig.model_validate(values | changes)


def evaluate_config(models: Path, transformer: Path | None, **changes: object) -> EvaluateConfig:
    values: dict[str, object] = {
        "models": models,
        "model": "shapes",
        "images_per_class": 1,
        "transformer": transformer,
        "device": "cpu",
    }
    return EvaluateConfig.model_validate(values | changes)


def validations(run: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["epoch"]: row for row in rows if row["kind"] == "validation"}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_transformer(folder / "transformer.safetensors").state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_every_so_many_epochs_are_kept_with_what_they_were_measured_at(run: Path) -> None:
    epochs = sorted((run / "epochs").iterdir())
    assert [path.name for path in epochs] == ["0002", "0004"]
    for path in epochs:
        metrics = json.loads((path / "metrics.json").read_text())
        assert metrics.items() <= validations(run)[int(path.name)].items()
        assert json.loads((path / "config.json").read_text())["epochs"] == 4
    second, fourth = (weights(path) for path in epochs)
    assert not same(second, fourth)
    assert same(fourth, weights(run))  # the last epoch is the best


def test_none_are_kept_unasked(prepared: Path, tmp_path: Path) -> None:
    train_transformer(transformer_config(prepared, out=tmp_path, epochs=1))
    assert not (tmp_path / "epochs").exists()


def test_kept_weights_are_those_of_an_undisturbed_run(
    prepared: Path, run: Path, tmp_path: Path
) -> None:
    cut = transformer_config(prepared, out=tmp_path / "cut", epochs=4, keep_every=2)
    with power_cut(10) as report:  # between the second and the third epoch's end
        train_transformer(cut, report)
    assert same(weights(cut.out / "epochs" / "0002"), weights(run / "epochs" / "0002"))
    (cut.out / "epochs" / "0002" / "transformer.safetensors").unlink()  # before the checkpoint
    shutil.rmtree(cut.out / "checkpoints")
    train_transformer(cut)
    for name in ("0002", "0004"):
        assert same(weights(cut.out / "epochs" / name), weights(run / "epochs" / name))


def test_ranks_keep_averaged_weights_once(prepared: Path, tmp_path: Path) -> None:
    config = transformer_config(
        prepared, out=tmp_path, epochs=1, keep_every=1, ema_decay=0.9, device="cpu",
        parallel="fsdp",
    )  # fmt: skip
    all_well(2, train_transformer, config)
    assert same(weights(tmp_path / "epochs" / "0001"), weights(tmp_path))


def test_an_epoch_is_measured_as_if_it_were_published(
    prepared: Path, run: Path, models: Path, tmp_path: Path
) -> None:
    first = run / "epochs" / "0002"
    codes = {"codes": prepared / "codes-val"}
    found = evaluate(evaluate_config(models, first, **codes))
    metrics = json.loads((first / "metrics.json").read_text())
    assert found["teacher_forced_cross_entropy_bits"] == pytest.approx(
        metrics["bits_per_position"], rel=1e-4
    )
    settings = found["settings"]
    assert settings["weights_sha256"] is None
    assert settings["transformer"] == {
        "path": str(first),
        "sha256": sha256_file(first / "transformer.safetensors"),
    }
    own = evaluate(evaluate_config(models, None, **codes))
    last = evaluate(evaluate_config(models, run / "epochs" / "0004", **codes))
    name = "teacher_forced_cross_entropy_bits"
    assert last[name] == pytest.approx(own[name], rel=1e-3)  # the version's are rounded
    assert found[name] != pytest.approx(own[name], rel=1e-3)
    assert own["settings"]["transformer"] is None


def test_an_epoch_is_published_as_a_run_is(prepared: Path, run: Path, tmp_path: Path) -> None:
    manifest = publish(publish_config(prepared, run / "epochs" / "0002", tmp_path))
    bits = validations(run)[2]["bits_per_position"]
    assert manifest.metrics["bits_per_position"] == bits
    kept = load_transformer(run / "epochs" / "0002" / "transformer.safetensors")
    weight = load_bundle(Registry(tmp_path).path("shapes")).transformer.output.weight
    assert weight.equal(kept.output.weight.half().float())


def test_weights_over_other_clusters_are_refused(
    prepared: Path, models: Path, tmp_path: Path
) -> None:
    build_prior(prior_config(prepared, out=tmp_path / "prior", num_clusters=8))
    out = tmp_path / "transformer"
    prior = tmp_path / "prior" / "prior.npz"
    train_transformer(transformer_config(prepared, out=out, epochs=1, prior=prior))
    with pytest.raises(ConfigError, match=r"transformer: .* was trained over another prior"):
        evaluate(evaluate_config(models, out))


def test_an_evaluation_of_an_epoch_is_none_of_the_version(
    prepared: Path, run: Path, models: Path, tmp_path: Path
) -> None:
    evaluate(evaluate_config(models, run / "epochs" / "0004", out=tmp_path))
    wanted = publish_config(
        prepared, run, tmp_path / "models", evaluation=tmp_path / "evaluation.json"
    )
    with pytest.raises(ConfigError, match="is of other weights than these"):
        publish(wanted)


def test_runs_are_compared_by_what_was_evaluated(masc: Masc, run: Path, models: Path) -> None:
    for epoch in sorted((run / "epochs").iterdir()):
        done = masc(
            "evaluate", "shapes", "--models", models, "--transformer", epoch, "--out", epoch,
            "--images-per-class", "1", "--device", "cpu",
        )  # fmt: skip
        assert done.status == 0, done.stderr
    done = masc("transformer", "acceleration", run, run, "--metric", "entropy_bits")
    assert done.status == 0, done.stderr
    target = json.loads((run / "epochs" / "0004" / "evaluation.json").read_text())["entropy_bits"]
    assert f"entropy_bits {target:.4f}" in done.stdout
    assert "0.0% of the epochs saved, at epoch 4.00" in done.stdout
