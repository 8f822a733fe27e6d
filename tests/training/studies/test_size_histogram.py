from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from masc_core.prior import ClusterMap
from training.studies.size_histogram import describe_sizes, draw_sizes, size_histogram

SKEWED = ClusterMap.from_labels(np.concatenate([np.arange(20), np.repeat([20, 21], 40)]))


@pytest.mark.parametrize(
    "prior",
    [SKEWED, ClusterMap.identity(9), ClusterMap.from_labels(np.zeros(3000, int))],
    ids=["skewed", "flat", "one cluster"],
)
def test_any_prior_is_drawn_the_same_every_time(prior: ClusterMap) -> None:
    png = size_histogram(prior)
    assert png == size_histogram(prior)
    with Image.open(io.BytesIO(png)) as image:
        assert "Software" not in image.info
        teal = np.asarray(image.convert("RGB")) == (0x0F, 0x6A, 0x72)
        assert teal.all(axis=2).any()


def test_a_stem_ends_at_the_number_of_clusters_of_its_size() -> None:
    axes = Figure().subplots()
    draw_sizes(axes, SKEWED)
    assert np.array_equal(axes.lines[0].get_xydata(), [[1, 20], [40, 2]])
    assert axes.get_xlim()[0] < 1
    assert axes.get_xlim()[1] > 40
    assert axes.get_ylim()[0] < 1
    assert axes.get_ylim()[1] > 20


def test_the_title_states_the_extremes() -> None:
    text = describe_sizes(SKEWED)
    assert "V = 100 codes in K = 22 clusters" in text
    assert "40 in the largest" in text
    assert "20 hold a single code: 90.9% of the clusters, 20.0% of the codes" in text
