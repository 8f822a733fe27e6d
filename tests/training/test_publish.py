from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from masc_core.bundle import load_bundle
from masc_core.errors import ArtifactError, ConfigError
from masc_core.prior import ClusterMap
from masc_core.registry import Registry
from masc_core.tensors import read_tensors
from tests.training.stages import transformer_config
from training.code_cache import CodeCache
from training.publish import PublishConfig, publish
from training.transformer import train_transformer


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "transformer"
    train_transformer(transformer_config(prepared, out=out, epochs=1))
    return out


def config(prepared: Path, trained: Path, models: Path, **changes: object) -> PublishConfig:
    values: dict[str, object] = {
        "name": "shapes",
        "version": "1",
        "models": models,
        "tokenizer": prepared / "tokenizer",
        "prior": prepared / "prior",
        "codes": prepared / "codes-train",
        "transformer": trained,
        "cfg_scale": 1.5,
        "decoding": "frequency",
        "note": "drawn shapes",
    }
    return PublishConfig.model_validate(values | changes)


def test_a_version_holds_parts_figures_and_provenance(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    manifest = publish(config(prepared, trained, tmp_path))
    registry = Registry(tmp_path)
    assert registry.current("shapes") == "1"
    assert registry.verify("shapes") == manifest
    assert manifest.class_names == ("bar", "disc", "stripes")
    assert manifest.defaults.cfg_scale == 1.5
    assert manifest.provenance["note"] == "drawn shapes"
    metrics = json.loads((trained / "metrics.json").read_text())
    assert manifest.metrics["bits_per_position"] == metrics["bits_per_position"]
    assert "seconds_per_image" in manifest.metrics
    assert "samples.png" in manifest.files
    bundle = load_bundle(registry.path("shapes"))
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    assert (bundle.decoder.prior.labels == prior.labels).all()
    assert "frequency" in bundle.decoder.decodings


def test_counts_are_those_of_the_training_codes(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    publish(config(prepared, trained, tmp_path))
    stored = read_tensors(tmp_path / "shapes" / "1" / "token_counts.safetensors")["counts"]
    assert (stored.numpy() == CodeCache.open(prepared / "codes-train").counts()).all()


def test_a_version_is_never_overwritten(prepared: Path, trained: Path, tmp_path: Path) -> None:
    publish(config(prepared, trained, tmp_path))
    with pytest.raises(ArtifactError, match="exists already"):
        publish(config(prepared, trained, tmp_path))
    publish(config(prepared, trained, tmp_path, version="2", activate=False))
    assert Registry(tmp_path).current("shapes") == "1"


def test_parts_that_do_not_fit_are_refused(prepared: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained with another tokenizer or another prior"):
        publish(config(prepared, trained, tmp_path, prior=None))
    with pytest.raises(ArtifactError, match="holds no classifier"):
        publish(config(prepared, trained, tmp_path, classifier=tmp_path / "none"))
    assert not (tmp_path / "shapes").exists()


def test_codes_of_another_tokenizer_are_refused(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", other)
    content = bytearray((other / "tokenizer.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "tokenizer.safetensors").write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="codes: were made by another tokenizer"):
        publish(config(prepared, trained, tmp_path / "models", tokenizer=other))


@pytest.mark.parametrize("key", ["name", "version"])
def test_names_that_could_leave_the_folder_are_refused(
    prepared: Path, trained: Path, tmp_path: Path, key: str
) -> None:
    with pytest.raises(ValidationError, match="not a plain name"):
        config(prepared, trained, tmp_path, **{key: "../evil"})
