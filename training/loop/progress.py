"""Progress of a stage on the terminal, with Rich; one line now and then where there is none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from masc_core.progress import ProgressCallback
from masc_core.terminal import error_output

SECONDS_BETWEEN_LINES = 30.0


def is_main_process() -> bool:
    """Whether this process is alone, or the first that torchrun started: the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """Lend a report function for the length of a stage."""
    console = error_output(quiet=not is_main_process())
    if not console.is_terminal:
        yield _lines(console, title)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, text="")

        def report(step: int, total: int, text: str) -> None:
            bar.update(task, completed=step, total=total, text=text)

        yield report


def _lines(console: Console, title: str) -> ProgressCallback:
    last = 0.0

    def report(step: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or step >= total:
            last = now
            console.print(f"{title} {step}/{total}  {text}")

    return report
