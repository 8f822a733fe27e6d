"""Accept headers: whether a client wants JSON, the file of an image, or events.

Follows RFC 9110, section 12.5.1: the most specific range that matches a type gives its quality.
An image or events have to be asked for: ``*/*``, which most programs send unasked, means JSON.
"""

from __future__ import annotations

import re
from typing import Final

from masc_core.images import ImageFormat

MEDIA_TYPES: Final[dict[ImageFormat, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_QUALITY = re.compile(r"q=(0(\.\d{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


def image_format(accept: str) -> ImageFormat | None:
    """Format of the image that an Accept header asks for, or None when it rather wants JSON.

    Among formats of equal quality the first of `MEDIA_TYPES` wins. Between an image and JSON, both
    named and of equal quality, JSON wins.
    """
    ranges = _parse(accept)
    if not any(name.startswith("image/") for name in ranges):
        return None
    qualities = {name: _quality(ranges, kind) for name, kind in MEDIA_TYPES.items()}
    best = max(qualities, key=lambda name: qualities[name])
    rival = ranges.get(JSON, ranges.get("application/*", 0.0))
    return best if qualities[best] > rival else None


def wants_events(accept: str) -> bool:
    """Whether an Accept header asks for a stream of events rather than for anything else."""
    ranges = _parse(accept)
    wanted = ranges.pop(EVENTS, 0.0)
    rivals = (quality for name, quality in ranges.items() if name != "*/*")
    return wanted > max(rivals, default=0.0)


def _quality(ranges: dict[str, float], media_type: str) -> float:
    return ranges.get(media_type, ranges.get("image/*", ranges.get("*/*", 0.0)))


def _parse(accept: str) -> dict[str, float]:
    """Quality of each range; what cannot be read is skipped."""
    ranges: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((p for p in parameters if p.startswith("q=")), "q=1")
        if _QUALITY.fullmatch(quality):
            ranges[name] = float(quality[2:])
    return ranges
