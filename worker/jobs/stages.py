"""The histogram of stages: the front end observes ``admit`` and ``deliver``, the worker the rest.

In the embedded mode both live in one process and expose one registry, so whoever comes first
registers the histogram and the other one finds it.
"""

from __future__ import annotations

import threading
from typing import Final, Literal
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Histogram

Stage = Literal[
    "admit",
    "queue",
    "prefill",
    "decode",
    "cluster_to_code",
    "complete",
    "vq_decode",
    "encode",
    "deliver",
]
# Those that are fields of `worker.jobs.outcome.Timings`, in their order.
TIMED_STAGES: Final[tuple[Stage, ...]] = (
    *("queue", "prefill", "decode", "complete", "vq_decode", "encode"),
)

# 1-2.5-5 steps from a millisecond to a minute.
SECONDS_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 60.0),
)

_lock = threading.Lock()
_histograms: WeakKeyDictionary[CollectorRegistry, Histogram] = WeakKeyDictionary()


def stage_histogram(registry: CollectorRegistry) -> Histogram:
    """``masc_stage_duration_seconds{stage}`` of this registry, made on the first call."""
    with _lock:
        if registry not in _histograms:
            _histograms[registry] = Histogram(
                "masc_stage_duration_seconds",
                "Time that a request spends in each stage.",
                ["stage"],
                registry=registry,
                buckets=SECONDS_BUCKETS,
            )
        return _histograms[registry]
