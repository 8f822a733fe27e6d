"""Parse an answer to ``POST /generate``: images, seconds of each stage, why it was refused.

A server may send anything, so nothing here raises: what cannot be read is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGES = ("queue", "prefill", "decode", "vq_decode", "encode", "total")
MAX_TEXT = 200  # of a problem, characters


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read.

    Attributes
    ----------
    num_images : images in it
    stages : seconds in each of `STAGES` that the server tells of
    model : name and version of what made the images, with a slash between
    retry_after : seconds after which a refused client may come again
    problem, detail : title and detail of a problem document
    """

    num_images: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    retry_after: float | None = None
    problem: str = ""
    detail: str = ""


def read_answer(status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    """Read one answer; ``headers`` are looked up without regard to case."""
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status != 200:
        return _refusal(headers, _document(content) if media_type.endswith("json") else {})
    stages = server_timing(headers.get("Server-Timing", ""))
    if media_type.startswith("image/"):
        return Answer(int(bool(content)), stages, plain(headers.get("X-Masc-Model", "")))
    document = _document(content)
    images = document.get("images")
    return Answer(
        num_images=len(images) if isinstance(images, list) else 0,
        stages=stages or _timings(document.get("timings")),
        model=_model(document.get("model")),
    )


def server_timing(header: str) -> dict[str, float]:
    """Seconds of each known stage in a Server-Timing header, which has milliseconds."""
    stages = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            seconds = _seconds(value.strip().strip('"'))
            if name in STAGES and key.strip().lower() == "dur" and seconds is not None:
                stages[name] = seconds / 1000
    return stages


def plain(text: object) -> str:
    """Return what a terminal can show of a server's word, without escape sequences or line ends."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_TEXT])


def _refusal(headers: Mapping[str, str], document: Mapping[str, Any]) -> Answer:
    title, detail = (plain(document.get(name, "")) for name in ("title", "detail"))
    retry_after = _seconds(headers.get("Retry-After", ""))
    return Answer(retry_after=retry_after, problem=title, detail=detail)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):  # nested too deeply
        return {}
    return document if isinstance(document, dict) else {}


def _model(model: object) -> str:
    if not isinstance(model, dict):
        return ""
    return plain(f"{model.get('name')}/{model.get('version')}")


def _timings(timings: object) -> dict[str, float]:
    if not isinstance(timings, dict):
        return {}
    given = {name: _seconds(timings.get(name)) for name in STAGES}
    return {name: seconds for name, seconds in given.items() if seconds is not None}


def _seconds(value: object) -> float | None:
    """Return a finite, not negative number; None for anything else, a date too."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
