"""Settings of the load generator; see `masc_core.settings` for how they are read."""

from __future__ import annotations

from pydantic import SecretStr

from masc_core.errors import ConfigError
from masc_core.settings import ProcessSettings, read_settings


class BenchSettings(ProcessSettings):
    """What the environment tells the load generator: the key that the service asks for."""

    api_key: SecretStr | None = None


def load_api_key(given: str | None) -> SecretStr | None:
    """Return the given key, or that of ``MASC_API_KEY``.

    Raises
    ------
    ConfigError : no header can carry it; does not say what it is
    """
    key = read_settings(BenchSettings, {"api_key": given}).api_key
    if key is not None and not _fits_header(key.get_secret_value()):
        raise ConfigError("MASC_API_KEY: must be printable ASCII without spaces")
    return key


def _fits_header(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
