from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masc_core.errors import ConfigError, ForbiddenError, UnauthorizedError
from masc_core.io.files import atomic_write
from server.auth import api_keys
from server.auth.api_keys import (
    ApiKey,
    Authenticator,
    Client,
    KeyFile,
    hash_key,
    new_key,
    parse_keys,
    read_keys,
)
from server.settings import ServerSettings
from tests.clock import Clock

HASH = "ab" * 32
OTHER = "cd" * 32


def entry(name: str, sha256: str = HASH, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{sha256}"\n{more}\n'


class Keys:
    """A file of keys under test, and who reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock(100.0)
        self.key, self.other = new_key(), new_key()
        self.write(entry("alice", hash_key(self.key)))
        self.file = KeyFile(path, self.clock)

    def write(self, content: str) -> None:
        atomic_write(self.path, content.encode(), mode=0o600)

    def who(self, key: str, *, later: float = 0.0) -> str | None:
        self.clock.now += later
        found = self.file.find(key)
        return found.name if found else None


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.toml")


def test_a_key_is_256_random_bits_and_is_known_by_its_sha256() -> None:
    made = {new_key() for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"masc_[\w-]{43}", key, re.ASCII) for key in made)
    key = made.pop()
    assert hash_key(key) == hashlib.sha256(key.encode()).hexdigest()


def test_an_entry_with_and_without_its_limits() -> None:
    more = 'requests_per_minute = 60\nqueue_share = 0.25\nweight = 2\npriority = "batch"'
    text = "# who\n" + entry("alice") + entry("bob.smith-2", OTHER, more)
    assert parse_keys(Path("k"), text.encode()) == (
        ApiKey(name="alice", sha256=HASH),
        ApiKey(
            name="bob.smith-2",
            sha256=OTHER,
            requests_per_minute=60,
            queue_share=0.25,
            weight=2.0,
            priority="batch",
        ),
    )


@pytest.mark.parametrize("content", ["", "# nobody\n", "keys = []\n"])
def test_a_file_without_an_entry_is_right(content: str) -> None:
    assert parse_keys(Path("k"), content.encode()) == ()


def test_a_share_of_one_and_a_limit_of_none_are_allowed() -> None:
    (key,) = parse_keys(
        Path("k"), entry("a", HASH, "queue_share = 1\nrequests_per_minute = 0").encode()
    )
    assert (key.queue_share, key.requests_per_minute) == (1.0, 0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (entry("a") + entry("b", OTHER, "color = 1"), "entry 2: color: "),
        (entry("a") + entry("b", OTHER, 'key = "hush"'), "entry 2: key: "),
        (f"masc_hush = 1\n{entry('a')}", "...: "),
        ("[keys]\nname = 1", "keys: "),
        (entry("a") + '[[keys]]\nname = "b"\n', "entry 2: sha256: "),
        (f'[[keys]]\nsha256 = "{HASH}"', "entry 1: name: "),
        (entry("a", "hush"), "entry 1: sha256: "),
        (entry("a", HASH.upper()), "entry 1: sha256: "),
        (entry("a", HASH + "00"), "entry 1: sha256: "),
        (entry(""), "entry 1: name: "),
        (entry("a hush"), "entry 1: name: "),
        (entry("../hush"), "entry 1: name: "),
        (entry("masc_hush"), "entry 1: name: "),
        (entry("anonymous"), "entry 1: name: "),
        (entry("a", more="queue_share = 0"), "entry 1: queue_share: "),
        (entry("a", more="queue_share = 1.01"), "entry 1: queue_share: "),
        (entry("a", more="queue_share = nan"), "entry 1: queue_share: "),
        (entry("a", more='queue_share = "1"'), "entry 1: queue_share: "),
        (entry("a", more="weight = 0"), "entry 1: weight: "),
        (entry("a", more="weight = 101"), "entry 1: weight: "),
        (entry("a", more="weight = nan"), "entry 1: weight: "),
        (entry("a", more='priority = "hush"'), "entry 1: priority: "),
        (entry("a", more="priority = 1"), "entry 1: priority: "),
        (entry("a", more="requests_per_minute = -1"), "entry 1: requests_per_minute: "),
        (entry("a", more="requests_per_minute = 1.5"), "entry 1: requests_per_minute: "),
        (entry("a", more="requests_per_minute = true"), "entry 1: requests_per_minute: "),
        (entry("a") + entry("b", OTHER) + entry("a", "ef" * 32), "entry 3 (a): name: "),
        (entry("a") + entry("b"), "entry 2 (b): sha256: is that of entry 1 too"),
        ("[[keys", "is not TOML: "),
        ("a = " + "[" * 5000, "is not TOML: "),
    ],
)
def test_a_wrong_entry_is_named_and_its_value_is_not_shown(content: str, named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_keys(Path("etc/keys.toml"), content.encode())
    message = str(refusal.value)
    assert message.startswith(f"etc/keys.toml: {named}")
    assert "hush" not in message
    assert "\n" not in message


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_keys(Path("k"), b"\xff\xfe")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=f"{path}: cannot be read: "):
            KeyFile(path)


def test_only_a_whole_key_is_found(keys: Keys) -> None:
    assert keys.who(keys.key) == "alice"
    for wrong in ("", keys.key[:-1], f"{keys.key} ", keys.key.upper(), hash_key(keys.key), "é\0"):
        assert keys.who(wrong) is None


def test_every_entry_is_compared_and_in_constant_time(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [new_key() for _ in range(4)]
    keys.write("".join(entry(f"k{i}", hash_key(key)) for i, key in enumerate(made)))
    compared: list[str] = []
    compare: Callable[[str, str], bool] = hmac.compare_digest

    def watch(a: str, b: str) -> bool:
        compared.append(a)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    keys.clock.now += 1
    for key in (made[0], made[3], "unknown"):
        compared.clear()
        keys.who(key)
        assert compared == [hash_key(each) for each in made]


def test_a_change_is_seen_within_a_second_and_looked_for_once_a_second(keys: Keys) -> None:
    keys.write(entry("bob", hash_key(keys.other)))
    assert keys.who(keys.other, later=0.9) is None
    assert keys.who(keys.other, later=0.1) == "bob"
    assert keys.who(keys.key) is None
    keys.write("")
    assert keys.who(keys.other, later=0.5) == "bob"
    assert keys.who(keys.other, later=0.5) is None


@pytest.mark.parametrize("in_place", [False, True])
def test_a_change_of_the_same_length_and_time_is_seen(keys: Keys, in_place: bool) -> None:
    before = keys.path.stat()
    content = entry("carol", hash_key(keys.other))
    if in_place:
        keys.path.write_text(content)
    else:
        keys.write(content)
    os.utime(keys.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys.path.stat().st_size == before.st_size
    assert keys.who(keys.other, later=1) == "carol"


@pytest.mark.parametrize("damage", ["[[keys", "remove"])
def test_a_damaged_file_leaves_the_keys_and_is_told_of_once(
    keys: Keys, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "remove":
        keys.path.unlink()
    else:
        keys.write(damage)
    for _ in range(3):
        assert keys.who(keys.key, later=1) == "alice"
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith(f"{keys.path}: ")
    keys.write(entry("bob", hash_key(keys.other)))
    assert keys.who(keys.other, later=1) == "bob"
    assert keys.who(keys.key) is None


def test_without_a_change_nothing_is_read(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "read_keys", None)
    assert keys.who(keys.key, later=10) == "alice"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o602])
def test_a_file_that_is_open_to_others_is_warned_of(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    atomic_write(tmp_path / "keys.toml", entry("a").encode(), mode)
    read_keys(tmp_path / "keys.toml")
    assert bool(caplog.records) == bool(mode & 0o007)
    assert all("chmod 600" in record.message for record in caplog.records)


def test_no_key_and_no_hash_shows(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found = keys.file.find(keys.key)
    keys.write(entry("alice", hash_key(keys.key)) + entry("bob", hash_key(keys.other)))
    keys.who(keys.other, later=1)
    shown = f"{found!r} {keys.file!r} {vars(keys.file)!r} {caplog.text}"
    assert "alice" in shown
    for secret in (keys.key, keys.other, hash_key(keys.key), hash_key(keys.other)):
        assert secret not in shown


ALICE, BOB, ROOT = "key of alice", "key of bob", "key of root"


def access(folder: Path, **settings: Any) -> Authenticator:
    return Authenticator(ServerSettings(**write_keys(folder) | settings))


def write_keys(folder: Path) -> dict[str, Any]:
    """Both files: a client without limits of her own, one with, and an admin."""
    files = {
        "api_keys_file": f'[[keys]]\nname = "alice"\nsha256 = "{hash_key(ALICE)}"\n'
        f'[[keys]]\nname = "bob"\nsha256 = "{hash_key(BOB)}"\n'
        "requests_per_minute = 0\nqueue_share = 1.0\nweight = 2.5\n",
        "admin_keys_file": f'[[keys]]\nname = "root"\nsha256 = "{hash_key(ROOT)}"\n',
    }
    for name, content in files.items():
        atomic_write(folder / name, content.encode(), mode=0o600)
    return {name: folder / name for name in files}


def test_without_keys_everyone_is_one_client_with_the_whole_queue() -> None:
    everyone = Authenticator(ServerSettings(rate_limit=7, queue_share=0.1))
    for key in (None, "", ALICE):
        assert everyone.client(key) == Client("anonymous", 7, 1.0)


def test_limits_are_those_of_the_entry_or_else_of_the_settings(tmp_path: Path) -> None:
    keys = access(tmp_path, rate_limit=7, queue_share=0.1)
    assert keys.client(ALICE) == Client("alice", 7, 0.1, hash_key(ALICE)[:16])
    assert keys.client(BOB) == Client("bob", 0, 1.0, hash_key(BOB)[:16], 2.5)
    assert access(tmp_path).client(ALICE) == Client("alice", 0, 0.5, hash_key(ALICE)[:16])


@pytest.mark.parametrize("key", [None, "", "wrong", ROOT, hash_key(ALICE)])
def test_a_client_needs_a_client_s_key(tmp_path: Path, key: str | None) -> None:
    with pytest.raises(UnauthorizedError) as refusal:
        access(tmp_path).client(key)
    assert not key or key not in str(refusal.value)


def test_an_admin_needs_an_admin_s_key(tmp_path: Path) -> None:
    keys = access(tmp_path)
    assert keys.admin(ROOT) == "root"
    for key in (None, "", "wrong"):
        with pytest.raises(UnauthorizedError):
            keys.admin(key)
    with pytest.raises(ForbiddenError, match="not an admin's") as refusal:
        keys.admin(ALICE)
    assert ALICE not in str(refusal.value)


def test_without_admins_nobody_is_one(tmp_path: Path) -> None:
    for keys in (Authenticator(ServerSettings()), access(tmp_path, admin_keys_file=None)):
        for key in (None, "", ALICE, ROOT):
            with pytest.raises(ForbiddenError, match="closed"):
                keys.admin(key)


def test_without_clients_keys_an_admin_s_is_still_needed(tmp_path: Path) -> None:
    keys = access(tmp_path, api_keys_file=None)
    assert keys.admin(ROOT) == "root"
    with pytest.raises(UnauthorizedError):
        keys.admin(ALICE)


def test_one_file_for_both_would_make_everyone_an_admin(tmp_path: Path) -> None:
    paths = write_keys(tmp_path)
    (tmp_path / "link").symlink_to(paths["api_keys_file"])
    with pytest.raises(ConfigError, match="MASC_ADMIN_KEYS_FILE"):
        access(tmp_path, admin_keys_file=tmp_path / "link")


@pytest.mark.parametrize("name", ["api_keys_file", "admin_keys_file"])
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        access(tmp_path, **{name: tmp_path / "missing.toml"})
