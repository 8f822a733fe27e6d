"""How two sets of settings, of inputs or of classes differ, for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from masc_core.errors import ConfigError

MAX_LISTED = 3  # names
MAX_CHANGES = 8
HASH = re.compile(r"[0-9a-f]{64}")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as ``lr was 0.1, is 0.2; data.images.cat was absent, is 3``, or nothing."""
    found = _changes("", before, now)
    more = f"; and {len(found) - MAX_CHANGES} more" if len(found) > MAX_CHANGES else ""
    return "; ".join(found[:MAX_CHANGES]) + more


def _changes(key: str, before: Any, now: Any) -> list[str]:  # noqa: ANN401 - what JSON can hold
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        within = f"{key}." if key else ""
        return [
            phrase
            for name in {**before, **now}
            for phrase in _changes(f"{within}{name}", before.get(name), now.get(name))
        ]
    if _is_names(before) and _is_names(now):
        return [f"{key} {difference(now, before)}"]
    if HASH.fullmatch(str(before)) and HASH.fullmatch(str(now)):
        return [f"{key} is another"]
    was, now_is = ("absent" if value is None else repr(value) for value in (before, now))
    return [f"{key} was {was}, is {now_is}"]


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def difference(names: Sequence[str], others: Sequence[str]) -> str:
    """How names differ from others, as ``lacks 'x', and has besides 'y'``."""
    here, there = set(names), set(others)
    missing = [name for name in others if name not in here]
    unknown = [name for name in names if name not in there]
    said = [
        f"{what} {listed(different)}"
        for what, different in (("lacks", missing), ("has besides", unknown))
        if different
    ]
    return ", and ".join(said) or "has them in another order"


def require_same_classes(
    key: str, place: object, names: Sequence[str], other_place: object, others: Sequence[str]
) -> None:
    """Raise a `ConfigError` where two sets have not the same classes in order; it names them."""
    if tuple(names) != tuple(others):
        raise ConfigError(
            f"{key}: the classes of {place} are not those of {other_place}: "
            f"it {difference(names, others)}"
        )


def listed(names: Sequence[str]) -> str:
    """The names, of many only the first few."""
    shown = ", ".join(map(repr, names[:MAX_LISTED]))
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"
