from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.training.studies.comparisons import comparison, prior_result
from training.studies.compare_report import as_json, as_markdown


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
