"""API keys: the file that holds them, and which client or admin has one.

::

    [[keys]]
    name = "alice"              # shows in the log, the key itself never does
    sha256 = "<64 hex digits>"  # of the key
    requests_per_minute = 60    # optional, 0 is no limit
    queue_share = 0.25          # optional, share of the queue that her waiting jobs may take
    weight = 2.0                # optional, rows that she gets while others get one each
    priority = "batch"          # optional, the highest that she may ask for

The file holds no key. A plain hash is enough: salt and slowness guard passwords, which people
choose and others can guess, but a key is 256 random bits. Whichever key is asked about is compared
with every entry, in constant time, so that how long it takes tells nothing.

Without a file of keys everyone is one anonymous client that may fill the whole queue. Without a
file of admin keys, admin routes are closed. No message and no object shows a key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import stat
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from masc_core.bundle.manifest import Sha256, is_plain_name
from masc_core.errors import ConfigError, ForbiddenError, UnauthorizedError
from masc_core.io.bounded import decode_text, read_file
from worker.jobs.priority import Priority

if TYPE_CHECKING:  # `masc keys` needs none
    from server.settings import ServerSettings

logger = logging.getLogger(__name__)

KEY_PREFIX = "masc_"  # lets a key that got lost be recognised as one
KEY_BYTES = 32
ANONYMOUS = "anonymous"  # every client, where no keys are configured
OWNER_DIGITS = 16  # of the hash of a key, in the name of its jobs' owner
CHECK_SECONDS = 1.0
MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 100.0
MAX_BYTES = 4 << 20  # of a file of keys; 30,000 of them


def _client_name(name: str) -> str:
    # The name is not part of the message: it may be a key that went to the wrong place.
    if not is_plain_name(name):
        raise PydanticCustomError("name", "must be of letters, digits, '.', '_' and '-'")
    if name.startswith(KEY_PREFIX) or name == ANONYMOUS:
        raise PydanticCustomError("name", "must not be 'anonymous' or look like a key")
    return name


class ApiKey(BaseModel):
    """One entry of the file; what is None is left to the settings."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_client_name)]
    sha256: Annotated[Sha256, Field(repr=False)]
    requests_per_minute: Annotated[int | None, Field(ge=0)] = None
    queue_share: Annotated[float | None, Field(gt=0, le=1)] = None
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    priority: Priority = "interactive"


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    keys: list[ApiKey] = []


class KeyFile:
    """The keys of a file, read anew when it changes.

    A file that has become damaged or is gone leaves the keys as they were, and says so in the log.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._checked = clock()
        self._stamp = _stamp(path)
        self._keys = read_keys(path)

    def find(self, key: str) -> ApiKey | None:
        """Entry of a key, None if there is none."""
        self._refresh()
        digest = hash_key(key)
        match = None
        for entry in self._keys:  # all of them, also after the right one
            if hmac.compare_digest(entry.sha256, digest):
                match = entry
        return match

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # of a damaged file too, so that it is logged once
        try:
            self._keys = read_keys(self.path)
        except ConfigError as error:
            logger.error("%s; the keys read before stay valid", error)  # noqa: TRY400 - one line
            return
        logger.info("%s: read anew, valid keys: %d", self.path, len(self._keys))


def new_key() -> str:
    """Make a key."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> str:
    """SHA-256 of a key, as the file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys; one that is open to others is warned of. Errors as from `parse_keys`."""
    try:
        content, mode = read_file(path, MAX_BYTES), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & stat.S_IRWXO:
        logger.warning("%s: is open to every user of this machine, try chmod 600", path)
    return parse_keys(path, content)


def parse_keys(path: Path, content: bytes) -> tuple[ApiKey, ...]:
    """Check the content of a file of keys; ``path`` is for the messages.

    Raises
    ------
    ConfigError : not TOML, or an entry is wrong; names the entry, and shows no value
    """
    try:
        document = tomllib.loads(decode_text(content))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    try:
        keys = tuple(_Document.model_validate(document).keys)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ConfigError(f"{path}: {_where(first['loc'])}: {first['msg']}") from None
    _refuse_duplicates(path, keys)
    return keys


def _refuse_duplicates(path: Path, keys: Sequence[ApiKey]) -> None:
    for field in ("name", "sha256"):
        seen: dict[str, int] = {}
        for number, key in enumerate(keys, start=1):
            first = seen.setdefault(getattr(key, field), number)
            if first != number:
                where = f"entry {number} ({key.name})"
                raise ConfigError(f"{path}: {where}: {field}: is that of entry {first} too")


def _where(location: Sequence[Any]) -> str:
    """Say where in the document; entries count from 1, as people do."""
    parts = ["..." if str(part).startswith(KEY_PREFIX) else str(part) for part in location]
    if len(location) > 1 and isinstance(location[1], int):
        parts[:2] = [f"entry {location[1] + 1}"]
    return ": ".join(parts)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when the file does, its permissions included; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the service.

    Attributes
    ----------
    name : shows in the log
    requests_per_minute : how many it may start; 0 is no limit
    queue_share : share of the queue that its waiting jobs may take, above 0 and up to 1
    key : what tells its key from an earlier one of the same name; empty where there are no keys
    weight : rows that it gets while others get one each
    priority : the highest that it may ask for
    """

    name: str
    requests_per_minute: int = 0
    queue_share: float = 1.0
    key: str = ""
    weight: float = 1.0
    priority: Priority = "interactive"

    def priority_of(self, asked: Priority | None, default: Priority) -> Priority:
        """Priority of a request; `ForbiddenError` if it asks for one that this client may not."""
        if self.priority == "batch" and asked == "interactive":
            raise ForbiddenError("this key may ask for the priority batch alone")
        return "batch" if self.priority == "batch" else asked or default

    @property
    def owner(self) -> str:
        """The owner of its jobs, which no later key of the same name is."""
        return f"{self.name}:{self.key}" if self.key else self.name


class Authenticator:
    """The keys of one front end.

    Raises
    ------
    ConfigError : a file cannot be used, or both are the same, so that everyone would be an admin
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._keys = self._admins = None
        if settings.api_keys_file is not None:
            self._keys = KeyFile(settings.api_keys_file)
        if settings.admin_keys_file is not None:
            self._admins = KeyFile(settings.admin_keys_file)
        if self._keys and self._admins and self._keys.path.samefile(self._admins.path):
            raise ConfigError("MASC_ADMIN_KEYS_FILE: must be another file than MASC_API_KEYS_FILE")

    def client(self, key: str | None) -> Client:
        """The client with this key; `UnauthorizedError` if keys are required and it is not one."""
        if self._keys is None:
            return Client(ANONYMOUS, self._settings.rate_limit)
        if key is None:
            raise UnauthorizedError("this service wants an API key")
        entry = self._keys.find(key)
        if entry is None:
            raise UnauthorizedError("this API key is not valid")
        rate, share = entry.requests_per_minute, entry.queue_share
        return Client(
            entry.name,
            self._settings.rate_limit if rate is None else rate,
            self._settings.queue_share if share is None else share,
            entry.sha256[:OWNER_DIGITS],
            entry.weight,
            entry.priority,
        )

    def admin(self, key: str | None) -> str:
        """Name of the admin who has this key.

        Raises
        ------
        UnauthorizedError : no key, or one that nobody has
        ForbiddenError : there are no admins, or the key is that of a client
        """
        if self._admins is None:
            raise ForbiddenError("admin routes are closed")
        if key is None:
            raise UnauthorizedError("this needs an admin's key")
        entry = self._admins.find(key)
        if entry is not None:
            return entry.name
        if self._keys is not None and self._keys.find(key) is not None:
            raise ForbiddenError("this key is not an admin's")
        raise UnauthorizedError("this admin key is not valid")
