"""What a manifest accepts, what it refuses, and the identifier of the weights."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from masc_core.bundle.manifest import (
    COUNTS_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    PRIOR_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Manifest,
    is_plain_name,
    read_manifest,
    seal_of,
    verify_files,
    write_manifest,
)
from masc_core.errors import ArtifactError
from masc_core.io.files import sha256_file
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.params import SamplingParams

DIGEST = "0123456789abcdef" * 4
REFINER = {"width": 16, "n_head": 2, "ffn_dim": 32}
COMPLETER = {"dim": 16, "n_layer": 2, "n_head": 2, "softmax": "member", "input_rows": "clusters"}


def fields(**changes: Any) -> dict[str, Any]:
    """JSON of a small valid manifest."""
    return {
        "schema_version": 1,
        "name": "tiny",
        "version": "1.0",
        "created": "2025-01-02T03:04:05Z",
        "gpt": {"dim": 32, "n_layer": 2, "n_head": 2, "num_classes": 2, "block_size": 16},
        "vq": {
            "code_dim": 4,
            "ch": 32,
            "ch_mult": [1, 1, 2],
            "num_res_blocks": 1,
            "z_channels": 32,
        },
        "num_codes": 32,
        "num_clusters": 16,
        "grid": 4,
        "image_size": 16,
        "defaults": {"cfg_scale": 2.0},
        "class_names": ["cat", "dog"],
        "decodings": ["uniform"],
        "provenance": {"data": "none", "epochs": 3, "nested": {"lr": 1e-4}},
        "metrics": {"psnr_db": 22.5},
        "files": dict.fromkeys((TRANSFORMER_FILE, TOKENIZER_FILE, PRIOR_FILE), DIGEST),
        **changes,
    }


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(fields(**changes))


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    written = manifest()
    sealed = write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == sealed
    assert sealed.model_copy(update={"seal": None}) == written
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]


def test_without_a_refiner_or_a_completer_nothing_is_said_of_one(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert not {"refiner", "completer"} & json.loads((tmp_path / MANIFEST_FILE).read_text()).keys()
    shipped = Path(__file__).parents[3] / "models" / "cifar10" / "1"
    read = read_manifest(shipped)
    assert write_manifest(tmp_path, read) == read  # with the same seal


def test_of_constant_guidance_no_schedule_is_told(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert json.loads((tmp_path / MANIFEST_FILE).read_text())["defaults"].keys() == {
        "cfg_scale", "temperature", "top_k", "top_p", "decoding",
    }  # fmt: skip
    defaults = {"cfg_scale": 2.0, "cfg_schedule": "step", "cfg_start": 0.3}
    write_manifest(tmp_path, manifest(defaults=defaults))
    assert read_manifest(tmp_path).defaults.cfg_start == 0.3


def test_of_a_completer_only_its_own_images_tell() -> None:
    def told(**changes: Any) -> dict[str, Any]:
        request = json.loads(manifest().describe_image(SamplingParams(1, 2.0, 7, **changes)))
        return {k: v for k, v in request["request"].items() if k.startswith("code_")}

    assert told(code_temperature=0.5) == {}
    assert told(decoding="complete", code_temperature=0.5, code_top_k=99) == {
        "code_temperature": 0.5, "code_top_k": 32, "code_cfg_scale": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("constant", {}),
        ("linear", {"cfg_schedule": "linear"}),
        ("step", {"cfg_schedule": "step", "cfg_start": 0.3}),
    ],
)
def test_a_description_has_the_fields_that_a_request_may(
    schedule: CFGSchedule, told: dict[str, object]
) -> None:
    params = SamplingParams(1, 2.0, 7, cfg_schedule=schedule, cfg_start=0.3)
    request = json.loads(manifest().describe_image(params))["request"]
    assert {
        name: request[name] for name in request if name in ("cfg_schedule", "cfg_start")
    } == told


def test_a_description_overrides_the_default_schedule() -> None:
    linear = manifest(defaults={"cfg_scale": 2.0, "cfg_schedule": "linear"})
    request = json.loads(linear.describe_image(SamplingParams(1, 2.0, 7)))["request"]
    assert request["cfg_schedule"] == "constant"


def test_images_that_are_equal_have_equal_descriptions() -> None:
    step, rectangular = (
        manifest().describe_image(SamplingParams(1, 2.0, 7, cfg_schedule=schedule, cfg_start=0.4))
        for schedule in ("step", "rectangular")
    )
    assert step == rectangular
    assert list(json.loads(step)["request"]) == [
        *("model", "class_id", "cfg_scale", "seed", "temperature", "top_k", "top_p", "decoding"),
        *("cfg_schedule", "cfg_start"),
    ]
    unguided = SamplingParams(1, 1.0, 7)
    for schedule in ("step", "linear"):
        other = dataclasses.replace(unguided, cfg_schedule=schedule)
        assert manifest().describe_image(other) == manifest().describe_image(unguided)


def test_a_default_start_is_kept_without_a_step(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(defaults={"cfg_scale": 2.0, "cfg_start": 0.5}))
    assert read_manifest(tmp_path).defaults.cfg_start == 0.5


def test_partitions_of_the_loss_are_no_weights() -> None:
    bare, files = manifest(), fields()["files"]
    trained = manifest(files=files | {"partition-4.npz": DIGEST})
    assert trained.weights_sha256 == bare.weights_sha256


def test_filters_of_clusters_are_told_where_they_are_on_or_might_be() -> None:
    files = fields()["files"] | {"partition-4.npz": DIGEST, "partition-9.npz": DIGEST}
    with pytest.raises(ValidationError, match="filter clusters of a partition, and there is none"):
        manifest(defaults={"cluster_top_p": 0.5})
    plain = manifest(files=files)
    usual = manifest(files=files, defaults={"cluster_top_k": 2, "cluster_top_p": 0.5})

    def told(by: Manifest, **changes: Any) -> dict[str, object]:
        request = json.loads(by.describe_image(SamplingParams(1, 2.0, 7, **changes)))["request"]
        return {name: request[name] for name in request if name.startswith("cluster")}

    assert told(plain) == told(manifest()) == {}
    assert told(usual) == {"cluster_top_k": 0, "cluster_top_p": 1.0}
    assert told(plain, cluster_top_k=100) == {"cluster_top_k": 4}
    assert told(usual, cluster_top_p=0.3) == {"cluster_top_k": 0, "cluster_top_p": 0.3}


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(ValidationError):
        setattr(manifest(), "name", "other")  # noqa: B010 - mypy knows, this asks pydantic


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", ".hidden", "-rf", "a b", "ä", "a\n"],
)
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    assert not is_plain_name(name)
    for changes in (
        {"name": name},
        {"version": name},
        {"files": fields()["files"] | {name: DIGEST}},
    ):
        with pytest.raises(ValidationError):
            manifest(**changes)


@pytest.mark.parametrize("name", ["a", "GPT-B_256.v1", "1", "_", "2025-01-02"])
def test_plain_names_are_accepted(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2025-01-02T03:04:05"}, "created"),
        ({"num_clusters": 33}, "num_clusters exceeds num_codes"),
        ({"grid": 5}, r"block_size is not grid \* grid"),
        ({"image_size": 32}, "image_size does not fit"),
        ({"class_names": ["cat"]}, "class_names are not"),
        ({"defaults": {"decoding": "frequency"}}, "decoding is not offered"),
        ({"defaults": {"cfg_scale": 0.5}}, "defaults.cfg_scale"),
        ({"decodings": ["uniform", "frequency"]}, "needs token_counts.safetensors"),
        ({"decodings": ["magic"]}, "decodings.0"),
        ({"decodings": ["uniform", "refine"]}, "needs refiner.safetensors"),
        ({"refiner": REFINER}, "refiner and refiner.safetensors need each other"),
        ({"completer": COMPLETER}, "completer and completer.safetensors need each other"),
        ({"decodings": ["uniform", "complete"]}, "complete decoding needs completer.safetensors"),
        ({"completer": COMPLETER | {"dim": 1 << 17}}, "completer.dim"),
        ({"completer": COMPLETER | {"n_layer": 1 << 11}}, "completer.n_layer"),
        ({"completer": COMPLETER | {"softmax": "all"}}, "completer.softmax"),
        ({"completer": COMPLETER | {"ffn_dim": 2}}, "completer.ffn_dim"),
        ({"defaults": {"code_temperature": 0}}, "defaults.code_temperature"),
        ({"defaults": {"code_top_k": -1}}, "defaults.code_top_k"),
        ({"defaults": {"code_cfg_scale": 0.5}}, "defaults.code_cfg_scale"),
        (
            {"files": fields()["files"] | {"refiner.safetensors": DIGEST}},
            "refiner and refiner.safetensors need each other",
        ),
        ({"refiner": REFINER | {"depth": 2}}, "refiner.depth"),
        ({"files": {TRANSFORMER_FILE: DIGEST, TOKENIZER_FILE: DIGEST}}, "prior.npz is not listed"),
        ({"files": fields()["files"] | {MANIFEST_FILE: DIGEST}}, "cannot list itself"),
        ({"files": fields()["files"] | {"x": DIGEST.upper()}}, "files.x"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(fields(**changes)))
    with pytest.raises(ArtifactError, match=complaint) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", json.dumps(fields())[:-9].encode()]
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: No such file"):
        read_manifest(tmp_path)


def write_files(folder: Path) -> Manifest:
    """Write a file for every role, and return the manifest of them."""
    names = (TRANSFORMER_FILE, TOKENIZER_FILE, ENCODER_FILE, PRIOR_FILE, COUNTS_FILE, SAMPLES_FILE)
    for name in names:
        (folder / name).write_bytes(name.encode() * 10)
    return manifest(
        files={name: sha256_file(folder / name) for name in names},
        decodings=["uniform", "frequency"],
    )


def test_weights_sha256_is_what_the_shell_computes(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("coreutils are not installed")
    expected = write_files(tmp_path).weights_sha256
    command = "sha256sum *.npz [!e]*.safetensors | LC_ALL=C sort -k2 | sha256sum"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[0] == expected


def test_weights_sha256_depends_on_the_weights_of_images_alone() -> None:
    base = manifest()
    other = {"samples.png": "f" * 64, ENCODER_FILE: "e" * 64}
    assert manifest(files=base.files | other, name="other").weights_sha256 == base.weights_sha256
    for name in base.files:
        changed = manifest(files=base.files | {name: "f" * 64})
        assert changed.weights_sha256 != base.weights_sha256


def test_codes_are_of_decoder_and_encoder_together() -> None:
    def identity(**files: str) -> str:
        return manifest(files=manifest().files | files).tokenizer_sha256

    tokenizer, encoder = "tokenizer.safetensors", "encoder.safetensors"
    assert identity(**{tokenizer: "a" * 64}) == "a" * 64
    both = identity(**{tokenizer: "a" * 64, encoder: "b" * 64})
    changed = identity(**{tokenizer: "a" * 64, encoder: "c" * 64})
    assert len({both, changed, identity(**{tokenizer: "c" * 64, encoder: "b" * 64})}) == 3


def test_verify_accepts_the_files_and_ignores_others(tmp_path: Path) -> None:
    listed = write_files(tmp_path)
    (tmp_path / "notes.txt").write_text("not listed")
    verify_files(tmp_path, listed)


@pytest.mark.parametrize(
    "name", [TRANSFORMER_FILE, TOKENIZER_FILE, ENCODER_FILE, PRIOR_FILE, COUNTS_FILE, SAMPLES_FILE]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "a folder"])
def test_verify_names_the_file_that_is_not_as_listed(
    tmp_path: Path, name: str, damage: str
) -> None:
    listed = write_files(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "a folder":
        path.mkdir()
    with pytest.raises(ArtifactError) as caught:
        verify_files(tmp_path, listed)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("change", ["class_names", "defaults", "seal", "no seal"])
def test_an_altered_manifest_is_refused(tmp_path: Path, change: str) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / MANIFEST_FILE
    content = json.loads(path.read_text())
    if change == "class_names":
        content["class_names"] = [name + "s" for name in content["class_names"]]
    elif change == "defaults":
        content["defaults"]["cfg_scale"] = 9.0
    elif change == "seal":
        content["seal"] = "0" * 64
    else:
        del content["seal"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"manifest\.json: was altered"):
        read_manifest(tmp_path)


def test_the_layout_of_the_file_is_no_alteration(tmp_path: Path) -> None:
    sealed = write_manifest(tmp_path, manifest())
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_manifest(tmp_path) == sealed


def test_a_manifest_from_before_a_field_existed_keeps_its_seal(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / MANIFEST_FILE
    content = json.loads(path.read_text())
    del content["provenance"]  # optional, as a new field would be
    content["seal"] = seal_of(content)
    path.write_text(json.dumps(content))
    assert read_manifest(tmp_path).provenance == {}
