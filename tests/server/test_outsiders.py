"""What a running service tells people outside, and what they can write into its log."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from masc_core.bundle.manifest import PRIOR_FILE
from tests.command_line import Masc, service
from tests.tiny_bundle import save_tiny_bundle

RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +[\w.]+: ")


def test_neither_hosts_nor_folders_are_told_nor_lines_forged(tmp_path: Path, masc: Masc) -> None:
    models = tmp_path / "models"
    for version in ("1", "2"):
        save_tiny_bundle(models, version=version)
    prior = models / "tiny" / "2" / PRIOR_FILE
    prior.write_bytes(prior.read_bytes()[:-1])
    keys = tmp_path / "admins.toml"
    key = masc("keys", "create", "root", "--file", keys).stdout.strip()

    with service(models, MASC_ADMIN_KEYS_FILE=str(keys)) as (process, client):
        pages = ("/status", "/readyz", "/metrics", "/models", "/models/tiny/classes", "/version")
        answers = {path: client.get(path).text for path in pages}
        headers = {"Authorization": f"Bearer {key}"}
        (worker,) = client.get("/status", headers=headers).json()["workers"]
        name = "x%0a2026-01-01 00:00:00,000 INFO    server: forged"
        refused = client.post(
            f"/admin/models/{name}/activate", json={"version": "2"}, headers=headers
        )
        damaged = client.post("/admin/models/tiny/activate", json={"version": "2"}, headers=headers)
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()  # to its end

    assert worker["id"].startswith(f"{socket.gethostname()}-")  # an admin asks
    assert f"{prior}: is truncated or altered" in worker["detail"]
    for path, text in answers.items():
        assert socket.gethostname() not in text, path
        assert str(tmp_path) not in text, path
    assert refused.status_code == 404
    assert damaged.status_code == 409
    assert f"{prior}: is truncated or altered" in damaged.json()["detail"]
    records = [line for line in log.splitlines() if not line.startswith(" ")]
    assert all(RECORD.match(line) for line in records), records
    assert sum("forged" in line for line in records) == 1
    assert not any(line.startswith("2026-01-01") for line in records)
