from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.read import load_bundle
from masc_core.errors import ConfigError, InvalidFieldError, UnknownClassError
from masc_core.generation.generate import generate
from masc_core.images import encode_image
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import save_tiny_bundle
from worker.offline import OfflineRequest, find_class, generate_files, params_of_request
from worker.settings import WorkerSettings, load_settings


@pytest.fixture
def manifest(models: Path) -> Manifest:
    return Manifest.model_validate_json((models / "tiny" / "1" / "manifest.json").read_bytes())


def settings(models: Path) -> WorkerSettings:
    return load_settings(models_dir=models, device="cpu")


def test_what_is_not_given_is_the_models(manifest: Manifest) -> None:
    (params,) = params_of_request(OfflineRequest(classes=("cat",)), manifest)
    assert (params.class_id, params.seed, params.cfg_scale, params.decoding) == (
        2,
        0,
        2.0,
        "uniform",
    )
    given = OfflineRequest(
        ("cat",),
        cfg_scale=1.0,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        cfg_schedule="step",
        cfg_start=0.5,
    )
    (params,) = params_of_request(given, manifest)
    assert (params.cfg_schedule, params.cfg_start) == ("step", 0.5)
    assert (params.cfg_scale, params.temperature, params.top_k, params.top_p) == (1.0, 0.5, 3, 0.9)


def test_seeds_count_up_within_a_class_and_wrap(manifest: Manifest) -> None:
    request = OfflineRequest(classes=("0", "bee"), num_images=2, seed=2**63 - 1)
    params_list = params_of_request(request, manifest)
    assert [(s.class_id, s.seed) for s in params_list] == [
        (0, 2**63 - 1), (0, 0), (1, 2**63 - 1), (1, 0),
    ]  # fmt: skip


def test_classes_by_name_and_by_id(manifest: Manifest) -> None:
    assert find_class(" BEE ", manifest) == 1
    assert find_class("4", manifest) == 4
    for wrong in ("5", "-1", "wasp", ""):
        with pytest.raises(UnknownClassError):
            find_class(wrong, manifest)
    twins = manifest.model_copy(update={"class_names": ("ant", "Ant", "cat", "dog", "eel")})
    with pytest.raises(InvalidFieldError, match="several classes"):
        find_class("ant", twins)


def test_images_do_not_depend_on_how_many_are_made(models: Path, tmp_path: Path) -> None:
    many = generate_files(
        settings(models),
        OfflineRequest(classes=("cat", "dog"), num_images=9),
        tmp_path / "many",
        scale=1,
        columns=1,
    )
    assert len(many) == 18
    (one,) = generate_files(
        settings(models),
        OfflineRequest(classes=("dog",), seed=7),
        tmp_path / "one.png",
        scale=1,
        columns=1,
    )
    assert one.read_bytes() == (tmp_path / "many" / "003-dog-7.png").read_bytes()


def test_a_refined_image_is_the_plain_loops(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path / "models", refiner=True)
    request = OfflineRequest(classes=("dog",), seed=7, cfg_scale=2.0, decoding="refine")
    out = tmp_path / "dog.png"
    generate_files(settings(tmp_path / "models"), request, out, scale=1, columns=1)
    bundle = load_bundle(tmp_path / "models" / "tiny" / "1")
    params = SamplingParams(class_id=3, cfg_scale=2.0, seed=7, decoding="refine")
    codes = generate(bundle.model, bundle.decoder, [params]).codes
    description = bundle.manifest.describe_image(params)
    assert out.read_bytes() == encode_image(bundle.render(codes)[0], "png", description)


def test_places_that_cannot_be_written(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x", tmp_path / "none" / "x.png", tmp_path / "x.bmp"):
        with pytest.raises(ConfigError):
            generate_files(settings(models), OfflineRequest(), out, scale=1, columns=5)
