from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masc_core.tree.upgma.heap import farthest, limit, offer, room_for


@pytest.mark.parametrize("wanted", [1, 2, 5, 40])
@given(
    distances=st.lists(st.integers(0, 20), min_size=1, max_size=70),
    block=st.integers(1, 64),
    own=st.integers(0, 69),
)
def test_keeps_the_nearest(wanted: int, distances: list[int], block: int, own: int) -> None:
    nearest = room_for(2, wanted)
    far = np.array(distances, float)
    for begin in range(0, len(far), block):
        part = far[begin : begin + block]
        offer(nearest, 1, own, part, len(part), begin)
    others = np.delete(far, own) if own < len(far) else far
    kept = nearest.distances[1, : nearest.counts[1]]
    assert sorted(kept) == sorted(others)[:wanted]
    ids = nearest.ids[1, : nearest.counts[1]]
    assert np.array_equal(far[ids], kept)
    assert own not in ids
    full = len(others) >= wanted
    assert limit(nearest, 1) == (max(kept) if full else np.inf)
    assert farthest(nearest)[1] == limit(nearest, 1)
    assert nearest.counts[0] == 0  # the other row
