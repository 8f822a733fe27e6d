"""Cache of what the page shows of each model: thumbnails of its classes, and its codebook.

A version never changes, so its entry is made once, in a thread, and kept for the versions shown
last. One entry is made at a time, which bounds the memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.exceptions import HTTPException

from masc_core.bundle.codebook_view import decode_tree, patch_side
from masc_core.bundle.manifest import (
    PATCHES_FILE,
    SAMPLES_FILE,
    TREE_FILE,
    Manifest,
    check_hash,
)
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError
from masc_core.io.bounded import read_file
from masc_core.io.files import reading
from masc_core.prior import ClusterMap
from server.codebook_view.codebook import Codebook
from server.codebook_view.thumbnails import cut_thumbnails, is_sheet

T = TypeVar("T")
Key = tuple[str, str, str | None]  # name, version and seal
MAX_VERSIONS = 4
FAILED_SECONDS = 30.0  # within which a sheet that could not be fetched is not fetched again


@dataclass(frozen=True, slots=True)
class CodebookView:
    """A codebook, and the sheet of its patches: a WebP file, each patch ``side`` pixels a side."""

    codebook: Codebook
    patches: bytes
    side: int


def has_codebook(manifest: Manifest) -> bool:
    """Whether a version was published with pictures of its codebook."""
    return {TREE_FILE, PATCHES_FILE} <= manifest.files.keys()


class VersionCache(Generic[T]):
    """An LRU cache with an entry per version, which ``make`` makes in a thread; it may raise."""

    def __init__(self, make: Callable[[Manifest], T]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made: OrderedDict[Key, T] = OrderedDict()

    async def get(self, manifest: Manifest) -> T:
        """The entry of a version. Waiting for another one to be made blocks no thread."""
        key = _key(manifest)
        if key not in self._made:
            async with self._lock:
                if key not in self._made:
                    self._made[key] = await asyncio.to_thread(self._make, manifest)
                    if len(self._made) > MAX_VERSIONS:
                        self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]


class CodebookCache:
    """Pictures of the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._thumbnails = VersionCache(self._cut_thumbnails)
        self._codebooks = VersionCache(self._read_codebook)
        self._sheets: dict[Key, bool] = {}
        self._failed: dict[Key, tuple[float, ArtifactError]] = {}  # and when
        self._fetching = threading.Lock()

    def has_thumbnails(self, manifest: Manifest) -> bool:
        """Whether a version was published with a sheet of all its classes that can be cut."""
        try:
            return self._has_sheet(manifest)
        except ArtifactError:  # of object storage; there may be a sheet later
            return False

    async def thumbnails(self, manifest: Manifest) -> tuple[bytes, ...]:
        """WebP files, one a class; none if the bundle brings no samples that can be cut."""
        return await self._thumbnails.get(manifest)

    async def codebook(self, manifest: Manifest) -> CodebookView:
        """The codebook.

        Raises
        ------
        HTTPException : 404, the bundle was published without
        ArtifactError : a file is missing, altered or no codebook
        """
        if not has_codebook(manifest):
            name = f"{manifest.name} {manifest.version}"
            raise HTTPException(404, f"{name} was published without pictures of its codebook")
        return await self._codebooks.get(manifest)

    def _has_sheet(self, manifest: Manifest) -> bool:
        if SAMPLES_FILE not in manifest.files:
            return False
        key = _key(manifest)
        if key in self._sheets:
            return self._sheets[key]
        with self._fetching:
            if key in self._sheets:  # whoever had the lock before has fetched it
                return self._sheets[key]
            if key in self._failed and time.monotonic() < self._failed[key][0] + FAILED_SECONDS:
                _, error = self._failed[key]
                raise type(error)(error.path, error.reason)
            try:
                path = self._registry.file(manifest, SAMPLES_FILE)
            except ArtifactError as error:
                self._failed[key] = time.monotonic(), error
                raise
            self._sheets[key] = is_sheet(path, len(manifest.class_names))
            return self._sheets[key]

    def _cut_thumbnails(self, manifest: Manifest) -> tuple[bytes, ...]:
        if not self._has_sheet(manifest):
            return ()
        sheet = read_listed(self._registry, manifest, SAMPLES_FILE)
        try:
            return cut_thumbnails(sheet, len(manifest.class_names))
        except ValueError:  # any picture may be published as samples
            return ()

    def _read_codebook(self, manifest: Manifest) -> CodebookView:
        prior_name = manifest.shown_prior
        names = (TREE_FILE, PATCHES_FILE, prior_name)
        content = {name: read_listed(self._registry, manifest, name) for name in names}
        name = TREE_FILE
        try:
            tree = decode_tree(content[name], manifest.num_codes)
            name = PATCHES_FILE
            side = patch_side(content[name], manifest.num_codes)
        except ValueError as error:
            path = self._registry.location(manifest.name, manifest.version, name)
            raise ArtifactError(path, str(error)) from error
        path = self._registry.location(manifest.name, manifest.version, prior_name)
        prior = ClusterMap.parse(content[prior_name], path, manifest.num_codes)
        if prior.num_codes != manifest.num_codes:
            reason = f"is over {prior.num_codes} codes, not {manifest.num_codes}"
            raise ArtifactError(path, reason)
        return CodebookView(Codebook(tree, prior), content[PATCHES_FILE], side)


def _key(manifest: Manifest) -> Key:
    return manifest.name, manifest.version, manifest.seal


def read_listed(registry: Registry, manifest: Manifest, name: str) -> bytes:
    """Content of a file that the manifest lists; `ArtifactError` if it is missing or altered."""
    path = registry.file(manifest, name)
    with reading(path):
        content = read_file(path, manifest.max_bytes(name))
    check_hash(path, hashlib.sha256(content).hexdigest(), manifest.files[name])
    return content
