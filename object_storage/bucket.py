"""What is read from and written to a bucket, through `obstore`: S3, Google's and Azure's alike.

Credentials, endpoint and region come from the variables of each provider. Every request has a
bound; no message holds more of an answer than its status and code, for addresses may be signed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from masc_core.errors import ArtifactError, ConfigError, StorageDownError

CONNECT_SECONDS = 5
REQUEST_SECONDS, RETRY_SECONDS = 10, 10  # of what is small
PART_SECONDS, RETRY_PART_SECONDS = 120, 300  # of parts of files
READ_SECONDS = 30  # without a byte, after which a part is fetched again
MAX_RETRIES = 2
PART_BYTES = 4 << 20  # of a file that is fetched; twice as many are sent at a time
NUM_PARTS = 4  # at once: 280 kB a second are enough to send them in time, half of it to fetch them

NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
RETRIED = ("408", "429")  # statuses that say nothing about the request
STATUS = re.compile(r"status code: (\d{3}[ \w]*)")
CODE = re.compile(r"<Code>(\w+)</Code>")
METADATA_SERVICE = "169.254.169.254"  # of clouds, which is asked where nothing is set
ADDRESS = re.compile(r"\S*://\S*")


class Stamp(NamedTuple):
    """What tells one state of an object from the next: its ETag, and Google's generation."""

    e_tag: str
    version: str

    def condition(self, scheme: str) -> dict[str, str]:
        """Of a write that replaces this state."""
        # As in Amazon's examples: Ceph's older gateways compare it without quotes.
        e_tag = self.e_tag.strip('"') if scheme == "s3" else self.e_tag
        return {"e_tag": e_tag} | ({"version": self.version} if self.version else {})


class Stamped(NamedTuple):
    """An object's content and stamp."""

    content: bytes
    stamp: Stamp


class ConflictError(Exception):
    """An object is there, or has changed, against the condition of a write."""


class Bucket:
    """Objects under an address such as ``s3://bucket/prefix``; paths are relative to that.

    Raises
    ------
    ConfigError : obstore is not installed, or cannot be set up for the address
    StorageDownError : from every method: it cannot be reached, or fails
    ArtifactError : from every method: it refuses, or the bucket does not exist
    FileNotFoundError : from those that read an object: there is none
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import obstore  # noqa: PLC0415 - an extra, which folders do not need
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"MASC_MODELS_DIR: {url} needs obstore: pip install 'masc[object-storage]'"
            ) from error
        self._api = obstore

        def store(seconds: int, retry_seconds: int, **options: timedelta) -> object:
            client: Any = {
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=seconds),
                "allow_http": _allows_http(),
            }
            return from_url(
                url,
                client_options=client | options,
                retry_config={
                    "max_retries": MAX_RETRIES,
                    "retry_timeout": timedelta(seconds=retry_seconds),
                },
            )

        try:
            self._store: Any = store(REQUEST_SECONDS, RETRY_SECONDS)
            self._sending: Any = store(PART_SECONDS, RETRY_PART_SECONDS)
            stalled = timedelta(seconds=READ_SECONDS)  # which would end a slow sending, too
            self._fetching: Any = store(PART_SECONDS, RETRY_PART_SECONDS, read_timeout=stalled)
        except obstore.exceptions.BaseError as error:
            raise ConfigError(f"MASC_MODELS_DIR: {url}: {_reason(error)}") from None

    def location(self, *parts: str) -> str:
        """Address of an object, for people."""
        return "/".join([self.url, *parts])

    def read(self, path: str, max_bytes: int, known: Stamped | None = None) -> Stamped:
        """An object; the known one where it is still that."""
        options: Any = {"if_none_match": known.stamp.e_tag} if known else None
        with self._named(path):
            try:
                found = self._api.get(self._store, path, options=options)
            except self._api.exceptions.NotModifiedError:
                if known is None:
                    raise
                return known
            if found.meta["size"] > max_bytes:
                raise ArtifactError(self.location(path), f"has more than {max_bytes:,} bytes")
            stamp = Stamp(found.meta["e_tag"] or "", found.meta["version"] or "")
            return Stamped(found.bytes().to_bytes(), stamp)

    def write(self, path: str, content: bytes, replaced: Stamp | None = None) -> None:
        """Replace the object of that stamp, or without one make one where there is none.

        The library repeats a write whose answer was lost, and the repetition is refused: where the
        object has this very content afterwards, it was written. Content that must tell whose it is
        has something random.

        Raises
        ------
        ConflictError : it has another stamp, or is gone or there
        """
        wrong = self._api.exceptions.PreconditionError, self._api.exceptions.AlreadyExistsError
        with self._named(path):
            try:
                scheme = self.url.partition(":")[0]
                mode: Any = "create" if replaced is None else replaced.condition(scheme)
                self._api.put(self._store, path, content, mode=mode)
            except wrong as error:
                if not self._holds(path, content):
                    raise ConflictError(path) from error
            except FileNotFoundError as error:
                if replaced is not None and _code(error) not in NO_BUCKET:
                    raise ConflictError(path) from error
                raise

    def upload(self, path: str, file: Path) -> None:
        """Write a file of any size, in parts."""
        with self._named(path):
            self._api.put(
                self._sending, path, file, chunk_size=2 * PART_BYTES, max_concurrency=NUM_PARTS
            )

    def size(self, path: str) -> int:
        """Bytes of an object."""
        with self._named(path):
            return self._api.head(self._store, path)["size"]

    def parts(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Content of an object of that size from an offset on, a few parts ahead."""

        def part(at: int) -> bytes:
            with self._named(path):
                length = min(PART_BYTES, size - at)
                return bytes(self._api.get_range(self._fetching, path, start=at, length=length))

        offsets = range(start, size, PART_BYTES)
        with ThreadPoolExecutor(NUM_PARTS) as pool:
            for first in range(0, len(offsets), NUM_PARTS):
                yield from pool.map(part, offsets[first : first + NUM_PARTS])

    def folders(self, path: str = "") -> list[str]:
        """Names below a path that something is below."""
        with self._named(path):
            found = self._api.list_with_delimiter(self._store, path or None)
            return [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every object below a path, by its own path from there."""
        with self._named(path):
            pages = self._api.list(self._store, path)  # as many requests as it takes
            return {
                meta["path"].removeprefix(f"{path}/"): meta["size"]
                for page in pages
                for meta in page
            }

    def delete(self, path: str) -> None:
        """Remove an object, or nothing where there is none."""
        with self._named(path):
            self._api.delete(self._store, path)

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            is_alike = self.size(path) == len(content)
            return is_alike and self.read(path, len(content)).content == content
        except FileNotFoundError:
            return False

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Make one of our errors of the library's, in one line and without anything secret."""
        location = self.location(path) if path else self.url
        try:
            yield
        except FileNotFoundError as error:
            if _code(error) in NO_BUCKET:
                raise ArtifactError(self.url, "the bucket does not exist") from None
            raise FileNotFoundError(location) from None
        except (OSError, self._api.exceptions.BaseError) as error:
            reason = _reason(error)
            if _code(error) in NO_BUCKET:
                raise ArtifactError(self.url, "the bucket does not exist") from None
            if reason.startswith("4") and not reason.startswith(RETRIED):
                raise ArtifactError(location, f"is refused: {reason}") from None
            raise StorageDownError(location, f"cannot be reached: {reason}") from None


def _allows_http() -> bool:
    """Whether the environment says so, which the library does not look at beside our options."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    is_named = any(os.environ.get(name, "").startswith("http://") for name in names)
    return is_named or os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"}


def _code(error: BaseException) -> str:
    found = CODE.search(str(error))
    return found[1] if found else ""


def _reason(error: BaseException) -> str:
    """Status and code of an answer, or else what the library says, without addresses."""
    text, code = str(error), _code(error)
    if METADATA_SERVICE in text:
        return "there are no credentials in the environment, and none of this machine"
    found = STATUS.search(text)
    if found is not None:
        return f"{found[1].strip()} ({code})" if code else found[1].strip()
    return ADDRESS.sub("...", text.partition("\n")[0].rpartition(" - ")[2]).strip()
