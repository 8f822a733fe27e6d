from __future__ import annotations

import json
import logging

import pytest

from worker.jobs.log import MAX_LINE, JsonFormatter, TextFormatter, configure_logging


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


def test_lines_are_short_whatever_they_say() -> None:
    error = RuntimeError("y" * 10**6)
    long = record(args=("x" * 10**6,), exc_info=(type(error), error, None))
    for formatter in (TextFormatter("%(message)s"), JsonFormatter()):
        assert len(formatter.format(long)) < 3 * MAX_LINE


HOSTILE = "x\n2026-01-01 INFO    server: forged\r\x1b[2J\x85\u2028\u202e\x00\x7f"


def test_no_text_from_outside_makes_lines_of_its_own() -> None:
    formatter = TextFormatter("%(levelname)s %(name)s: %(message)s")
    line = formatter.format(record(args=(HOSTILE,)))
    assert line == (
        r"WARNING worker: job x\n2026-01-01 INFO    server: forged"
        r"\r\u001b[2J\u0085\u2028\u202e\u0000\u007f"
    )
    entry = JsonFormatter().format(record(args=(HOSTILE,)))
    assert entry.isprintable()
    assert json.loads(entry)["message"] == f"job {HOSTILE}"


def test_lines_of_an_exception_are_indented() -> None:
    error = RuntimeError(HOSTILE)
    text = TextFormatter("%(message)s").format(record(exc_info=(type(error), error, None)))
    first, *others = text.split("\n")
    assert first == "job ü1"
    assert len(others) == 2
    assert all(line.startswith("  ") and line.isprintable() for line in others)
