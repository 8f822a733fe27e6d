from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, InvalidFieldError
from masc_core.generation.generate import generate
from masc_core.io.files import sha256_file
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.weights import load_tokenizer
from masc_core.sampling.params import SamplingParams
from server.codebook_view.cache import CodebookCache
from tests.command_line import Masc, service
from tests.golden_files import load_golden
from tests.training.pretrained.checkpoints import (
    CONTAINERS,
    NAMES,
    TINY_VQ,
    gpt_tensors,
    save_checkpoint,
    vq_tensors,
)
from tests.training.stage_configs import codes_config, photographs, prior_config, transformer_config
from training.stages.codes import extract_codes
from training.stages.configs import ImportConfig, ImportTokenizerConfig, PublishConfig
from training.stages.import_weights import import_model, import_tokenizer, suggested_cfg
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.transformer import train_transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``gpt.pt``, ``vq.pt`` and ``names.txt``; not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(root / "gpt.pt", gpt_tensors(), "ddp")
    save_checkpoint(root / "vq.pt", vq_tensors(), "state_dict")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


def config(folder: Path, models: Path, **changes: object) -> ImportConfig:
    values: dict[str, object] = {
        "gpt": folder / "gpt.pt",
        "tokenizer": folder / "vq.pt",
        "name": "tiny",
        "models": models,
        "classes": folder / "names.txt",
        "image_size": 16,
        "n_head": 4,
        "weights_dtype": "float32",
        "samples": 0,
    }
    return ImportConfig.model_validate(values | changes)


def test_a_version_is_served_as_upstream_would_sample_it(folder: Path, tmp_path: Path) -> None:
    manifest = import_model(config(folder, tmp_path, activate=True, samples=3))
    assert (manifest.version, manifest.num_codes, manifest.num_clusters) == ("1", 96, 96)
    assert (manifest.class_names, manifest.image_size, manifest.grid) == (NAMES, 16, 4)
    assert manifest.defaults.cfg_scale == 1.5
    assert Registry(tmp_path).verify("tiny") == manifest
    bundle = load_bundle(tmp_path / "tiny" / "1")
    assert all(
        torch.equal(bundle.transformer.state_dict()[name], one)
        for name, one in gpt_tensors().items()
    )
    labels = load_golden("gpt/io.safetensors")["labels"].tolist()
    params_list = [
        SamplingParams(label, 2.0, seed=i, temperature=0) for i, label in enumerate(labels)
    ]
    codes = generate(bundle.transformer, bundle.code_sampler, params_list).codes
    assert torch.equal(codes, load_golden("gpt/generate.safetensors")["greedy_cfg2.indices"].long())
    with Image.open(tmp_path / "tiny" / "1" / "samples.png") as sheet:
        assert sheet.width == 3 * 48 + 2 * 2
    codebook = asyncio.run(CodebookCache(Registry(tmp_path)).codebook(manifest))
    assert codebook.codebook.prior.num_codes == 96
    assert codebook.side == 4


def test_pictures_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    manifest = import_model(config(folder, tmp_path, shuffles=0))
    assert not {"tree.npy", "patches.webp", "samples.png"} & manifest.files.keys()


def test_the_manifest_says_where_it_comes_from(folder: Path, tmp_path: Path) -> None:
    manifest = import_model(config(folder, tmp_path, note="from a friend"))
    imported = manifest.provenance["imported"]
    assert isinstance(imported, dict)
    assert imported["gpt"] == {
        "file": "gpt.pt",
        "sha256": sha256_file(folder / "gpt.pt"),
        "weights": "model",
        "steps": 7,
        "arguments": {"image_size": 16, "num_classes": 10, "gpt_model": "tiny", "lr": 1e-4},
        "size": None,
    }
    made_with = manifest.provenance["made_with"]
    assert isinstance(made_with, dict)
    assert made_with["torch"] == torch.__version__
    assert str(tmp_path) not in manifest.model_dump_json()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_becomes_the_same_version(folder: Path, tmp_path: Path, kind: str) -> None:
    expected = import_model(config(folder, tmp_path, name="other"))
    gpt = save_checkpoint(tmp_path / "g.pt", gpt_tensors(), kind)
    vq_kind = "safetensors" if kind == "safetensors" else "ddp"
    vq = save_checkpoint(tmp_path / "v.pt", vq_tensors(), vq_kind)
    manifest = import_model(config(folder, tmp_path, gpt=gpt, tokenizer=vq))
    assert manifest.weights_sha256 == expected.weights_sha256


def test_a_checkpoint_is_imported_and_served_by_the_command_line(
    masc: Masc, folder: Path, tmp_path: Path
) -> None:
    arguments = ["models", "import", "--gpt", folder / "gpt.pt", "--tokenizer", folder / "vq.pt"]
    arguments += ["--name", "tiny", "--classes", folder / "names.txt", "--n-head", "4"]
    arguments += ["--models", tmp_path, "--weights-dtype", "bfloat16", "--activate", "--samples", 2]
    for version in ("1", "2"):
        done = masc(*map(str, arguments))
        assert done.status == 0, done.stderr
        assert f"tiny {version}, " in done.stdout
    stored = load_file(tmp_path / "tiny" / "2" / "transformer.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.bfloat16}
    with service(tmp_path) as (_, client):
        answer = client.post("/generate", json={"class_name": "class 7"}).json()
        assert answer["model"]["version"] == "2"
        assert answer["images"][0]["b64"]


def test_the_suggested_guidance_is_the_default(folder: Path, tmp_path: Path) -> None:
    scales = {name: suggested_cfg(GPTConfig.named(name)) for name in ("GPT-B", "GPT-XL", "GPT-3B")}
    assert scales == {"GPT-B": 2.0, "GPT-XL": 1.75, "GPT-3B": 1.65}
    assert import_model(config(folder, tmp_path, cfg_scale=4)).defaults.cfg_scale == 4


def test_what_cannot_be_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    other = vq_tensors()
    other["quantize.embedding.weight"] = other["quantize.embedding.weight"][:64]
    fewer = save_checkpoint(tmp_path / "fewer.pt", other, "fsdp")
    huge = gpt_tensors()
    huge["norm.weight"] = huge["norm.weight"] * 1e6
    too_large = save_checkpoint(tmp_path / "huge.pt", huge, "fsdp")
    models = tmp_path / "models"
    refused: dict[str, dict[str, object]] = {
        "predicts 96": {"tokenizer": fewer},
        "cannot be read: No such file": {"gpt": tmp_path / "none.pt"},
        "holds no tok_embeddings": {"gpt": folder / "vq.pt"},
        "was trained on 16 pixels, not 32": {"image_size": 32},
        "n_head: must be given": {"n_head": None},
        "classes: must be given": {"classes": None},
        "the schedule constant has none": {"cfg_start": 0.5},
        "the schedule triangular has none": {"cfg_schedule": "triangular", "cfg_start": 0.18},
        "is not finite in torch.float16": {"gpt": too_large, "weights_dtype": "float16"},
        "has no moving average": {"gpt_weights": "ema"},
        "do not give heads": {"n_head": 3},
    }
    for complaint, changes in refused.items():
        with pytest.raises((ArtifactError, ConfigError, InvalidFieldError), match=complaint):
            import_model(config(folder, models, **changes))
        assert not models.exists() or not list(models.iterdir())


def test_a_version_that_exists_is_not_touched(folder: Path, tmp_path: Path) -> None:
    before = import_model(config(folder, tmp_path, version="v1"))
    with pytest.raises(ArtifactError, match="exists already"):
        import_model(config(folder, tmp_path, version="v1"))
    assert Registry(tmp_path).verify("tiny", "v1") == before


def test_a_disk_that_fills_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(ArtifactError, match="cannot be written"):
            import_model(config(folder, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_need_no_arguments_but_the_image_size(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_file(gpt_tensors(), path)
    with pytest.raises(ConfigError, match=r"image_size: .* does not tell it"):
        import_model(config(folder, tmp_path, gpt=path, image_size=None))
    assert import_model(config(folder, tmp_path, gpt=path)).grid == 4


def test_from_a_checkpoint_to_a_published_model(masc: Masc, tmp_path: Path) -> None:
    photographs(tmp_path)
    source = save_checkpoint(tmp_path / "vq.pt", vq_tensors(), "ddp")
    arguments = ["tokenizer", "import", source, "--out", tmp_path / "tokenizer"]
    done = masc(*arguments, "--val-data", tmp_path / "val", "--image-size", "16")
    assert done.status == 0, done.stderr
    assert "psnr" in done.stdout
    tokenizer = load_tokenizer(tmp_path / "tokenizer" / "tokenizer.safetensors")
    assert tokenizer.config == TINY_VQ
    state = tokenizer.state_dict()
    assert all(torch.equal(state[name], one) for name, one in vq_tensors().items())
    for split in ("train", "val"):
        extract_codes(codes_config(tmp_path, split))
    prior = build_prior(prior_config(tmp_path))
    assert (prior.num_codes, prior.num_clusters) == (96, 16)
    train_transformer(transformer_config(tmp_path, epochs=1))
    manifest = publish(
        PublishConfig(
            name="mine",
            models=tmp_path / "models",
            tokenizer=tmp_path / "tokenizer",
            prior=tmp_path / "prior",
            codes=tmp_path / "codes-train",
            transformer=tmp_path / "transformer",
        )
    )
    origin = manifest.provenance["tokenizer"]
    assert isinstance(origin, dict)
    assert isinstance(origin["imported"], dict)
    assert origin["imported"]["file"] == "vq.pt"
    assert "psnr" in manifest.metrics


def test_images_to_measure_on_are_optional_and_a_tokenizer_is_not_replaced(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "vq.pt", vq_tensors(), "fsdp")
    config = ImportTokenizerConfig(source=source, out=tmp_path / "tok")
    assert import_tokenizer(config) == {}
    assert json.loads((tmp_path / "tok" / "metrics.json").read_text()) == {}
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors: exists already"):
        import_tokenizer(config)


def test_mistakes_are_one_clear_line(masc: Masc, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "vq.pt", vq_tensors(), "fsdp")
    out = ["--out", tmp_path / "tok"]
    done = masc("tokenizer", "import", source, *out, "--weights", "best")
    assert (done.status, "weights: Input should be" in done.stderr) == (2, True)
    done = masc("tokenizer", "import", tmp_path / "none.pt", *out)
    assert (done.status, "none.pt: cannot be read" in done.stderr) == (2, True)
    images = ["--val-data", tmp_path / "none", "--image-size", "16"]
    done = masc("tokenizer", "import", source, *out, *images)
    assert done.status == 2
    assert not (tmp_path / "tok" / "tokenizer.safetensors").exists()
