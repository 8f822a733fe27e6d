"""A service beside whose good version lie bundles that mean harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    PRIOR_FILE,
    TRANSFORMER_FILE,
    read_manifest,
    write_manifest,
)
from masc_core.io.files import sha256_file
from server.auth.api_keys import hash_key
from tests.command_line import ROOT, environment, service
from tests.hostile_files import packed_zeros, sparse, write_prior
from tests.tiny_bundle import save_tiny_bundle

ADMIN = {"X-API-Key": "the key of an admin"}
MAX_GROWTH = 256 << 20


def packed_prior(folder: Path) -> None:
    path = folder / PRIOR_FILE
    write_prior(path, packed_zeros("(100000000,)", size=10**8), n=10**8)
    manifest = read_manifest(folder)
    files = {**manifest.files, PRIOR_FILE: sha256_file(path)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return harm


HARM = {
    "2": replaced(TRANSFORMER_FILE, os.mkfifo),
    "3": replaced(PRIOR_FILE, lambda path: path.symlink_to("/dev/zero")),
    "4": replaced(MANIFEST_FILE, lambda path: sparse(path, 3_000_000_000)),
    "5": replaced(TRANSFORMER_FILE, lambda path: sparse(path, 10**12)),
    "6": packed_prior,
}


def most_memory(pid: int) -> int:
    """Bytes that a process has had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


def test_hostile_versions_are_refused_and_the_old_one_goes_on(tmp_path: Path) -> None:
    models, keys = tmp_path / "models", tmp_path / "admins.toml"
    save_tiny_bundle(models, version="7")
    for version in HARM:
        save_tiny_bundle(models, version=version)
    save_tiny_bundle(models, version="1")
    for version, harm in HARM.items():
        harm(models / "tiny" / version)
    keys.write_text(f'[[keys]]\nname = "root"\nsha256 = "{hash_key(ADMIN["X-API-Key"])}"\n')
    keys.chmod(0o600)

    with service(models, MASC_ADMIN_KEYS_FILE=str(keys)) as (process, client):
        image = {"class_id": 1, "seed": 3}
        expected = client.post("/generate", json=image).json()["images"][0]["b64"]
        before = most_memory(process.pid)
        url = "/admin/models/tiny/activate"
        for version in HARM:
            answer = client.post(url, json={"version": version}, headers=ADMIN)
            assert answer.status_code == 409, answer.text
            assert client.get("/healthz").elapsed.total_seconds() < 1
            assert client.post("/generate", json=image).json()["images"][0]["b64"] == expected
        assert most_memory(process.pid) - before < MAX_GROWTH
        answer = client.post(url, json={"version": "7"}, headers=ADMIN)
        assert (answer.status_code, answer.json()["state"]) == (200, "serving")

    done = subprocess.run(
        [sys.executable, "-m", "masc", "models", "verify", "--models", str(models)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == len(HARM) - 1  # 6 is as it was published
