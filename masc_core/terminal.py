"""What commands print, on whatever terminal, or where there is none.

Names from outside are printed as they are: square brackets are no markup. What a terminal or a file
cannot show is escaped, and a table whose reader is a program has one line a row.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console

PIPED_WIDTH = 10_000  # columns; no table is as wide


def output(*, quiet: bool = False) -> Console:
    """Standard output."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def error_output(*, quiet: bool = False) -> Console:
    """Standard error."""
    return Console(
        stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def escape_what_cannot_be_encoded() -> None:
    """Let both streams write what their encoding lacks as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks have others
            stream.reconfigure(errors="backslashreplace")
