from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from tests.training.studies.comparisons import comparison, prior_result
from training.metrics.prior_measurement import Comparison
from training.plot_png import png_bytes
from training.studies.compare_report import (
    COLOURS,
    as_json,
    as_markdown,
    draw_rate_distortion,
    draw_sizes,
)


def tables() -> dict[str, list[list[str]]]:
    """Cells of each table by the heading above it."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in as_markdown(comparison()).decode().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append([c.strip() for c in line.strip("|").split("|")])
    return found


def test_every_prior_is_a_row_of_every_table() -> None:
    found = tables()
    assert list(found) == ["Clusters", "Bits a position", "Uniform decoding", "Frequency decoding"]
    for table in found.values():
        assert {len(row) for row in table} == {len(table[0])}
        assert [row[:2] for row in table[2:]] == [
            ["flat", "2,000"],
            ["average", "8"],
            ["kmeans++", "8"],
            ["average", "4"],
            ["kmeans++", "4"],
        ]
        assert set(table[-1][2:]) == {"-"}


def test_numbers_and_their_errors() -> None:
    found = tables()
    assert found["Clusters"][3][2:] == [
        *("996", "75.0%", "50.0%", "25.0%", "12.5%", "4", "0.5000", "0.2500", "0.1250")
    ]
    bits = dict(zip(found["Bits a position"][0], found["Bits a position"][3], strict=True))
    assert bits["sum, uniform"] == "3.750"
    assert bits["sum, frequency"] == "3.250"
    uniform = [
        dict(zip(found["Uniform decoding"][0], row, strict=True))
        for row in found["Uniform decoding"]
    ]
    assert uniform[4]["PSNR, dB"] == "24.75 ± 0.004"
    assert uniform[4]["gain, dB"] == "-0.25 ± 0.062"
    assert uniform[3]["gain, dB"] == "-"
    assert uniform[3]["PSNR to reconstruction, dB"] == "30.50"
    assert uniform[2]["PSNR to reconstruction, dB"] == "exact"


def test_says_what_it_was_measured_on_and_what_was_not_possible() -> None:
    text = as_markdown(comparison()).decode()
    assert "1,000 images of 64 positions" in text
    assert "6,400,000 positions of the code cache" in text
    assert "1 unreadable image skipped" in text
    assert "* kmeans++, K = 4: too few different rows\n" in text
    possible = replace(comparison(), rows=comparison().rows[:3])
    assert "Not possible" not in as_markdown(possible).decode()


def test_json_holds_everything() -> None:
    content = json.loads(as_json(comparison()))
    assert content["format"] == 1
    assert content["provenance"]["num_images"] == 1000
    assert content["config"] == {"seed": 0}
    assert [prior["method"] for prior in content["priors"]] == ["average", "kmeans++", "average"]
    assert content["priors"][1]["sizes"]["histogram"] == [[250, 8]]
    assert content["priors"][1]["quality"]["frequency"]["psnr_gain"]["standard_error"] == 0.0625
    assert content["priors"][0]["quality"]["uniform"]["psnr_gain"] is None
    assert content["impossible"] == [
        {"method": "kmeans++", "num_clusters": 4, "reason": "too few different rows"}
    ]
    assert content["flat"]["num_clusters"] == 2000


def test_numbers_that_json_does_not_have_are_refused() -> None:
    broken = replace(comparison(), rows=(prior_result("average", ((1, 4),), float("nan")),))
    with pytest.raises(ValueError, match="JSON"):
        as_json(broken)


@pytest.mark.parametrize("draw", [draw_sizes, draw_rate_distortion])
def test_a_single_prior_and_more_methods_than_colours(draw: Callable[[Comparison], Figure]) -> None:
    one = replace(comparison(), rows=comparison().rows[:1])
    methods = ("average", "kmeans", *"cdefghijklm")
    many = [prior_result(m, ((1, 4), (5, 4)), 20 + i) for i, m in enumerate(methods)]
    for rows in (one.rows, tuple(many)):
        with Image.open(io.BytesIO(png_bytes(draw(replace(one, rows=rows))))) as image:
            assert (image.format, image.width) == ("PNG", 1080)
            assert np.asarray(image.convert("RGB")).std() > 10


def test_bars_show_the_share_of_codes_in_clusters_of_each_size() -> None:
    figure = draw_sizes(comparison())
    top, bottom = figure.axes
    assert top.get_title(loc="left") == "K = 8"
    assert [label.get_text() for label in top.get_yticklabels()] == ["average", "kmeans++"]
    assert [label.get_text() for label in bottom.get_yticklabels()] == ["average"]
    widths = np.array([[bar.get_width() for bar in group] for group in top.containers])
    assert widths.shape == (9, 2)
    assert widths[:, 0] == pytest.approx([0.2, 0.2, 0, 0, 0, 0, 0, 99.6, 0])
    assert widths[:, 1] == pytest.approx([0, 0, 0, 0, 0, 0, 100, 0, 0])
    assert [text.get_text() for text in top.texts] == ["996", "250"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:4] == ["1", "2", "3\N{EN DASH}4", "5\N{EN DASH}8"]
    assert names[-1] == "> 1024"


def test_rates_join_the_clusterings_of_one_method() -> None:
    figure = draw_rate_distortion(comparison())
    uniform, frequency, detail, _ = figure.axes
    assert uniform.get_title() == "uniform decoding"
    assert frequency.get_title() == "frequency decoding"
    joined = {line.get_color(): line for line in uniform.lines}[COLOURS[0]]
    assert np.asarray(joined.get_ydata()).tolist() == [22.0, 25.0]  # from the smaller K
    assert np.asarray(joined.get_xdata()).tolist() == [2.5, 2.5]
    markers = uniform.collections[0]
    assert isinstance(markers, PathCollection)
    small, large = markers.get_sizes()
    assert small < large
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"average", "kmeans++", "flat"}
    assert detail.get_title() == "less than 3 dB below flat"


def test_the_detail_leaves_out_what_is_far_from_the_tokenizer() -> None:
    results = comparison()
    close = prior_result("kmeans++", ((250, 8),), 27.5)
    whole, _, detail, _ = draw_rate_distortion(replace(results, rows=(*results.rows, close))).axes
    assert set(np.asarray(whole.lines[0].get_ydata())) == {30.0}  # the flat vocabulary's
    shown = np.concatenate([np.asarray(line.get_ydata()) for line in detail.lines])
    assert shown.tolist() == [27.5]
