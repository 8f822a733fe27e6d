from __future__ import annotations

import pytest

from masc_core.images import ImageFormat
from server.intake.accept import image_format, wants_events


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/html,application/xhtml+xml,*/*;q=0.8", None),
        ("image/*", "png"),
        ("IMAGE/*", "png"),
        ("image/png", "png"),
        ("image/jpeg", "jpeg"),
        ("image/webp", "webp"),
        ("image/webp, image/*;q=0.5", "webp"),
        ("image/jpeg, image/webp", "jpeg"),
        ("image/webp;q=0.9, image/jpeg;q=0.8", "webp"),
        ("image/png;q=0, image/*", "jpeg"),
        ("image/avif, image/webp", "webp"),
        ("image/avif", None),
        ("image/avif, */*;q=0.1", "png"),
        ("image/*;q=0", None),
        ("image/*;q=0, */*", None),
        ("image/*, */*;q=0.1", "png"),
        ("image/*, application/json", None),
        ("image/*;q=0.9, application/json", None),
        ("image/*, application/json;q=0.9", "png"),
        ("image/*;q=0.5, application/*;q=0.4", "png"),
        ("image/*;level=1;q=0.5", "png"),
        ("image/* ; q=1.000", "png"),
        ("image/*;q=2, image/webp;q=x", None),
        ("image/*;q=nan", None),
        (",;,=;q=,image/webp,;;", "webp"),
        ("image", None),
        ("image/" * 5000, None),
    ],
)
def test_image_format(accept: str, expected: ImageFormat | None) -> None:
    assert image_format(accept) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("text/event-stream", True),
        ("Text/Event-Stream, */*", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.5, */*", True),
        ("text/event-stream, application/json", False),
        ("application/json;q=0.9, text/event-stream", True),
        ("image/png, text/event-stream;q=0.9", False),
        ("text/event-streams", False),
    ],
)
def test_events_have_to_be_asked_for(accept: str, expected: bool) -> None:
    assert wants_events(accept) is expected
