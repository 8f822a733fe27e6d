"""An imported tokenizer is the start of everything that a trained one is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from masc_core.errors import ArtifactError
from masc_core.models.weights import load_tokenizer
from tests.command_line import Masc
from tests.training.llamagen.checkpoints import TINY_VQ, save_checkpoint, vq_tensors
from tests.training.stage_configs import codes_config, photographs, prior_config, transformer_config
from training.stages.codes import extract_codes
from training.stages.configs import ImportTokenizerConfig, PublishConfig
from training.stages.import_tokenizer import import_tokenizer
from training.stages.prior import build_prior
from training.stages.publish import publish
from training.stages.transformer import train_transformer


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
