"""``masc bench``: query the service, load it, make the report, and write it.

A run interrupted by Ctrl-C is reported like any other, and marked.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr
from rich.live import Live
from rich.text import Text

from masc_core.errors import ConfigError, MascError
from masc_core.io.files import atomic_write
from masc_core.terminal import error_output, output, print_line
from server.bench.client import Target, load_api_key, open_session, status_class
from server.bench.load import LoadRun, Plan, Record
from server.bench.options import BenchOptions, read_options
from server.bench.report import Report, make_report, report_tables
from server.bench.service import Service, ServiceInfo

JSON_FILE = "bench.json"
PLOT_FILE = "bench.png"
INTERRUPTED = 130  # exit code

Watch = Callable[[Record], AbstractContextManager[object]]


def run_and_print(
    api_key: str | None,
    out: Path | None,
    *,
    as_json: bool,
    **values: Any,  # noqa: ANN401
) -> None:
    """Measure, print the figures, and write them to a folder if there is one.

    Parameters
    ----------
    api_key, out, as_json : options of ``masc bench``
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
    if as_json:
        output().print_json(report.model_dump_json())
    else:
        output().print(report_tables(report))
    if out is not None:
        write_results(out, report, record)
        if not as_json:
            print_line(f"{out / JSON_FILE} {out / PLOT_FILE}")
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
    console = error_output()
    if not console.is_terminal:
        yield
        return
    with Live(
        get_renderable=lambda: Text(_counts(record)),
        console=console,
        refresh_per_second=4,
        transient=True,
    ):
        yield


def _counts(record: Record) -> str:
    statuses = record.statuses.copy()
    counts = {"ok": 0, "rejected": 0, "error": 0}
    for status, number in statuses.items():
        counts[status_class(status)] += number
    waiting = record.sent - sum(statuses.values())
    return (
        f"{record.sent} sent: {counts['ok']} ok, {counts['rejected']} refused, "
        f"{counts['error']} errors, {waiting} under way"
    )


def run_bench(
    options: BenchOptions, api_key: SecretStr | None, watch: Watch
) -> tuple[Report, Record]:
    """Measure a service; ``watch`` shows the record while it grows. Errors as from `Service`."""
    info, class_ids = asyncio.run(_ask(options, api_key))
    plan = Plan(options, class_ids)
    record, started, interrupted = Record(), datetime.now(UTC), False
    with watch(record):
        try:
            asyncio.run(_load(plan, api_key, record))
        except KeyboardInterrupt:
            interrupted = True
    return make_report(options, info, record, started, interrupted=interrupted), record


def check_folder(folder: Path) -> None:
    """Make the folder of the results, and see that a picture can be drawn, before the load."""
    import server.bench.plot  # noqa: F401, PLC0415 - only where a picture is wanted

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error


def write_results(folder: Path, report: Report, record: Record) -> None:
    """Write the report as JSON and as a picture; `ConfigError` if that is not possible."""
    from server.bench.plot import report_plot  # noqa: PLC0415 - only where a picture is wanted

    document = report.model_dump_json(indent=2) + "\n"
    try:
        atomic_write(folder / JSON_FILE, document.encode())
        atomic_write(folder / PLOT_FILE, report_plot(report, record.rows()))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to ({error.strerror})") from error


async def _ask(options: BenchOptions, api_key: SecretStr | None) -> tuple[ServiceInfo, list[int]]:
    async with open_session(options.timeout, api_key) as session:
        service = Service(session, options.url)
        info = await service.info(options.model)
        return info, await service.class_ids(info.model, options.class_name)


async def _load(plan: Plan, api_key: SecretStr | None, record: Record) -> None:
    options = plan.options
    async with open_session(options.timeout, api_key) as session:
        target = Target(
            session=session,
            url=f"{options.url}/generate",
            accept="application/json" if options.num_images > 1 else f"image/{options.format}",
            num_images=options.num_images,
        )
        await LoadRun(plan, target, record).run()
