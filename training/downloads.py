"""Downloads of weights: each file once and whole; an interrupted one continues.

docs/training.md has the addresses and the hub's variables. The hub's files lie in its own cache,
which other programs share. By itself its library begins anew after an interruption, and compares
sizes alone: so what is missing comes into the cache from here, and the library finds it there.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import (
    HfUri,
    cached_assets_path,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    parse_hf_uri,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import flush
from masc_core.progress import ProgressCallback, no_progress
from masc_core.settings import expand_path
from training.config import is_address, without_secrets

logger = logging.getLogger(__name__)

HUB = "hf://"
SCHEMES = (HUB, "https://", "http://")
# torch's way to name files: the first digits of their SHA-256, or all, before the suffix. Eight
# decimal ones are a date.
HASH_IN_NAME = re.compile(r"-((?=\d*[a-f])[0-9a-f]{8}|[0-9a-f]{64})\.\w+$")
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git, or SHA-256 for large files
COMMIT = re.compile(r"[0-9a-f]{40}")
REASONS: dict[type[Exception], str] = {  # the first that fits
    GatedRepoError: "is gated: agree to its terms on its page, and set HF_TOKEN to your token",
    RepositoryNotFoundError: "there is no such repository, or HF_TOKEN may not read it",
    RevisionNotFoundError: "the repository has no such revision",
    EntryNotFoundError: "the repository has no such file",
    OfflineModeIsEnabled: "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
}
DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
EXACT = {"Accept-Encoding": "identity"}  # sizes are those of the file
HASH_BYTES = 1 << 20  # at a time
RESERVE = 1 << 30  # bytes that stay free under a file that does not tell its size
MB = 10**6


def local_file(source: str, report: ProgressCallback = no_progress) -> Path:
    """Path of a file, fetched if need be.

    Raises
    ------
    ConfigError : the address is of no such kind
    ArtifactError : the file cannot be had, or is another than it should be; what did not arrive
        whole is not taken for the file, and the next call goes on from there
    """
    if not is_address(source):
        return expand_path(source)
    if not source.startswith(SCHEMES):
        raise ConfigError(f"{without_secrets(source)}: addresses begin with {', '.join(SCHEMES)}")
    with _one_line(source):
        uri = _hub_uri(source)
        return _from_url(source, report) if uri is None else _from_hub(source, uri, report)


def _hub_uri(source: str) -> HfUri | None:
    """File of the hub; None where it is of another server, an `HfUriError` where it is none."""
    try:
        uri = parse_hf_uri(source)
    except HfUriError:
        if source.startswith(HUB):
            raise
        return None
    path, _, revision = uri.path_in_repo.rpartition("@")
    if uri.revision is None and path:
        uri = HfUri(uri.type, uri.id, revision, path)
    if uri.is_bucket or not uri.path_in_repo or ".." in uri.path_in_repo.split("/"):
        raise ConfigError(
            f"{without_secrets(source)}: names no file of a repository: hf://owner/repo/file"
        )
    return uri


def _from_hub(source: str, uri: HfUri, report: ProgressCallback) -> Path:
    where: dict[str, Any] = {
        "repo_id": uri.id,
        "filename": uri.path_in_repo,
        "repo_type": uri.type,
        "revision": uri.revision or constants.DEFAULT_REVISION,
    }
    try:
        metadata = get_hf_file_metadata(hf_hub_url(**where))
    except (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        found = try_to_load_from_cache(**where)
        is_unreachable = not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500
        if not is_unreachable or not isinstance(found, str):
            raise
        logger.warning(
            "%s: the hub cannot be asked; the file in its cache is taken", without_secrets(source)
        )
        return Path(found)
    etag, commit = metadata.etag or "", metadata.commit_hash or ""
    if not ETAG.fullmatch(etag) or not COMMIT.fullmatch(commit):
        raise ArtifactError(
            without_secrets(source), f"{constants.ENDPOINT} does not answer as a hub does"
        )
    repo = repo_folder_name(repo_id=uri.id, repo_type=uri.type)
    blob = Path(constants.HF_HUB_CACHE, repo, "blobs", etag)
    _fetch(
        hf_hub_url(**where | {"revision": commit}),
        blob,
        lock=Path(constants.HF_HUB_CACHE, ".locks", repo, f"{etag}.lock"),
        incomplete=blob.with_name(f"{etag}.incomplete"),
        size=metadata.size,
        digest=etag,
        headers=build_hf_headers(),
        bar=partial(_Bar, report, uri.path_in_repo),
    )
    return Path(hf_hub_download(**where))


def _from_url(source: str, report: ProgressCallback) -> Path:
    url, _, fragment = source.partition("#")
    name = re.sub(r"[^\w.+-]", "_", Path(unquote(urlsplit(url).path)).name)[-100:]
    if not name.strip("."):
        raise ConfigError(f"{without_secrets(source)}: names no file")
    named = HASH_IN_NAME.search(name)
    digest = fragment.removeprefix("sha256=").lower() or (named[1] if named else "")
    if not re.fullmatch(r"[0-9a-f]*", digest) or (fragment and len(digest) != 64):
        raise ConfigError(f"{without_secrets(source)}: what follows its # is no sha256=<64 digits>")
    folder = cached_assets_path(
        *("masc", "urls", hashlib.sha256(url.encode()).hexdigest()[:32]),
        assets_dir=constants.HF_ASSETS_CACHE,
    )
    target = folder / name
    if target.exists() and _fits(target, digest):
        return target
    answer = get_session().head(url, headers=EXACT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    known = answer.headers if answer.is_success else httpx2.Headers()
    # Only of a file that is the same to the byte the rest can be asked for later.
    etag = known.get("ETag", "")
    version = hashlib.sha256(etag.encode()).hexdigest()[:16]
    stays = etag and not etag.startswith("W/")
    size = known.get("Content-Length", "")
    _fetch(
        url,
        target,
        lock=target.with_name(f"{name}.lock"),
        incomplete=target.with_name(f"{name}.{version}.incomplete") if stays else None,
        size=int(size) if size.isdecimal() else None,
        digest=digest,
        headers={},
        bar=partial(_Bar, report, name),
    )
    return target


def _fetch(
    url: str,
    target: Path,
    *,
    lock: Path,
    incomplete: Path | None,
    size: int | None,
    digest: str,
    headers: dict[str, str],
    bar: Callable[..., _Bar],
) -> None:
    """Fill ``target`` with what has that size and digest, by way of ``incomplete``.

    Without ``incomplete``, or a size, what broke off is of no use later.
    """
    goes_on = incomplete is not None and size is not None
    incomplete = incomplete or target.with_name(f"{target.name}.incomplete")
    for parent in (target.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent if size is None else None
    with WeakFileLock(lock):
        # A blob of the hub was checked when it came; what came by a URL may be outdated.
        if target.exists() and (target.parent.name == "blobs" or _fits(target, digest)):
            return
        done = incomplete.stat().st_size if incomplete.exists() and goes_on else 0
        if done > (size or 0):
            done = 0
        if size is not None:
            _require_room(target.parent, size - done)
        try:
            with incomplete.open("ab" if done else "wb") as file, _quiet_library():
                http_get(
                    url,
                    file,
                    resume_size=done,
                    headers=headers | EXACT,
                    expected_size=size,
                    displayed_filename=without_secrets(url),  # in errors
                    tqdm_class=cast("Any", partial(bar, folder)),
                )
            _check(incomplete, digest)
        except BaseException as error:
            # A wrong file is deleted, as is any on a full disk; otherwise the download can go on.
            wrong = isinstance(error, ArtifactError) or getattr(error, "errno", 0) in DISK_IS_FULL
            if wrong or not goes_on or (incomplete.exists() and not incomplete.stat().st_size):
                incomplete.unlink(missing_ok=True)
            raise
        flush(incomplete)
        incomplete.replace(target)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep the library's warnings of retries to itself: they hold URLs with their signatures."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        needed = f"needs {num_bytes / 1e9:.1f} GB, of which {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, f"the disk is too full: it {needed}", str(folder))


def _fits(path: Path, digest: str) -> bool:
    try:
        _check(path, digest)
    except ArtifactError:
        return False
    return True


def _check(path: Path, digest: str) -> None:
    """Raise an `ArtifactError` for a web page, or content of another SHA-256 or git's hash."""
    with path.open("rb") as file:
        if file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise ArtifactError(path, "is a web page, and no file of weights")
        file.seek(0)
        size = path.stat().st_size
        hashed = hashlib.sha256()
        if len(digest) == 40:
            hashed = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while block := file.read(HASH_BYTES):
            hashed.update(block)
    if not hashed.hexdigest().startswith(digest):
        raise ArtifactError(path, f"has the checksum {hashed.hexdigest()}, not {digest}")


class _Bar:
    """What the hub's library takes for a bar on the terminal, and tells the report.

    With a folder, of contents without a length, it ends the download before the disk is full.
    """

    def __init__(
        self,
        report: ProgressCallback,
        name: str,
        folder: Path | None,
        *,
        total: float | None = None,
        initial: float = 0,
        **_: object,
    ) -> None:
        self.report, self.name, self.folder = report, name, folder
        self.total, self.done = total, initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, num_bytes: float) -> None:
        if self.folder is not None:
            _require_room(self.folder, RESERVE)
        self.done += num_bytes
        total = max(self.done, self.total or 0)
        self.report(int(self.done / MB), int(total / MB), f"MB of {self.name}")


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Raise an `ArtifactError` that says what is wrong, of whatever the library raises."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
        raise ArtifactError(without_secrets(source), _reason(error)) from error
    except ArtifactError as error:
        raise ArtifactError(without_secrets(source), error.reason) from error


def _reason(error: Exception) -> str:
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        hint = "; HF_TOKEN may be wrong" if status in {401, 403} else ""
        return f"the server answers {status}{hint}"
    if isinstance(error, httpx2.HTTPError):
        return f"the server cannot be reached: {str(error) or type(error).__name__}"
    known = error.strerror if isinstance(error, OSError) else None
    return f"cannot be fetched: {known or str(error).partition(chr(10))[0]}"
