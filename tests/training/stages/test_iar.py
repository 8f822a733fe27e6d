"""IAR from codes to a served version: the loss of clusters in training, evaluation and bundles."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, InvalidFieldError
from masc_core.generation.generate import generate
from masc_core.models.weights import load_transformer, read_inputs, save_model
from masc_core.prior import ClusterMap
from masc_core.sampling.params import SamplingParams
from masc_core.semantic_tree import SemanticTree
from tests.command_line import Masc, service
from tests.training.stage_configs import power_cut, transformer_config
from training.data.cluster_data import partition_sha256
from training.data.code_cache import CodeCache
from training.stages.configs import EvaluateConfig, PublishConfig, TransformerTrainingConfig
from training.stages.evaluate import evaluate
from training.stages.publish import publish
from training.stages.transformer import train_transformer


@pytest.fixture(scope="module")
def cuts(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Nested cuts of the tree over the 32 codes, by their number of clusters."""
    folder = tmp_path_factory.mktemp("cuts")
    tree = SemanticTree.load(prepared / "prior" / "tree.npz")
    for k in (4, 12):
        tree.cut(k).save(folder / f"{k}.npz")
    return {k: folder / f"{k}.npz" for k in (4, 12)}


def iar_config(
    prepared: Path, out: Path, *partitions: Path, **changes: Any
) -> TransformerTrainingConfig:
    return transformer_config(prepared, prior=None, out=out, partitions=partitions, **changes)


@pytest.fixture(scope="module")
def trained(
    prepared: Path, cuts: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("iar") / "transformer"
    weights = (0.5, 1.0)
    train_transformer(
        iar_config(prepared, out, cuts[4], cuts[12], partition_weights=weights, micro_batch=4)
    )
    return out


def publish_config(prepared: Path, trained: Path, models: Path, **changes: Any) -> PublishConfig:
    values: dict[str, Any] = {
        "name": "iar",
        "models": models,
        "tokenizer": prepared / "tokenizer",
        "codes": prepared / "codes-train",
        "transformer": trained,
    }
    return PublishConfig.model_validate(values | changes)


def log_of(out: Path, kind: str) -> list[dict[str, float]]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def test_the_log_has_the_loss_of_each_level_and_its_parts(trained: Path) -> None:
    for row in log_of(trained, "train"):
        bits = row["bits"] + 0.5 * row["cluster_bits_4"] + 1.0 * row["cluster_bits_12"]
        assert row["loss"] == pytest.approx(bits * math.log(2), rel=1e-5)
        assert row["cluster_bits_4"] < row["cluster_bits_12"] < row["bits"]
    for row in log_of(trained, "validation"):
        sizes = (1, 2, 16)
        shares = [row.get(f"cluster_share_12_size_{size}", 0) for size in sizes]
        split = [row.get(f"cluster_bits_12_size_{size}", 0) for size in sizes]
        assert sum(shares) == pytest.approx(1)
        assert np.dot(shares, split) == pytest.approx(row["cluster_bits_12"])


def test_validation_sums_the_probabilities_of_codes(prepared: Path, trained: Path) -> None:
    model = load_transformer(trained / "transformer.safetensors")
    cache = CodeCache.open(prepared / "codes-val")
    everyone = np.arange(len(cache))
    codes = torch.from_numpy(cache.take(everyone, everyone * 0))
    with torch.no_grad():
        p = model(torch.from_numpy(cache.labels), codes[:, :-1]).double().softmax(-1)
    metrics = json.loads((trained / "metrics.json").read_text())
    for k in (4, 12):
        labels = ClusterMap.load(trained / f"partition-{k}.npz").labels
        clusters = torch.stack([p[..., labels == i].sum(-1) for i in range(k)], dim=-1)
        true = clusters.gather(-1, torch.tensor(labels)[codes][..., None])
        assert metrics[f"cluster_bits_{k}"] == pytest.approx(float(-true.log2().mean()), rel=1e-5)
        entropy = float(-(clusters * clusters.log2()).sum(-1).mean())
        assert metrics[f"cluster_entropy_bits_{k}"] == pytest.approx(entropy, rel=1e-5)
        assert metrics[f"cluster_entropy_ratio_{k}"] == pytest.approx(
            entropy / math.log2(k), rel=1e-5
        )


def test_a_run_continues_where_it_stopped(
    prepared: Path, cuts: dict[int, Path], trained: Path, tmp_path: Path
) -> None:
    levels = {"partition_weights": (0.5, 1.0), "micro_batch": 4}
    config = iar_config(prepared, tmp_path / "stopped", cuts[4], cuts[12], **levels)
    with power_cut(7) as report:
        train_transformer(config.model_copy(update={"checkpoint_every": 2}), report)
    moved = shutil.copy(cuts[12], tmp_path / "moved.npz")
    train_transformer(iar_config(prepared, config.out, cuts[4], Path(moved), **levels))
    expected = load_transformer(trained / "transformer.safetensors").state_dict()
    actual = load_transformer(config.out / "transformer.safetensors").state_dict()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    with pytest.raises(ConfigError, match=r"partition_weights was \[0.5, 1.0\], is \[1.0, 1.0\]"):
        train_transformer(config.model_copy(update={"partition_weights": (1.0, 1.0)}))
    message = r"partition_weights was .*; inputs.partition-12 was .*, is absent"
    with pytest.raises(ConfigError, match=message):
        train_transformer(iar_config(prepared, config.out, cuts[4]))


def test_a_random_partition_is_no_better_than_none(prepared: Path, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(32) // 8
    ClusterMap.from_labels(labels).save(tmp_path / "random.npz")
    plain = train_transformer(iar_config(prepared, tmp_path / "plain"))
    random = train_transformer(iar_config(prepared, tmp_path / "run", tmp_path / "random.npz"))
    assert random["bits_per_position"] >= plain["bits_per_position"]


def test_partitions_that_do_not_fit_are_refused(
    prepared: Path, cuts: dict[int, Path], tmp_path: Path
) -> None:
    def refuse(complaint: str, *partitions: Path, **changes: Any) -> None:
        config = iar_config(prepared, tmp_path / "run", *partitions)
        with pytest.raises((ArtifactError, ConfigError), match=complaint):
            train_transformer(config.model_copy(update=changes))
        assert not (tmp_path / "run").exists()

    def written(labels: Any) -> Path:
        ClusterMap.from_labels(labels).save(tmp_path / "p.npz")
        return tmp_path / "p.npz"

    refuse(r"partitions: .*p\.npz is over 31 codes, not 32", written(np.arange(31) // 2))
    refuse("none.npz: cannot be read", tmp_path / "none.npz")
    refuse("partitions: two have 4 clusters", cuts[4], written(np.arange(32) // 8))
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    divided = written(
        np.where(np.arange(32) == prior.members[prior.offsets[prior.sizes.argmax()]], 1, 0)
    )
    refuse("divides the cluster of code", divided, prior=prepared / "prior" / "prior.npz")
    with pytest.raises(ValueError, match="partition_weights: 2 for 1 partitions"):
        iar_config(prepared, tmp_path / "run", cuts[4], partition_weights=(1, 1))
    for weight in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="partition_weights"):
            iar_config(prepared, tmp_path / "run", cuts[4], partition_weights=(weight,))


def test_levels_of_a_prior_are_made_of_its_clusters(
    prepared: Path, cuts: dict[int, Path], tmp_path: Path
) -> None:
    config = transformer_config(prepared, out=tmp_path / "run", partitions=(cuts[4],))
    metrics = train_transformer(config)
    assert metrics["cluster_bits_4"] < metrics["bits_per_position"]
    manifest = publish(
        publish_config(prepared, config.out, tmp_path / "models", prior=prepared / "prior")
    )
    assert (manifest.num_clusters, manifest.partitions) == (16, (4,))


def test_figures_of_other_clusters_are_not_taken_over(
    prepared: Path, cuts: dict[int, Path], tmp_path: Path
) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    train_transformer(iar_config(prepared, run, cuts[4], epochs=1))
    changes = {"evaluation": tmp_path / "evaluation.json"}
    candidate = publish(publish_config(prepared, run, models))
    which = {"model": "iar", "models": models, "images_per_class": 1, "out": tmp_path}
    evaluate(EvaluateConfig.model_validate(which | {"cluster_top_k": 2}))
    assert publish(publish_config(prepared, run, models, **changes)).partitions == (4,)

    file = run / "transformer.safetensors"
    other = ClusterMap.from_labels(np.arange(32) // 8)
    other.save(run / "partition-4.npz")
    inputs = read_inputs(file) | {"partition-4": partition_sha256(other)}
    save_model(file, load_transformer(file), inputs)
    with pytest.raises(ConfigError, match="is of other partitions than these"):
        publish(publish_config(prepared, run, models, **changes))
    assert candidate.weights_sha256 == publish(publish_config(prepared, run, models)).weights_sha256


def test_trained_published_evaluated_served_and_rolled_back(
    masc: Masc, prepared: Path, cuts: dict[int, Path], tmp_path: Path
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    arguments = ["--codes", prepared / "codes-train", "--val-codes", prepared / "codes-val"]
    arguments += ["--dim", 32, "--n-layer", 1, "--n-head", 2, "--epochs", 1, "--batch-size", 8]
    arguments += ["--partitions", cuts[12], "--partition-weights", 1]
    done = masc("transformer", "train", *map(str, [*arguments, "--out", run]))
    assert done.status == 0, done.stderr
    flat = transformer_config(prepared, prior=None, out=tmp_path / "flat", epochs=1)
    train_transformer(flat)
    publish(publish_config(prepared, flat.out, models))
    manifest = publish(publish_config(prepared, run, models))
    assert (manifest.version, manifest.num_clusters, manifest.partitions) == ("2", 32, (12,))
    partition = ClusterMap.load(cuts[12])
    (kept,) = load_bundle(models / "iar" / "2").partitions
    assert np.array_equal(kept.labels, partition.labels)
    assert Registry(models).verify("iar") == manifest
    measured = evaluate(
        EvaluateConfig(model="iar", models=models, images_per_class=0, codes=prepared / "codes-val")
    )
    # Of the weights in the precision of the file.
    for name in ("cluster_bits_12", "cluster_entropy_bits_12"):
        assert measured[name] == pytest.approx(manifest.metrics[name], rel=1e-2)
        assert name in measured["definitions"]
    bundle = load_bundle(models / "iar" / "2")
    with service(models) as (_, client):
        body = {"class_name": "disc", "seed": 5, "cluster_top_k": 2, "cluster_top_p": 0.8}
        answer = client.post("/generate", json=body | {"entropies": True}).json()
        assert answer["model"]["version"] == "2"
        (disc,) = manifest.class_ids("disc")
        params = SamplingParams(disc, 1.0, 5, cluster_top_k=2, cluster_top_p=0.8)
        made, (image,) = (
            generate(bundle.transformer, bundle.code_sampler, [params]),
            answer["images"],
        )
        png = base64.b64decode(image["b64"])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), bundle.render(made.codes)[0])
        for name in ("entropies", "cluster_entropies"):
            assert image[name] == getattr(made, name)[0].tolist()
        mean = float(np.mean(image["cluster_entropies"]))
        assert image["cluster_entropy_bits"] == pytest.approx(mean)
        assert image["cluster_entropy_ratio"] == pytest.approx(mean / math.log2(12))
        told = json.loads(Image.open(io.BytesIO(png)).info["Description"])["request"]
        assert (told["cluster_top_k"], told["cluster_top_p"]) == (2, 0.8)
        extra = {"prompt": "disc", "seed": 5, "cluster_top_k": 2, "cluster_top_p": 0.8}
        openai = client.post("/v1/images/generations", json=extra).json()
        assert openai["data"][0]["b64_json"] == image["b64"]
        book = client.get("/models/iar/codebook").json()
        assert (book["num_clusters"], book["num_branches"]) == (12, 12)
        assert masc("models", "rollback", "iar", "--models", str(models)).status == 0
    assert Registry(models).current("iar") == "1"
    assert load_bundle(models / "iar" / "1").partitions == ()
    for name, value in {"cluster_top_k": 2, "cluster_top_p": 0.8}.items():
        option = f"--{name.replace('_', '-')}={value}"
        refused = masc("generate", "disc", option, "--models", str(models), "--out", str(tmp_path))
        assert refused.status == 2
        assert "the model has no partition" in refused.stderr
        with pytest.raises(InvalidFieldError, match="the model has no partition"):
            evaluate(EvaluateConfig.model_validate({"models": models, "model": "iar", name: value}))


def test_a_partition_that_is_not_the_runs_own_is_refused(
    prepared: Path, trained: Path, cuts: dict[int, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    ClusterMap.from_labels(np.arange(32) % 4).save(run / "partition-4.npz")
    config = publish_config(prepared, run, tmp_path / "models")
    with pytest.raises(ConfigError, match=r"another partition than .*partition-4\.npz"):
        publish(config)
    (run / "partition-4.npz").unlink()
    with pytest.raises(ArtifactError, match=r"partition-4\.npz: cannot be read"):
        publish(config)
    assert not (tmp_path / "models" / "iar").exists()
