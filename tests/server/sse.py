"""Server-sent events, as a client reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event that came with data."""

    name: str
    data: dict[str, Any]
    id: str | None = None


def read_events(text: str) -> list[Event]:
    """Every event of a stream that has ended, in order; comments and `retry` are passed over."""
    return [event for block in text.split("\n\n") if (event := read_event(block)) is not None]


def read_event(block: str) -> Event | None:
    """The event of one block, None if it holds none."""
    fields: dict[str, str] = {}
    for line in block.splitlines():
        name, _, value = line.partition(": ")
        assert name not in fields, "no field of ours has several lines"
        fields[name] = value
    if "data" not in fields:
        return None
    return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
