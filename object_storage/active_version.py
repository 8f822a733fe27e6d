"""The active version of a model in a bucket: two objects, each replaced as it was read, or not."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Hashable
from dataclasses import dataclass

from masc_core.bundle.registry import CURRENT_FILE, HISTORY_FILE, MAX_BYTES, ActiveVersion
from masc_core.errors import ArtifactError
from masc_core.io.bounded import decode_text
from object_storage.bucket import Bucket, Stamped


@dataclass(frozen=True, slots=True)
class ActiveObjects:
    """The objects ``current`` and ``history`` of a model, where there are such."""

    current: Stamped | None
    history: Stamped | None


def read_active(bucket: Bucket, name: str, known: ActiveObjects | None) -> ActiveObjects:
    """Read both objects; the known ones are taken for these while the first is as it was."""
    before = None if known is None else known.current
    current = _read(bucket, f"{name}/{CURRENT_FILE}", before)
    if known is not None and current is before:
        return known
    return ActiveObjects(current, _read(bucket, f"{name}/{HISTORY_FILE}"))


def _read(bucket: Bucket, path: str, known: Stamped | None = None) -> Stamped | None:
    try:
        return bucket.read(path, MAX_BYTES, known)
    except FileNotFoundError:
        return None


class BucketActiveVersion(ActiveVersion):
    """The active version as it was read; to write over another one raises `ConflictError`."""

    def __init__(self, bucket: Bucket, name: str, objects: ActiveObjects) -> None:
        self._bucket, self._name, self._objects = bucket, name, objects

    @property
    def path(self) -> str:
        """Of the object that names the active version."""
        return self._bucket.location(self._name, CURRENT_FILE)

    @property
    def exists(self) -> bool:
        """Whether a version is active."""
        return self._objects.current is not None

    def stamp(self) -> Hashable:
        """Changes whenever a version is made active, also if it was so before."""
        if self._objects.current is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        return self._objects.current.stamp

    def _object(self, name: str) -> Stamped | None:
        return self._objects.current if name == CURRENT_FILE else self._objects.history

    def _read(self, name: str) -> str:
        found = self._object(name)
        location = self._bucket.location(self._name, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
        try:
            return decode_text(found.content)
        except ValueError as error:
            raise ArtifactError(location, f"cannot be read: {error}") from error

    def _write(self, name: str, text: str) -> None:
        if name == CURRENT_FILE:
            text += f"{secrets.token_hex(8)}\n"  # another ETag, also for the same version
        found = self._object(name)
        path = f"{self._name}/{name}"
        self._bucket.write(path, text.encode(), None if found is None else found.stamp)
