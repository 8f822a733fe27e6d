from __future__ import annotations

import pytest

from masc_core.errors import ConfigError
from server.bench.settings import load_api_key


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASC_API_KEY", raising=False)


def test_the_key_is_the_given_one_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_api_key(None) is None
    monkeypatch.setenv("MASC_API_KEY", "")
    assert load_api_key(None) is None
    monkeypatch.setenv("MASC_API_KEY", "from-the-environment")
    found, given = load_api_key(None), load_api_key("given")
    assert found is not None
    assert found.get_secret_value() == "from-the-environment"
    assert given is not None
    assert given.get_secret_value() == "given"
    assert "environment" not in repr(found) + str(found)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schl\u00fcssel", "tab\t"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_api_key(key)
    assert "MASC_API_KEY" in str(raised.value)
    assert not key or key not in str(raised.value)
