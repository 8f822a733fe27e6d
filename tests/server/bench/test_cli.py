from __future__ import annotations

import io
import resource

import pytest
from rich.console import Console

from server.bench import cli
from server.bench.load import Record
from tests.server.bench.reports import mixed_record


def test_counts_of_a_growing_record() -> None:
    assert cli._counts(Record()) == "0 sent: 0 ok, 0 refused, 0 errors, 0 under way"
    text = cli._counts(mixed_record(unanswered=3))
    assert text == "168 sent: 100 ok, 60 refused, 5 errors, 3 under way"


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    monkeypatch.setattr(cli, "progress_console", console)
    with cli._progress(mixed_record()):
        pass
    assert isinstance(console.file, io.StringIO)
    assert ("100 ok, 60 refused" in console.file.getvalue()) is shown


def test_as_many_connections_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        cli._allow_many_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
