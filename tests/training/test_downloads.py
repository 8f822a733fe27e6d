"""Weights by address, from servers on loopback that speak the hub's protocol."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from masc_core.errors import ArtifactError, ConfigError
from tests.command_line import ROOT, environment
from tests.hub_server import Hub, hub_server
from training import downloads
from training.config import without_secrets
from training.downloads import local_file

CONTENT = bytes(range(256)) * 2000
ADDRESS = "hf://owner/repo/weights.pt"
PIECE = 10 << 20  # what the library writes at once
FETCH = "import sys; from training.downloads import local_file; print(local_file(sys.argv[1]))"


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub of this process from now on, as ``HF_ENDPOINT`` makes it of a new one."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with files, and an empty cache of this process."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setenv("HF_TOKEN", "mine")
    with hub_server() as server:
        use(server, monkeypatch)
        server.files = {
            "owner/repo/weights.pt": CONTENT,
            "owner/repo/sub/small.txt": b"small",
            "gated/repo/weights.pt": CONTENT,
            "plain/weights.pt": CONTENT,
        }
        server.headers = {"ETag": '"one"'}
        yield server


def variables(hub: Hub, folder: Path) -> dict[str, str]:
    """The same hub and cache for a process of its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}


def kept(folder: Path) -> list[str]:
    """Names of files that hold content, whole or begun."""
    names = [one.name for one in folder.rglob("*") if one.is_file() and not one.is_symlink()]
    return sorted(one for one in names if not one.endswith((".lock", ".TAG", "main")))


def test_a_file_of_the_hub_is_fetched_once(hub: Hub) -> None:
    told: list[tuple[int, int, str]] = []
    path = local_file(ADDRESS, lambda *one: told.append(one))
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.pt"
    assert told
    assert told[-1] == (0, 0, "MB of weights.pt")
    assert try_to_load_from_cache("owner/repo", "weights.pt") == str(path)
    assert local_file(ADDRESS) == path
    assert len(hub.gets()) == 1


@pytest.mark.parametrize(
    "address",
    [
        "hf://owner/repo/weights.pt@v1",
        "hf://owner/repo@v1/weights.pt",
        f"hf://owner/repo/weights.pt@{'b' * 40}",
    ],
)
def test_a_revision_stands_at_the_end_or_as_the_hub_writes_it(hub: Hub, address: str) -> None:
    assert f"/snapshots/{'b' * 40}/" in str(local_file(address))


def test_a_file_without_lfs_has_the_checksum_of_git(hub: Hub) -> None:
    assert local_file("hf://owner/repo/sub/small.txt").read_bytes() == b"small"


def test_the_token_goes_to_the_hub_alone(hub: Hub) -> None:
    hub.token = os.environ["HF_TOKEN"]
    assert local_file("hf://gated/repo/weights.pt").read_bytes() == CONTENT
    local_file(f"{hub.web}/plain/weights.pt")
    assert {one.authorization for one in hub.requests if "/resolve/" in one.path} == {"Bearer mine"}
    assert {one.authorization for one in hub.requests if "/resolve/" not in one.path} == {""}


def test_a_lost_connection_is_taken_up_again(hub: Hub) -> None:
    hub.cut = [200_000]
    assert local_file(ADDRESS).read_bytes() == CONTENT
    first, second = hub.gets()
    assert not first.range
    assert second.range == f"bytes={200_000 >> 16 << 16}-"


def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    content = hub.files["owner/repo/weights.pt"] = os.urandom(2 * PIECE)
    hub.cut, hub.stalls = [PIECE + 5], True
    command, env = [sys.executable, "-c", FETCH, ADDRESS], environment() | variables(hub, tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    while not [one for one in tmp_path.rglob("*.incomplete") if one.stat().st_size >= PIECE]:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(name.endswith(".incomplete") for name in kept(tmp_path))
    assert local_file(ADDRESS).read_bytes() == content
    assert hub.gets()[-1].range == f"bytes={PIECE}-"
    assert kept(tmp_path) == [hashlib.sha256(content).hexdigest()]


def interrupt_half_way(address: str) -> None:
    """Begin a download, and press Ctrl-C."""

    pieces = iter(range(4))

    def report(*_: object) -> None:
        if next(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_file(address, report)


@pytest.mark.parametrize("address", [ADDRESS, "{web}/plain/weights.pt"])
def test_an_interrupted_download_goes_on(hub: Hub, tmp_path: Path, address: str) -> None:
    address = address.format(web=hub.web)
    interrupt_half_way(address)
    assert all(name.endswith(".incomplete") for name in kept(tmp_path))
    assert local_file(address).read_bytes() == CONTENT
    assert f"bytes={3 << 16}-" in {one.range for one in hub.requests}
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("etag", ['"two"', 'W/"one"', ""])
def test_a_url_that_may_have_changed_begins_anew(hub: Hub, tmp_path: Path, etag: str) -> None:
    url = f"{hub.web}/plain/weights.pt"
    hub.headers = {"ETag": etag if etag.startswith("W/") else '"one"'}
    interrupt_half_way(url)
    hub.files["plain/weights.pt"], hub.headers = CONTENT[::-1], {"ETag": etag}
    assert local_file(url).read_bytes() == CONTENT[::-1]
    assert {one.range for one in hub.requests} == {""}


def test_two_at_once_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    command, env = [sys.executable, "-c", FETCH, ADDRESS], environment() | variables(hub, tmp_path)
    both = [
        subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    paths = {process.communicate()[0] for process in both}
    assert len(paths) == 1
    assert len(hub.gets()) == 1


def test_without_a_network_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = local_file(ADDRESS)
    hub.statuses = {"HEAD": 503}
    assert local_file(ADDRESS) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file(ADDRESS) == path
    with pytest.raises(ArtifactError, match=r"small.txt: is not in the cache, and HF_HUB_OFFLINE"):
        local_file("hf://owner/repo/sub/small.txt")


def test_nothing_listens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server() as gone:
        pass
    use(gone, monkeypatch)
    for address in (ADDRESS, f"{gone.web}/plain/weights.pt"):
        with pytest.raises(
            ArtifactError, match=r"the server cannot be reached: .*refused"
        ) as error:
            local_file(address)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://owner/repo/none.pt", "the repository has no such file"),
        ("hf://owner/repo/weights.pt@none", "the repository has no such revision"),
        ("hf://nobody/repo/weights.pt", "there is no such repository, or HF_TOKEN may not read it"),
        ("hf://gated/repo/weights.pt", "is gated: agree to its terms"),
        ("{web}/plain/none.pt", "the server answers 404"),
        ("{web}/plain/page.pt", "is a web page, and no file of weights"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    hub: Hub, tmp_path: Path, address: str, reason: str
) -> None:
    hub.files["plain/page.pt"] = b"\n <!DOCTYPE html><title>Sign in</title>"
    address = address.format(web=hub.web)
    with pytest.raises(ArtifactError) as error:
        local_file(address)
    assert str(error.value).startswith(f"{address}: {reason}")
    assert "\n" not in str(error.value)
    assert not kept(tmp_path)


@pytest.mark.parametrize(("status", "reason"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (500, "500")])
def test_other_answers_are_told(hub: Hub, status: int, reason: str) -> None:
    hub.statuses = {"HEAD": status, "GET": status}
    for address in (ADDRESS, f"{hub.web}/plain/weights.pt"):
        with pytest.raises(ArtifactError, match=f"answers {status}.*{reason}|answers {reason}"):
            local_file(address)


def test_a_server_that_is_no_hub_is_told(hub: Hub) -> None:
    hub.files["plain/repo/resolve/main/weights.pt"] = b"<html>"
    hub.statuses = {"HEAD": 200}
    with pytest.raises(ArtifactError, match=f"{hub.url} does not answer as a hub does"):
        local_file(ADDRESS)


def test_content_of_another_checksum_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.sent[hashlib.sha256(CONTENT).hexdigest()] = CONTENT[::-1]
    with pytest.raises(ArtifactError, match=f"{ADDRESS}: has the checksum "):
        local_file(ADDRESS)
    assert not kept(tmp_path)
    hub.sent.clear()
    assert local_file(ADDRESS).read_bytes() == CONTENT


def test_an_address_may_name_its_checksum(hub: Hub, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    hub.files[f"plain/vgg16-{digest[:8]}.pth"] = CONTENT
    hub.files["plain/vgg16-0123456a.pth"] = CONTENT
    assert local_file(f"{hub.web}/plain/weights.pt#sha256={digest}").read_bytes() == CONTENT
    assert local_file(f"{hub.web}/plain/vgg16-{digest[:8]}.pth").read_bytes() == CONTENT
    before = kept(tmp_path)
    for wrong in (f"vgg16-{digest[:8]}.pth?x#sha256={'0' * 64}", "vgg16-0123456a.pth"):
        with pytest.raises(ArtifactError, match="has the checksum"):
            local_file(f"{hub.web}/plain/{wrong}")
    with pytest.raises(ArtifactError, match="has the checksum"):  # of what is here already, too
        local_file(f"{hub.web}/plain/weights.pt#sha256={'0' * 64}")
    assert kept(tmp_path) == before


def test_a_url_is_fetched_once_and_its_secrets_are_not_shown(hub: Hub) -> None:
    url = hub.web.replace("//", "//user:password@") + "/plain/weights.pt?signature=secret"
    assert local_file(url) == local_file(url)
    assert len(hub.gets("/plain/")) == 1
    with pytest.raises(ArtifactError) as error:
        local_file(url.replace("weights", "none"))
    assert str(error.value).startswith(f"{hub.web}/plain/none.pt: ")
    assert "password" not in str(error.value)
    assert "secret" not in str(error.value)
    assert without_secrets(url) == f"{hub.web}/plain/weights.pt"


@pytest.mark.parametrize(
    "name", ["weights-20240315.pt", f"weights-{'a' * 40}.pt", "w-abcdef012.pt"]
)
def test_dates_and_other_digits_in_names_are_no_checksums(hub: Hub, name: str) -> None:
    hub.files[f"plain/{name}"] = CONTENT
    assert local_file(f"{hub.web}/plain/{name}").read_bytes() == CONTENT


def test_an_outdated_file_is_fetched_again_for_its_checksum(hub: Hub) -> None:
    url, new = f"{hub.web}/plain/weights.pt", CONTENT[::-1]
    assert local_file(url).read_bytes() == CONTENT
    hub.files["plain/weights.pt"], hub.headers = new, {"ETag": '"two"'}
    asked = f"{url}#sha256={hashlib.sha256(new).hexdigest()}"
    assert local_file(asked).read_bytes() == new
    assert local_file(asked).read_bytes() == new
    assert len(hub.gets("/plain/")) == 2


@pytest.mark.parametrize(
    "rest", ["huggingface.co/a/b/resolve/main", "h/a.pt#token=password", "h/?password"]
)
def test_what_is_refused_shows_no_secrets(hub: Hub, rest: str) -> None:
    with pytest.raises(ConfigError) as error:
        local_file(f"https://user:password@{rest}")
    assert "password" not in str(error.value)


def test_retries_and_wrong_sizes_show_no_secrets(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.cut, hub.stalls = [100_000], True
    url = f"{hub.web}/plain/weights.pt?signature=secret"
    assert local_file(url).read_bytes() == CONTENT
    assert len(hub.gets("/plain/")) == 2
    hub.files["owner/repo/other.pt"], hub.size = CONTENT, 600_000
    with pytest.raises(ArtifactError, match="should be of size 600000") as error:
        local_file("hf://owner/repo/other.pt")
    assert "secret" not in str(error.value) + capfd.readouterr().err


def test_without_a_length_some_of_the_disk_stays_free(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.lengths, url = False, f"{hub.web}/plain/weights.pt"
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "RESERVE", 10**18)
        with pytest.raises(ArtifactError, match="the disk is too full") as error:
            local_file(url)
    assert "\n" not in str(error.value)
    assert not kept(tmp_path)
    assert local_file(url).read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for address in (ADDRESS, f"{hub.web}/plain/weights.pt"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
        try:
            with pytest.raises(ArtifactError, match="cannot be fetched: File too large"):
                local_file(address)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert not kept(tmp_path)


def test_what_a_disk_cannot_hold_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.size = 10**18
    with pytest.raises(ArtifactError, match=r"the disk is too full: it needs 1000000000.0 GB"):
        local_file(ADDRESS)
    assert not hub.gets()
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "hf://",
            "hf://owner",
            "hf://owner/repo",
            "hf://owner/repo/../../x",
            "hf://owner/repo/x@",
        ),
        *("https://", "https://host", "https://host/", "https://[/x.pt", "https://host/a/.."),
        *("https://host/x.pt#md5=1", "s3://bucket/x.pt", "file:///x.pt"),
    ],
)
def test_what_is_no_address_is_refused(hub: Hub, address: str) -> None:
    with pytest.raises((ArtifactError, ConfigError)) as error:
        local_file(address)
    assert str(error.value).startswith(without_secrets(address))
    assert not hub.requests


def test_a_path_stays_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert local_file("a/b.pt") == Path("a/b.pt")
    assert local_file("~/b.pt") == Path("/home/somebody/b.pt")
