"""The registry in object storage, with the layout of a folder of bundles.

A version's manifest is written last, so that a version which is listed is complete; ``current`` is
replaced under the condition that it is the one that was read, so that of two activations at once
one comes after the other. A second line makes the ETag of each activation another one.

What was read is cached for some seconds (`cached_value`); whoever changes the active version reads
it anew first.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    Manifest,
    check_hash,
    is_plain_name,
    parse_manifest,
    read_manifest,
    verify_files,
)
from masc_core.bundle.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from masc_core.bundle.registry import (
    CURRENT_FILE,
    ActiveVersion,
    Registry,
    natural,
)
from masc_core.errors import ArtifactError, StorageDownError, UnknownModelError
from masc_core.escapes import quoted
from masc_core.settings import CacheSettings, expand_path, read_settings
from object_storage.active_version import ActiveObjects, BucketActiveVersion, read_active
from object_storage.bucket import Bucket, ConflictError
from object_storage.cache import FileCache
from object_storage.cached_value import CachedValue

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_TRIES = 10  # to change the active version, while others do
CLAIM_FILE = ".publishing"  # in a version's place, of whoever writes it


def open_registry(models: str | Path) -> Registry:
    """The registry in a folder, or at an address such as ``s3://bucket/prefix``.

    Raises
    ------
    ConfigError : obstore is not installed, or cannot be set up
    """
    if isinstance(models, Path):
        return Registry(models)
    settings = read_settings(CacheSettings, {})
    cache = FileCache(expand_path(settings.models_cache), int(settings.models_cache_gb * 1e9))
    return BucketRegistry(Bucket(models), cache)


class BucketRegistry(Registry):
    """Bundles in a bucket; errors as of `Bucket`, besides those of a registry."""

    def __init__(self, bucket: Bucket, cache: FileCache) -> None:
        self._bucket, self._cache = bucket, cache
        self._texts: dict[tuple[str, str], tuple[bytes, Manifest]] = {}
        self._cached_names = CachedValue[list[str]](lambda _: bucket.folders())
        self._cached_sizes: dict[str, CachedValue[dict[str, int]]] = {}
        self._cached_active: dict[str, CachedValue[ActiveObjects]] = {}

    def location(self, *parts: str) -> str:
        """Address of what is under these names."""
        return self._bucket.location(*parts)

    def current(self, name: str) -> str:
        """Name of the active version; the storage is asked for that alone, and rarely."""
        active_version = self._active_version(name) if is_plain_name(name) else None
        if active_version is None or not active_version.exists:
            return super().current(name)
        version = active_version.read()
        try:
            self.manifest(name, version)
        except UnknownModelError as error:
            raise ArtifactError(
                active_version.path, f"names {quoted(version)}, which is not a version of {name!r}"
            ) from error
        return version

    def current_now(self, name: str) -> str:
        """The same, read anew; a `StorageDownError` where that cannot be done now."""
        if is_plain_name(name):
            self._cached(name).refresh()
        return self.current(name)

    def path(self, name: str, version: str | None = None) -> Path:
        """Folder of a version in the cache, complete and as published."""
        manifest = self.manifest(name, version)
        text, _ = self._texts[manifest.name, manifest.version]
        fetch = {file: partial(self._fetch, manifest, file) for file in manifest.files}
        where = partial(self.location, manifest.name, manifest.version)
        return self._cache.folder(manifest, text, where, fetch)

    def file(self, manifest: Manifest, name: str) -> Path:
        """One file of a version in the cache."""
        location = self.location(manifest.name, manifest.version, name)
        return self._cache.file(
            manifest.files[name], location, partial(self._fetch, manifest, name)
        )

    def num_bytes(self, manifest: Manifest) -> int:
        """Bytes of all files of a version."""
        sizes = self._sizes(manifest.name)
        paths = {name: f"{manifest.version}/{name}" for name in manifest.files}
        for name, path in paths.items():
            if path not in sizes:
                raise self._missing(manifest, name)
        return sum(sizes[path] for path in paths.values())

    def manifest(self, name: str, version: str | None = None) -> Manifest:
        """Manifest of a version, by default the active one; read once."""
        if version is None:
            version = self.current(name)
        if (name, version) not in self._texts:
            self._texts[name, version] = self._read_manifest(name, version)
        return self._texts[name, version][1]

    def verify(self, name: str, version: str | None = None) -> Manifest:
        """Read every file of a version, and compare its SHA-256; nothing of it is cached."""
        version = self.current(name) if version is None else version
        self._texts[name, version] = self._read_manifest(name, version)
        manifest = self._texts[name, version][1]
        for file, expected in manifest.files.items():
            digest = hashlib.sha256()
            for part in self._fetch(manifest, file, 0):
                digest.update(part)
            check_hash(self.location(name, version, file), digest.hexdigest(), expected)
        return manifest

    @contextmanager
    def new_version(self, name: str, version: str | None = None) -> Iterator[tuple[Path, str]]:
        """Lend a folder of this machine, which is uploaded when the block ends well.

        The version's place is taken first, by an object of whoever writes it: what another one
        has begun, or left, there is not touched.
        """
        claim = self._claim(name, version or self.next_version(name), is_named=version is not None)
        folder, chosen = claim.rpartition("/")[0], claim.split("/")[1]
        try:
            with TemporaryDirectory(prefix="masc-version-") as draft:
                yield Path(draft), chosen
                manifest = read_manifest(draft)
                verify_files(draft, manifest)
                for file in manifest.files:
                    self._bucket.upload(f"{folder}/{file}", Path(draft, file))
                text = Path(draft, MANIFEST_FILE).read_bytes()
                self._bucket.write(f"{folder}/{MANIFEST_FILE}", text)  # last: now it is listed
        except ConflictError as error:
            raise self._taken_already(folder) from error
        finally:
            with suppress(ArtifactError):  # what went wrong before tells more
                self._bucket.delete(claim)
        self._cached_names.refresh()
        self._cached_sizes.pop(name, None)

    def _claim(self, name: str, version: str, *, is_named: bool) -> str:
        while True:
            path = f"{name}/{version}/{CLAIM_FILE}"
            try:
                self._bucket.write(path, secrets.token_bytes(8))
            except ConflictError as error:
                if is_named:
                    reason = "is there: the version is being published, or that was broken off"
                    raise ArtifactError(self.location(path), f"{reason}; remove it then") from error
                version = str(int(version) + 1)
                continue
            if MANIFEST_FILE not in self._bucket.sizes(f"{name}/{version}"):
                return path
            self._bucket.delete(path)
            raise self._taken_already(f"{name}/{version}")

    def _taken_already(self, folder: str) -> ArtifactError:
        reason = "exists already; a published version is never changed"
        return ArtifactError(self.location(folder), reason)

    def _fetch(self, manifest: Manifest, name: str, start: int) -> Iterator[bytes]:
        """Content of a file from an offset on."""
        path = f"{manifest.name}/{manifest.version}/{name}"
        try:
            size = self._bucket.size(path)
            if size > manifest.max_bytes(name):
                raise ArtifactError(self.location(path), f"has {size:,} bytes, far too many")
            yield from self._bucket.parts(path, start, size)
        except FileNotFoundError as error:
            raise self._missing(manifest, name) from error

    def _missing(self, manifest: Manifest, name: str) -> ArtifactError:
        location = self.location(manifest.name, manifest.version, name)
        return ArtifactError(location, "is listed in the manifest but missing")

    def _read_manifest(self, name: str, version: str) -> tuple[bytes, Manifest]:
        if not is_plain_name(name) or not is_plain_name(version):
            raise UnknownModelError("version", f"model {quoted(name)} has no {quoted(version)}")
        path = f"{name}/{version}/{MANIFEST_FILE}"
        try:
            found = self._bucket.read(path, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            self.versions(name)  # says so where there is no such model
            raise UnknownModelError(
                "version", f"model {name!r} has no version {quoted(version)}"
            ) from error
        manifest = parse_manifest(found.content, self.location(path))
        if (manifest.name, manifest.version) != (name, version):
            raise ArtifactError(
                self.location(path), f"is that of {manifest.name} {manifest.version}"
            )
        return found.content, manifest

    def _active_version(self, name: str) -> ActiveVersion:
        return BucketActiveVersion(self._bucket, name, self._cached(name).get())

    def _cached(self, name: str) -> CachedValue[ActiveObjects]:
        if name not in self._cached_active:
            self._cached_active[name] = CachedValue(partial(read_active, self._bucket, name))
        return self._cached_active[name]

    def _change(self, name: str, change: Callable[[ActiveVersion], T]) -> T:
        """Let a function change the active version; again, where somebody else has meanwhile."""
        for _ in range(MAX_TRIES):
            cached = self._cached(name)
            cached.refresh()
            active_version = self._active_version(name)
            try:
                return change(active_version)
            except ConflictError:
                logger.info("%s was replaced meanwhile", active_version.path)
            finally:
                with suppress(StorageDownError):  # the next one to look finds out
                    cached.refresh()
        raise ArtifactError(self.location(name, CURRENT_FILE), "is replaced all the time by others")

    def _taken(self, name: str) -> list[str]:
        return self._bucket.folders(name)

    def _refuse_missing_manifest(self, name: str) -> None:
        """A version without a manifest is being published, or was left so."""

    def _is_active(self, name: str) -> bool:
        return self._active_version(name).exists

    def _model_folders(self) -> list[str]:
        return [name for name in self._cached_names.get() if is_plain_name(name)]

    def _sizes(self, name: str) -> dict[str, int]:
        """Bytes of all files of a model, by version and name."""
        if name not in self._cached_sizes:
            self._cached_sizes[name] = CachedValue(lambda _: self._bucket.sizes(name))
        return self._cached_sizes[name].get()

    def _versions(self, name: str) -> tuple[str, ...]:
        if not is_plain_name(name):
            return ()
        paths = (path.split("/") for path in self._sizes(name))
        found = [parts[0] for parts in paths if parts[1:] == [MANIFEST_FILE]]
        return tuple(sorted(filter(is_plain_name, found), key=natural))
