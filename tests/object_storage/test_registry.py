"""Against a real S3 server; what a folder of bundles does is the oracle."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from masc_core.bundle.manifest import MANIFEST_FILE, PRIOR_FILE, TRANSFORMER_FILE, verify_files
from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import CURRENT_FILE, HISTORY_FILE, Registry
from masc_core.errors import ArtifactError, ConfigError, StorageDownError, UnknownModelError
from object_storage.bucket import Bucket
from object_storage.cached_value import FRESH_SECONDS
from object_storage.registry import CLAIM_FILE, open_registry
from tests.command_line import Masc
from tests.object_storage.published import publish
from tests.object_store import SECRET, ObjectStore

WAIT_SECONDS = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def stopped(object_store: ObjectStore) -> Iterator[ObjectStore]:
    """The server, which a test may stop."""
    yield object_store
    object_store.stop()
    object_store.start()


def test_a_version_comes_out_as_it_went_in(
    registry: Registry, another: Registry, folders: Path
) -> None:
    publish(registry, folders, "1")
    folder = another.path("tiny")
    manifest = Registry(folders).manifest("tiny", "1")
    assert another.manifest("tiny") == manifest
    assert (folder.parent.name, folder.name) == ("tiny", "1")
    verify_files(folder, manifest)
    load_bundle(folder)
    assert another.verify("tiny") == manifest
    assert another.num_bytes(manifest) == Registry(folders).num_bytes(manifest)
    assert another.file(manifest, PRIOR_FILE).read_bytes() == (folder / PRIOR_FILE).read_bytes()


def test_names_and_choices_are_those_of_a_folder(
    registry: Registry, folders: Path, tmp_path: Path
) -> None:
    local = Registry(tmp_path / "local")
    local.root.mkdir()
    for where in (registry, local):
        assert where.names() == ()
        with pytest.raises(ArtifactError, match="holds no model"):
            where.models()
        publish(where, folders, "1", "2", "3")
    steps: list[Callable[[Registry], object]] = [
        lambda where: where.activate("tiny", "2"),
        lambda where: where.activate("tiny", "3"),
        lambda where: where.activate("tiny", "3"),
        lambda where: where.rollback("tiny"),
        lambda where: where.activate("tiny", "1"),
        lambda where: where.rollback("tiny", leaving="1"),
    ]
    for step in steps:
        results = []
        for where in (registry, local):
            step(where)
            listed = (where.names(), where.models(), where.default(), where.versions("tiny"))
            results.append((*listed, where.current("tiny"), where.previous("tiny")))
        assert results[0] == results[1]
    for where in (registry, local):
        with pytest.raises(UnknownModelError, match="no model 'other'"):
            where.current("other")
        for version in ("4", "../1", ""):
            with pytest.raises(UnknownModelError, match="has no"):
                where.activate("tiny", version)
        with pytest.raises(ConfigError, match="no model 'other' in"):
            where.default("other")
        assert where.next_version("tiny") == "4"
        assert where.next_version("other") == "1"


def test_each_activation_is_another_one(registry: Registry, folders: Path) -> None:
    publish(registry, folders, "1")
    seen = {registry.activation("tiny")}
    for _ in range(3):
        registry.activate("tiny", "1")
        seen.add(registry.activation("tiny"))
    assert len(seen) == 4


def test_activations_at_once_come_one_after_the_other(
    registry: Registry, url: str, folders: Path
) -> None:
    publish(registry, folders, "1", "2", "3")
    registries = [open_registry(url) for _ in range(6)]
    start = threading.Barrier(len(registries))

    def activate(index: int) -> None:
        start.wait()
        registries[index].activate("tiny", "23"[index % 2])

    with ThreadPoolExecutor(len(registries)) as pool:
        assert len(list(pool.map(activate, range(len(registries))))) == len(registries)
    fresh = open_registry(url)
    active = fresh.current("tiny")
    past = [active]
    while fresh.previous("tiny") is not None:
        past.append(fresh.rollback("tiny"))
    assert sorted(past) == ["1", "2", "3"]  # none is lost
    assert past[-1] == "1"


def test_an_activation_is_not_written_over_one_that_was_not_seen(
    registry: Registry, another: Registry, folders: Path
) -> None:
    publish(registry, folders, "1", "2", "3")
    assert another.current("tiny") == "1"  # and now that is what it knows
    registry.activate("tiny", "2")
    with pytest.raises(ArtifactError, match="names '2' by now, not '1'"):
        another.rollback("tiny", leaving="1")
    another.activate("tiny", "3")
    assert another.previous("tiny") == "2"


def test_publications_at_once_get_numbers_of_their_own(url: str, folders: Path) -> None:
    all_have_begun = threading.Barrier(4)

    def publish_next(_: int) -> None:
        with open_registry(url).new_version("tiny") as (_folder, version):
            all_have_begun.wait()
            raise InterruptedError(version)

    with ThreadPoolExecutor(4) as pool:
        failures = [pool.submit(publish_next, index) for index in range(4)]
        assert sorted(str(one.exception()) for one in failures) == ["1", "2", "3", "4"]
    assert open_registry(url).next_version("tiny") == "1"  # nothing is left


def test_a_version_is_listed_when_it_is_complete_and_never_changed(
    registry: Registry, url: str, bucket: Bucket, folders: Path
) -> None:
    another = open_registry(url)
    with registry.new_version("tiny", "1") as (folder, _):
        assert open_registry(url).names() == ()
        with (
            pytest.raises(ArtifactError, match=r"/1/\.publishing: is there: the version is being"),
            another.new_version("tiny", "1"),
        ):
            pass
        shutil.copytree(folders / "tiny" / "1", folder, dirs_exist_ok=True)
    assert open_registry(url).versions("tiny") == ("1",)
    before = bucket.sizes("tiny")
    assert not [path for path in before if CLAIM_FILE in path]
    with pytest.raises(ArtifactError, match="/tiny/1: exists already"):
        publish(another, folders, "1")
    assert bucket.sizes("tiny") == before


def test_a_publication_that_fails_leaves_no_version(
    registry: Registry, bucket: Bucket, folders: Path
) -> None:
    with (
        pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"),
        registry.new_version("tiny", "1"),
    ):
        pass
    assert bucket.sizes("tiny") == {}
    publish(registry, folders, "1")
    assert registry.current("tiny") == "1"


@pytest.mark.parametrize("damage", ["truncated", "altered", "grown", "gone"])
def test_a_damaged_object_is_refused_and_changes_nothing(
    registry: Registry, url: str, bucket: Bucket, folders: Path, tmp_path: Path, damage: str
) -> None:
    publish(registry, folders, "1", "2")
    path = f"tiny/2/{TRANSFORMER_FILE}"
    content = bytearray((folders / path).read_bytes())
    bucket.delete(path)
    if damage == "altered":
        content[-1] ^= 1
    if damage != "gone":
        length = len(content) - (damage == "truncated")
        bucket.write(path, bytes(content[:length]) + b"!" * (damage == "grown"))
    reason = "listed in the manifest but missing" if damage == "gone" else "truncated or altered"
    match = rf"^{url}/tiny/2/transformer\.safetensors: is {reason}"
    for use in (registry.verify, registry.path, registry.activate):
        with pytest.raises(ArtifactError, match=match):
            use("tiny", "2")
    assert registry.current("tiny") == "1"
    assert not (
        tmp_path / "cache" / "files" / registry.manifest("tiny", "2").files[TRANSFORMER_FILE]
    ).exists()


def test_a_manifest_that_was_altered_is_refused(
    registry: Registry, url: str, bucket: Bucket, folders: Path
) -> None:
    publish(registry, folders, "1", "2")
    path = f"tiny/2/{MANIFEST_FILE}"
    bucket.delete(path)
    bucket.write(path, (folders / "tiny" / "1" / MANIFEST_FILE).read_bytes())
    with pytest.raises(ArtifactError, match=rf"^{url}/tiny/2/manifest\.json: is that of tiny 1"):
        open_registry(url).activate("tiny", "2")
    bucket.delete(path)
    bucket.write(path, b" " * (5 << 20))
    with pytest.raises(ArtifactError, match=r"manifest\.json: has more than 4,194,304 bytes"):
        open_registry(url).manifest("tiny", "2")


def test_an_active_version_that_is_none_is_named(
    registry: Registry, url: str, bucket: Bucket, folders: Path
) -> None:
    publish(registry, folders, "1")
    for content, reason in {
        b"9\n": "names '9', which is not a version of 'tiny'",
        b"../1": "names '../1', which is not a version of 'tiny'",
        b"\0": "cannot be read: it is binary",
    }.items():
        bucket.delete(f"tiny/{CURRENT_FILE}")
        bucket.write(f"tiny/{CURRENT_FILE}", content)
        with pytest.raises(ArtifactError) as caught:
            open_registry(url).current("tiny")
        assert str(caught.value).startswith(f"{url}/tiny/current: {reason}")
    bucket.delete(f"tiny/{CURRENT_FILE}")
    for use in (open_registry(url).current, lambda _: open_registry(url).models()):
        with pytest.raises(ArtifactError, match="current: is missing: no version"):
            use("tiny")


def test_a_folder_that_was_copied_is_a_registry(
    registry: Registry, bucket: Bucket, folders: Path, tmp_path: Path
) -> None:
    """Both have one layout, so that programs which copy them will do."""
    local = Registry(tmp_path / "local")
    publish(local, folders, "1", "2")
    local.activate("tiny", "2")
    for file in (path for path in local.root.rglob("*") if path.is_file()):
        bucket.upload(str(file.relative_to(local.root)), file)
    assert (registry.current("tiny"), registry.previous("tiny")) == ("2", "1")
    registry.activate("tiny", "1")
    for name in (CURRENT_FILE, HISTORY_FILE):
        content = bucket.read(f"tiny/{name}", 1 << 20).content
        (local.root / "tiny" / name).write_bytes(content)
    assert (local.current("tiny"), local.previous("tiny")) == ("1", "2")


def test_more_versions_than_one_answer_lists(
    registry: Registry, bucket: Bucket, folders: Path
) -> None:
    publish(registry, folders, "1")
    paths = [f"tiny/{number}/{MANIFEST_FILE}" for number in range(2, 1101)]
    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(lambda path: bucket.write(path, b"{}"), paths))) == 1099
    assert registry.next_version("tiny") == "1101"
    wait_for(lambda: len(registry.versions("tiny")) > 1)
    assert registry.versions("tiny") == tuple(map(str, range(1, 1101)))


def test_a_large_object_comes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    content = secrets.token_bytes((9 << 20) + 17)
    (tmp_path / "large").write_bytes(content)
    bucket.upload("large", tmp_path / "large")
    for start in (0, 1, (4 << 20) - 1, len(content)):
        assert b"".join(bucket.parts("large", start, len(content))) == content[start:]


@pytest.mark.parametrize(
    ("variables", "address", "reason"),
    [
        ({}, "s3://there-is-none/x", "s3://there-is-none/x: the bucket does not exist"),
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "",
            "is refused: 403 Forbidden (SignatureDoesNotMatch)",
        ),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "", "is refused: 403 Forbidden (InvalidAccessKeyId)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "", "cannot be reached: HTTP error"),
    ],
)
def test_what_is_wrong_with_the_storage_is_one_line(
    url: str, masc: Masc, variables: dict[str, str], address: str, reason: str
) -> None:
    for command in (["list"], ["activate", "tiny", "1"], ["rollback", "tiny"], ["verify"]):
        done = masc("models", *command, "--models", address or url, **variables)
        assert done.status == 2, done
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr
        assert SECRET not in done.stderr
        assert "wrong" not in done.stderr


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_a_server_without_encryption_may_be_named_by_any_variable(
    url: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, object_store.variables["AWS_ENDPOINT_URL"])
    assert Bucket(url).folders() == []


def test_encryption_may_be_done_without_by_the_variable_of_the_library(
    url: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT", object_store.variables["AWS_ENDPOINT_URL"].upper())
    with pytest.raises(StorageDownError):
        Bucket(url).folders()
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert Bucket(url).folders() == []


def test_whoever_ends_between_history_and_choice_leaves_no_version_to_go_back_to(
    registry: Registry, bucket: Bucket, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, folders, "1", "2", "3")
    write = Bucket.write

    def end(self: Bucket, path: str, *rest: Any) -> None:
        if path.endswith(CURRENT_FILE):
            raise InterruptedError
        write(self, path, *rest)

    monkeypatch.setattr(Bucket, "write", end)
    with pytest.raises(InterruptedError):
        registry.activate("tiny", "2")
    monkeypatch.undo()
    assert bucket.read(f"tiny/{HISTORY_FILE}", 99).content == b"1\n2\n"
    assert (registry.current("tiny"), registry.previous("tiny")) == ("1", None)
    registry.activate("tiny", "3")
    assert registry.rollback("tiny") == "1"


@pytest.mark.parametrize(
    "address",
    ["s3://key:{}@bucket/x", "s3://bucket/x?token={}", "https://user:{}@host/x", "s3://a/?{}"],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(masc: Masc, address: str) -> None:
    for command in (["models", "list"], ["worker"], ["serve"], ["generate"], ["evaluate"]):
        for arguments in ([*command, "--models", address.format(SECRET)], command):
            done = masc(*arguments, MASC_MODELS_DIR=address.format(SECRET))
            assert done.status == 2
            assert done.stderr.count("\n") == 1
            assert SECRET not in done.stderr


def test_the_command_line_manages_it(
    registry: Registry, url: str, bucket: Bucket, folders: Path, masc: Masc
) -> None:
    publish(registry, folders, "1", "2")
    assert masc("models", "activate", "tiny", "2", "--models", url).status == 0
    listed = json.loads(masc("models", "list", "--json", "--models", url).stdout)
    assert [(row["version"], row["state"]) for row in listed] == [("1", "previous"), ("2", "*")]
    assert all(float(row["megabytes"]) > 0 for row in listed)
    assert masc("models", "rollback", "tiny", "--models", url).stdout == "tiny 1 is active again\n"
    assert masc("models", "verify", MASC_MODELS_DIR=url).status == 0
    bucket.delete("tiny/2/prior.npz")
    done = masc("models", "verify", MASC_MODELS_DIR=url)
    assert done.status == 2
    assert f"{url}/tiny/2/prior.npz: is listed in the manifest but missing" in done.stderr
    listed = masc("models", "list", "--models", url).stdout
    assert "damaged: is listed in the manifest but missing" in listed


def test_images_are_those_of_a_folder(
    registry: Registry, url: str, folders: Path, masc: Masc, tmp_path: Path
) -> None:
    publish(registry, folders, "2")
    Registry(folders).activate("tiny", "2")
    for models, name in ((url, "bucket.png"), (folders, "folder.png")):
        done = masc(
            "generate", "--models", str(models), "--out", tmp_path / name, "--device", "cpu"
        )
        assert done.status == 0, done.stderr
    assert (tmp_path / "bucket.png").read_bytes() == (tmp_path / "folder.png").read_bytes()


def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, masc: Masc
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    done = masc("models", "list", "--models", "s3://bucket/x")
    assert done.status == 2
    assert done.stderr == (
        "masc: MASC_MODELS_DIR: s3://bucket/x needs obstore: pip install 'masc[object-storage]'\n"
    )


def test_while_the_storage_is_away_what_was_read_holds(
    registry: Registry,
    url: str,
    folders: Path,
    stopped: ObjectStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(registry, folders, "1", "2")
    folder = registry.path("tiny")
    before = registry.activation("tiny")
    assert registry.models() == ("tiny",)
    stopped.stop()
    wait_for(lambda: registry.current("tiny") == "1" and "cannot be reached" in caplog.text)
    assert registry.models() == ("tiny",)
    assert registry.activation("tiny") == before
    assert registry.path("tiny") == folder
    with pytest.raises(StorageDownError, match="cannot be reached"):
        registry.activate("tiny", "2")
    with pytest.raises(StorageDownError, match="cannot be reached"):
        registry.path("tiny", "2")
    with pytest.raises(StorageDownError, match=f"^{url}: cannot be reached"):
        open_registry(url).models()
    stopped.start()
    open_registry(url).activate("tiny", "2")
    wait_for(lambda: registry.current("tiny") == "2")
    assert caplog.text.count("what was read before holds") <= 3  # an object once, not every time


def test_a_storage_that_hangs_is_given_up(
    registry: Registry, url: str, folders: Path, object_store: ObjectStore
) -> None:
    publish(registry, folders, "1")
    object_store.hang()
    try:
        start = time.monotonic()
        with pytest.raises(StorageDownError, match="cannot be reached"):
            open_registry(url).models()
        assert time.monotonic() - start < 30
        start = time.monotonic()
        while time.monotonic() < start + 1.2 * FRESH_SECONDS:
            begun = time.monotonic()
            assert registry.current("tiny") == "1"
            assert time.monotonic() - begun < 1
    finally:
        object_store.go_on()
