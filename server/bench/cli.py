"""``masc bench`` on the command line; imported only when it is called."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from masc_core.errors import MascError
from server.bench.client import load_api_key
from server.bench.options import DEFAULT_URL, read_options
from server.bench.record import Record
from server.bench.run import JSON_FILE, PLOT_FILE, check_folder, run_bench, write_results
from server.bench.sample import outcome_of
from server.bench.table import report_tables

INTERRUPTED = 130

console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)


def bench(  # noqa: PLR0913 - options
    url: Annotated[str, typer.Argument(help="Address of the service.")] = DEFAULT_URL,
    *,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: Poisson arrivals, so many a second.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Closed loop: so many clients, each asks when answered.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds; 10 if --requests is not given either.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many requests.")] = None,
    warm_up: Annotated[
        float, typer.Option(help="Seconds of the same load that are not measured.")
    ] = 0.0,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Name or id; each is drawn if not given.")
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="1 to 20; the model's default.")] = None,
    num_images: Annotated[int, typer.Option(help="Images a request, 1 to 16.")] = 1,
    file_format: Annotated[
        str, typer.Option("--format", help="Of the images: png, jpeg or webp.")
    ] = "png",
    model: Annotated[str | None, typer.Option(help="Model; the service's default.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of arrivals, classes and images; the same, the same requests.")
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 60.0,
    api_key: Annotated[
        str | None, typer.Option(help="Sent as bearer token; better in MASC_API_KEY.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for {JSON_FILE} and {PLOT_FILE}.")
    ] = None,
) -> None:
    """Load a running service, and measure what it answers and how fast."""
    options = read_options(
        url=url,
        rate=rate,
        clients=clients,
        duration=duration,
        requests=requests,
        warm_up=warm_up,
        class_name=class_name,
        cfg_scale=cfg_scale,
        num_images=num_images,
        format=file_format,
        model=model,
        seed=seed,
        timeout=timeout,
    )
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
