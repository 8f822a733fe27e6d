"""Settings that front ends and workers share."""

from __future__ import annotations

import pytest

from masc_core.errors import ConfigError
from masc_core.settings import read_settings
from server.settings import ServerSettings
from worker.jobs.queue import QueueLimits
from worker.jobs.settings import QueueSettings
from worker.settings import WorkerSettings

VARIABLES = {
    "MASC_QUEUE_URL": "redis://somewhere:1",
    "MASC_MAX_QUEUE": "7",
    "MASC_LEASE_SECONDS": "3.5",
    "MASC_MAX_DELIVERIES": "2",
    "MASC_RESULT_SECONDS": "60",
    "MASC_MAX_RESULT_BYTES": "1000",
}
LIMITS = QueueLimits(7, 3.5, 2, 60.0, 1000)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", [ServerSettings, WorkerSettings])
def test_both_sides_read_the_same_variables(
    monkeypatch: pytest.MonkeyPatch, kind: type[QueueSettings]
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(kind, {})
    assert settings.queue_url == "redis://somewhere:1"
    assert settings.limits == LIMITS


def test_without_variables_the_limits_are_those_of_the_port() -> None:
    assert QueueSettings().limits == QueueLimits()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASC_MAX_QUEUE", "0"),
        ("MASC_LEASE_SECONDS", "0"),
        ("MASC_LEASE_SECONDS", "inf"),
        ("MASC_LEASE_SECONDS", "nan"),
        ("MASC_MAX_DELIVERIES", "0"),
        ("MASC_RESULT_SECONDS", "-1"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        read_settings(QueueSettings, {})
