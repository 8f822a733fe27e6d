"""Text from outside, as it is shown: names of files, models and clients, and what is wrong there.

In logs and on terminals it must not look like lines of its own, so what ends a line, moves the
cursor or turns the direction of writing is escaped. And it is cut: a request, a manifest or the
head of an array may hold megabytes.
"""

from __future__ import annotations

import unicodedata

# Where Unicode has control, format and separator characters.
_PLACES = (*range(0x2100), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080))
_CONTROL = [c for c in _PLACES if unicodedata.category(chr(c)) in {"Cc", "Cf", "Zl", "Zp"}]

# For `str.translate`.
ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROL} | {10: "\\n", 13: "\\r", 9: "\\t"}

MAX_NAME = 200  # characters
MAX_TEXT = 1000


def shorten(text: str, most: int = MAX_TEXT) -> str:
    """A text of at most so many characters: its beginning and its end, where it has more."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"


def quoted(name: object) -> str:
    """A name in quotation marks, with escapes, cut to `MAX_NAME` characters."""
    return repr(shorten(str(name), MAX_NAME))
