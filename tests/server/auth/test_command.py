from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from masc_core.errors import ConfigError
from server.auth.api_keys import KeyFile, hash_key, read_keys
from server.auth.command import create, keys_app, revoke

BOB = f"""# Bob left in May.
[[keys]]
name = "bob"
sha256 = "{"ab" * 32}"
queue_share = 0.5 # as agreed
"""
CAROL = f"""[[keys]]
  name = "carol"
  sha256 = "{"cd" * 32}"
"""
HEAD = "# Keys of the service.\n# [[keys]] is one entry\n\n"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASC_API_KEYS_FILE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def run(*arguments: str | Path) -> str:
    """What a command prints on standard output."""
    done = CliRunner().invoke(keys_app(), list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def names(path: Path) -> list[str]:
    return [key.name for key in read_keys(path)]


def test_the_printed_key_opens_what_the_file_holds(path: Path) -> None:
    key = run("create", "alice", "--file", path).removesuffix("\n")
    assert re.fullmatch(r"masc_[\w-]{43}", key)
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    found = KeyFile(path).find(key)
    assert found is not None
    assert (found.name, found.sha256) == ("alice", hash_key(key))
    assert (found.requests_per_minute, found.queue_share) == (None, None)


def test_limits_are_written(path: Path) -> None:
    limits = ("--requests-per-minute", "60", "--queue-share", "0.25")
    run("create", "alice", "--file", path, *limits)
    (key,) = read_keys(path)
    assert (key.requests_per_minute, key.queue_share) == (60, 0.25)
    run("create", "bob", "--file", path, "--weight", "0.5", "--priority", "batch")
    key = read_keys(path)[1]
    assert (key.weight, key.priority) == (0.5, "batch")
    assert ["bob", "default", "default", "0.5", "batch"] in [
        line.replace("│", " ").split() for line in run("list", "--file", path).splitlines()
    ]


def test_the_file_is_that_of_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--file"):
        create("alice")
    monkeypatch.setenv("MASC_API_KEYS_FILE", str(path))
    run("create", "alice")
    assert "alice" in run("list")


def test_a_new_entry_leaves_the_rest_as_it_was(path: Path) -> None:
    path.write_text(HEAD + BOB)
    path.chmod(0o640)
    run("create", "alice", "--file", path)
    assert path.read_text().startswith(HEAD + BOB + "\n[[keys]]\n")
    assert names(path) == ["bob", "alice"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "real.toml")
    run("create", "alice", "--file", path)
    assert path.is_symlink()
    assert names(tmp_path / "real.toml") == ["alice"]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("bob", {}, r"entry 2 \(bob\): name: is that of entry 1 too"),
        ('x"\n[[keys]]', {}, "entry 2: name"),
        ("\U0001f600", {}, "is not TOML"),
        ("", {}, "entry 2: name"),
        ("alice", {"queue_share": 1.5}, "entry 2: queue_share"),
        ("alice", {"queue_share": float("inf")}, "is not TOML"),
        ("alice", {"weight": 0.0}, "entry 2: weight"),
        ("alice", {"requests_per_minute": -1}, "entry 2: requests_per_minute"),
    ],
)
def test_what_would_be_wrong_is_not_written(
    path: Path, name: str, options: dict[str, float], named: str
) -> None:
    path.write_text(BOB)
    with pytest.raises(ConfigError, match=named):
        create(name, path, **options)  # type: ignore[arg-type]
    assert path.read_text() == BOB


@pytest.mark.parametrize("content", [b"[[keys", b"\xff", b'keys = [{name = "a"}]'])
def test_a_damaged_file_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for command in (create, revoke):
        with pytest.raises(ConfigError, match=str(path)):
            command("alice", path)
    assert path.read_bytes() == content


def test_the_list_has_names_and_limits_and_no_hash(path: Path) -> None:
    path.write_text(BOB + CAROL)
    path.chmod(0o600)
    shown = run("list", "--file", path)
    assert re.search(r"bob\W+default\W+0\.5", shown)
    assert re.search(r"carol\W+default\W+default", shown)
    assert "abab" not in shown


@pytest.mark.parametrize(
    ("name", "left"), [("bob", HEAD + CAROL), ("carol", HEAD + BOB), ("alice", None)]
)
def test_revoking_takes_out_one_entry_and_its_comment(
    path: Path, name: str, left: str | None
) -> None:
    path.write_text(HEAD + BOB + CAROL)
    if left is None:
        with pytest.raises(ConfigError, match="no key of that name"):
            revoke(name, path)
        left = HEAD + BOB + CAROL
    else:
        assert f"{name} is revoked" in run("revoke", name, "--file", path)
    assert path.read_text() == left


def test_the_last_key_can_go_and_another_come(path: Path) -> None:
    first = run("create", "alice", "--file", path)
    run("revoke", "alice", "--file", path)
    assert names(path) == []
    assert run("create", "alice", "--file", path) != first
    assert names(path) == ["alice"]


def test_entries_in_another_form_are_for_people_to_edit(path: Path) -> None:
    content = f'keys = [{{name = "bob", sha256 = "{"ab" * 32}"}}]\n'
    path.write_text(content)
    with pytest.raises(ConfigError, match="by hand"):
        revoke("bob", path)
    with pytest.raises(ConfigError, match="is not TOML"):
        create("alice", path)
    assert path.read_text() == content


def test_keys_made_at_once_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create(f"k{number}", path), range(8)))
    assert sorted(names(path)) == [f"k{i}" for i in range(8)]
