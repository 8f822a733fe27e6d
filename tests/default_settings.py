"""Every setting of front ends and workers, and its default as people write it."""

from __future__ import annotations

from masc_core.settings import PREFIX, CacheSettings
from server.settings import ServerSettings
from worker.settings import WorkerSettings


def default_settings() -> dict[str, str]:
    """Values by the names of their variables; empty is none."""
    fields = ServerSettings.model_fields | WorkerSettings.model_fields
    fields |= CacheSettings.model_fields
    return {PREFIX + name.upper(): _written(field.default) for name, field in fields.items()}


def _written(default: object) -> str:
    if default is None or isinstance(default, bool):
        return "" if default is None else str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
