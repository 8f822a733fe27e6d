"""Settings from the environment and from options, and what is said of bad ones."""

from pathlib import Path

import pytest

from masc_core.errors import ConfigError
from worker.settings import WorkerSettings, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"MASC_{name.upper()}", raising=False)


def test_the_environment_is_read_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASC_MODELS_DIR", "/srv/models")
    monkeypatch.setenv("MASC_MAX_BATCH", "64")
    monkeypatch.setenv("MASC_DEVICE", "cuda:1")
    monkeypatch.setenv("MASC_DTYPE", "")
    monkeypatch.setenv("MASC_PORT", "not ours")
    settings = load_settings(max_batch=8, default_model=None)
    assert settings.models_dir == Path("/srv/models")
    assert settings.max_batch == 8
    assert settings.device == "cuda:1"
    assert settings.dtype == "auto"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MASC_MAX_BATCH", "1"),
        ("MASC_DEVICE", "cuda:x"),
        ("MASC_DTYPE", "float16"),
        ("MASC_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{variable}: ")
    assert repr(value) in message
    assert "\n" not in message


def test_a_bad_option_is_named_like_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"^MASC_MAX_BATCH: "):
        load_settings(max_batch=0)
