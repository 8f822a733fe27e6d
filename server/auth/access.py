"""Clients and admins by their keys.

Without a file of keys everyone is one anonymous client that may fill the whole queue. Without a
file of admin keys, admin routes are closed. No message and no object shows a key.
"""

from __future__ import annotations

from dataclasses import dataclass

from masc_core.errors import ConfigError, ForbiddenError, UnauthorizedError
from server.auth.api_keys import ANONYMOUS, KeyFile
from server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the service.

    Attributes
    ----------
    name : the owner of a job; shows in the log
    requests_per_minute : how many it may start; 0 is no limit
    queue_share : share of the queue that its waiting jobs may take, above 0 and up to 1
    """

    name: str
    requests_per_minute: int = 0
    queue_share: float = 1.0


class Access:
    """The keys of one front end.

    Parameters
    ----------
    settings : the two files, and the limits of a key that has none of its own

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
        """The client with this key.

        Raises
        ------
        UnauthorizedError : keys are required, and this is none of them
        """
        if self._keys is None:
            return Client(ANONYMOUS, self._settings.rate_limit)
        if key is None:
            raise UnauthorizedError("this service wants an API key")
        found = self._keys.find(key)
        if found is None:
            raise UnauthorizedError("this API key is not valid")
        rate, share = found.requests_per_minute, found.queue_share
        return Client(
            found.name,
            self._settings.rate_limit if rate is None else rate,
            self._settings.queue_share if share is None else share,
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
        found = self._admins.find(key)
        if found is not None:
            return found.name
        if self._keys is not None and self._keys.find(key) is not None:
            raise ForbiddenError("this key is not an admin's")
        raise UnauthorizedError("this admin key is not valid")
