"""A model of `tests.server.service` with what people look at: samples and a codebook."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.manifest import PRIOR_FILE, SAMPLES_FILE, Manifest, write_manifest
from masc_core.images import Pixels, contact_sheet
from masc_core.io.files import sha256_file
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import SemanticTree
from tests.prior_trees import random_patches, random_tree
from tests.server.service import CLASS_NAMES, NUM_CLUSTERS, draw, write_model

NUM_CODES = 32
TREE: SemanticTree = random_tree(NUM_CODES)
PRIOR: ClusterMap = TREE.cut(NUM_CLUSTERS)
PATCHES: Pixels = random_patches(NUM_CODES, 4)


def write_pictured(
    root: Path,
    prior: ClusterMap = PRIOR,
    name: str = "tiny",
    version: str = "v1",
    patches: Pixels = PATCHES,
    class_names: Sequence[str] = CLASS_NAMES,
) -> Manifest:
    """Put it under a registry's root, as the active version."""
    manifest = write_model(root, name, version, class_names=class_names)
    folder = root / name / manifest.version
    prior.save(folder / PRIOR_FILE)
    return add_files(
        folder, manifest, {SAMPLES_FILE: samples(), **CodebookFiles(TREE, patches).encode()}
    )


def add_files(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Write files into a bundle and list them, and the prior, as they are."""
    for file, content in files.items():
        (folder / file).write_bytes(content)
    listed = {file: sha256_file(folder / file) for file in [*files, PRIOR_FILE]}
    return write_manifest(
        folder, manifest.model_copy(update={"files": {**manifest.files, **listed}})
    )


def samples() -> bytes:
    """A sheet of one disc a class, seed 0, enlarged."""
    images = [
        np.asarray(Image.open(io.BytesIO(draw(label, 0, "png")))).repeat(5, 0).repeat(5, 1)
        for label in range(len(CLASS_NAMES))
    ]
    file = io.BytesIO()
    contact_sheet(images, 10, captions=CLASS_NAMES).save(file, "PNG")
    return file.getvalue()
