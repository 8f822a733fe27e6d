from __future__ import annotations

import io
import json
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from rich.console import Console

from masc_core.errors import ConfigError
from server.bench import cli
from server.bench.cli import JSON_FILE, PLOT_FILE, check_folder, run_bench, write_results
from server.bench.load import Record
from server.bench.options import read_options
from server.bench.report import Report
from tests.server.bench.reports import mixed_record, report_of
from tests.server.bench.runs import make_plan
from tests.server.listening import listening
from tests.server.service import CLASS_NAMES, Service


def watch(_: Record) -> AbstractContextManager[object]:
    return nullcontext()


def bench(port: int, **options: Any) -> Report:
    given = read_options(url=f"http://127.0.0.1:{port}", **options)
    return run_bench(given, SecretStr("a-key"), watch)[0]


def test_the_real_front_end_in_an_open_loop(own_service: Service) -> None:
    with listening(own_service) as port:
        report = bench(port, rate=100.0, requests=30, seed=5, cfg_scale=1.5, cfg_schedule="linear")
    assert (report.sent, report.ok, report.errors) == (30, 30, 0)
    assert (report.service.model, report.service.model_version) == ("tiny", "v1")
    assert report.versions == {"tiny/v1": 30}
    assert report.stages["vq_decode"].p50 == pytest.approx(0.004)
    assert report.latency is not None
    assert report.latency.count == 30
    plan = make_plan(range(len(CLASS_NAMES)), cfg_scale=1.5, seed=5)
    planned = map(json.loads, islice(plan.bodies("measured"), 30))
    received = {
        (r.class_id, r.seed, r.cfg_scale, r.cfg_schedule) for r in own_service.painter.requests
    }
    assert received == {(body["class_id"], body["seed"], 1.5, "linear") for body in planned}


def test_several_images_of_one_class_in_a_closed_loop(own_service: Service) -> None:
    with listening(own_service) as port:
        report = bench(
            port, clients=2, requests=6, num_images=3, class_name="SHIP", format="webp",
            model="tiny", warm_up=0.2,
        )  # fmt: skip
    assert report.ok == report.sent == 6
    requests = own_service.painter.requests
    assert len(requests) > 6  # the warm-up's
    assert {(r.class_id, r.num_images, r.format) for r in requests} == {(5, 3, "webp")}
    assert report.versions == {"tiny/v1": 6}
    assert "encode" in report.stages


def test_a_full_queue_refuses_and_says_until_when(tmp_path: Path) -> None:
    with Service(tmp_path, max_queue=1) as service:
        service.painter.gate.clear()
        with listening(service) as port:
            report = bench(port, rate=100.0, requests=30, timeout=2.0)
    assert report.ok == 0
    assert report.reasons == {"503 The queue is full": 28, "timed out": 2}
    rejections = report.rejections[503]
    assert rejections.latency.count == 28
    assert rejections.retry_after is not None
    assert rejections.retry_after.p50 >= 1.0
    assert report.errors == 2


def test_nothing_is_sent_to_a_server_that_is_not_masc(own_service: Service) -> None:
    with listening(own_service) as port, pytest.raises(ConfigError, match="no model 'other'"):
        bench(port, clients=1, model="other")
    assert own_service.painter.requests == []
    with pytest.raises(ConfigError, match="connection refused"):
        bench(port, clients=1)


def test_results_are_a_picture_and_a_document_without_the_key(tmp_path: Path) -> None:
    record = mixed_record()
    report = report_of(record, duration=100.0)
    folder = tmp_path / "new" / "folder"
    check_folder(folder)
    write_results(folder, report, record)
    assert Report.model_validate_json((folder / JSON_FILE).read_bytes()) == report
    assert (folder / PLOT_FILE).read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_known_before_the_load(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/folder: cannot be made"):
        check_folder(tmp_path / "file" / "folder")
    with pytest.raises(ConfigError, match="cannot be written to"):
        write_results(tmp_path / "gone", report_of(Record()), Record())


def test_a_missing_matplotlib_is_known_before_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "server.bench.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_counts_of_a_growing_record() -> None:
    assert cli._counts(Record()) == "0 sent: 0 ok, 0 refused, 0 errors, 0 under way"
    text = cli._counts(mixed_record(unanswered=3))
    assert text == "168 sent: 100 ok, 60 refused, 5 errors, 3 under way"


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    monkeypatch.setattr(cli, "error_output", lambda: console)
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
