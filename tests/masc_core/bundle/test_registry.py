"""The registry against folders with manifests; the files' content does not matter here."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from masc_core.bundle.manifest import (
    COUNTS_FILE,
    MANIFEST_FILE,
    PATCHES_FILE,
    REQUIRED_FILES,
    Defaults,
    GPTSection,
    LatentSection,
    Manifest,
    VQSection,
    partition_file,
    write_manifest,
)
from masc_core.bundle.registry import ActiveVersion, Registry, missing
from masc_core.errors import ArtifactError, ConfigError, MascError, UnknownModelError
from masc_core.io.files import sha256_file
from tests.tiny_bundle import edit_manifest, save_tiny_bundle


def publish(root: Path, name: str, version: str, content: bytes = b"weights") -> Path:
    """Write a bundle whose weight files hold ``content``."""
    folder = root / name / version
    folder.mkdir(parents=True)
    for file in REQUIRED_FILES:
        (folder / file).write_bytes(content)
    manifest = Manifest.model_validate(
        {
            "name": name,
            "version": version,
            "created": "2025-01-02T03:04:05Z",
            "gpt": GPTSection(dim=8, n_layer=1, n_head=1, num_classes=1, block_size=4),
            "vq": VQSection(code_dim=2, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8),
            "num_codes": 4,
            "num_clusters": 2,
            "grid": 2,
            "image_size": 4,
            "class_names": ("cat",),
            "defaults": Defaults(),
            "decodings": ("uniform",),
            "files": {file: sha256_file(folder / file) for file in REQUIRED_FILES},
        }
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for version in ("v1", "v10", "v2"):
        publish(root, "a", version)
    publish(root, "b", "1")
    Registry(root).activate("a", "v2")
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """Two models; ``a`` has three versions and ``v2`` active, ``b`` has one that is not active."""
    return shutil.copytree(published, tmp_path / "models")


def test_it_lists_models_and_versions(root: Path) -> None:
    registry = Registry(root)
    assert registry.names() == ("a", "b")
    assert registry.models() == ("a",)
    assert registry.versions("a") == ("v1", "v2", "v10")
    assert registry.current("a") == "v2"
    assert registry.path("a") == root / "a" / "v2"
    assert registry.path("a", "v10") == root / "a" / "v10"
    assert registry.manifest("a").version == "v2"
    assert registry.manifest("b", "1").name == "b"


def test_stray_files_and_unfinished_bundles_are_not_models(root: Path) -> None:
    (root / "README.md").write_text("hello")
    (root / ".tmp-123-x" / "1").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a" / "v3").mkdir()
    registry = Registry(root)
    assert registry.names() == ("a", "b")
    assert registry.versions("a") == ("v1", "v2", "v10")


def test_a_missing_or_empty_root_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere: cannot be read: No such file or directory$"):
        Registry(tmp_path / "nowhere").models()
    with pytest.raises(ArtifactError, match=r"holds no model$"):
        Registry(tmp_path).models()
    publish(tmp_path, "a", "1")
    with pytest.raises(ArtifactError, match=r"a/current: is missing: no version"):
        Registry(tmp_path).models()
    with pytest.raises(ArtifactError, match=r"a/current: is missing: no version"):
        Registry(tmp_path).manifest("a")


@pytest.mark.parametrize(
    "name", ["c", "", ".", "..", "../a", "a/v2", "a/../a", "/", "/etc", "a\0b", "x" * 5000, "ä\n"]
)
def test_unknown_names_never_reach_the_disk(root: Path, name: str) -> None:
    registry = Registry(root / "a" / "..")  # so that a step upwards would find something
    with pytest.raises(UnknownModelError) as caught:
        registry.manifest(name)
    assert caught.value.field == "model"
    with pytest.raises(UnknownModelError) as caught:
        registry.path("a", name)
    assert caught.value.field == "version"


@pytest.mark.parametrize("content", [b"", b"v9", b"../b/1", b"v1 v2", b"\xff"])
def test_a_current_file_that_names_no_version_is_refused(root: Path, content: bytes) -> None:
    (root / "a" / "current").write_bytes(content)
    with pytest.raises(ArtifactError, match="current"):
        Registry(root).path("a")


def test_default_is_the_only_active_model_or_the_preferred_one(root: Path) -> None:
    registry = Registry(root)
    assert registry.default() == registry.default("a") == "a"
    with pytest.raises(ConfigError, match=r"no model 'b' in .*; there are: a"):
        registry.default("b")
    registry.activate("b", "1")
    with pytest.raises(ConfigError, match="several models, name one: a, b"):
        registry.default()
    assert registry.default("b") == "b"


def test_activation_is_seen_by_every_registry(root: Path) -> None:
    here, there = Registry(root), Registry(root)
    assert there.manifest("a").version == "v2"
    here.activate("a", "v10")
    assert there.manifest("a").version == "v10"
    assert (root / "a" / "current").read_bytes() == b"v10\n"


def test_readers_never_see_a_half_written_current(root: Path) -> None:
    registry = Registry(root)
    done = threading.Event()
    failures: list[MascError] = []

    def read() -> None:
        while not done.is_set():
            try:
                registry.manifest("a")
            except MascError as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(50):
        registry.activate("a", ("v1", "v10")[i % 2])
    done.set()
    thread.join()
    assert failures == []


PARTITION = partition_file(2)
LATENT = dict.fromkeys(LatentSection.model_fields, 1) | {"latent_shape": (1, 16)}


def card(**changes: object) -> Manifest:
    """A manifest of two classes that offers everything."""
    files = dict.fromkeys((*REQUIRED_FILES, COUNTS_FILE, PATCHES_FILE, PARTITION), "0" * 64)
    values: dict[str, object] = {
        "name": "m",
        "version": "1",
        "created": "2025-01-02T00:00:00Z",
        "class_names": ["ant", "bee"],
        "gpt": {"dim": 8, "n_layer": 1, "n_head": 1, "num_classes": 2, "block_size": 16},
        "vq": {"code_dim": 4, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8},
        "num_codes": 8,
        "num_clusters": 4,
        "grid": 4,
        "image_size": 8,
        "decodings": ["uniform", "frequency"],
        "files": files,
    }
    return Manifest.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ()),
        ({"num_clusters": 2, "version": "2"}, ()),
        ({"decodings": ["uniform"]}, ("no frequency decoding",)),
        ({"class_names": ["ant", "cat"]}, ("no class 'bee'",)),
        ({"class_names": ["cat", "dog"]}, ("no class 'ant' and 1 others",)),
        (
            {"class_names": ["bee", "ant"]},
            ("classes of other numbers, 0 is 'bee' and not 'ant'",),
        ),
        (
            {"image_size": 16, "vq": dict(card().vq) | {"ch_mult": (1, 1, 1)}},
            ("images of 16 pixels and not 8",),
        ),
        (
            {"files": {k: v for k, v in card().files.items() if k != PATCHES_FILE}},
            ("no pictures of its codebook",),
        ),
        (
            {"files": {k: v for k, v in card().files.items() if k != PARTITION}},
            ("no partition whose clusters could be filtered",),
        ),
        (
            {"tokenizer": "gigatok1d", "latent": LATENT},
            ("codes of a tokenizer gigatok1d and not vq",),
        ),
    ],
)
def test_what_clients_of_a_version_miss_in_another(
    changes: dict[str, object], expected: tuple[str, ...]
) -> None:
    assert missing(card(), card(**changes)) == expected


def test_more_than_before_is_no_loss() -> None:
    poor = card(decodings=["uniform"], files=dict.fromkeys(REQUIRED_FILES, "0" * 64))
    assert missing(poor, card()) == ()
    more = dict(card().gpt) | {"num_classes": 3}
    assert missing(card(), card(class_names=["ant", "bee", "cat"], gpt=more)) == ()


def test_whatever_changes_the_active_version_warns_of_losses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny_bundle(tmp_path, version="2", counts=False)
    save_tiny_bundle(tmp_path, version="1")
    assert caplog.messages == []
    registry = Registry(tmp_path)
    assert registry.activate("tiny", "2") == ("no frequency decoding",)
    assert caplog.messages == ["tiny 2: unlike before, no frequency decoding"]
    caplog.clear()
    registry.activate("tiny", "1")
    assert caplog.messages == []
    registry.activate("tiny", "2")
    registry.activate("tiny", "1")
    caplog.clear()
    registry.rollback("tiny")
    assert caplog.messages == ["tiny 2: unlike before, no frequency decoding"]
    caplog.clear()
    registry.activate("tiny", "1")
    (tmp_path / "tiny" / "1" / "manifest.json").write_text("{")
    registry.activate("tiny", "2")  # of what is damaged nothing can be missed
    assert caplog.messages == []


def test_a_damaged_version_is_not_activated(root: Path) -> None:
    (root / "a" / "v10" / REQUIRED_FILES[0]).write_bytes(b"weight")
    registry = Registry(root)
    with pytest.raises(ArtifactError, match=f"v10/{REQUIRED_FILES[0]}: is truncated or altered"):
        registry.activate("a", "v10")
    assert registry.current("a") == "v2"
    with pytest.raises(UnknownModelError, match="no version 'v11'"):
        registry.activate("a", "v11")


def test_a_choice_that_cannot_be_written_is_one_clear_line(root: Path) -> None:
    (root / "b" / "current").mkdir()
    with pytest.raises(ArtifactError, match=r"b/current: cannot be written: Is a directory$"):
        Registry(root).activate("b", "1")


def test_verify_names_a_missing_file(root: Path) -> None:
    registry, file = Registry(root), REQUIRED_FILES[-1]
    assert registry.verify("a") == registry.manifest("a")
    (root / "a" / "v2" / file).unlink()
    with pytest.raises(ArtifactError, match=f"v2/{file}: is listed in the manifest but missing"):
        registry.verify("a")


def test_manifests_are_parsed_once_until_they_change(root: Path) -> None:
    registry = Registry(root)
    first = registry.manifest("a")
    assert registry.manifest("a") is first
    edit_manifest(root / "a" / "v2", '"cat"', '"dog"')
    os.utime(root / "a" / "v2" / MANIFEST_FILE, ns=(1, 1))  # whatever the clock's resolution
    assert registry.manifest("a").class_names == ("dog",)


def test_a_manifest_of_another_version_is_refused(root: Path) -> None:
    shutil.copytree(root / "a" / "v2", root / "a" / "v3")
    with pytest.raises(ArtifactError, match=r"v3/manifest\.json: is that of a v2"):
        Registry(root).manifest("a", "v3")


@pytest.mark.parametrize("others", [True, False])
def test_a_version_in_use_without_its_manifest_is_named(root: Path, *, others: bool) -> None:
    registry = Registry(root)
    path = root / "a" / registry.current("a") / MANIFEST_FILE
    path.unlink()
    for folder in root.iterdir():
        if folder.name != "a" and not others:
            shutil.rmtree(folder)
    for version in (root / "a").iterdir():
        if version.is_dir() and version != path.parent and not others:
            shutil.rmtree(version)
    with pytest.raises(ArtifactError, match=r"manifest\.json: is missing"):
        registry.manifest("a")
    if not others:
        with pytest.raises(ArtifactError, match=r"manifest\.json: is missing"):
            registry.default()


def test_a_rollback_goes_back_one_activation_at_a_time(root: Path) -> None:
    registry = Registry(root)
    assert registry.previous("a") is None
    with pytest.raises(ArtifactError, match="no version was active before 'v2'"):
        registry.rollback("a")
    registry.activate("a", "v10")
    registry.activate("a", "v1")
    assert registry.previous("a") == "v10"
    assert registry.rollback("a") == registry.current("a") == "v10"
    assert registry.rollback("a") == Registry(root).current("a") == "v2"
    with pytest.raises(ArtifactError, match="no version was active before 'v2'"):
        registry.rollback("a")
    assert registry.current("a") == "v2"


def test_what_was_rolled_back_from_is_not_returned_to(root: Path) -> None:
    registry = Registry(root)
    registry.activate("a", "v10")
    registry.rollback("a")
    registry.activate("a", "v1")
    assert registry.rollback("a") == "v2"
    registry.activate("a", "v10")  # forward again
    assert registry.rollback("a") == "v2"


def test_activating_twice_or_in_turn_keeps_each_version_once(root: Path) -> None:
    registry = Registry(root)
    for version in ("v10", "v10", "v2", "v10", "v10"):
        registry.activate("a", version)
    assert registry.previous("a") == "v2"
    assert (root / "a" / "history").read_text().split() == ["v2", "v10"]


def test_a_choice_written_by_hand_or_before_there_was_a_history_counts(root: Path) -> None:
    registry = Registry(root)
    (root / "a" / "history").unlink()
    registry.activate("a", "v10")
    assert registry.previous("a") == "v2"
    (root / "a" / "current").write_text("v1")
    assert registry.previous("a") == "v10"
    assert registry.rollback("a") == "v10"


def test_a_kill_between_history_and_choice_leaves_both_usable(root: Path) -> None:
    registry = Registry(root)
    registry.activate("a", "v10")
    (root / "a" / "history").write_text("v2\nv10\nv1\n")  # v1 was to become the current one
    assert registry.current("a") == "v10"
    assert registry.rollback("a") == "v2"


def test_a_rollback_passes_over_what_was_removed_and_refuses_what_is_damaged(root: Path) -> None:
    registry = Registry(root)
    registry.activate("a", "v10")
    registry.activate("a", "v1")
    (root / "a" / "v2" / REQUIRED_FILES[0]).write_bytes(b"weight")
    shutil.rmtree(root / "a" / "v10")
    with pytest.raises(ArtifactError, match=r"v2/.*: is truncated or altered"):
        registry.rollback("a")
    assert registry.current("a") == "v1"
    (root / "a" / "history").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="history: cannot be read"):
        registry.rollback("a")
    with pytest.raises(ArtifactError, match="history: cannot be read"):
        registry.activate("a", "v1")
    with pytest.raises(UnknownModelError):
        registry.rollback("../a")


def test_a_rollback_leaves_only_the_version_that_it_is_to_leave(root: Path) -> None:
    registry = Registry(root)
    registry.activate("a", "v10")
    with pytest.raises(ArtifactError, match="names 'v10' by now, not 'v1'"):
        registry.rollback("a", leaving="v1")
    assert registry.rollback("a", leaving="v10") == "v2"


def test_activations_at_the_same_time_lose_none(root: Path) -> None:
    def work(version: str) -> None:
        for _ in range(20):
            Registry(root).activate("a", version)

    threads = [threading.Thread(target=work, args=(v,)) for v in ("v1", "v2", "v10")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = Registry(root)
    kept = (root / "a" / "history").read_text().split()
    assert sorted(kept) == ["v1", "v10", "v2"]
    assert [registry.current("a"), registry.rollback("a"), registry.rollback("a")] == kept[::-1]


def test_while_one_chooses_others_wait(root: Path) -> None:
    done = threading.Event()

    def work() -> None:
        Registry(root).activate("a", "v10")
        done.set()

    thread = threading.Thread(target=work)
    with ActiveVersion(root / "a").locked():
        thread.start()
        assert not done.wait(0.1)
        assert Registry(root).current("a") == "v2"
    thread.join()
    assert Registry(root).current("a") == "v10"


def test_a_kill_before_the_choice_is_written_leaves_the_earlier_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(root).activate("a", "v10")

    def die(choice: ActiveVersion, version: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ActiveVersion, "go_back", die)
    with pytest.raises(KeyboardInterrupt):
        Registry(root).activate("a", "v1")
    assert (Registry(root).current("a"), Registry(root).previous("a")) == ("v10", "v2")


def test_the_lock_is_given_back_when_the_block_fails(root: Path) -> None:
    with pytest.raises(RuntimeError, match="lost"), ActiveVersion(root / "a").locked():
        raise RuntimeError("lost")
    thread = threading.Thread(target=Registry(root).activate, args=("a", "v10"), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
