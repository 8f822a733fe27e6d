from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.manifest import SAMPLES_FILE
from masc_core.errors import ArtifactError
from server.codebook_view.bundle_files import read_file
from tests.server.pictured_model import samples, write_pictured


def test_a_file_as_it_was_published(tmp_path: Path) -> None:
    manifest = write_pictured(tmp_path)
    assert read_file(tmp_path, manifest, SAMPLES_FILE) == samples()


def test_a_file_that_was_altered_or_is_gone_is_refused(tmp_path: Path) -> None:
    manifest = write_pictured(tmp_path)
    path = tmp_path / "tiny" / "v1" / SAMPLES_FILE
    path.write_bytes(samples()[:-1])
    with pytest.raises(ArtifactError, match=r"samples\.png: is truncated or altered"):
        read_file(tmp_path, manifest, SAMPLES_FILE)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"samples\.png: cannot be read: No such file"):
        read_file(tmp_path, manifest, SAMPLES_FILE)
