"""Escapes for what ends a line, moves the cursor or turns the direction of writing.

Names of files, models and clients come from outside. Where they are shown, in logs and by commands,
they must not look like lines of their own.
"""

from __future__ import annotations

import unicodedata

# Where Unicode has control, format and separator characters.
_PLACES = (*range(0x2100), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080))
_CONTROL = [c for c in _PLACES if unicodedata.category(chr(c)) in {"Cc", "Cf", "Zl", "Zp"}]

# For `str.translate`.
ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROL} | {10: "\\n", 13: "\\r", 9: "\\t"}
