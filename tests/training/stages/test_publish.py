from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from masc_core.bundle.manifest import Defaults
from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, InvalidFieldError
from masc_core.io.files import sha256_file
from masc_core.io.tensors import read_tensors
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.weights import load_transformer, read_inputs, save_model
from masc_core.prior import ClusterMap
from tests.command_line import ROOT, environment
from tests.training.stage_configs import codes_config, prior_config, transformer_config
from training.data.code_cache import CodeCache, read_index, write_index
from training.stages.codes import extract_codes
from training.stages.configs import EvaluateConfig, PublishConfig
from training.stages.evaluate import evaluate
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.transformer import train_transformer


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
        "cfg_schedule": "step",
        "cfg_start": 0.25,
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
    assert (manifest.defaults.cfg_schedule, manifest.defaults.cfg_start) == ("step", 0.25)
    assert manifest.provenance["note"] == "drawn shapes"
    metrics = json.loads((trained / "metrics.json").read_text())
    assert manifest.metrics["bits_per_position"] == metrics["bits_per_position"]
    assert "seconds_per_image" in manifest.metrics
    assert {"samples.png", "tree.npy", "patches.webp"} <= set(manifest.files)
    bundle = load_bundle(registry.path("shapes"))
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    assert (bundle.code_sampler.prior.labels == prior.labels).all()
    assert "frequency" in bundle.code_sampler.decodings


def test_classes_of_an_older_cache_may_be_none_for_a_model(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    codes = shutil.copytree(prepared / "codes-train", tmp_path / "codes")
    index = read_index(codes)
    write_index(codes, index.model_copy(update={"class_names": ("bar", "di\nsc", "stripes")}))
    with pytest.raises(ConfigError, match=r"codes: classes of .*: 1: Value error, 'di.nsc' has"):
        publish(config(prepared, trained, tmp_path / "models", codes=codes))
    assert not (tmp_path / "models").exists()


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
    with pytest.raises(ConfigError, match=r"transformer: was trained with another prior$"):
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


def test_without_a_version_the_next_number_is_taken(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    for name in ("9", "10", "v11", ".tmp-12"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
    first = publish(config(prepared, trained, tmp_path, version=None))
    second = publish(config(prepared, trained, tmp_path, version=None))
    assert (first.version, second.version) == ("11", "12")
    assert Registry(tmp_path).rollback("shapes") == "11"
    assert publish(config(prepared, trained, tmp_path, name="new", version=None)).version == "1"


def test_figures_of_an_evaluation_are_taken_over(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    candidate = publish(config(prepared, trained, models, activate=False))
    which = {"models": models, "model": "shapes", "version": "1", "device": "cpu"}
    evaluate(EvaluateConfig.model_validate({**which, "images_per_class": 2, "out": tmp_path}))
    path = tmp_path / "evaluation.json"
    evaluation = json.loads(path.read_text())
    manifest = publish(config(prepared, trained, models, version="2", evaluation=path))
    assert manifest.weights_sha256 == candidate.weights_sha256
    assert manifest.metrics["entropy_bits"] == evaluation["entropy_bits"]
    assert manifest.metrics["evaluation"] == evaluation["settings"]
    assert "curves" not in manifest.metrics
    settings = {"weights_sha256": "0" * 64}
    for content, complaint in [
        ("[1]", "no names"),
        ('{"fid": NaN}', "NaN"),
        ("{", "Expecting"),
        ('{"fid": 1}', "does not tell which weights"),
        (json.dumps({"settings": settings}), "is of other weights"),
    ]:
        path.write_text(content)
        with pytest.raises(ConfigError, match=complaint):
            publish(config(prepared, trained, models, evaluation=path, version="3"))
    assert Registry(models).versions("shapes") == ("1", "2")


def save_refiner_run(folder: Path, trained: Path, **changes: str) -> Path:
    """A refiner run of that transformer, as its stage leaves it."""
    path = trained / "transformer.safetensors"
    sizes = load_transformer(path).config
    refiner = Refiner(
        RefinerConfig(32, sizes.vocab_size, sizes.dim, sizes.block_size, 16, n_head=2, ffn_dim=32)
    )
    inputs = read_inputs(path) | {"transformer": sha256_file(path)}
    folder.mkdir()
    save_model(folder / "refiner.safetensors", refiner, inputs | changes)
    (folder / "config.json").write_text('{"width": 16}')
    (folder / "metrics.json").write_text('{"objective": 1, "bits": 1.5}')
    return folder


def test_a_refiner_comes_along_if_it_is_of_this_transformer(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    models, refiner = tmp_path / "models", save_refiner_run(tmp_path / "refiner", trained)
    wanted = config(prepared, trained, models, refiner=refiner, decoding="refine")
    manifest = publish(wanted)
    assert manifest.decodings == ("uniform", "frequency", "refine")
    assert manifest.defaults.decoding == "refine"
    assert manifest.metrics["refiner"] == {"bits": 1.5}
    weights: Any = manifest.provenance["trained_weights"]
    assert weights["refiner"] == sha256_file(refiner / "refiner.safetensors")
    other = save_refiner_run(tmp_path / "other", trained, transformer="0" * 64)
    with pytest.raises(ConfigError, match="refiner: was trained with another transformer"):
        publish(config(prepared, trained, models, version="2", refiner=other))
    with pytest.raises(ConfigError, match="decoding: refine needs a refiner"):
        publish(config(prepared, trained, models, version="2", decoding="refine"))


def test_every_default_of_a_version_can_be_chosen(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    chosen = {"temperature": 1.1, "top_k": 3, "top_p": 0.9}
    plain = {"shuffles": 0, "samples": 0}
    defaults = publish(config(prepared, trained, tmp_path, **chosen, **plain)).defaults
    assert chosen.items() <= defaults.model_dump().items()
    for key, value in {"cluster_top_k": 2, "cluster_top_p": 0.5}.items():
        with pytest.raises(InvalidFieldError, match="the model has no partition"):
            publish(config(prepared, trained, tmp_path, version="2", **{key: value}))
    assert set(Defaults.model_fields) <= set(PublishConfig.model_fields)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cfg_schedule": "constant", "cfg_start": 0.5}, "the schedule constant has none"),
        ({"cfg_schedule": "linear", "cfg_start": 0}, "the schedule linear has none"),
        ({"code_temperature": 1.1}, "code_temperature: needs a completer"),
        ({"code_top_k": 0}, "code_top_k: needs a completer"),
        ({"code_cfg_scale": 1.0}, "code_cfg_scale: needs a completer"),
    ],
)
def test_what_no_request_could_ask_for_is_no_default(
    prepared: Path, trained: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises((ConfigError, InvalidFieldError), match=named):
        publish(config(prepared, trained, tmp_path, **changes))


def test_provenance_names_inputs_programs_and_weights(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    provenance = publish(config(prepared, trained, tmp_path)).provenance
    tokenizer = sha256_file(prepared / "tokenizer" / "tokenizer.safetensors")
    transformer: Any = provenance["transformer"]
    weights: Any = provenance["trained_weights"]
    made_with: Any = provenance["made_with"]
    assert transformer["inputs"]["tokenizer"] == weights["tokenizer"] == tokenizer
    assert transformer["epochs"] == 1
    assert weights["transformer"] == sha256_file(trained / "transformer.safetensors")
    assert {"masc", "python", "torch", "numpy"} <= made_with.keys()


def test_a_model_is_trained_and_published_on_the_tokenizer_of_a_bundle(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    first = publish(config(prepared, trained, models, with_encoder=True))
    bundle = models / "shapes" / "1"
    for split in ("train", "val"):
        out = tmp_path / f"codes-{split}"
        extract_codes(codes_config(prepared, split, tokenizer=bundle, out=out))
    build_prior(prior_config(tmp_path, tokenizer=bundle))
    train_transformer(transformer_config(tmp_path, epochs=1))
    parts = {"tokenizer": bundle, "prior": tmp_path / "prior", "codes": tmp_path / "codes-train"}
    wanted = config(
        prepared, tmp_path / "transformer", models, version="2", with_encoder=True, **parts
    )
    second = publish(wanted)
    assert second.metrics["psnr"] == first.metrics["psnr"]
    assert second.tokenizer_sha256 == first.tokenizer_sha256
    assert second.provenance["trained_weights"]["tokenizer"] == first.tokenizer_sha256  # type: ignore[index,call-overload]
    assert second.provenance["tokenizer"] == {
        "bundle": "shapes 1",
        "provenance": first.provenance["tokenizer"],
    }


@pytest.mark.parametrize("limit", [20_000, 200_000])
def test_a_disk_that_fills_leaves_nothing(
    prepared: Path, trained: Path, tmp_path: Path, limit: int
) -> None:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(ArtifactError, match="cannot be written"):
            publish(config(prepared, trained, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import training.stages.publish as module
module.first_images = lambda bundle, **_: os.kill(os.getpid(), signal.SIGKILL)
module.publish(module.PublishConfig.model_validate_json(sys.argv[1]))
"""


def test_a_killed_publication_leaves_nothing_that_is_listed(
    prepared: Path, trained: Path, tmp_path: Path
) -> None:
    wanted = config(prepared, trained, tmp_path, version=None)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, wanted.model_dump_json()],
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "shapes").iterdir()
    assert (left / "manifest.json").is_file()  # it was all but done
    assert Registry(tmp_path).names() == ()
    os.utime(left, (0, 0))
    assert publish(wanted).version == "1"
    assert not left.exists()


@pytest.mark.parametrize("key", ["name", "version"])
def test_names_that_could_leave_the_folder_are_refused(
    prepared: Path, trained: Path, tmp_path: Path, key: str
) -> None:
    with pytest.raises(ValidationError, match="not a plain name"):
        config(prepared, trained, tmp_path, **{key: "../evil"})
