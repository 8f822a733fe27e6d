from __future__ import annotations

import json
import logging

import pytest

from worker.jobs.log import JsonFormatter, configure_logging


def record(**changes: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "worker", "levelname": "WARNING", "msg": "job %s", "args": ("ü1",), **changes}
    )


def test_json_lines_hold_what_a_collector_needs() -> None:
    entry = json.loads(JsonFormatter().format(record()))
    assert entry.pop("time")
    assert entry == {"level": "warning", "logger": "worker", "message": "job ü1"}


def test_json_lines_hold_the_exception() -> None:
    error = RuntimeError("boom")
    line = JsonFormatter().format(record(exc_info=(type(error), error, None)))
    assert "\n" not in line
    assert "RuntimeError: boom" in json.loads(line)["exception"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_go_to_standard_error(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("json" if log_format == "json" else "text")
        logging.getLogger("masc").info("hello")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    captured = capsys.readouterr()
    assert "hello" in captured.err
    assert not captured.out
    assert captured.err.startswith("{") == (log_format == "json")
