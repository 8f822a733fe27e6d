from __future__ import annotations

from typing import Any

import pytest

from masc_core.errors import ConfigError
from training.changes import changes, difference, require_same_classes


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"lr": 0.1, "dim": 8}, {"lr": 0.2, "dim": 8}, "lr was 0.1, is 0.2"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c was 1, is 2"),
        ({"images": {"cat": 3}}, {"images": {"cat": 3, "dog": 1}}, "images.dog was absent, is 1"),
        ({"init": "x"}, {}, "init was 'x', is absent"),
        ({"codes": "0" * 64}, {"codes": "f" * 64}, "codes is another"),
        ({"names": ["a", "b"]}, {"names": ("b",)}, "names lacks 'a'"),
        ({"ch_mult": [1, 2]}, {"ch_mult": [1, 4]}, "ch_mult was [1, 2], is [1, 4]"),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, "a was 1, is 2; b was 2, is 3"),
        ({"a": 1}, {"a": 1}, ""),
    ],
)
def test_changes_say_what_was_and_what_is(
    before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    assert changes(before, now) == said


def test_many_changes_are_counted() -> None:
    said = changes({str(i): 0 for i in range(20)}, {str(i): 1 for i in range(20)})
    assert said.startswith("0 was 0, is 1; 1 was")
    assert said.endswith("7 was 0, is 1; and 12 more")


@pytest.mark.parametrize(
    ("names", "others", "said"),
    [
        ("ab", "abc", "lacks 'c'"),
        ("abc", "ab", "has besides 'c'"),
        ("xb", "ab", "lacks 'a', and has besides 'x'"),
        ("ba", "ab", "has them in another order"),
        ("abcdef", "a", "has besides 'b', 'c', 'd' and 2 more"),
    ],
)
def test_classes_that_differ_are_named(names: str, others: str, said: str) -> None:
    assert difference(names, others) == said
    with pytest.raises(ConfigError, match=f"^val: the classes of x are not those of y: it {said}$"):
        require_same_classes("val", "x", names, "y", others)
    require_same_classes("val", "x", names, "y", names)
