"""The scripts that run inside Redis: every change of the queue is one of them, whole or not at all.

A script is known to Redis by its digest; one that it does not know, after a restart, is sent again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from worker.jobs.limits import QueueLimits

PREFIX = "{masc}:"  # of every key; the braces keep them on one node of a cluster
# An outcome that nobody fetches, because its front end has died, is kept for so long.
UNKEPT_SECONDS = 60.0
MAX_ENDED = 100_000  # jobs that are remembered after their end


@dataclass(frozen=True, slots=True)
class Script:
    """A script and its digest."""

    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Read the script of that name, with all that it shares with the others."""
    folder = resources.files(__package__) / "scripts"
    text = (folder / "common.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def channels_of(db: int) -> str:
    """What the names of channels begin with; unlike keys, all databases share them."""
    return f"{PREFIX}{db}:"


def settings_of(limits: QueueLimits, db: int) -> bytes:
    """Describe the limits to the scripts."""
    return json.dumps(
        {
            "channels": channels_of(db),
            "max_jobs": limits.max_jobs,
            "max_deliveries": limits.max_deliveries,
            "max_ended": MAX_ENDED,
            "lease_ms": milliseconds(limits.lease_seconds),
            "result_ms": milliseconds(limits.result_seconds),
            "unkept_ms": milliseconds(min(limits.result_seconds, UNKEPT_SECONDS)),
            "tombstone_ms": milliseconds(limits.tombstone_seconds),
        }
    ).encode()


def milliseconds(seconds: float) -> int:
    """Convert to what the scripts reckon in; never nothing, which Redis takes for an error."""
    return max(1, round(seconds * 1000))
