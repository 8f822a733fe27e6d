"""Picture of a run: how long requests took by stage, and how it went over time.

Every line has a pattern besides its colour. Equal runs give equal bytes.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from server.bench.client import REJECTIONS, STAGES
from server.bench.load import Rows
from server.bench.report import Report, headline

# Okabe, Ito: Color Universal Design, 2008; without yellow, which is faint on white, and with grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)))
DOTS_PER_INCH = 120

MIN_BINS, MAX_BINS = 6, 60
REQUESTS_PER_BIN = 20
MAX_DOTS = 5000
LEAST_MS = 0.01  # zero has no place on a logarithmic axis

Times = npt.NDArray[np.float64]


def report_plot(report: Report, rows: Rows) -> bytes:
    """PNG of a run whose samples are ``rows``."""
    figure = Figure((9, 11), layout="constrained")
    stages, latency, rates = figure.subplots(3, 1, height_ratios=(1.2, 1, 1))
    latency.sharex(rates)
    measured = rows[rows["due"] >= 0]
    _draw_stages(stages, measured)
    _draw_latency(latency, report, measured)
    _draw_rates(rates, report, rows)
    figure.suptitle(headline(report), x=0.01, ha="left", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _draw_stages(axes: Axes, measured: Rows) -> None:
    ok = measured[measured["status"] == 200]
    refused = measured[np.isin(measured["status"], REJECTIONS)]
    times = {"latency": ok["finished"] - ok["due"], **{name: ok[name] for name in STAGES}}
    times.pop("total")  # close to the latency, and would hide it
    times["until refused"] = refused["finished"] - refused["due"]
    for (name, seconds), colour, line in zip(times.items(), COLOURS, LINES, strict=True):
        known = seconds[~np.isnan(seconds)]
        if len(known):
            milliseconds = np.maximum(1000 * known, LEAST_MS)
            axes.ecdf(milliseconds, color=colour, linestyle=line, label=name)
    axes.set(xscale="log", xlabel="milliseconds", ylabel="share of the requests", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    _finish(axes)


def _draw_latency(axes: Axes, report: Report, measured: Rows) -> None:
    ok = measured[measured["status"] == 200]
    due, milliseconds = ok["due"], 1000 * (ok["finished"] - ok["due"])
    step = max(1, len(ok) // MAX_DOTS)
    axes.plot(due[::step], milliseconds[::step], ".", color="0.75", markersize=3, zorder=1)
    edges = _edges(report)
    for share, colour, line in ((50, COLOURS[1], "-"), (99, COLOURS[2], "--")):
        values = _binned_percentile(due, milliseconds, edges, share)
        axes.stairs(values, edges, baseline=None, color=colour, linestyle=line, label=f"p{share}")
    axes.set(ylabel="latency (ms)", ylim=(0, None))
    _finish(axes)


def _draw_rates(axes: Axes, report: Report, rows: Rows) -> None:
    edges = _edges(report)
    rejected = np.isin(rows["status"], REJECTIONS)
    ok = rows["status"] == 200
    times_of = {
        "due": rows["due"],
        "answered with images": rows["finished"][ok],
        "refused": rows["finished"][rejected],
        "errors": rows["finished"][~ok & ~rejected],
    }
    for (name, times), colour, line in zip(times_of.items(), COLOURS, LINES, strict=False):
        if len(times):
            rates = np.histogram(times, edges)[0] / np.diff(edges)
            axes.stairs(rates, edges, baseline=None, color=colour, linestyle=line, label=name)
    axes.set(xlabel="seconds", ylabel="requests/s", ylim=(0, None))
    _finish(axes)


def _edges(report: Report) -> Times:
    bins = max(MIN_BINS, min(MAX_BINS, report.sent // REQUESTS_PER_BIN))
    return np.linspace(0, max(report.seconds, 1e-3), bins + 1)


def _binned_percentile(due: Times, values: Times, edges: Times, share: float) -> Times:
    """Percentile of the values of each bin, NaN where there are none."""
    bins = np.digitize(due, edges) - 1
    percentiles = np.full(len(edges) - 1, np.nan)
    for i in np.unique(bins[(bins >= 0) & (bins < len(percentiles))]):
        percentiles[i] = np.percentile(values[bins == i], share)
    return percentiles


def _finish(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
