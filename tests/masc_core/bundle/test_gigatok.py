"""Bundles with a 1-D tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masc_core.bundle.manifest import (
    ENCODER_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    read_manifest,
    seal_of,
    write_manifest,
)
from masc_core.bundle.read import load_bundle
from masc_core.clustering.methods import cluster_codes
from masc_core.errors import ArtifactError, ConfigError
from masc_core.generation.generate import generate
from masc_core.io.files import sha256_file
from masc_core.models.gigatok import GigaTok, GigaTokConfig, preview_sources
from masc_core.models.gpt import GPT
from masc_core.models.vq import VQModel
from masc_core.models.weights import load_tokenizer, save_model
from masc_core.prior import ClusterMap
from masc_core.sampling.params import SamplingParams
from masc_core.tree import build_tree
from tests.tiny_bundle import (
    GRID,
    NUM_CODES,
    TINY_GIGATOK,
    save_bundle,
    save_tiny_bundle,
    tiny_card,
    tiny_gigatok_parts,
    tiny_parts,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1"
    save_bundle(folder, tiny_card(), tiny_gigatok_parts(), with_encoder=True)
    return folder


def test_the_transformers_before_the_decoder_take_a_size_of_batch(published: Path) -> None:
    bundle, sizes = load_bundle(published), list[int]()
    tokenizer = bundle.tokenizer
    assert isinstance(tokenizer, GigaTok)
    tokenizer.s1to2decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    codes = torch.arange(5 * GRID**2).reshape(5, -1) % NUM_CODES
    images = bundle._render(codes, None)  # as on a GPU, where all go at once
    assert sizes == [8]
    assert torch.equal(images, bundle._render(F.pad(codes, (0, 0, 0, 3)), None)[:5])
    alone = bundle.render(codes)
    assert np.abs(images.cpu().numpy().astype(int) - alone).max() <= 1


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "1"))


def edit(folder: Path, change: dict[str, Any]) -> None:
    """Change keys of a manifest, a key below another by a dot, and seal it again."""
    content = json.loads((folder / MANIFEST_FILE).read_text())
    for name, value in change.items():
        *above, key = name.split(".")
        place = content
        for part in above:
            place = place[part]
        place[key] = value
    content["seal"] = seal_of(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def test_the_manifest_tells_the_tokenizer_and_its_latent_shape(published: Path) -> None:
    manifest = read_manifest(published)
    assert manifest.tokenizer == "gigatok1d"
    assert manifest.latent_shape == (1, 16)
    assert (manifest.grid, manifest.image_size, manifest.num_positions) == (4, 16, 16)


def test_of_a_vq_tokenizer_nothing_new_is_said(tmp_path: Path) -> None:
    manifest = save_tiny_bundle(tmp_path)
    content = json.loads((tmp_path / "tiny" / "1" / MANIFEST_FILE).read_text())
    assert not {"tokenizer", "latent"} & content.keys()
    assert (manifest.tokenizer, manifest.latent_shape) == ("vq", (GRID, GRID))


def test_a_bundle_encodes_and_decodes_as_its_tokenizer(published: Path) -> None:
    bundle, tokenizer = load_bundle(published), tiny_gigatok_parts().tokenizer
    assert isinstance(bundle.tokenizer, GigaTok)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.half().float().encode(images).codes
        assert torch.equal(bundle.tokenizer.encode(images).codes, codes)
        expected = tokenizer.decode_codes(codes)
    pixels = torch.from_numpy(bundle.render(codes)).permute(0, 3, 1, 2).float()
    assert pixels.shape == (3, 3, 16, 16)
    assert len(np.unique(pixels.numpy())) > 30
    values = 127.5 * expected + 128
    is_certain = (values - values.round()).abs() > 0.01  # else float32's last bits decide
    assert is_certain.float().mean() > 0.9
    floors = values.floor().clamp(0, 255)
    assert torch.equal(pixels[is_certain], floors[is_certain])
    assert (pixels - floors).abs().max() <= 1


def test_without_its_encoder_it_decodes_the_same(published: Path, tmp_path: Path) -> None:
    save_bundle(tmp_path / "tiny" / "1", tiny_card(), tiny_gigatok_parts())
    bundle = load_bundle(tmp_path / "tiny" / "1")
    assert not any(hasattr(bundle.tokenizer, name) for name in ("encoder", "s2to1encoder"))
    codes = torch.arange(NUM_CODES).view(2, 16)
    assert np.array_equal(bundle.render(codes), load_bundle(published).render(codes))
    assert bundle.manifest.weights_sha256 == read_manifest(published).weights_sha256


def test_bytes_depend_neither_on_the_batch_nor_on_threads(published: Path) -> None:
    bundle = load_bundle(published)
    codes = torch.randint(NUM_CODES, (5, 16), generator=torch.Generator().manual_seed(0))
    together = bundle.render(codes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        alone = [bundle.render(row[None])[0] for row in codes]
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together, np.stack(alone))


def test_what_is_drawn_is_rendered_as_a_whole_image(published: Path) -> None:
    bundle, codes = load_bundle(published), torch.arange(16)[None]
    preview = bundle.render(codes[:, :8])
    assert np.array_equal(preview, bundle.render(codes[:, preview_sources(8, 16)]))
    assert not np.array_equal(preview, bundle.render(codes))


def test_with_as_many_clusters_as_codes_images_are_those_of_the_flat_model(tmp_path: Path) -> None:
    parts = tiny_gigatok_parts()
    model = GPT(replace(parts.transformer.config, vocab_size=NUM_CODES)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    codebook = parts.tokenizer.quantize.codebook().detach().numpy()
    cut, kmeans = build_tree(codebook).cut(NUM_CODES), cluster_codes(codebook, NUM_CODES, "kmeans")
    images = []
    for name, prior in (("flat", ClusterMap.identity(NUM_CODES)), ("cut", cut), ("km", kmeans)):
        folder = tmp_path / name / "1"
        save_bundle(folder, tiny_card(name), replace(parts, transformer=model, prior=prior))
        bundle = load_bundle(folder)
        params = [SamplingParams(class_id=i, cfg_scale=2.0, seed=i) for i in range(5)]
        codes = generate(bundle.transformer, bundle.code_sampler, params).codes
        images.append(bundle.render(codes))
    assert images[0].shape == (5, 16, 16, 3)
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_a_tokenizer_of_the_other_kind_is_refused_in_one_line(
    folder: Path, published: Path, tmp_path: Path
) -> None:
    for parts, kind, other in (
        (tiny_parts(), "vq", "gigatok1d"),
        (tiny_gigatok_parts(), "gigatok1d", "vq"),
    ):
        own, wrong = tmp_path / kind / "1", tmp_path / other / "1"
        save_bundle(own, tiny_card(kind), parts)
        if not wrong.exists():
            donor = tiny_gigatok_parts() if kind == "vq" else tiny_parts()
            save_bundle(wrong, tiny_card(other), donor)
        shutil.copy(wrong / TOKENIZER_FILE, own / TOKENIZER_FILE)
        manifest = read_manifest(own)
        files = {**manifest.files, TOKENIZER_FILE: sha256_file(own / TOKENIZER_FILE)}
        write_manifest(own, manifest.model_copy(update={"files": files}))
        with pytest.raises(ArtifactError, match=rf"a tokenizer {other}, the manifest says {kind}$"):
            load_bundle(own)
        shutil.rmtree(own)
        shutil.rmtree(wrong)


def test_a_tokenizer_of_other_lengths_is_refused(tmp_path: Path) -> None:
    sizes = replace(TINY_GIGATOK, latent_shape=(1, 64))
    parts = replace(tiny_gigatok_parts(), tokenizer=GigaTok(sizes))
    with pytest.raises(
        ConfigError, match="has 64 tokens an image, but the transformer predicts 16"
    ):
        save_bundle(tmp_path / "tiny" / "1", tiny_card(), parts)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tokenizer": "vq"}, "need each other"),
        ({"latent": None}, "need each other"),
        ({"tokenizer": "gigatok2d"}, "tokenizer: Input should be 'vq' or 'gigatok1d'"),
        ({"latent.latent_shape": [1, 64]}, "latent_shape is not 1, grid"),
        ({"latent.latent_shape": [2, 8]}, r"latent.latent_shape.0: Input should be 1"),
        ({"latent.latent_shape": [1, 1 << 30]}, "latent.latent_shape.1"),
        ({"latent.decoder_layers": 10**9}, "latent.decoder_layers"),
        ({"latent.encoder_width": 1 << 40}, "latent.encoder_width"),
        ({"latent.decoder_width": 0}, "latent.decoder_width"),
        ({"latent.decoder_heads": 5}, "decoder_heads: 32 channels do not make 5 heads"),
        ({"latent.depth": 3}, "latent.depth"),
        ({"latent.decoder_layers": 3}, r"transformer\.2\..* is not in it"),
        ({"latent.encoder_layers": 128, "latent.encoder_width": 1 << 16}, "is not in it|shape"),
        ({"image_size": 32}, "image_size does not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    folder: Path, change: dict[str, Any], complaint: str
) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_limits_leave_room_for_the_released_sizes(published: Path) -> None:
    manifest = read_manifest(published)
    for name, total in (("S-S", 129_252_619), ("B-L", 597_510_923), ("XL-XXL", 2_842_052_875)):
        config = GigaTokConfig.named(name)
        vq = manifest.vq.model_copy(
            update={key: getattr(config, key) for key in type(manifest.vq).model_fields}
        )
        assert manifest.latent is not None
        latent = manifest.latent.model_copy(
            update={key: getattr(config, key) for key in type(manifest.latent).model_fields}
        )
        full = manifest.model_copy(update={"vq": vq, "latent": latent, "num_codes": 16384})
        sizes = [full.max_bytes(name) for name in (TOKENIZER_FILE, ENCODER_FILE)]
        assert 4 * total < sum(sizes) < 40 * total


def test_a_file_of_weights_says_which_kind_it_is(tmp_path: Path) -> None:
    for parts, kind in ((tiny_parts(), VQModel), (tiny_gigatok_parts(), GigaTok)):
        path = tmp_path / "tokenizer.safetensors"
        save_model(path, parts.tokenizer)
        loaded = load_tokenizer(path)
        assert type(loaded) is kind
        assert loaded.config == parts.tokenizer.config
