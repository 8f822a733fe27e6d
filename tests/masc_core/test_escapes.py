from __future__ import annotations

import pytest

from masc_core.errors import ArtifactError, MascError, UnknownModelError
from masc_core.escapes import MAX_NAME, MAX_TEXT, quoted, shorten


@pytest.mark.parametrize("length", [0, 1, MAX_TEXT, MAX_TEXT + 1, 10**6])
def test_a_long_text_keeps_its_beginning_and_its_end(length: int) -> None:
    text = ("b" * length)[: length // 2] + ("e" * length)[length // 2 :]
    cut = shorten(text)
    assert len(cut) == min(length, MAX_TEXT)
    assert (cut == text) is (length <= MAX_TEXT)
    assert (cut[:1], cut[-1:]) == (text[:1], text[-1:])


def test_a_name_is_quoted_and_escaped() -> None:
    assert quoted("a\n'b") == '"a\\n\'b"'
    assert len(quoted("x" * 10**6)) == MAX_NAME + 2


def test_errors_are_short_whatever_they_name() -> None:
    for error in (MascError("x" * 10**6), UnknownModelError("model", "x" * 10**6)):
        assert len(str(error)) == MAX_TEXT
    error = ArtifactError("models/a", "x" * 10**6)
    assert len(error.reason) == len(str(error)) == MAX_TEXT
    assert str(error).startswith("models/a: xxx")
