"""One run of ``masc bench``: query the service, load it, make the report, and write it.

A run interrupted by Ctrl-C is reported like any other, and marked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from masc_core.errors import ConfigError
from masc_core.io.files import atomic_write
from server.bench.client import open_session
from server.bench.load import Load
from server.bench.options import BenchOptions
from server.bench.plan import Plan
from server.bench.record import Record
from server.bench.report import Report, make_report
from server.bench.sample import Target
from server.bench.service import Service, ServiceInfo

JSON_FILE = "bench.json"
PLOT_FILE = "bench.png"

Watch = Callable[[Record], AbstractContextManager[object]]


def run_bench(
    options: BenchOptions, api_key: SecretStr | None, watch: Watch
) -> tuple[Report, Record]:
    """Measure a service.

    Parameters
    ----------
    watch : shows the record while it grows

    Raises
    ------
    ConfigError : nothing that can be measured is at that address
    """
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
    """Make the folder of the results, and see that a picture can be drawn, before the load.

    Raises
    ------
    ConfigError : it cannot be made
    ModuleNotFoundError : Matplotlib is not installed
    """
    import server.bench.plot  # noqa: F401, PLC0415 - only where a picture is wanted

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error


def write_results(folder: Path, report: Report, record: Record) -> None:
    """Write the report as JSON and as a picture.

    Raises
    ------
    ConfigError : the folder cannot be written to
    """
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
        alone = options.num_images == 1
        target = Target(
            session=session,
            url=f"{options.url}/generate",
            accept=f"image/{options.format}" if alone else "application/json",
            num_images=options.num_images,
        )
        await Load(plan, target, record, options.rate, options.clients or 1).run()
