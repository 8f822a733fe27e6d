from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from server.errors import InvalidBodyError
from server.intake.json_body import parse_object, validate


class Inner(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    depth: int


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    inner: Inner


def test_an_object_is_parsed_as_it_is_written() -> None:
    content = '{"a": 1, "b": [1.5, true, null], "c": {"é": "\\u00e9"}}'.encode()
    assert parse_object(content) == {"a": 1, "b": [1.5, True, None], "c": {"é": "é"}}


@pytest.mark.parametrize("digits", [29, 31, 5000])
def test_integers_keep_their_sign_and_are_exact_as_far_as_anyone_needs(digits: int) -> None:
    text = "9" * digits
    numbers = parse_object(f'{{"a": {text}, "b": -{text}}}'.encode())
    assert numbers["a"] == (int(text) if digits < 30 else 10**30)
    assert numbers["b"] == -numbers["a"]


def test_where_the_json_breaks_is_told() -> None:
    with pytest.raises(InvalidBodyError, match="line 2, column 8"):
        parse_object(b'{"a": 1,\n"b": 1 "c"}')


def test_a_name_twice_is_found_at_any_depth() -> None:
    with pytest.raises(InvalidBodyError) as refusal:
        parse_object(b'{"a": {"x": 1, "y": 2, "x": 1}}')
    assert [error.field for error in refusal.value.errors] == ["x"]


def test_errors_name_the_path_to_the_field() -> None:
    with pytest.raises(InvalidBodyError) as refusal:
        validate(Body, {"inner": {"depth": "1", "width": 2}, "outer": 1})
    assert [(error.field, error.message) for error in refusal.value.errors] == [
        ("inner.depth", "must be a valid integer"),
        ("inner.width", "there is no such field"),
        ("outer", "there is no such field"),
    ]
    with pytest.raises(InvalidBodyError, match="inner: is required"):
        validate(Body, {})


def test_numbers_without_a_fraction_are_integers_however_they_are_written() -> None:
    large = parse_object(b'{"a": 9007199254740993.0, "b": 3.00000000000000000001, "c": 1e-400}')
    assert large == {"a": 9007199254740993, "b": 3.0, "c": 0.0}
    assert [type(number) for number in large.values()] == [int, float, float]
    numbers = parse_object(b'{"a": 3.0, "b": 3.5, "c": 1e3, "d": -0.0, "e": 1e300, "f": 1e999}')
    assert numbers == {"a": 3, "b": 3.5, "c": 1000, "d": 0, "e": 1e300, "f": float("inf")}
    assert [name for name, number in numbers.items() if isinstance(number, int)] == ["a", "c", "d"]


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
