"""Logging of a process, configured once by its ``main``."""

from __future__ import annotations

import json
import logging
import sys
from types import TracebackType
from typing import Literal

from masc_core.escapes import ESCAPES, shorten

LogFormat = Literal["text", "json"]
MAX_LINE = 2000  # characters, before control characters are escaped
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class TextFormatter(logging.Formatter):
    """One line a record, and indented lines below it for an exception; no control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the line."""
        return shorten(super().formatMessage(record), MAX_LINE).translate(ESCAPES)

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """Format an exception; no line of it begins as that of a record."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {shorten(line, MAX_LINE).translate(ESCAPES)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shorten(record.getMessage(), MAX_LINE),
        }
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            entry["exception"] = "\n".join(shorten(line, MAX_LINE) for line in lines)
        return json.dumps(entry, ensure_ascii=False).translate(ESCAPES)


def configure_logging(
    log_format: LogFormat,
    level: int = logging.INFO,
    line: str = "%(asctime)s %(levelname)-7s %(name)s: %(message)s",
) -> None:
    """Send the logs of all loggers to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(line))
    logging.basicConfig(level=level, handlers=[handler], force=True)
