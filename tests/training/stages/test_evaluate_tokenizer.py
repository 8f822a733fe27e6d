from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from masc_core.errors import ArtifactError, ConfigError
from tests.tiny_bundle import save_tiny_bundle
from tests.training.metrics.test_fidelity import inception_state
from tests.training.stage_configs import photographs, tokenizer_config
from training.cli import tokenizer
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.metrics.fidelity import torch_fidelity
from training.metrics.image_quality import psnr
from training.metrics.reconstruction import reconstruct
from training.stages.classifier import train_classifier
from training.stages.configs import ClassifierConfig, EvaluateTokenizerConfig
from training.stages.evaluate_tokenizer import evaluate_tokenizer
from training.stages.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, images of three classes, and a classifier of them."""
    root = photographs(tmp_path_factory.mktemp("tokenized"))
    train_tokenizer(tokenizer_config(root))
    config = {"data": root / "train", "val_data": root / "val", "out": root / "judge"}
    sizes = {"image_size": 16, "width": 8, "epochs": 2, "batch_size": 8}
    train_classifier(ClassifierConfig.model_validate(config | sizes))
    return root


def config(root: Path, **changes: object) -> EvaluateTokenizerConfig:
    values = {"tokenizer": root / "tokenizer", "data": root / "val", "image_size": 16}
    return EvaluateTokenizerConfig.model_validate(values | changes)


def test_pixels_and_codes_are_measured_without_a_judge(root: Path) -> None:
    metrics = evaluate_tokenizer(config(root))
    model = TrainedTokenizer.open(root / "tokenizer").model
    pixels = open_images(root / "val").read(16).pixels
    images, codes = reconstruct(model, pixels)
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    assert metrics["images"] == len(pixels) == 12
    assert metrics["psnr"] == pytest.approx(psnr(images, pixels).mean())
    assert metrics["codebook_usage"] == len(counts) / 32
    assert metrics["code_entropy_bits"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert metrics["originals"] == {}
    assert {"psnr", "code_entropy_bits"} < metrics["definitions"].keys()


def test_reconstructions_are_judged_as_generated_images_are(root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "inception.pth"
    torch.save(inception_state(), weights)
    judges = {"classifier": root / "judge", "inception_weights": str(weights), "resamples": 2}
    metrics = evaluate_tokenizer(config(root, out=tmp_path / "out", **judges))
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["frechet_inception_distance"] == metrics["frechet_inception_distance"]
    with Image.open(tmp_path / "out" / "evaluation.png") as sheet:
        assert sheet.width > 8 * 16
    assert metrics["frechet_classifier_distance"] > 0
    assert metrics["frechet_classifier_distance_error"] > 0
    assert 0 <= metrics["class_agreement"] <= 1
    assert metrics["originals"].keys() == {"class_agreement"}
    # The same images as a reference change nothing, but originals are then compared with it, too.
    again = evaluate_tokenizer(config(root, reference=root / "val", **judges))
    for name in ("frechet_classifier_distance", "frechet_inception_distance"):
        assert again[name] == pytest.approx(metrics[name], rel=1e-3)
        assert abs(again["originals"][name]) < 1e-2 * metrics[name]


def test_rfid_is_that_of_the_images_themselves(root: Path, tmp_path: Path) -> None:
    """Against torch-fidelity's own program over the same two folders."""
    weights = tmp_path / "inception.pth"
    torch.save(inception_state(), weights)
    metrics = evaluate_tokenizer(config(root, inception_weights=str(weights)))
    model = TrainedTokenizer.open(root / "tokenizer").model
    pixels = open_images(root / "val").read(16).pixels
    for name, images in (("real", pixels), ("through", reconstruct(model, pixels)[0])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03}.png")
    found = torch_fidelity().calculate_metrics(
        input1=str(tmp_path / "through"),
        input2=str(tmp_path / "real"),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(weights),
    )
    expected = found["frechet_inception_distance"]
    assert metrics["frechet_inception_distance"] == pytest.approx(expected, rel=1e-3)


def test_a_part_of_the_images_is_spread_over_the_classes(root: Path) -> None:
    images = open_images(root / "val")
    pixels = images.read(16, images.spread(6)).pixels
    through, _ = reconstruct(TrainedTokenizer.open(root / "tokenizer").model, pixels)
    metrics = evaluate_tokenizer(config(root, images=6))
    assert metrics["images"] == 6
    assert metrics["psnr"] == pytest.approx(psnr(through, pixels).mean())


def test_the_size_is_that_of_the_run(root: Path, tmp_path: Path) -> None:
    found = evaluate_tokenizer(config(root, image_size=None))
    assert found["settings"]["image_size"] == 16
    assert found["psnr"] == evaluate_tokenizer(config(root))["psnr"]
    alone = tmp_path / "tokenizer.safetensors"
    shutil.copyfile(root / "tokenizer" / "tokenizer.safetensors", alone)
    with pytest.raises(ConfigError, match="image_size: is needed"):
        evaluate_tokenizer(config(root, tokenizer=alone, image_size=None))


def test_few_images_are_a_caution_and_unreadable_ones_are_left_out(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "val", tmp_path / "val")
    for file in sorted((tmp_path / "val").rglob("*.*"))[:3]:
        file.write_bytes(b"no image")
    judged = config(root, data=tmp_path / "val", classifier=root / "judge")
    metrics = evaluate_tokenizer(judged)
    assert metrics["images"] == 9
    assert "compares only with others of that number" in metrics["cautions"][0]
    assert "reconstructions" in metrics["definitions"]["class_agreement"]
    assert "class_agreement" not in evaluate_tokenizer(config(root))["definitions"]


def test_what_cannot_be_measured_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference: needs inception_weights"):
        evaluate_tokenizer(config(root, reference=root / "val"))
    with pytest.raises(ConfigError, match="reference_features: keeps features of a reference"):
        evaluate_tokenizer(config(root, reference_features=tmp_path))
    with pytest.raises(ConfigError, match="images: 1 images are too few to compare"):
        evaluate_tokenizer(config(root, images=1, classifier=root / "judge"))
    with pytest.raises(ConfigError, match="image_size"):
        evaluate_tokenizer(config(root, image_size=18))
    save_tiny_bundle(tmp_path)
    with pytest.raises(ArtifactError, match="has no encoder"):
        evaluate_tokenizer(config(root, tokenizer=tmp_path / "tiny" / "1"))


def test_the_command_line_prints_what_it_finds(root: Path) -> None:
    where = ["--data", str(root / "val"), "--image-size", "16", "--images", "6"]
    command = ["evaluate", str(root / "tokenizer"), *where]
    result = CliRunner().invoke(tokenizer, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 6
