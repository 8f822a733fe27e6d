"""Idempotency keys: a request sent again under the same key is not done again.

The queue stores the keys. Here a request becomes a fingerprint, which tells a repetition from
another request, and the answer to a repetition is marked as such.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final

from fastapi import Header
from pydantic import BaseModel
from starlette.types import Scope

from worker.jobs.job import Idempotency

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
REPLAY_HEADER: Final = {REPLAYED: "`true` if this is the answer to an earlier request."}
_REPLAYED_KEY: Final = "masc.replayed"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=HEADER,
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="Any text without spaces, unique to this request: sent again with the same "
        "key, the request is not done again, but answered as the first time.",
    ),
]


def idempotency(
    key: str | None, endpoint: str, body: BaseModel, response_kind: str
) -> Idempotency | None:
    """Key and fingerprint of a request; None without a key.

    Parameters
    ----------
    body : validated, so that spelling and order do not count
    response_kind : media type of the answer, where a header decides
    """
    if key is None:
        return None
    # Without what is at its default, so that front ends with newer fields know a key again.
    request = [endpoint, body.model_dump(mode="json", exclude_defaults=True), response_kind]
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return Idempotency(key, hashlib.sha256(text.encode()).hexdigest())


def mark_replay(scope: Scope) -> None:
    """Mark the answer to a request as that of an earlier one."""
    scope[_REPLAYED_KEY] = True


def replay_headers(scope: Scope) -> dict[str, str]:
    """``Idempotency-Replayed: true`` for what was marked."""
    return {REPLAYED: "true"} if scope.get(_REPLAYED_KEY) else {}
