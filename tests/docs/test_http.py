"""What docs/http.md and the README ask of a service, asked as written, with the shipped model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.command_line import ROOT, environment, service
from tests.docs.markdown import Document

WRITTEN = "http://127.0.0.1:8000"
HTTP = Document(ROOT / "docs" / "http.md")
README = Document(ROOT / "README.md")


@dataclass(frozen=True)
class Site:
    """A service, and a user in a folder of his own who has the key of an admin."""

    url: str
    folder: Path
    admin_key: str

    def run(self, program: str, script: str) -> str:
        """What a script prints, which may not fail, nor may a request in it."""
        done = subprocess.run(
            [program, "-c", script.replace(WRITTEN, self.url)],
            cwd=self.folder,
            env=environment()
            | {
                "HOME": str(self.folder),
                "ADMIN_KEY": self.admin_key,
                "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, blocks: list[str]) -> str:
        """What one shell prints that is given all blocks, one after the other."""
        return self.run("bash", "set -euo pipefail\n" + "\n".join(blocks))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder = tmp_path_factory.mktemp("user")
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    models, keys = folder / "models", folder / "admin.toml"
    shutil.copytree(ROOT / "models", models)
    command = [sys.executable, "-m", "masc", "keys", "create", "me", "--file", str(keys)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with service(models, MASC_ADMIN_KEYS_FILE=str(keys)) as (_, client):
        yield Site(str(client.base_url), folder, made.stdout.strip())


def test_requests_of_the_manual(site: Site) -> None:
    told = site.shell(HTTP.blocks("sh"))
    for name in ("ship.png", "frog.png", "ship.webp"):
        with Image.open(site.folder / name) as image:
            assert image.size == (32, 32), name
    with Image.open(site.folder / "patches.webp") as sheet:
        assert sheet.width > 32
    for part in ("event: preview", "event: done", '"state":"ok"', '"num_codes":2048', '"serving"'):
        assert part in told, part


def test_the_first_request_of_the_readme(site: Site) -> None:
    (block,) = (block for block in README.blocks("sh") if "/generate" in block)
    first = site.folder / "ship.png"
    first.unlink(missing_ok=True)
    site.shell([block])
    made = first.read_bytes()
    site.shell([block])
    assert first.read_bytes() == made
    with Image.open(first) as image:
        assert image.size == (32, 32)


def test_openai_s_client_of_the_manual(site: Site) -> None:
    (block,) = HTTP.blocks("python")
    assert [line.split()[0] for line in site.run("python", block).splitlines()] == ["3", "4"]
