"""The registry: model bundles under one folder, and which version of each is active.

::

    <root>/<name>/<version>/manifest.json, ...   a bundle; never changed once it is there
    <root>/<name>/current                        the active version's name, replaced atomically
    <root>/<name>/history                        what was active before, for `Registry.rollback`

Names come from URLs and JSON, so only plain names ever become part of a path, and everything else
is an unknown model. Each call looks at the disk: another process may publish or activate meanwhile.
This module does not load weights, and needs no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masc_core.bundle.active_version import CURRENT_FILE, ActiveVersion
from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    Manifest,
    is_plain_name,
    read_manifest,
    verify_files,
)
from masc_core.errors import ArtifactError, ConfigError, UnknownModelError


class Registry:
    """Bundles under a folder.

    Parameters
    ----------
    root : the folder; may be missing until it is asked for something
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._manifests: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}

    def names(self) -> tuple[str, ...]:
        """Every model that has a version, active or not, sorted; empty when there is none.

        Raises
        ------
        ArtifactError : the root is missing or cannot be read
        """
        return tuple(sorted(name for name in self._folders(self.root) if self._versions(name)))

    def models(self) -> tuple[str, ...]:
        """Every model that has an active version, sorted; at least one.

        Raises
        ------
        ArtifactError : the root is missing, holds no model, or none of its models is active
        """
        names = self.names()
        if not names:
            for folder in self._folders(self.root):
                if (self.root / folder / CURRENT_FILE).is_file():
                    self._refuse_missing_manifest(self.root / folder / CURRENT_FILE)
            raise ArtifactError(self.root, "holds no model")
        active = tuple(name for name in names if (self.root / name / CURRENT_FILE).is_file())
        if not active:
            raise ArtifactError(
                self.root / names[0] / CURRENT_FILE, "is missing: no version of a model is active"
            )
        return active

    def default(self, preferred: str = "") -> str:
        """Choose the model to serve: the preferred one, or the only one that is active.

        Raises
        ------
        ConfigError : the preferred one does not exist, or none is preferred among several
        ArtifactError : as from `models`
        """
        models = self.models()
        listed = ", ".join(models)
        if preferred:
            if preferred not in models:
                raise ConfigError(f"no model {preferred!r} in {self.root}; there are: {listed}")
            return preferred
        if len(models) > 1:
            raise ConfigError(f"{self.root} holds several models, name one: {listed}")
        return models[0]

    def versions(self, name: str) -> tuple[str, ...]:
        """Versions of a model, numbers in their names compared as numbers.

        Raises
        ------
        UnknownModelError : no model of that name
        """
        found = self._versions(name) if is_plain_name(name) else ()
        if not found:
            raise UnknownModelError("model", f"there is no model {name!r}")
        return found

    def current(self, name: str) -> str:
        """Name of the active version.

        Raises
        ------
        UnknownModelError : no model of that name
        ArtifactError : no version is active, or the file that says so does not name one
        """
        path = self.root / name / CURRENT_FILE
        if is_plain_name(name) and path.is_file():
            self._refuse_missing_manifest(path)
        versions = self.versions(name)
        try:
            version = ActiveVersion(self.root / name).read()
        except FileNotFoundError as error:
            raise ArtifactError(path, f"is missing: no version of {name!r} is active") from error
        if version not in versions:
            raise ArtifactError(path, f"names {version!r}, which is not a version of {name!r}")
        return version

    def activation(self, name: str) -> tuple[int, int]:
        """What tells one activation from the next, also if both are of the same version.

        Raises
        ------
        ArtifactError : no version is active
        """
        choice = ActiveVersion(self.root / name)
        try:
            return choice.stamp()
        except OSError as error:
            raise ArtifactError(choice.path, f"cannot be read: {error.strerror}") from error

    def path(self, name: str, version: str | None = None) -> Path:
        """Folder of a version, by default the active one.

        Raises
        ------
        UnknownModelError : no model of that name, or no such version of it
        ArtifactError : as from `current`
        """
        if version is None:
            version = self.current(name)
        elif version not in self.versions(name):
            raise UnknownModelError("version", f"model {name!r} has no version {version!r}")
        return self.root / name / version

    def manifest(self, name: str, version: str | None = None) -> Manifest:
        """Manifest of a version, by default the active one; parsed once for each state of the file.

        Raises
        ------
        UnknownModelError : no model of that name, or no such version of it
        ArtifactError : the manifest is damaged, or is that of another model or version
        """
        folder = self.path(name, version)
        try:
            status = (folder / MANIFEST_FILE).stat()
        except OSError as error:
            raise ArtifactError(
                folder / MANIFEST_FILE, f"cannot be read: {error.strerror}"
            ) from error
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        cached = self._manifests.get(folder)
        if cached is not None and cached[0] == state:
            return cached[1]
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, folder.name):
            raise ArtifactError(
                folder / MANIFEST_FILE, f"is that of {manifest.name} {manifest.version}"
            )
        self._manifests[folder] = (state, manifest)
        return manifest

    def verify(self, name: str, version: str | None = None) -> Manifest:
        """Check every file of a version, by default the active one, against its SHA-256.

        Raises
        ------
        UnknownModelError : no model of that name, or no such version of it
        ArtifactError : a file is missing, truncated or altered; names it
        """
        manifest = self.manifest(name, version)
        verify_files(self.path(name, manifest.version), manifest)
        return manifest

    def activate(self, name: str, version: str) -> None:
        """Make a version the active one, after verifying it; a refused one changes nothing.

        Raises
        ------
        UnknownModelError, ArtifactError : as from `verify`, or the choice cannot be written
        """
        self.verify(name, version)
        with self._choosing(name) as choice:
            choice.choose(version)

    def previous(self, name: str) -> str | None:
        """Name of the version that `rollback` would make active; None where there is none.

        Raises
        ------
        UnknownModelError, ArtifactError : as from `current`
        """
        earlier = ActiveVersion(self.root / name).earlier(self.current(name))
        versions = self._versions(name)  # one may have been removed since it was active
        return next((version for version in reversed(earlier) if version in versions), None)

    def rollback(self, name: str, leaving: str | None = None) -> str:
        """Make the version active that was so before, after verifying it; return its name.

        A second rollback goes one further back. To go forward again, activate a version.

        Parameters
        ----------
        name : of the model
        leaving : the version that must still be the active one; by default whichever is

        Raises
        ------
        UnknownModelError : no model of that name
        ArtifactError : none was active before, it is damaged, another version than ``leaving`` is
            active, or the choice cannot be written; nothing has changed
        """
        self.current(name)
        with self._choosing(name) as choice:
            active, version = self.current(name), self.previous(name)
            if leaving not in {None, active}:
                raise ArtifactError(choice.path, f"names {active!r} by now, not {leaving!r}")
            if version is None:
                raise ArtifactError(choice.path, f"no version was active before {active!r}")
            self.verify(name, version)
            choice.go_back(version)
        return version

    @contextmanager
    def _choosing(self, name: str) -> Iterator[ActiveVersion]:
        """Lend the choice of a model's active version to one at a time."""
        choice = ActiveVersion(self.root / name)
        try:
            with choice.locked():
                yield choice
        except OSError as error:
            raise ArtifactError(choice.path, f"cannot be written: {error.strerror}") from error

    def _refuse_missing_manifest(self, current: Path) -> None:
        """Tell a damaged bundle, which `current` names, from a folder that is none."""
        version = current.read_text(encoding="utf-8", errors="replace").strip()
        folder = current.parent / version
        if is_plain_name(version) and folder.is_dir() and not (folder / MANIFEST_FILE).is_file():
            raise ArtifactError(folder / MANIFEST_FILE, "is missing")

    def _versions(self, name: str) -> tuple[str, ...]:
        folder = self.root / name
        if not folder.is_dir():
            return ()
        found = (
            version
            for version in self._folders(folder)
            if (folder / version / MANIFEST_FILE).is_file()
        )
        return tuple(sorted(found, key=_natural))

    def _folders(self, path: Path) -> list[str]:
        try:
            return [
                entry.name
                for entry in path.iterdir()
                if is_plain_name(entry.name) and entry.is_dir()
            ]
        except OSError as error:
            raise ArtifactError(path, f"cannot be read: {error.strerror}") from error


def _natural(version: str) -> list[tuple[int, str]]:
    """Sort key under which v2 comes before v10."""
    parts = re.findall(r"\d+|\D+", version)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
