"""The registry: model bundles under one folder, and which version of each is active.

::

    <root>/<name>/<version>/manifest.json, ...   a bundle; never changed once it is there
    <root>/<name>/current                        the active version's name, replaced atomically
    <root>/<name>/history                        what was active before, for `Registry.rollback`

Names come from URLs and JSON, so only plain names ever become part of a path, and everything else
is an unknown model. Each call looks at the disk: another process may publish or activate meanwhile.

`object_storage` has the same in a bucket: it overrides what touches the files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from masc_core.bundle.manifest import (
    MANIFEST_FILE,
    PATCHES_FILE,
    Manifest,
    is_plain_name,
    read_manifest,
    verify_files,
)
from masc_core.errors import ArtifactError, ConfigError, UnknownModelError
from masc_core.escapes import quoted
from masc_core.io.bounded import decode_text, open_lock, read_file
from masc_core.io.files import atomic_folder, atomic_write, reading, writing

T = TypeVar("T")

logger = logging.getLogger(__name__)

CURRENT_FILE = "current"
HISTORY_FILE = "history"
LOCK_FILE = ".lock"
MAX_BYTES = 1 << 20  # of the first two


class Registry:
    """Bundles under a folder, which may be missing until something is asked of it.

    Raises
    ------
    UnknownModelError : from whatever takes a name: no such model, or no such version of it
    ArtifactError : from every method: a folder or file cannot be read, is damaged, or does not name
        a version; names it
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._manifests: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}
        self._warned_of: set[str] = set()

    def location(self, *parts: str) -> str:
        """Address of what is under these names, for people."""
        return str(self.root.joinpath(*parts))

    def names(self) -> tuple[str, ...]:
        """Every model that has a version, active or not, sorted; empty when there is none.

        Also one whose folder cannot be read: its `versions` say why.
        """
        return tuple(sorted(name for name in self._model_folders() if self._is_model(name)))

    def models(self) -> tuple[str, ...]:
        """Every model that has an active version, sorted; an `ArtifactError` where none has.

        One whose folder cannot be read is left out, with a warning.
        """
        names = self.names()
        if not names:
            for folder in self._model_folders():
                if self._is_active(folder):
                    self._refuse_missing_manifest(folder)
            raise ArtifactError(self.location(), "holds no model")
        active = tuple(name for name in names if self._is_active(name))
        if not active:
            self.versions(names[0])  # says so where it cannot be read
            raise ArtifactError(
                self.location(names[0], CURRENT_FILE), "is missing: no version of a model is active"
            )
        return active

    def default(self, preferred: str = "") -> str:
        """Choose the model to serve: the preferred one, or the only one that is active.

        Raises
        ------
        ConfigError : the preferred one does not exist, or none is preferred among several
        """
        models = self.models()
        listed = ", ".join(models)
        if preferred:
            if preferred not in models:
                missing = quoted(preferred)
                raise ConfigError(f"no model {missing} in {self.location()}; there are: {listed}")
            return preferred
        if len(models) > 1:
            raise ConfigError(f"{self.location()} holds several models, name one: {listed}")
        return models[0]

    def versions(self, name: str) -> tuple[str, ...]:
        """Versions of a model, numbers in their names compared as numbers."""
        versions = self._versions(name) if is_plain_name(name) else ()
        if not versions:
            raise UnknownModelError("model", f"there is no model {quoted(name)}")
        return versions

    def current(self, name: str) -> str:
        """Name of the active version; an `ArtifactError` where none is."""
        path = self.location(name, CURRENT_FILE)
        if is_plain_name(name):
            self._refuse_missing_manifest(name)
        versions = self.versions(name)
        try:
            version = self._active_version(name).read()
        except FileNotFoundError as error:
            raise ArtifactError(path, f"is missing: no version of {name!r} is active") from error
        if version not in versions:
            raise ArtifactError(
                path, f"names {quoted(version)}, which is not a version of {name!r}"
            )
        return version

    def current_now(self, name: str) -> str:
        """The same, read anew: `current` of object storage may be some seconds old."""
        return self.current(name)

    def activation(self, name: str) -> Hashable:
        """What tells one activation from the next, also if both are of the same version.

        Raises
        ------
        ArtifactError : no version is active
        """
        active_version = self._active_version(name)
        with reading(active_version.path):
            return active_version.stamp()

    def path(self, name: str, version: str | None = None) -> Path:
        """Folder of a version on this machine, by default the active one."""
        if version is None:
            version = self.current(name)
        elif version not in self.versions(name):
            raise UnknownModelError("version", f"model {name!r} has no version {quoted(version)}")
        return self.root / name / version

    def file(self, manifest: Manifest, name: str) -> Path:
        """Place on this machine of one file of a version; whether it is there is not looked at."""
        return self.root / manifest.name / manifest.version / name

    def num_bytes(self, manifest: Manifest) -> int:
        """Bytes of all files of a version; an `OSError` where one is missing."""
        return sum(self.file(manifest, name).stat().st_size for name in manifest.files)

    def manifest(self, name: str, version: str | None = None) -> Manifest:
        """Manifest of a version, by default the active one; parsed once per state of the file."""
        folder = self.path(name, version)
        with reading(folder / MANIFEST_FILE):
            status = (folder / MANIFEST_FILE).stat()
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
        """Check every file of a version, by default the active one, against its SHA-256."""
        manifest = self.manifest(name, version)
        verify_files(self.path(name, manifest.version), manifest)
        return manifest

    def activate(self, name: str, version: str) -> tuple[str, ...]:
        """Make a version the active one, after verifying it; a refused one changes nothing.

        Returns what clients of the version before will miss, as `missing` has it, and logs it.
        """
        manifest = self.verify(name, version)

        def switch(active_version: ActiveVersion) -> tuple[str, ...]:
            losses = self._losses(manifest)
            active_version.activate(version)
            return losses

        losses = self._change(name, switch)
        _warn(manifest, losses)
        return losses

    def previous(self, name: str) -> str | None:
        """Name of the version that `rollback` would make active; None where there is none."""
        earlier = self._active_version(name).earlier(self.current(name))
        versions = self._versions(name)  # one may have been removed since it was active
        return next((version for version in reversed(earlier) if version in versions), None)

    def rollback(self, name: str, leaving: str | None = None) -> str:
        """Make the version active that was so before, after verifying it; return its name.

        A second rollback goes one further back. To go forward again, activate a version.

        Parameters
        ----------
        name : of the model
        leaving : the version that must still be the active one; by default whichever is
        """
        self.current(name)

        def go_back(active_version: ActiveVersion) -> tuple[Manifest, tuple[str, ...]]:
            active, version = self.current(name), self.previous(name)
            if leaving not in {None, active}:
                raise ArtifactError(
                    active_version.path, f"names {active!r} by now, not {leaving!r}"
                )
            if version is None:
                raise ArtifactError(active_version.path, f"no version was active before {active!r}")
            manifest = self.verify(name, version)
            losses = self._losses(manifest)
            active_version.go_back(version)
            return manifest, losses

        manifest, losses = self._change(name, go_back)
        _warn(manifest, losses)
        return manifest.version

    @contextmanager
    def new_version(self, name: str, version: str | None = None) -> Iterator[tuple[Path, str]]:
        """Lend an empty folder, which becomes a version when the block ends well; and its name.

        Without a name the version is the number after the highest one. An `ArtifactError` says that
        it exists, or cannot be written.
        """
        folder = self.root / name / (version or self.next_version(name))
        if folder.exists():
            raise ArtifactError(folder, "exists already; a published version is never changed")
        with writing(folder), atomic_folder(folder) as draft:
            yield draft, folder.name

    def next_version(self, name: str) -> str:
        """Number after the highest one that a version of a model has; 1 for the first."""
        numbers = [int(v) for v in self._taken(name) if v.isascii() and v.isdigit()]
        return str(1 + max(numbers, default=0))

    def _losses(self, manifest: Manifest) -> tuple[str, ...]:
        """What clients of the active version would miss in this one; nothing where none is."""
        try:
            return missing(self.manifest(manifest.name), manifest)
        except ArtifactError:
            return ()

    def _active_version(self, name: str) -> ActiveVersion:
        return ActiveVersion(self.root / name)

    def _change(self, name: str, change: Callable[[ActiveVersion], T]) -> T:
        """Let a function change the active version, alone."""
        active_version = self._active_version(name)
        with writing(active_version.path), active_version.locked():
            return change(active_version)

    def _taken(self, name: str) -> list[str]:
        """Names of versions, also of those that are no bundles."""
        folder = self.root / name
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def _refuse_missing_manifest(self, name: str) -> None:
        """Tell a damaged bundle, which `current` names, from a folder that is none."""
        current = self.root / name / CURRENT_FILE
        if not _may_be(current, stat.S_ISREG):
            return
        with reading(current):
            text = read_file(current, MAX_BYTES).decode(errors="replace")
        version = text.strip().partition("\n")[0]
        folder = current.parent / version
        if not is_plain_name(version) or not _may_be(folder, stat.S_ISDIR):
            return
        if not _may_be(folder / MANIFEST_FILE):
            raise ArtifactError(folder / MANIFEST_FILE, "is missing")

    def _is_model(self, name: str) -> bool:
        try:
            return bool(self._versions(name))
        except ArtifactError:
            return True

    def _is_active(self, name: str) -> bool:
        path = self.root / name / CURRENT_FILE
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError:
            return False
        except OSError as error:
            if name not in self._warned_of:
                self._warned_of.add(name)
                logger.warning("model %s is left out: %s: %s", name, path, error.strerror)
            return False

    def _model_folders(self) -> list[str]:
        return self._folders(self.root)

    def _versions(self, name: str) -> tuple[str, ...]:
        folder = self.root / name
        if not _may_be(folder, stat.S_ISDIR):
            return ()
        folders = set(self._folders(folder)) - {CURRENT_FILE, HISTORY_FILE}
        listed = (v for v in folders if _may_be(folder / v / MANIFEST_FILE))
        return tuple(sorted(listed, key=natural))

    def _folders(self, path: Path) -> list[str]:
        with reading(path):
            names = [entry.name for entry in path.iterdir() if is_plain_name(entry.name)]
        return [name for name in names if _may_be(path / name, stat.S_ISDIR)]


def _may_be(path: Path, is_kind: Callable[[int], bool] = bool) -> bool:
    """Whether something of that kind is at a path, or may be, where it cannot be read.

    An unreadable path counts as present, so that reading it reports the error.
    """
    try:
        return is_kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # no permission, a loop of links, an I/O error
        return True


def missing(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """What a client that relies on one version misses in another one, in words."""
    lost = [f"no {name} decoding" for name in before.decodings if name not in after.decodings]
    known = set(after.class_names)
    gone = [name for name in before.class_names if name not in known]
    if gone:
        lost.append(f"no class {gone[0]!r}" + (f" and {len(gone) - 1} others" if gone[1:] else ""))
    for number, (old, new) in enumerate(zip(before.class_names, after.class_names, strict=False)):
        if old != new and old in known:
            lost.append(f"classes of other numbers, {number} is {new!r} and not {old!r}")
            break
    if before.image_size != after.image_size:
        lost.append(f"images of {after.image_size} pixels and not {before.image_size}")
    if before.tokenizer != after.tokenizer:
        lost.append(f"codes of a tokenizer {after.tokenizer} and not {before.tokenizer}")
    if before.partitions and not after.partitions:
        lost.append("no partition whose clusters could be filtered")
    if PATCHES_FILE in before.files and PATCHES_FILE not in after.files:
        lost.append("no pictures of its codebook")
    return tuple(lost)


def _warn(manifest: Manifest, losses: tuple[str, ...]) -> None:
    if losses:
        text = "; ".join(losses)
        logger.warning("%s %s: unlike before, %s", manifest.name, manifest.version, text)


def natural(version: str) -> list[tuple[int, str]]:
    """Sort key under which v2 comes before v10."""
    parts = re.findall(r"\d+|\D+", version)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


class ActiveVersion:
    """Which of the versions in a model's folder is active.

    The first line of ``current`` names the active version; ``history`` holds, one a line, what has
    been activated, each version once and the latest last. Whatever stands behind the active version
    there was rolled back from and counts no more, so ``current`` alone decides: a process that is
    killed between the two files leaves an active version and a past that fit. A folder without
    ``history`` has no past yet.

    Raises
    ------
    ArtifactError : from every method: one of the files cannot be read; names it
    OSError : from those that write
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def path(self) -> str:
        """Of the file that names the active version, for people."""
        return str(self._folder / CURRENT_FILE)

    def read(self) -> str:
        """Name of the active version, as the file has it; `FileNotFoundError` where none is."""
        return self._read(CURRENT_FILE).strip().partition("\n")[0]

    @property
    def exists(self) -> bool:
        """Whether a version is active."""
        return (self._folder / CURRENT_FILE).is_file()

    def stamp(self) -> Hashable:
        """Changes whenever a version is made active, also if it was so before."""
        status = (self._folder / CURRENT_FILE).stat()
        return status.st_mtime_ns, status.st_ino  # the file is replaced, never written over

    def earlier(self, active: str) -> tuple[str, ...]:
        """Versions that were active before ``active``, which is so now, the latest last."""
        activated = self._activated()
        return activated[: activated.index(active)] if active in activated else activated

    def activate(self, version: str) -> None:
        """Make a version the active one; the one that was is its predecessor. Needs `locked`."""
        past: list[str] = []
        if self.exists:
            active = self.read()
            past = [*self.earlier(active), active]
        kept = [earlier for earlier in past if earlier != version]
        self._write(HISTORY_FILE, "".join(f"{name}\n" for name in [*kept, version]))
        self.go_back(version)

    def go_back(self, version: str) -> None:
        """Make one of the `earlier` versions the active one again. Needs `locked`."""
        self._write(CURRENT_FILE, f"{version}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from activating until the block ends."""
        with open_lock(self._folder / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
            yield

    def _activated(self) -> tuple[str, ...]:
        try:
            return tuple(self._read(HISTORY_FILE).split())
        except FileNotFoundError:
            return ()

    def _read(self, name: str) -> str:
        """Content of a file; `FileNotFoundError` where there is none."""
        path = self._folder / name
        try:
            return decode_text(read_file(path, MAX_BYTES))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ArtifactError(path, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ArtifactError(path, f"cannot be read: {error}") from error

    def _write(self, name: str, text: str) -> None:
        atomic_write(self._folder / name, text.encode())
