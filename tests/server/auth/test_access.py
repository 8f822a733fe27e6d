from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masc_core.errors import ConfigError, ForbiddenError, UnauthorizedError
from masc_core.io.files import atomic_write
from server.auth.api_keys import Access, Client, hash_key
from server.settings import ServerSettings

ALICE, BOB, ROOT = "key of alice", "key of bob", "key of root"


def access(folder: Path, **settings: Any) -> Access:
    return Access(ServerSettings(**write_keys(folder) | settings))


def write_keys(folder: Path) -> dict[str, Any]:
    """Both files: a client without limits of her own, one with, and an admin."""
    files = {
        "api_keys_file": f'[[keys]]\nname = "alice"\nsha256 = "{hash_key(ALICE)}"\n'
        f'[[keys]]\nname = "bob"\nsha256 = "{hash_key(BOB)}"\n'
        "requests_per_minute = 0\nqueue_share = 1.0\n",
        "admin_keys_file": f'[[keys]]\nname = "root"\nsha256 = "{hash_key(ROOT)}"\n',
    }
    for name, content in files.items():
        atomic_write(folder / name, content.encode(), mode=0o600)
    return {name: folder / name for name in files}


def test_without_keys_everyone_is_one_client_with_the_whole_queue() -> None:
    everyone = Access(ServerSettings(rate_limit=7, queue_share=0.1))
    for key in (None, "", ALICE):
        assert everyone.client(key) == Client("anonymous", 7, 1.0)


def test_limits_are_those_of_the_entry_or_else_of_the_settings(tmp_path: Path) -> None:
    keys = access(tmp_path, rate_limit=7, queue_share=0.1)
    assert keys.client(ALICE) == Client("alice", 7, 0.1)
    assert keys.client(BOB) == Client("bob", 0, 1.0)
    assert access(tmp_path).client(ALICE) == Client("alice", 0, 0.5)


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
    for keys in (Access(ServerSettings()), access(tmp_path, admin_keys_file=None)):
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
