from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.read import load_bundle
from masc_core.errors import ConfigError
from masc_core.generation.generate import generate
from masc_core.images import encode_image
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import save_tiny_bundle
from worker.offline import generate_files
from worker.settings import WorkerSettings, load_settings


def settings(models: Path) -> WorkerSettings:
    return load_settings(models_dir=models, device="cpu")


def test_images_do_not_depend_on_how_many_are_made(models: Path, tmp_path: Path) -> None:
    many = generate_files(settings(models), tmp_path / "many", classes=("cat", "dog"), num_images=9)
    assert len(many) == 18
    (one,) = generate_files(settings(models), tmp_path / "one.png", classes=("dog",), seed=7)
    assert one.read_bytes() == (tmp_path / "many" / "003-dog-7.png").read_bytes()


def test_a_refined_image_is_the_plain_loops(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path / "models", refiner=True)
    out = tmp_path / "dog.png"
    chosen = settings(tmp_path / "models")
    generate_files(chosen, out, classes=("dog",), seed=7, cfg_scale=2.0, decoding="refine")
    bundle = load_bundle(tmp_path / "models" / "tiny" / "1")
    params = SamplingParams(class_id=3, cfg_scale=2.0, seed=7, decoding="refine")
    codes = generate(bundle.transformer, bundle.code_sampler, [params]).codes
    description = bundle.manifest.describe_image(params)
    assert out.read_bytes() == encode_image(bundle.render(codes)[0], "png", description)


def test_places_that_cannot_be_written(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x", tmp_path / "none" / "x.png", tmp_path / "x.bmp"):
        with pytest.raises(ConfigError):
            generate_files(settings(models), out)
