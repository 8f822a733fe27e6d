from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from masc_core.errors import ConfigError
from server.settings import ServerSettings, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServerSettings.model_fields:
        monkeypatch.delenv(f"MASC_{name.upper()}", raising=False)


def test_every_setting_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "host": "0.0.0.0",  # noqa: S104
        "port": 9000,
        "published_host": "192.0.2.1",
        "allowed_hosts": "masc.example",
        "root_path": "/masc",
        "cors_origins": "https://app.example",
        "queue_url": "memory://here",
        "queue_prefix": "masc-staging",
        "traces_endpoint": "http://127.0.0.1:4318",
        "models_dir": Path("/srv/models"),
        "default_model": "tiny",
        "max_queue": 7,
        "max_connections": 12,
        "head_timeout": 0.5,
        "keep_alive_timeout": 6.5,
        "max_body_bytes": 2048,
        "body_timeout": 1.5,
        "request_timeout": 2.5,
        "job_timeout": 3.0,
        "drain_seconds": 3.5,
        "lease_seconds": 4.5,
        "max_deliveries": 2,
        "result_seconds": 5.5,
        "max_result_bytes": 1_000_000,
        "api_keys_file": Path("/etc/masc/keys.toml"),
        "admin_keys_file": Path("/etc/masc/admins.toml"),
        "rate_limit": 30,
        "queue_share": 0.25,
        "log_format": "json",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"MASC_{name.upper()}", str(value))
    assert load_settings().model_dump() == values


def test_empty_variables_and_those_of_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASC_PORT", "")
    monkeypatch.setenv("MASC_DEVICE", "cuda")
    assert load_settings().port == 8000


@pytest.mark.parametrize("link", ["tcp://10.96.12.7:8000", "udp://[fd00::7]:53"])
def test_the_service_links_of_kubernetes_are_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, link: str
) -> None:
    monkeypatch.setenv("MASC_PORT", link)
    assert load_settings().port == 8000
    assert load_settings(port=9).port == 9
    assert [record.getMessage() for record in caplog.records] == [
        f"MASC_PORT={link} is a Kubernetes service link, and ignored"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASC_ALLOWED_HOSTS", "https://masc.example"),
        ("MASC_ALLOWED_HOSTS", "a.example, masc.example:8443"),
        ("MASC_ALLOWED_HOSTS", "abc.de:443"),
        ("MASC_ALLOWED_HOSTS", "masc.*"),
        ("MASC_ALLOWED_HOSTS", "bücher.example"),
        ("MASC_CORS_ORIGINS", "app.example"),
        ("MASC_CORS_ORIGINS", "https://app.example/"),
        ("MASC_CORS_ORIGINS", "https://*.example/x"),
        ("MASC_CORS_ORIGINS", "https://*.example"),
        ("MASC_CORS_ORIGINS", "https://a@app.example"),
        ("MASC_PORT", "eight"),
        ("MASC_PORT", "http://10.96.12.7:8000"),
        ("MASC_KEEP_ALIVE_TIMEOUT", "0"),
        ("MASC_MAX_CONNECTIONS", "0"),
        ("MASC_PORT", "65536"),
        ("MASC_PORT", "-1"),
        ("MASC_MAX_QUEUE", "0"),
        ("MASC_MAX_BODY_BYTES", "-5"),
        ("MASC_BODY_TIMEOUT", "0"),
        ("MASC_REQUEST_TIMEOUT", "0"),
        ("MASC_REQUEST_TIMEOUT", "nan"),
        ("MASC_REQUEST_TIMEOUT", "inf"),
        ("MASC_RATE_LIMIT", "-1"),
        ("MASC_QUEUE_SHARE", "0"),
        ("MASC_QUEUE_SHARE", "1.5"),
        ("MASC_QUEUE_SHARE", "nan"),
        ("MASC_JOB_TIMEOUT", "0"),
        ("MASC_RESULT_SECONDS", "-1"),
        ("MASC_MAX_RESULT_BYTES", "0"),
        ("MASC_QUEUE_PREFIX", "a{b}"),
        ("MASC_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refusal:
        load_settings()
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert re.sub("//.*@", "//***", value) in message  # what may be a password is not shown
    assert "\n" not in message


def test_names_and_origins_are_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASC_ALLOWED_HOSTS", " Masc.Example , *.b.example,[FD00::7],::1,10.0.0.1,*")
    origins = "https://App.example:443, http://a.example:8080,http://[::1]:80,null, *,,"
    monkeypatch.setenv("MASC_CORS_ORIGINS", origins)
    settings = load_settings()
    assert settings.allowed_hosts == "masc.example,*.b.example,fd00::7,::1,10.0.0.1,*"
    assert settings.cors_origins == "https://app.example,http://a.example:8080,http://[::1],null,*"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]
