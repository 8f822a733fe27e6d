from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tests.training.studies.comparisons import comparison, prior_result
from training.metrics.prior_measurement import Comparison
from training.plot_png import png_bytes
from training.studies import compare_plots
from training.studies.compare_plots import rate_distortion_plot, size_plot

Plot = Callable[[Comparison], bytes]

METHODS = ("average", "kmeans", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m")
PLOTS = (size_plot, rate_distortion_plot)


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width == 1080
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order in which they are made into files."""
    figures: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return png_bytes(figure)

    monkeypatch.setattr(compare_plots, "png_bytes", keep)
    return figures


@pytest.mark.parametrize("plot", PLOTS)
def test_equal_results_give_equal_files(plot: Plot) -> None:
    assert plot(comparison()) == plot(comparison())


@pytest.mark.parametrize("plot", PLOTS)
def test_a_single_prior_and_more_methods_than_colours(plot: Plot) -> None:
    one = replace(comparison(), rows=comparison().rows[:1])
    many = [prior_result(m, ((1, 4), (5, 4)), 20 + i) for i, m in enumerate(METHODS)]
    for rows in (one.rows, tuple(many)):
        assert pixels(plot(replace(one, rows=rows))).std() > 10


def test_bars_show_the_share_of_codes_in_clusters_of_each_size(drawn: list[Figure]) -> None:
    size_plot(comparison())
    top, bottom = drawn[0].axes
    assert top.get_title(loc="left") == "K = 8"
    assert [label.get_text() for label in top.get_yticklabels()] == ["average", "kmeans++"]
    assert [label.get_text() for label in bottom.get_yticklabels()] == ["average"]
    widths = np.array([[bar.get_width() for bar in group] for group in top.containers])
    assert widths.shape == (9, 2)
    assert widths[:, 0] == pytest.approx([0.2, 0.2, 0, 0, 0, 0, 0, 99.6, 0])
    assert widths[:, 1] == pytest.approx([0, 0, 0, 0, 0, 0, 100, 0, 0])
    assert [text.get_text() for text in top.texts] == ["996", "250"]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names[:4] == ["1", "2", "3\N{EN DASH}4", "5\N{EN DASH}8"]
    assert names[-1] == "> 1024"


def test_rates_join_the_clusterings_of_one_method(drawn: list[Figure]) -> None:
    rate_distortion_plot(comparison())
    uniform, frequency, detail, _ = drawn[0].axes
    assert uniform.get_title() == "uniform decoding"
    assert frequency.get_title() == "frequency decoding"
    lines = {line.get_color(): line for line in uniform.lines}
    joined = lines[compare_plots.COLOURS[0]]
    assert np.asarray(joined.get_ydata()).tolist() == [22.0, 25.0]  # from the smaller K
    assert np.asarray(joined.get_xdata()).tolist() == [2.5, 2.5]
    markers = uniform.collections[0]
    assert isinstance(markers, PathCollection)
    small, large = markers.get_sizes()
    assert small < large
    legend = {text.get_text() for text in drawn[0].legends[0].get_texts()}
    assert legend == {"average", "kmeans++", "flat"}
    assert detail.get_title() == "less than 3 dB below flat"


def test_the_detail_leaves_out_what_is_far_from_the_tokenizer(drawn: list[Figure]) -> None:
    results = comparison()
    close = prior_result("kmeans++", ((250, 8),), 27.5)
    rate_distortion_plot(replace(results, rows=(*results.rows, close)))
    whole, detail = drawn[0].axes[0], drawn[0].axes[2]
    assert set(np.asarray(whole.lines[0].get_ydata())) == {30.0}  # the flat vocabulary's
    shown = np.concatenate([np.asarray(line.get_ydata()) for line in detail.lines])
    assert shown.tolist() == [27.5]
