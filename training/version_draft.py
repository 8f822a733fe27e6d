"""A version that is being made: written, measured as it will be served, then listed.

The draft stands beside its place under a hidden name, on the same disk, and is written once. It is
listed whole or not at all, whenever its process ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.manifest import SAMPLES_FILE, Manifest, ModelCard, write_manifest
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.write import BundleParts, new_bundle, write_bundle
from masc_core.device import choose_dtype, resolve_device
from masc_core.io.files import atomic_write, sha256_file


class VersionDraft:
    """A bundle that nobody sees yet; use `draft_version`."""

    def __init__(self, folder: Path, version: str) -> None:
        self.version = version
        self._folder = folder
        self._manifest: Manifest | None = None

    def write(
        self,
        card: ModelCard,
        parts: BundleParts,
        *,
        weights_dtype: torch.dtype = torch.float16,
        with_encoder: bool = False,
    ) -> Manifest:
        """Write the bundle; arguments and errors as for `masc_core.bundle.write.save_bundle`."""
        self._manifest = write_bundle(
            self._folder, card, parts, weights_dtype=weights_dtype, with_encoder=with_encoder
        )
        return self._manifest

    def load(self, device: str) -> Bundle:
        """Load what was written, as a worker would."""
        on = resolve_device(device)
        return load_bundle(self._folder, on, choose_dtype("auto", on))

    def finish(
        self,
        metrics: Mapping[str, JsonValue] | None = None,
        samples: bytes | None = None,
        codebook: CodebookFiles | None = None,
    ) -> Manifest:
        """Add metrics, a sheet of images and what people see of the codebook."""
        if self._manifest is None:
            raise RuntimeError("a draft must be written before it is finished")
        pictures = {} if samples is None else {SAMPLES_FILE: samples}
        pictures |= {} if codebook is None else codebook.encode()
        files = dict(self._manifest.files)
        for name, content in pictures.items():
            atomic_write(self._folder / name, content)
            files[name] = sha256_file(self._folder / name)
        merged = {**self._manifest.metrics, **(metrics or {})}
        self._manifest = self._manifest.model_copy(update={"metrics": merged, "files": files})
        return write_manifest(self._folder, self._manifest)


@contextmanager
def draft_version(models: Path, name: str, version: str | None) -> Iterator[VersionDraft]:
    """Lend a draft, which becomes a version when the block ends well.

    Without a version the number after the highest one is taken. An ArtifactError where the version
    exists or cannot be written.
    """
    chosen = next_version(models / name) if version is None else version
    with new_bundle(models / name / chosen) as folder:
        yield VersionDraft(folder, chosen)


def next_version(folder: Path) -> str:
    """Number after the highest one that a version of the model has; 1 for the first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    return str(1 + max(numbers, default=0))
