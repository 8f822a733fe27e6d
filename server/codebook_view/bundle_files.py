"""Files of a bundle that the front end itself shows, read only as they were published."""

from __future__ import annotations

import hashlib
from pathlib import Path

from masc_core.bundle.manifest import Manifest, check_hash
from masc_core.errors import ArtifactError


def read_file(models: Path, manifest: Manifest, name: str) -> bytes:
    """Content of a file that the manifest lists.

    Parameters
    ----------
    models : folder of all bundles
    manifest : of the bundle
    name : one of ``manifest.files``

    Raises
    ------
    ArtifactError : it is missing or altered
    """
    path = models / manifest.name / manifest.version / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(path, f"cannot be read: {error.strerror}") from error
    check_hash(path, hashlib.sha256(content).hexdigest(), manifest.files[name])
    return content
