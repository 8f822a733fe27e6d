from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ConfigError, InvalidFieldError
from masc_core.models.completer import Completer
from masc_core.models.weights import load_completer, read_inputs, save_model
from masc_core.prior import ClusterMap
from tests.training.rank_processes import all_well
from tests.training.stage_configs import (
    completer_config,
    power_cut,
    prior_config,
    transformer_config,
)
from training.stages.completer import train_completer
from training.stages.configs import CompleterTrainingConfig, EvaluateConfig, PublishConfig
from training.stages.evaluate import evaluate
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.transformer import train_transformer

SHORT = {"epochs": 2, "checkpoint_every": 2, "log_every": 1}


def config(prepared: Path, out: Path, **changes: object) -> CompleterTrainingConfig:
    return completer_config(prepared, out=out, **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_completer(run / "completer.safetensors").state_dict()


def test_needs_fewer_bits_than_decoding_without_a_model(prepared: Path, tmp_path: Path) -> None:
    stage = config(prepared, tmp_path / "completer")
    metrics = train_completer(stage)
    assert metrics["in_cluster_bits"] < metrics["frequency_bits"] < metrics["uniform_bits"]
    assert metrics["bits_per_code"] == metrics["in_cluster_bits"] == metrics["objective"]
    assert 0 < metrics["open_positions"] <= 1
    path = stage.out / "completer.safetensors"
    assert load_completer(path).config.num_inputs == 16
    assert {"prior", "tokenizer", "codes"} <= read_inputs(path).keys()
    rows = [json.loads(line) for line in (stage.out / "log.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["kind"] == "validation")
    assert metrics["in_cluster_bits"] < first["in_cluster_bits"]


def test_a_softmax_over_all_codes_pays_for_the_cluster(prepared: Path, tmp_path: Path) -> None:
    stage = config(prepared, tmp_path / "c", softmax="full", input_rows="codes", **SHORT)
    metrics = train_completer(stage)
    assert metrics["bits_per_code"] > metrics["in_cluster_bits"]
    found = load_completer(stage.out / "completer.safetensors").config
    assert (found.softmax, found.num_inputs) == ("full", 32)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "corruption": 0.3}])
def test_continues_where_it_stopped(
    prepared: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    if changes:
        build_prior(prior_config(prepared, out=tmp_path / "families", num_clusters=4))
        changes = {**changes, "siblings": tmp_path / "families" / "prior.npz"}
    whole = config(prepared, tmp_path / "whole", **SHORT, **changes)
    train_completer(whole)
    stopped = config(prepared, tmp_path / "stopped", **SHORT, **changes)
    with power_cut(5) as report:
        train_completer(stopped, report)
    train_completer(stopped)
    expected, actual = weights(whole.out), weights(stopped.out)
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_two_ranks_learn_what_one_learns(prepared: Path, tmp_path: Path) -> None:
    dropouts = ("token_dropout", "resid_dropout", "ffn_dropout")
    same = {**dict.fromkeys(dropouts, 0.0), "class_dropout": 1e-9, "epochs": 1}
    alone = config(prepared, tmp_path / "alone", **same)
    shared = config(prepared, tmp_path / "shared", **same)
    expected = train_completer(alone)
    all_well(2, train_completer, shared)
    metrics = json.loads((shared.out / "metrics.json").read_text())
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_of_clusters_at_random_little_more_is_known_than_how_frequent_codes_are(
    prepared: Path, tmp_path: Path
) -> None:
    build_prior(prior_config(prepared, out=tmp_path / "p", num_clusters=8, method="random"))
    prior = tmp_path / "p" / "prior.npz"
    metrics = train_completer(config(prepared, tmp_path / "completer", prior=prior))
    assert metrics["uniform_bits"] == 2  # log2(32 / 8)
    assert metrics["in_cluster_bits"] > 0.85 * metrics["frequency_bits"]


def test_parts_that_do_not_belong_together_are_refused(prepared: Path, tmp_path: Path) -> None:
    ClusterMap.identity(32).save(tmp_path / "flat.npz")
    ClusterMap.from_labels(range(64)).save(tmp_path / "large.npz")
    ClusterMap.from_labels([i % 2 for i in range(32)]).save(tmp_path / "across.npz")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prior": tmp_path / "flat.npz"}, "prior: every cluster has one code"),
        ({"prior": tmp_path / "large.npz"}, "prior: is over 64 codes, the caches hold 32"),
        ({"siblings": tmp_path / "across.npz", "corruption": 0.1}, "divides the cluster of code"),
        ({"n_head": 3}, "n_head: 16 channels in 3 heads"),
    ]
    for changes, complaint in wrong:
        with pytest.raises(ConfigError, match=complaint):
            train_completer(config(prepared, tmp_path / "c", **changes))
    for changes in ({"corruption": 0.1}, {"siblings": tmp_path / "flat.npz"}, {"class_dropout": 0}):
        with pytest.raises(ValidationError):
            config(prepared, tmp_path / "c", **changes)


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer and a completer."""
    root = tmp_path_factory.mktemp("runs")
    train_transformer(transformer_config(prepared, out=root / "transformer", epochs=1))
    train_completer(config(prepared, root / "completer", epochs=1))
    return root


WITHOUT = {"completer": None, "code_temperature": None, "code_top_k": None}


def publish_config(prepared: Path, runs: Path, models: Path, **changes: object) -> PublishConfig:
    values: dict[str, object] = {
        "name": "shapes",
        "models": models,
        "tokenizer": prepared / "tokenizer",
        "prior": prepared / "prior",
        "codes": prepared / "codes-train",
        "transformer": runs / "transformer",
        "completer": runs / "completer",
        "decoding": "complete",
        "code_temperature": 1.1,
        "code_top_k": 3,
        "shuffles": 0,
        "samples": 2,
    }
    return PublishConfig.model_validate(values | changes)


def test_is_published_measured_and_taken_back(prepared: Path, runs: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(publish_config(prepared, runs, models, **WITHOUT, decoding="frequency"))
    manifest = publish(publish_config(prepared, runs, models))
    assert manifest.decodings == ("uniform", "frequency", "complete")
    assert (manifest.defaults.decoding, manifest.defaults.code_temperature) == ("complete", 1.1)
    measured = json.loads((runs / "completer" / "metrics.json").read_text())
    del measured["objective"]
    assert manifest.metrics["completer"] == measured
    assert "completer" in manifest.provenance
    registry = Registry(models)
    assert registry.verify("shapes") == manifest
    which = {"models": models, "model": "shapes", "device": "cpu", "images_per_class": 2}
    default = evaluate(EvaluateConfig.model_validate(which))["settings"]
    assert (default["decoding"], default["code_temperature"], default["code_top_k"]) == (
        "complete", 1.1, 3,
    )  # fmt: skip
    chosen = EvaluateConfig.model_validate({**which, "code_temperature": 0.5, "code_cfg_scale": 2})
    settings = evaluate(chosen)["settings"]
    assert (settings["code_temperature"], settings["code_cfg_scale"]) == (0.5, 2.0)
    other = EvaluateConfig.model_validate({**which, "decoding": "uniform"})
    assert "code_top_k" not in evaluate(other)["settings"]
    wrong = other.model_copy(update={"code_top_k": 3})
    with pytest.raises(
        InvalidFieldError, match="code_top_k is of the decoding complete, not uniform"
    ):
        evaluate(wrong)
    assert registry.rollback("shapes") == "1"
    assert load_bundle(registry.path("shapes")).code_sampler.decodings == ("uniform", "frequency")


def save_run(folder: Path, runs: Path, inputs: dict[str, str], **sizes: Any) -> Path:
    """A completer run as its stage leaves it, trained from something else."""
    path = runs / "completer" / "completer.safetensors"
    completer = load_completer(path)
    if sizes:
        completer = Completer(replace(completer.config, **sizes))
    folder.mkdir()
    save_model(folder / "completer.safetensors", completer, read_inputs(path) | inputs)
    (folder / "config.json").write_text('{"dim": 16}')
    (folder / "metrics.json").write_text('{"in_cluster_bits": 1.5}')
    return folder


@pytest.mark.parametrize(
    ("inputs", "sizes", "complaint"),
    [
        ({"prior": "0" * 64}, {}, r"^completer: was trained with another prior$"),
        ({"tokenizer": "0" * 64}, {}, r"^completer: was trained with another tokenizer$"),
        ({"codes": "0" * 64}, {}, r"^completer: was trained with another set of codes$"),
        ({}, {"num_clusters": 8}, r"^the completer has num_clusters 8, the other models have 16$"),
    ],
)
def test_one_that_was_made_for_something_else_is_refused(
    prepared: Path, runs: Path, tmp_path: Path,
    inputs: dict[str, str], sizes: dict[str, Any], complaint: str,
) -> None:  # fmt: skip
    other = save_run(tmp_path / "other", runs, inputs, **sizes)
    with pytest.raises(ConfigError, match=complaint):
        publish(publish_config(prepared, runs, tmp_path / "models", completer=other))
    assert not list(tmp_path.glob("models/*/*"))


def test_without_one_it_is_no_default(prepared: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="decoding: complete needs a completer"):
        publish(publish_config(prepared, runs, tmp_path, **WITHOUT))
