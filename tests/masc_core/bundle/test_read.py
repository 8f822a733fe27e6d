"""Bundles to disk and back, rendering, and every way in which a file can be wrong."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    COUNTS_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    read_manifest,
    write_manifest,
)
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.write import BundleParts
from masc_core.errors import ArtifactError, ConfigError, NonFiniteError
from masc_core.generation.generate import generate
from masc_core.io.files import sha256_file
from masc_core.io.tensors import write_tensors
from masc_core.models.gpt import GPT
from masc_core.models.refiner import Refiner
from masc_core.models.vq import to_uint8
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from masc_core.tree import build_tree
from tests.command_line import ROOT
from tests.tiny_bundle import (
    CLASS_NAMES,
    GRID,
    IMAGE_SIZE,
    NUM_CLUSTERS,
    NUM_CODES,
    edit_manifest,
    save_bundle,
    save_tiny_bundle,
    tiny_card,
    tiny_completer,
    tiny_parts,
)
from training.metrics.image_quality import psnr

# Of the included model's weights: the files of its images hold it, so it must not change.
INCLUDED = "280f9a75dbc8e7c53789448321c1eab1ca95c3e01c1ea1f0285c4593296a3d84"
FILES = [
    MANIFEST_FILE,
    TRANSFORMER_FILE,
    TOKENIZER_FILE,
    PRIOR_FILE,
    COUNTS_FILE,
]


@pytest.fixture(scope="module")
def parts() -> BundleParts:
    return tiny_parts()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return root


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return shutil.copytree(published / "tiny" / "1", tmp_path / "tiny" / "1")


def random_codes(num_images: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, NUM_CODES, (num_images, GRID**2)))


def relist(folder: Path, name: str) -> None:
    """Make the manifest agree with a file again: wrong content under a right hash."""
    old = json.loads((folder / MANIFEST_FILE).read_text())["files"][name]
    edit_manifest(folder, old, sha256_file(folder / name))


def test_the_manifest_says_what_the_parts_are(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.version) == ("tiny", "1")
    assert (manifest.num_codes, manifest.num_clusters) == (NUM_CODES, NUM_CLUSTERS)
    assert (manifest.grid, manifest.image_size) == (GRID, IMAGE_SIZE)
    assert manifest.class_names == CLASS_NAMES
    assert manifest.decodings == ("uniform", "frequency")
    assert sorted(manifest.files) == sorted(set(FILES) - {MANIFEST_FILE})
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@torch.inference_mode()
def test_loading_gives_back_what_was_saved(tmp_path: Path, parts: BundleParts) -> None:
    folder = tmp_path / "new" / "folders" / "1"
    save_bundle(folder, tiny_card(), parts, weights_dtype=torch.float32, with_encoder=True)
    bundle = load_bundle(folder)
    labels, tokens = torch.tensor([0, 4]), torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(bundle.transformer(labels, tokens), parts.transformer(labels, tokens))
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    codes = parts.tokenizer.encode(images).codes
    assert torch.equal(bundle.tokenizer.encode(images).codes, codes)
    assert np.array_equal(bundle.code_sampler.prior.labels, parts.prior.labels)
    assert bundle.code_sampler.decodings == ("uniform", "frequency")
    assert not bundle.transformer.training
    assert not bundle.tokenizer.training
    assert not any(weight.requires_grad for weight in bundle.transformer.parameters())


def test_partitions_travel_in_a_bundle(tmp_path: Path, parts: BundleParts) -> None:
    cuts = [build_tree(parts.tokenizer.quantize.codebook().detach()).cut(k) for k in (3, 7)]
    manifest = save_bundle(tmp_path / "1", tiny_card(), replace(parts, partitions=cuts[::-1]))
    assert manifest.partitions == (3, 7)
    loaded = load_bundle(tmp_path / "1").partitions
    assert [one.labels.tolist() for one in loaded] == [one.labels.tolist() for one in cuts]
    path = tmp_path / "1" / "partition-7.npz"
    damaged = {
        "has 32 codes in 6 clusters, the manifest says 32 in 7": np.arange(NUM_CODES) % 6,
        "has 31 codes in 7 clusters, the manifest says 32 in 7": np.arange(NUM_CODES - 1) % 7,
        "divides the cluster of code": np.arange(NUM_CODES) % 7,
    }
    for complaint, labels in damaged.items():
        ClusterMap.from_labels(labels).save(path)
        relist(tmp_path / "1", "partition-7.npz")
        with pytest.raises(ArtifactError, match=f"partition-7.npz: {complaint}"):
            load_bundle(tmp_path / "1")
    wrong = ClusterMap.from_labels(np.arange(NUM_CODES) % 7)
    with pytest.raises(ConfigError, match="the partition into 7 divides the cluster of code"):
        save_bundle(tmp_path / "2", tiny_card(), replace(parts, partitions=[wrong]))
    assert not (tmp_path / "2").exists()


def test_float16_files_are_widened_to_the_requested_precision(
    folder: Path, parts: BundleParts
) -> None:
    assert load_file(folder / TRANSFORMER_FILE)["output.weight"].dtype == torch.float16
    weight = parts.transformer.output.weight.detach()
    wide, narrow = load_bundle(folder), load_bundle(folder, dtype=torch.bfloat16)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.transformer.output.weight, weight.half().float())
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.transformer.output.weight, weight.half().bfloat16())
    assert narrow.tokenizer.decoder.conv_out.weight.dtype == torch.float32


def test_without_its_encoder_a_tokenizer_decodes_but_does_not_encode(folder: Path) -> None:
    tokenizer = load_bundle(folder).tokenizer
    assert not any(
        name.startswith(("encoder.", "quant_conv.")) for name in load_file(folder / TOKENIZER_FILE)
    )
    with pytest.raises(AttributeError, match="no attribute"):
        tokenizer.encode(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))


def test_no_image_depends_on_the_encoder(folder: Path, parts: BundleParts, tmp_path: Path) -> None:
    kept = save_bundle(tmp_path / "1", tiny_card(), parts, with_encoder=True)
    without = read_manifest(folder)
    assert kept.weights_sha256 == without.weights_sha256
    assert {name: sha256 for name, sha256 in kept.files.items() if name != ENCODER_FILE} == dict(
        without.files
    )


@torch.inference_mode()
def test_an_encoder_in_the_file_of_its_decoder_serves(tmp_path: Path, parts: BundleParts) -> None:
    folder = tmp_path / "1"
    manifest = save_bundle(folder, tiny_card(), parts, with_encoder=True)
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    codes = load_bundle(folder).tokenizer.encode(images).codes
    whole = load_file(folder / TOKENIZER_FILE) | load_file(folder / ENCODER_FILE)
    save_file(whole, folder / TOKENIZER_FILE)
    files = {name: sha256_file(folder / name) for name in manifest.files if name != ENCODER_FILE}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    assert torch.equal(load_bundle(folder).tokenizer.encode(images).codes, codes)


def test_an_encoder_that_is_not_there_cannot_be_kept(tmp_path: Path, parts: BundleParts) -> None:
    save_bundle(tmp_path / "1", tiny_card(), parts)
    half = replace(parts, tokenizer=load_bundle(tmp_path / "1").tokenizer)
    with pytest.raises(ConfigError, match="with_encoder: the tokenizer has no encoder"):
        save_bundle(tmp_path / "2", tiny_card(), half, with_encoder=True)
    assert not (tmp_path / "2").exists()


@torch.inference_mode()
def test_the_included_model_encodes_what_it_decodes() -> None:
    bundle = load_bundle(ROOT / "models" / "cifar10" / "1")
    assert bundle.manifest.weights_sha256 == INCLUDED
    params = [SamplingParams(class_id=i, cfg_scale=3.0, seed=i) for i in range(10)]
    codes = generate(bundle.transformer, bundle.code_sampler, params).codes
    images = bundle.tokenizer.decode_codes(codes, bundle.manifest.grid).clamp(-1, 1)
    again, quantized = bundle.tokenizer(images)
    assert (quantized.codes == codes).double().mean() > 0.4
    assert psnr(to_uint8(again).numpy(), to_uint8(images).numpy()).mean() > 30


def test_without_counts_frequency_is_not_offered(tmp_path: Path) -> None:
    manifest = save_tiny_bundle(tmp_path, counts=False)
    assert manifest.decodings == ("uniform",)
    assert COUNTS_FILE not in manifest.files
    assert load_bundle(tmp_path / "tiny" / "1").code_sampler.decodings == ("uniform",)


def test_saving_twice_gives_the_same_weights_hash(tmp_path: Path) -> None:
    first = save_tiny_bundle(tmp_path, version="1")
    assert save_tiny_bundle(tmp_path, version="2").weights_sha256 == first.weights_sha256
    other = save_tiny_bundle(tmp_path, version="3", seed=1)
    assert other.weights_sha256 != first.weights_sha256


def test_render_is_the_decoder_and_the_conversion(folder: Path) -> None:
    bundle = load_bundle(folder)
    codes = random_codes(1)
    with torch.inference_mode():
        expected = to_uint8(bundle.vq_decoder(bundle.tokenizer.latents(codes))).numpy()
    pixels = bundle.render(codes)
    assert pixels.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)
    assert pixels.std() > 0


def test_rendered_bytes_do_not_depend_on_the_batch(folder: Path) -> None:
    bundle = load_bundle(folder)
    codes = random_codes(17)
    alone = [bundle.render(row[None])[0] for row in codes]
    for size in (2, 16, 17):
        assert np.array_equal(bundle.render(codes[:size]), np.stack(alone[:size]))


@pytest.mark.parametrize("rows", [1, GRID - 1])
def test_rows_that_are_drawn_are_rendered_before_the_rest(folder: Path, rows: int) -> None:
    bundle = load_bundle(folder)
    pixels = bundle.render(random_codes(3)[:, : rows * GRID])
    assert pixels.shape == (3, rows * IMAGE_SIZE // GRID, IMAGE_SIZE, 3)


def test_a_preview_is_nearly_the_upper_part_of_the_shipped_models_image() -> None:
    bundle = load_bundle(Path(__file__).parents[3] / "models" / "cifar10" / "1")
    defaults = dict(bundle.manifest.defaults)
    params_list = [SamplingParams(class_id=i, seed=i, **defaults) for i in range(10)]
    codes = generate(bundle.transformer, bundle.code_sampler, params_list).codes
    whole = bundle.render(codes).astype(float)
    errors = []
    for rows in (2, 4, 6):
        part = bundle.render(codes[:, : rows * bundle.manifest.grid]).astype(float)
        errors.append(float(np.mean((part - whole[:, : part.shape[1]]) ** 2)))
    tokenizers_own = 255**2 / 10**2.54  # mean squared error at the PSNR of its manifest
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[1] < 2 * tokenizers_own


def test_a_rendered_infinity_is_an_error(folder: Path) -> None:
    bundle = load_bundle(folder)
    with torch.no_grad():
        torch.nn.init.constant_(bundle.tokenizer.post_quant_conv.weight, math.inf)
    with pytest.raises(NonFiniteError):
        bundle.render(random_codes(1))


def test_a_published_version_is_never_changed(folder: Path, parts: BundleParts) -> None:
    before = read_manifest(folder)
    with pytest.raises(ArtifactError, match="exists already"):
        save_bundle(folder, tiny_card(), parts)
    assert read_manifest(folder) == before


def test_a_place_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, parts: BundleParts
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"file/1: cannot be written: Not a directory$"):
        save_bundle(tmp_path / "file" / "1", tiny_card(), parts)


def test_a_version_published_meanwhile_is_left_alone(
    tmp_path: Path, parts: BundleParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "1"

    def publish_first(path: Path, target: Path) -> None:
        rename(path.with_name("winner"), target)
        rename(path, target)

    rename = os.rename
    (tmp_path / "winner").mkdir()
    (tmp_path / "winner" / "theirs").write_bytes(b"")
    monkeypatch.setattr(Path, "rename", publish_first)
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_bundle(folder, tiny_card(), parts)
    assert [path.name for path in tmp_path.rglob("*")] == ["1", "theirs"]


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, parts: BundleParts) -> None:
    config = replace(parts.transformer.config, class_dropout=0.0)
    wrong = {
        "predicts 16 clusters, but the prior has 32": replace(
            parts, prior=ClusterMap.identity(NUM_CODES)
        ),
        "has 32 codes, but the prior has 16": replace(
            parts, prior=ClusterMap.identity(NUM_CLUSTERS)
        ),
        "class_dropout 0": replace(parts, transformer=GPT(config)),
    }
    for complaint, others in wrong.items():
        with pytest.raises(ConfigError, match=complaint):
            save_bundle(tmp_path / "x", tiny_card(), others)
    with pytest.raises(ValueError, match="counts must be 32 integers"):
        save_bundle(tmp_path / "x", tiny_card(), replace(parts, counts=np.arange(3)))
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    parts = tiny_parts()
    with torch.no_grad():
        parts.transformer.norm.weight[0] = 1e5
    with pytest.raises(ArtifactError, match=r"norm\.weight is not finite in torch\.float16"):
        save_bundle(tmp_path / "x", tiny_card(), parts)
    assert list(tmp_path.iterdir()) == []
    save_bundle(tmp_path / "x", tiny_card(), parts, weights_dtype=torch.bfloat16)


@pytest.mark.parametrize("name", [MANIFEST_FILE, TOKENIZER_FILE])  # `test_manifest` has the rest
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "altered"])
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    path.unlink()
    damaged = {
        "empty": b"",
        "truncated": content[:-3],
        "altered": content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :],
    }
    if damage != "missing":
        path.write_bytes(damaged[damage])
    with pytest.raises(ArtifactError) as caught:
        load_bundle(folder)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path)


def add_a_tensor(path: Path) -> None:
    save_file(load_file(path) | {"surplus": torch.zeros(1)}, path)


def reshape_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].flatten()[:1].clone()}, path)


def poison_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors[min(tensors)].fill_(math.nan)
    save_file(tensors, path)


def replace_by_text(path: Path) -> None:
    path.write_bytes(b"a" * 100)


@pytest.mark.parametrize("name", [TRANSFORMER_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize(
    "change", [drop_a_tensor, add_a_tensor, reshape_a_tensor, poison_a_tensor, replace_by_text]
)
def test_weights_that_are_not_the_model_are_refused(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    relist(folder, name)
    with pytest.raises(ArtifactError) as caught:
        load_bundle(folder)
    assert caught.value.path == str(folder / name)
    assert "\n" not in str(caught.value)


def test_a_prior_of_another_model_is_refused(folder: Path) -> None:
    ClusterMap.identity(NUM_CODES).save(folder / PRIOR_FILE)
    relist(folder, PRIOR_FILE)
    with pytest.raises(ArtifactError, match=r"prior\.npz: has 32 codes in 32 clusters"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"counts": torch.zeros(NUM_CODES - 1, dtype=torch.int64)},
        {"counts": torch.zeros(NUM_CODES)},
        {"counts": torch.full((NUM_CODES,), -1)},
    ],
)
def test_counts_of_another_model_are_refused(folder: Path, counts: dict[str, torch.Tensor]) -> None:
    write_tensors(folder / COUNTS_FILE, counts, torch.float32)
    relist(folder, COUNTS_FILE)
    with pytest.raises(ArtifactError, match=COUNTS_FILE):
        load_bundle(folder)


def test_a_refiner_is_part_of_a_bundle(tmp_path: Path) -> None:
    parts = tiny_parts(refiner=True)
    manifest = save_bundle(tmp_path / "1", tiny_card(), parts, weights_dtype=torch.float32)
    assert manifest.decodings == ("uniform", "frequency", "refine")
    assert read_manifest(tmp_path / "1") == manifest
    bundle = load_bundle(tmp_path / "1")
    assert bundle.code_sampler.decodings == manifest.decodings
    params_list = [SamplingParams(i, 2.0, seed=i, decoding="refine") for i in range(3)]
    code_sampler = CodeSampler(parts.prior, parts.counts, refiner=parts.refiner)
    expected = generate(parts.transformer, code_sampler, params_list).codes
    assert torch.equal(
        generate(bundle.transformer, bundle.code_sampler, params_list).codes, expected
    )
    low = load_bundle(tmp_path / "1", dtype=torch.bfloat16).code_sampler.refiner
    assert low.code_scores.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_refiner_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    save_tiny_bundle(tmp_path, refiner=True)
    path = tmp_path / "tiny" / "1" / REFINER_FILE
    content = path.read_bytes()
    path.unlink()
    if damage == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=REFINER_FILE):
        load_bundle(path.parent)


def test_a_refiner_of_other_sizes_is_refused(tmp_path: Path) -> None:
    parts = tiny_parts(refiner=True)
    assert parts.refiner is not None
    other = Refiner(replace(parts.refiner.config, num_clusters=NUM_CLUSTERS + 1))
    with pytest.raises(ConfigError, match="num_clusters 17, the other models have 16"):
        save_bundle(tmp_path / "1", tiny_card(), replace(parts, refiner=other))
    save_tiny_bundle(tmp_path, refiner=True)
    folder = tmp_path / "tiny" / "1"
    edit_manifest(folder, '"width": 16', '"width": 15')
    with pytest.raises(ArtifactError, match=r"manifest\.json: refiner: n_head"):
        load_bundle(folder)
    edit_manifest(folder, '"width": 15', '"width": 32')
    with pytest.raises(ArtifactError, match=REFINER_FILE):
        load_bundle(folder)


def test_a_completer_is_part_of_a_bundle(tmp_path: Path) -> None:
    parts = tiny_parts(counts=False, completer=True)
    manifest = save_bundle(tmp_path / "1", tiny_card(), parts, weights_dtype=torch.float32)
    assert manifest.decodings == ("uniform", "complete")
    assert read_manifest(tmp_path / "1") == manifest
    bundle = load_bundle(tmp_path / "1")
    assert bundle.code_sampler.decodings == manifest.decodings
    assert parts.completer is not None
    assert bundle.code_sampler.completer.config == parts.completer.config
    params_list = [SamplingParams(i, 2.0, seed=i, decoding="complete") for i in range(3)]
    code_sampler = CodeSampler(parts.prior, completer=parts.completer)
    expected = generate(parts.transformer, code_sampler, params_list).codes
    assert torch.equal(
        generate(bundle.transformer, bundle.code_sampler, params_list).codes, expected
    )
    low = load_bundle(tmp_path / "1", dtype=torch.bfloat16).code_sampler.completer
    assert low.output.weight.dtype == torch.bfloat16
    files = {name: sha for name, sha in manifest.files.items() if name != COMPLETER_FILE}
    without = manifest.model_copy(update={"files": files})
    assert without.weights_sha256 != manifest.weights_sha256


@pytest.mark.parametrize("damage", ["missing", "altered", "swollen"])
def test_a_damaged_completer_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    save_tiny_bundle(tmp_path, completer=True)
    path = tmp_path / "tiny" / "1" / COMPLETER_FILE
    content = path.read_bytes()
    path.unlink()
    if damage == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if damage == "swollen":
        path.write_bytes(content + bytes(8 << 20))
    with pytest.raises(ArtifactError, match=COMPLETER_FILE):
        load_bundle(path.parent)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_clusters": 15}, "completer has num_clusters 15, the other models have 16"),
        ({"vocab_size": 33}, "completer has vocab_size 33, the other models have 32"),
        ({"num_classes": 6}, "completer has num_classes 6, the other models have 5"),
        ({"block_size": 25}, "completer has block_size 25, the other models have 16"),
        ({"class_dropout": 0.0}, "completer trained with class_dropout 0 cannot be guided"),
    ],
)
def test_a_completer_of_other_sizes_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    parts = replace(tiny_parts(), completer=tiny_completer(**changes))
    with pytest.raises(ConfigError, match=complaint):
        save_bundle(tmp_path / "1", tiny_card(), parts)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"dim": 16', '"dim": 18', r"manifest\.json: completer: n_head"),
        ('"dim": 16', '"dim": 65536', r"completer\.safetensors"),
        ('"input_rows": "clusters"', '"input_rows": "codes"', r"completer\.safetensors"),
    ],
)  # fmt: skip
def test_sizes_of_a_completer_that_its_file_does_not_have_are_refused(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    save_tiny_bundle(tmp_path, completer=True)
    edit_manifest(tmp_path / "tiny" / "1", old, new)
    with pytest.raises(ArtifactError, match=complaint):
        load_bundle(tmp_path / "tiny" / "1")


def test_sizes_that_no_model_has_are_refused(folder: Path) -> None:
    edit_manifest(folder, '"n_head": 2', '"n_head": 3')
    with pytest.raises(ArtifactError, match=r"manifest\.json: n_head"):
        load_bundle(folder)


@pytest.mark.parametrize(("field", "size"), [("dim", 65536), ("n_layer", 1000)])
def test_sizes_beyond_the_weights_are_refused_before_they_are_allocated(
    folder: Path, field: str, size: int
) -> None:
    before = json.loads((folder / MANIFEST_FILE).read_text())["gpt"][field]
    edit_manifest(folder, f'"{field}": {before}', f'"{field}": {size}')
    with pytest.raises(ArtifactError, match=r"transformer\.safetensors"):
        load_bundle(folder)


@pytest.mark.gpu
def test_a_bundle_loads_onto_a_gpu(folder: Path) -> None:
    bundle: Bundle = load_bundle(folder, "cuda", torch.bfloat16)
    assert bundle.device.type == "cuda"
    codes = random_codes(3)
    difference = bundle.render(codes).astype(int) - load_bundle(folder).render(codes)
    assert np.abs(difference).max() <= 2
