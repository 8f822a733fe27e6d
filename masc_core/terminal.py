"""What commands print, on whatever terminal, or where there is none.

In names from outside square brackets are no markup, and what ends a line or moves the cursor is
escaped, as is what a terminal or a file cannot show. A table whose reader is a program has one line
a row.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from masc_core.escapes import ESCAPES

PIPED_WIDTH = 10_000  # columns; no table is as wide

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def output(*, quiet: bool = False) -> Console:
    """Standard output."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def error_output(*, quiet: bool = False) -> Console:
    """Standard error."""
    return Console(
        stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def print_line(text: str, *, quiet: bool = False) -> None:
    """Print a line."""
    output(quiet=quiet).print(text.translate(ESCAPES), soft_wrap=True)


def print_error(text: str) -> None:
    """Print a line of what went wrong to standard error."""
    error_output().print(f"masc: {text.translate(ESCAPES)}")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under their heads."""
    table = Table(*heads)
    for row in rows:
        table.add_row(*(cell.translate(ESCAPES) for cell in row))
    output().print(table)


def replace_closed_streams() -> None:
    """Let a process that was started without one of its streams, as by ``>&-``, write to nowhere.

    Call it before any file is opened, which would get the stream's number, and its output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def escape_what_cannot_be_encoded() -> None:
    """Let both streams write what their encoding lacks as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks have others
            stream.reconfigure(errors="backslashreplace")
