"""``masc bench`` on the command line; imported only when it is called."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from masc_core.errors import MascError
from server.bench.client import load_api_key
from server.bench.options import read_options
from server.bench.record import Record
from server.bench.run import JSON_FILE, PLOT_FILE, check_folder, run_bench, write_results
from server.bench.sample import outcome_of
from server.bench.table import report_tables

INTERRUPTED = 130

console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)


def run_and_print(api_key: str | None, out: Path | None, **values: Any) -> None:  # noqa: ANN401
    """Measure, print the figures, and write them to a folder if there is one.

    Parameters
    ----------
    api_key, out : options of ``masc bench``
    values : the others, as `BenchOptions` names them

    Raises
    ------
    ConfigError : an option that cannot be used
    MascError : no request was answered
    """
    options = read_options(**values)
    key = load_api_key(api_key)
    if out is not None:
        check_folder(out)
    _allow_many_connections()
    report, record = run_bench(options, key, _progress)
    console.print(report_tables(report))
    if out is not None:
        write_results(out, report, record)
        console.print(f"{out / JSON_FILE} {out / PLOT_FILE}", markup=False, soft_wrap=True)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.errors == report.sent:
        raise MascError("no request was answered with images, nor refused for want of capacity")


def _allow_many_connections() -> None:
    """Every request that is under way is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _progress(record: Record) -> Iterator[None]:
    """Show the counts of a growing record, where there is a terminal."""
    if not progress_console.is_terminal:
        yield
        return
    with Live(
        get_renderable=lambda: Text(_counts(record)),
        console=progress_console,
        refresh_per_second=4,
        transient=True,
    ):
        yield


def _counts(record: Record) -> str:
    statuses = record.statuses.copy()
    by_outcome = {"ok": 0, "rejected": 0, "error": 0}
    for status, number in statuses.items():
        by_outcome[outcome_of(status)] += number
    waiting = record.sent - sum(statuses.values())
    return (
        f"{record.sent} sent: {by_outcome['ok']} ok, {by_outcome['rejected']} refused, "
        f"{by_outcome['error']} errors, {waiting} under way"
    )
