from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import masc_core
from masc_core.api import find_class, load_model, params_of
from masc_core.bundle.manifest import Manifest, read_manifest
from masc_core.errors import ArtifactError, ConfigError, InvalidFieldError, UnknownClassError
from masc_core.generation.generate import generate
from masc_core.images import center_crop
from masc_core.sampling.params import SamplingParams
from tests.command_line import ROOT
from tests.tiny_bundle import save_bundle, save_tiny_bundle, tiny_card, tiny_parts

# What others' programs rely on; a change of it belongs in the changelog.
SIGNATURES = {
    "load_model": "(folder, version=None, *, device='auto', dtype='auto')",
    "build_tree": "(codebook, linkage='average', device='cpu', report=no_progress)",
    "Model.generate": "(self, classes=(), num_images=1, seed=0, *, cfg_scale=None, "
    "temperature=None, top_k=None, top_p=None, decoding=None, cfg_schedule=None, cfg_start=None, "
    "code_temperature=None, code_top_k=None, code_cfg_scale=None, cluster_top_k=None, "
    "cluster_top_p=None)",
    "Model.encode": "(self, images)",
    "Model.decode": "(self, codes)",
    "Generation": "(images, codes, clusters, entropies, cluster_entropies, params)",
    "SemanticTree.cut": "(self, num_clusters)",
    "ClusterMap.from_labels": "(labels)",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_bundle(tmp_path)
    save_bundle(
        tmp_path / "tiny" / "2", tiny_card(version="2"), tiny_parts(seed=1), with_encoder=True
    )
    return tmp_path / "tiny"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder / "1")


def shown(function: Callable[..., object]) -> str:
    """Parameters and defaults of a function, without types."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return re.sub(r"<function (\w+) at \w+>", r"\1", text)


def test_what_is_public_stays() -> None:
    names = {"ClusterMap", "Generation", "MascError", "Model", "SemanticTree"}
    assert set(masc_core.__all__) == names | {"build_tree", "load_model"}
    assert set(masc_core.__all__) <= set(dir(masc_core))
    for name, expected in SIGNATURES.items():
        found = attrgetter(name)(masc_core)
        assert shown(found) == expected
        assert inspect.getdoc(found)
    properties = inspect.getmembers(masc_core.Model, lambda member: isinstance(member, property))
    assert [name for name, _ in properties] == ["codebook", "has_encoder", "manifest", "prior"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        masc_core.nothing  # noqa: B018


def test_the_package_itself_is_light() -> None:
    program = "import masc_core, sys; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, check=True).stdout == b"set()\n"


def test_a_model_generates_what_the_plain_loop_does(folder: Path) -> None:
    model = load_model(folder, device="cpu")
    made = model.generate(["dog", 0], num_images=9, seed=5, cfg_scale=1.0)
    params = [SamplingParams(3, 1.0, 5 + i) for i in range(9)]
    params += [SamplingParams(0, 1.0, 5 + i) for i in range(9)]
    assert list(made.params) == params
    expected = generate(model.bundle.transformer, model.bundle.code_sampler, params)
    assert np.array_equal(made.codes, expected.codes)
    assert np.array_equal(made.clusters, expected.clusters)
    assert np.array_equal(made.entropies, expected.entropies)
    assert np.array_equal(made.images, model.bundle.render(expected.codes))
    assert np.array_equal(made.images, model.decode(made.codes))
    assert np.array_equal(model.prior.encode(made.codes), made.clusters)
    assert made.images.shape == (18, 16, 16, 3)
    assert made.images.dtype == np.uint8
    assert len(model.generate().params) == 5
    assert model.generate("dog").params == model.generate(3).params


def test_the_tree_of_its_codebook_gives_its_prior(folder: Path) -> None:
    model = load_model(folder, device="cpu")
    tree = masc_core.build_tree(model.codebook)
    assert np.array_equal(tree.cut(model.prior.num_clusters).labels, model.prior.labels)


def test_images_become_codes(folder: Path) -> None:
    model = load_model(folder / "2", device="cpu")
    images = model.generate("ant", num_images=20).images
    codes = model.encode(images)
    assert codes.shape == (20, 16)
    assert codes.dtype == np.int64
    levels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    assert np.mean(codes == model.bundle.tokenizer.encode(levels).codes.numpy()) > 0.999
    assert model.encode([]).shape == (0, 16)
    assert model.decode(model.encode([])).shape == (0, 16, 16, 3)


def test_photographs_are_encoded_upright_and_on_white(folder: Path) -> None:
    model = load_model(folder, "2", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    photograph = Image.fromarray(np.rot90(pixels))
    photograph.getexif()[ExifTags.Base.Orientation] = 6
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    white = np.full((16, 16, 3), 255, np.uint8)
    expected = np.stack([np.asarray(center_crop(Image.fromarray(pixels), 16)), white])
    assert np.array_equal(model.encode([photograph, clear]), model.encode(expected))


def test_what_cannot_be_done_is_said(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, device="cpu")
    with pytest.raises(ConfigError, match=r"^tiny 1 was published without its encoder"):
        model.encode(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(InvalidFieldError, match="decoding"):
        model.generate("ant", decoding="refine")
    with pytest.raises(InvalidFieldError, match="num_images must be 1 or more, got 0"):
        model.generate("ant", num_images=0)
    encoder = load_model(folder / "2", device="cpu")
    for wrong in (np.zeros((1, 8, 16, 3), np.uint8), np.zeros((1, 16, 16, 3))):
        with pytest.raises(ValueError, match=r"images are uint8 \(N, 16, 16, 3\), got"):
            encoder.encode(wrong)  # type: ignore[arg-type]
    for codes in (np.zeros((1, 15), int), np.full((1, 16), 32), np.zeros((1, 16))):
        with pytest.raises(ValueError, match="code"):
            model.decode(codes)
    with pytest.raises(ArtifactError, match="none: is no folder of a model"):
        load_model(tmp_path / "none")
    with pytest.raises(masc_core.MascError, match="no version '9'"):
        load_model(folder, "9")


def test_what_is_not_given_is_the_models(manifest: Manifest) -> None:
    (params,) = params_of(manifest, ["cat"], 1, 0, {"cfg_scale": None})
    assert params == SamplingParams(class_id=2, seed=0, cfg_scale=2.0, decoding="uniform")
    given: dict[str, Any] = {
        "cfg_scale": 1.0,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "cfg_schedule": "step",
        "cfg_start": 0.5,
        "cluster_top_k": 2,
        "cluster_top_p": 0.7,
    }
    (params,) = params_of(manifest, ["cat"], 1, 0, given)
    assert params == SamplingParams(class_id=2, seed=0, **given)


def test_a_start_needs_a_schedule_that_has_one(manifest: Manifest) -> None:
    with pytest.raises(InvalidFieldError, match="the schedule constant has none"):
        params_of(manifest, ["cat"], 1, 0, {"cfg_start": 0.5})


def test_digits_that_are_no_class_are_refused(manifest: Manifest) -> None:
    for digits in ("9" * 5000, "٣"):
        with pytest.raises(UnknownClassError):
            find_class(digits, manifest)


def test_seeds_count_up_within_a_class_and_wrap(manifest: Manifest) -> None:
    params_list = params_of(manifest, ["0", "bee"], 2, 2**63 - 1, {})
    assert [(s.class_id, s.seed) for s in params_list] == [
        (0, 2**63 - 1), (0, 0), (1, 2**63 - 1), (1, 0),
    ]  # fmt: skip


def test_classes_by_name_and_by_id(manifest: Manifest) -> None:
    assert find_class(" BEE ", manifest) == 1
    assert find_class("4", manifest) == find_class(4, manifest) == 4
    for wrong in ("5", "-1", "wasp", "", -1, 5):
        with pytest.raises(UnknownClassError):
            find_class(wrong, manifest)
    twins = manifest.model_copy(update={"class_names": ("ant", "Ant", "cat", "dog", "eel")})
    with pytest.raises(InvalidFieldError, match="several classes"):
        find_class("ant", twins)
