"""A loaded model: tasks of several jobs in, files and previews out, whatever fails on the way."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import worker.model.loaded_version
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.errors import NonFiniteError
from masc_core.generation.generate import generate
from masc_core.images import ImageFormat, Pixels, encode_image
from masc_core.models.gigatok import preview_sources
from tests.clock import Clock
from tests.tiny_bundle import GRID, IMAGE_SIZE, save_tiny_bundle
from tests.worker.tiny_worker import REQUEST, RecordingEngine, expected, make_loaded
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput, FailedImage, ImageTask
from worker.job_run import image_params
from worker.jobs.job import GenerationRequest, Preview, Progress
from worker.model.loaded_version import (
    MAX_CREDIT,
    EncodedImage,
    ImageProgress,
    LoadedVersion,
    PreviewBudget,
    StartedImage,
    TaskEvent,
)
from worker.model.render import Renderer
from worker.model.threads import ThreadTuner

SHIPPED = Path(__file__).parents[3] / "models" / "cifar10" / "1"
WARM_UP = """
import sys
from masc_core.bundle.read import load_bundle
from worker.engine.engine import Engine
from worker.model.loaded_version import LoadedVersion

bundle = load_bundle(sys.argv[1])
loaded = LoadedVersion(bundle, Engine(bundle.transformer, bundle.code_sampler, 2))
loaded.warm_up()
loaded.close()
assert "torch._dynamo" not in sys.modules
"""
WEBP = replace(REQUEST, format="webp")
ALL_ROWS = tuple(range(1, GRID))
AnyEvent = TypeVar("AnyEvent", Progress, Preview)


class Plenty(PreviewBudget):
    """Pays for every preview."""

    def pay(self) -> float | None:
        return 0.0


class Nothing(PreviewBudget):
    """Pays for none."""

    def pay(self) -> float | None:
        return None


class Gate:
    """Holds the encoders back while it is closed."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()

    def __call__(self, pixels: Pixels, file_format: ImageFormat, description: str) -> bytes:
        assert self.opened.wait(10)
        return encode_image(pixels, file_format, description)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(worker.model.loaded_version, "encode_image", gate)
    yield gate
    gate.opened.set()


def tasks(
    job_id: str = "a", rows: tuple[int, ...] = (), request: GenerationRequest = REQUEST
) -> list[ImageTask]:
    return [
        ImageTask(job_id, index, image_params(request, index), rows, request.format)
        for index in range(request.num_images)
    ]


def step_to_the_end(loaded: LoadedVersion) -> list[TaskEvent]:
    reports: list[TaskEvent] = []
    for _ in range(1000):
        reports += loaded.step()
        if loaded.is_idle:
            return reports
    raise AssertionError("it does not come to an end")


def files(reports: Sequence[TaskEvent], job_id: str = "a") -> list[bytes]:
    made = [one for one in reports if isinstance(one, EncodedImage) and one.task.job_id == job_id]
    return [one.file.data for one in sorted(made, key=lambda one: one.task.index)]


def events(reports: Sequence[TaskEvent], kind: type[AnyEvent]) -> list[AnyEvent]:
    all_events = [report.event for report in reports if isinstance(report, ImageProgress)]
    return [event for event in all_events if isinstance(event, kind)]


def open_pixels(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_tasks_come_into_the_engine_in_order_and_out_as_files(bundle: Bundle) -> None:
    loaded = make_loaded(bundle, 4)
    three, one = replace(REQUEST, num_images=3), replace(REQUEST, seed=1, format="webp")
    loaded.add(tasks("a", request=three))
    loaded.add(tasks("b", request=one))
    assert (loaded.free_rows, loaded.rows_waiting, loaded.rows_active) == (-4, 8, 0)
    first = loaded.step()
    assert [type(report) for report in first] == [StartedImage, StartedImage]
    assert (loaded.free_rows, loaded.rows_waiting, loaded.rows_active) == (-4, 4, 4)
    reports = [*first, *step_to_the_end(loaded)]
    entered = [report.task.key for report in reports if isinstance(report, StartedImage)]
    assert entered == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert files(reports, "a") == expected(bundle, three)
    assert files(reports, "b") == expected(bundle, one)
    assert (loaded.free_rows, loaded.rows_active) == (4, 0)


def test_files_say_nothing_of_how_they_were_made_where_that_is_not_wanted(bundle: Bundle) -> None:
    loaded = make_loaded(bundle, image_metadata=False)
    loaded.add(tasks())
    codes = generate(bundle.transformer, bundle.code_sampler, [image_params(REQUEST, 0)]).codes
    plain = encode_image(bundle.render(codes)[0], REQUEST.format)
    assert files(step_to_the_end(loaded)) == [plain]


def test_the_engine_goes_on_while_files_are_made(bundle: Bundle, gate: Gate) -> None:
    loaded = make_loaded(bundle, 4, RecordingEngine)
    engine = cast("RecordingEngine", loaded.engine)
    loaded.add(tasks("a"))
    loaded.step()
    loaded.add(tasks("b", request=WEBP))
    gate.opened.clear()
    for _ in range(GRID**2 - 1):
        assert not files(loaded.step())
    assert len(engine.batches) == GRID**2
    assert [task.job_id for task in engine.tasks] == ["b"]
    gate.opened.set()
    reports = step_to_the_end(loaded)
    assert len(files(reports, "a")) == len(files(reports, "b")) == 1


def test_the_engine_waits_when_too_many_files_are_to_be_made(
    bundle: Bundle, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.model.loaded_version, "MAX_ENCODING", 1)
    loaded = make_loaded(bundle, 6)
    loaded.add(tasks("a", request=replace(REQUEST, num_images=2)))
    loaded.step()
    loaded.add(tasks("b", request=WEBP))
    for _ in range(GRID**2 - 2):
        loaded.step()
    gate.opened.clear()
    assert not files(loaded.step())  # of the two that are drawn one is on its way
    threading.Timer(0.05, gate.opened.set).start()
    reports = loaded.step()  # returns only when one is there
    assert gate.opened.is_set()
    assert files(reports)
    assert len(files([*reports, *step_to_the_end(loaded)])) == 2


def test_images_that_end_together_are_rendered_one_a_step(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_loaded(bundle, 16, RecordingEngine)
    engine, rendered, render = cast("RecordingEngine", loaded.engine), list[int](), Bundle.render

    def counted(self: Bundle, codes: Tensor) -> Pixels:
        rendered[-1] += len(codes)
        return render(self, codes)

    request = replace(REQUEST, num_images=4)
    wanted = [expected(bundle, one) for one in (request, replace(WEBP, num_images=4))]
    monkeypatch.setattr(Bundle, "render", counted)
    loaded.add([*tasks("a", request=request), *tasks("b", request=replace(WEBP, num_images=4))])
    loaded.add(tasks("c"))  # for which there is no room yet
    reports: list[TaskEvent] = []
    while not loaded.is_idle:
        rendered.append(0)
        reports += loaded.step()
        if rendered == [*[0] * (GRID**2 - 1), 1]:
            assert loaded.engine.free_rows == 16
    assert rendered == [*[0] * (GRID**2 - 1), *[1] * 8, *[0] * (GRID**2 - 1), 1]
    assert len(engine.batches) == 2 * GRID**2  # none while images wait
    assert [files(reports, "a"), files(reports, "b")] == wanted
    assert files(reports, "c") == expected(bundle, REQUEST)


def test_of_images_that_wait_to_be_rendered_those_of_a_dropped_job_are_forgotten(
    bundle: Bundle,
) -> None:
    loaded = make_loaded(bundle, 16)
    loaded.add([*tasks("a", request=replace(REQUEST, num_images=3)), *tasks("b")])
    for _ in range(GRID**2):
        loaded.step()
    loaded.drop("a")
    reports = step_to_the_end(loaded)
    assert files(reports, "b") == expected(bundle, REQUEST)
    assert not files(reports, "a")


def test_previews_are_the_upper_rows_of_what_becomes_of_the_image(bundle: Bundle) -> None:
    loaded = make_loaded(bundle, budget=Plenty())
    loaded.add(tasks(rows=ALL_ROWS))
    reports = step_to_the_end(loaded)
    progress, previews = events(reports, Progress), events(reports, Preview)
    assert progress == [Progress(0, rows, GRID) for rows in (1, 2, 3)]
    assert [(one.image, one.rows, one.num_rows, one.format) for one in previews] == [
        (0, rows, GRID, "jpeg") for rows in (1, 2, 3)
    ]
    codes = generate(bundle.transformer, bundle.code_sampler, [image_params(REQUEST, 0)]).codes
    for report in previews:
        upper = bundle.render(codes[:, : report.rows * GRID])[0]
        assert report.data == encode_image(upper, "jpeg")
        height = report.rows * IMAGE_SIZE // GRID
        assert open_pixels(report.data).shape == (height, IMAGE_SIZE, 3)
    assert files(reports) == expected(bundle, REQUEST)


def test_previews_of_a_sequence_are_whole_images_and_count_tokens(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, gigatok=True)
    sequence = load_bundle(tmp_path / "tiny" / "1")
    loaded = make_loaded(sequence, budget=Plenty())
    loaded.add(tasks(rows=ALL_ROWS))
    reports = step_to_the_end(loaded)
    assert events(reports, Progress) == [Progress(0, tokens, 16) for tokens in (4, 8, 12)]
    codes = generate(sequence.transformer, sequence.code_sampler, [image_params(REQUEST, 0)]).codes
    previews = events(reports, Preview)
    for report, tokens in zip(previews, (4, 8, 12), strict=True):
        assert (report.rows, report.num_rows) == (tokens, 16)
        drawn = sequence.render(codes[:, preview_sources(tokens, 16)])[0]
        assert report.data == encode_image(drawn, "jpeg")
        assert open_pixels(report.data).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert files(reports) == expected(sequence, REQUEST)


def test_a_sequence_has_the_same_bytes_in_any_company(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, gigatok=True)
    sequence = load_bundle(tmp_path / "tiny" / "1")
    loaded = make_loaded(sequence, 8)
    others = replace(REQUEST, class_id=1, num_images=3, cfg_scale=1.0)
    loaded.add(tasks("b", request=others))
    reports = [*loaded.step(), *loaded.step(), *loaded.step()]
    loaded.add(tasks("a"))
    reports += step_to_the_end(loaded)
    assert files(reports, "a") == expected(sequence, REQUEST)
    assert files(reports, "b") == expected(sequence, others)
    assert len({*files(reports, "a"), *files(reports, "b")}) == 4


def test_a_trained_decoder_shows_nearly_what_will_be() -> None:
    shipped = load_bundle(SHIPPED)
    grid = shipped.manifest.grid
    loaded = LoadedVersion(shipped, Engine(shipped.transformer, shipped.code_sampler, 4), Plenty())
    loaded.add(tasks(rows=tuple(range(1, grid)), request=replace(REQUEST, num_images=2)))
    reports = step_to_the_end(loaded)
    final, other = [open_pixels(data).astype(int) for data in files(reports)]
    previews = [preview for preview in events(reports, Preview) if preview.image == 0]
    for report in previews[grid // 2 - 1 :]:  # of fewer rows the decoder sees too little
        preview = open_pixels(report.data).astype(int)
        upper = final[: len(preview)]
        error = np.abs(preview - upper).mean()
        assert error < 16
        assert error < 0.5 * np.abs(other[: len(preview)] - upper).mean()


def test_without_budget_there_is_progress_but_no_preview(bundle: Bundle) -> None:
    loaded = make_loaded(bundle, budget=Nothing())
    loaded.add(tasks(rows=ALL_ROWS, request=replace(REQUEST, num_images=2)))
    reports = step_to_the_end(loaded)
    progress = [(one.image, one.rows) for one in events(reports, Progress)]
    assert progress == [(index, rows) for rows in ALL_ROWS for index in range(2)]
    assert not events(reports, Preview)


def test_previews_cost_what_they_took(bundle: Bundle) -> None:
    settled = list[tuple[float, float]]()

    class Ledger(Plenty):
        def pay(self) -> float | None:
            return 0.5

        def settle(self, paid: float, seconds: float) -> None:
            settled.append((paid, seconds))

    loaded = make_loaded(bundle, budget=Ledger())
    loaded.add(tasks(rows=ALL_ROWS))
    step_to_the_end(loaded)
    assert len(settled) == 3
    assert all(paid == 0.5 and 0 < seconds < 1 for paid, seconds in settled)


@pytest.mark.parametrize("broken", ["render", "encode"])
def test_a_preview_that_fails_harms_nobody(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    render = Bundle.render

    def no_parts(self: Bundle, codes: Tensor) -> Pixels:
        if codes.shape[1] < GRID**2:
            raise RuntimeError("out of memory")
        return render(self, codes)

    def no_jpeg(pixels: Pixels, file_format: ImageFormat, description: str) -> bytes:
        if file_format == "jpeg":
            raise OSError("no such encoder")
        return encode_image(pixels, file_format, description)

    wanted = expected(bundle, REQUEST)
    if broken == "render":
        monkeypatch.setattr(Bundle, "render", no_parts)
    else:
        monkeypatch.setattr(worker.model.loaded_version, "encode_image", no_jpeg)
    loaded = make_loaded(bundle, budget=Plenty())
    loaded.add(tasks(rows=ALL_ROWS))
    reports = step_to_the_end(loaded)
    assert {type(report) for report in reports} == {StartedImage, ImageProgress, EncodedImage}
    assert not events(reports, Preview)
    assert files(reports) == wanted


def test_an_image_that_fails_in_the_engine_is_lost_alone(bundle: Bundle) -> None:
    with torch.no_grad():
        bundle.transformer.cls_embedding.embedding_table.weight[4] = torch.nan
    loaded = make_loaded(bundle)
    loaded.add([*tasks("a"), *tasks("b", request=replace(REQUEST, class_id=4))])
    reports = step_to_the_end(loaded)
    (lost,) = [report for report in reports if isinstance(report, FailedImage)]
    assert lost.task.job_id == "b"
    assert isinstance(lost.error, NonFiniteError)
    assert files(reports, "a") == expected(bundle, REQUEST)


def test_what_is_dropped_takes_no_rows_and_is_not_heard_of_again(
    bundle: Bundle, gate: Gate
) -> None:
    loaded = make_loaded(bundle, 4, budget=Plenty())
    loaded.add(tasks("a", ALL_ROWS, replace(REQUEST, num_images=3)))
    loaded.step()
    loaded.drop("a")
    assert (loaded.free_rows, loaded.is_idle) == (4, True)
    assert not loaded.step()

    gate.opened.clear()
    loaded.add([*tasks("a", ALL_ROWS), *tasks("b", request=WEBP)])
    for _ in range(GRID**2 - 1):
        loaded.step()
    assert len(loaded._encoding) == 3  # its previews
    loaded.drop("a")
    assert not loaded._encoding
    gate.opened.set()
    reports = step_to_the_end(loaded)
    assert [type(report) for report in reports] == [EncodedImage]
    assert files(reports, "b") == expected(bundle, WEBP)


class FailingEngine(Engine):
    """Fails in the steps that it is told."""

    failing = frozenset({3, GRID + 1, GRID**2 + 2})
    num_calls = 0

    def step(self) -> Sequence[EngineOutput]:
        self.num_calls += 1
        if self.num_calls in self.failing:
            raise RuntimeError("out of memory")
        return super().step()


def test_an_engine_that_fails_names_whom_it_concerns_and_loses_no_report(bundle: Bundle) -> None:
    loaded = make_loaded(bundle, engine=FailingEngine, budget=Plenty())
    loaded.add([*tasks("a", ALL_ROWS), *tasks("b", request=WEBP)])
    reports: list[TaskEvent] = []
    num_failures = 0
    while not loaded.is_idle:
        try:
            reports += loaded.step()
        except RuntimeError:
            num_failures += 1
            assert loaded.jobs_at_risk == {"a", "b"}
        else:
            assert not loaded.jobs_at_risk
    assert num_failures == 3
    assert [type(report) for report in reports].count(StartedImage) == 2
    assert [preview.rows for preview in events(reports, Preview)] == list(ALL_ROWS)
    assert files(reports, "a") == expected(bundle, REQUEST)
    assert len(files(reports, "b")) == 1


def test_a_report_of_a_job_that_is_dropped_after_a_failure_is_not_given(bundle: Bundle) -> None:
    class NeverEngine(Engine):
        def step(self) -> Sequence[EngineOutput]:
            raise RuntimeError("out of memory")

    loaded = make_loaded(bundle, engine=NeverEngine)
    loaded.add(tasks("a"))
    with pytest.raises(RuntimeError):
        loaded.step()
    loaded.drop("a")
    assert not loaded.step()


def test_a_task_that_the_engine_refuses_concerns_its_job_alone(bundle: Bundle) -> None:
    loaded = make_loaded(bundle)
    unknown = replace(tasks("b")[0], params=replace(tasks("b")[0].params, class_id=99))
    loaded.add([*tasks("a"), unknown])
    with pytest.raises(Exception, match="class"):
        loaded.step()
    assert loaded.jobs_at_risk == {"b"}
    loaded.drop("b")
    assert files(step_to_the_end(loaded)) == expected(bundle, REQUEST)


def test_the_end_waits_for_what_is_under_way_and_ends_the_threads(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker.model.loaded_version, "Renderer", lambda bundle: Renderer(bundle, threaded=True)
    )
    before = set(threading.enumerate())
    loaded = make_loaded(bundle)
    loaded.add(tasks())
    step_to_the_end(loaded)
    names = {thread.name.split("_")[0] for thread in set(threading.enumerate()) - before}
    assert names == {"render", "encode"}
    loaded.close()
    assert set(threading.enumerate()) <= before


def test_the_warm_up_image_goes_all_the_way(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[bytes]()

    def remember(pixels: Pixels, file_format: ImageFormat, description: str) -> bytes:
        made.append(encode_image(pixels, file_format, description))
        return made[-1]

    monkeypatch.setattr(worker.model.loaded_version, "encode_image", remember)
    loaded = make_loaded(bundle, 4)
    loaded.warm_up()
    request = GenerationRequest("tiny", 0, bundle.manifest.defaults.cfg_scale, 0)
    assert made == expected(bundle, request)
    assert (loaded.free_rows, loaded.is_idle) == (4, True)


def test_a_warm_up_image_that_cannot_be_decoded_fails(bundle: Bundle) -> None:
    torch.nn.init.constant_(bundle.tokenizer.quantize.embedding.weight, torch.nan)
    with pytest.raises(NonFiniteError):
        make_loaded(bundle).warm_up()


def test_the_warm_up_image_is_completed_where_others_may_be(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, completer=True)
    bundle = load_bundle(tmp_path / "tiny" / "1")
    make_loaded(bundle).warm_up()
    torch.nn.init.constant_(bundle.code_sampler.completer.norm.weight, torch.nan)
    with pytest.raises(NonFiniteError, match="completer's scores"):
        make_loaded(bundle).warm_up()


def test_steps_take_the_threads_that_the_warm_up_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, taken = torch.get_num_threads(), list[int]()
    loaded = make_loaded(bundle, cores=[1, 2])
    monkeypatch.setattr(ThreadTuner, "best", lambda _: 2)
    step = loaded.engine.step

    def recorded_step() -> Sequence[EngineOutput]:
        taken.append(torch.get_num_threads())
        return step()

    monkeypatch.setattr(loaded.engine, "step", recorded_step)
    try:
        loaded.warm_up()
        assert taken == [1, 2] * (GRID**2 // 2)
        torch.set_num_threads(1)  # as another version may leave it
        loaded.add(tasks())
        step_to_the_end(loaded)
        assert set(taken[GRID**2 :]) == {2}
    finally:
        torch.set_num_threads(before)


def test_no_start_on_a_cpu_waits_for_the_import_of_torchs_compiler() -> None:
    subprocess.run([sys.executable, "-c", WARM_UP, SHIPPED], check=True, timeout=60)


def preview(budget: PreviewBudget, seconds: float) -> bool:
    """Make a preview that takes so long, if it may be made."""
    paid = budget.pay()
    if paid is not None:
        budget.settle(paid, seconds)
    return paid is not None


def test_an_image_alone_gets_previews_at_once() -> None:
    budget = PreviewBudget(clock=Clock())
    assert preview(budget, 0.01)
    assert preview(budget, 0.01)


@pytest.mark.parametrize("step", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("cost", [0.0005, 0.004, 0.2])
def test_in_the_long_run_previews_take_their_share_of_the_time(step: float, cost: float) -> None:
    clock = Clock()
    budget, spent = PreviewBudget(0.05, clock), 0.0
    while clock.now < 100.0:
        clock.now += step
        if preview(budget, cost):
            clock.now += cost
            spent += cost
    assert spent <= 0.05 * clock.now + MAX_CREDIT + cost
    wanted = cost / (step + cost)  # if every one were made
    assert spent >= 0.95 * min(0.05, wanted) * clock.now


def test_many_that_are_due_at_once_do_not_find_the_same_credit() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    assert budget.pay() is not None
    assert budget.pay() is None  # of the first it is not known yet what it takes
    budget.settle(MAX_CREDIT, 0.02)
    clock.now += 1000.0
    paid = [budget.pay() for _ in range(16)]
    assert paid == [0.02] * 3 + [None] * 13


def test_what_was_paid_in_advance_is_set_right() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    assert preview(budget, 0.001)
    first, second = budget.pay(), budget.pay()
    assert first == second == 0.001
    budget.settle(0.001, 0.1)
    budget.settle(0.001, 0.1)
    assert budget.pay() is None
    clock.now += (0.201 - MAX_CREDIT) / 0.05
    assert budget.pay() is None
    clock.now += 0.001
    assert budget.pay() == 0.1


def test_credit_does_not_pile_up() -> None:
    clock = Clock()
    budget = PreviewBudget(0.05, clock)
    clock.now += 1e6
    assert [preview(budget, 0.3 * MAX_CREDIT) for _ in range(5)] == [True] * 4 + [False]
