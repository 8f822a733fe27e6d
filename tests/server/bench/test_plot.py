from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from PIL import Image

from server.bench.load import Record
from server.bench.plot import _binned_percentile, _draw_rates, _draw_stages, report_plot
from tests.server.bench.reports import failed, mixed_record, ok, record_of, refused, report_of

RECORDS = {
    "everything": mixed_record(),
    "nothing": Record(),
    "one": record_of([ok(1.0)]),
    "refusals alone": record_of([refused(i / 10, 0.001) for i in range(50)]),
    "errors alone": record_of([failed(1.0)]),
    "warm-up alone": record_of([ok(-1.0)]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_any_run_has_a_picture_and_the_same_run_the_same(name: str) -> None:
    record = RECORDS[name]
    report = report_of(record, duration=100.0)
    picture = report_plot(report, record.rows())
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.size == (1080, 1320)
    if name == "everything":
        assert picture == report_plot(report, record.rows())


def test_lines_of_the_stages_are_their_distributions() -> None:
    record = mixed_record()
    rows = record.rows()
    axes = Figure().subplots()
    _draw_stages(axes, rows[rows["due"] >= 0])
    lines = {str(line.get_label()): line for line in axes.lines}
    assert set(lines) == {"latency", "queue", "decode", "until refused"}
    x, y = (np.asarray(values) for values in lines["latency"].get_data())
    assert y[-1] == pytest.approx(1.0)
    assert x[-1] == pytest.approx(1000 * (0.1 + 99 / 500))
    assert np.interp(0.5, y, x) == pytest.approx(200, rel=0.05)
    refusals = np.asarray(lines["until refused"].get_xdata())
    assert refusals.max() == pytest.approx(4.0)


def test_rates_are_requests_a_second() -> None:
    record = record_of([ok(i / 50, 0.01) for i in range(500)])
    axes = Figure().subplots()
    _draw_rates(axes, report_of(record, duration=10.0), record.rows())
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    assert [str(patch.get_label()) for patch in steps] == ["due", "answered with images"]
    values, edges, _ = steps[0].get_data()
    assert (edges[0], edges[-1]) == (0.0, 10.0)
    assert values == pytest.approx(50.0, rel=0.05)


def test_percentiles_of_bins() -> None:
    due = np.array([-0.5, 0.1, 0.2, 0.3, 2.5, 9.0])
    values = np.array([99.0, 1.0, 2.0, 3.0, 7.0, 99.0])
    found = _binned_percentile(due, values, np.array([0.0, 1.0, 2.0, 3.0]), 50)
    np.testing.assert_array_equal(found, [2.0, np.nan, 7.0])
