"""The metrics that dashboards rely on: names, types, labels and buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "histogram", "gauge"]
Process = Literal["front end", "worker"]

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 60.0),
)
STEP_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
STAGES = {"admit", "queue", "prefill", "decode", "cluster_to_code", "vq_decode", "encode"} | {
    "deliver"
}


@dataclass(frozen=True, slots=True)
class ContractMetric:
    """One metric, by the name under which it is queried.

    Attributes
    ----------
    processes : who exposes it, when front end and worker are two processes
    buckets : of a histogram, without the last one; None where the contract leaves them open
    """

    name: str
    kind: Kind
    processes: frozenset[Process]
    labels: frozenset[str] = frozenset()
    buckets: tuple[float, ...] | None = None

    @property
    def family(self) -> str:
        """As the exposition's TYPE line has it: a counter's without its ``_total``."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


def _metric(
    name: str,
    kind: Kind,
    processes: tuple[Process, ...],
    labels: str = "",
    buckets: tuple[float, ...] | None = None,
) -> ContractMetric:
    return ContractMetric(name, kind, frozenset(processes), frozenset(labels.split()), buckets)


FRONT: tuple[Process, ...] = ("front end",)
WORKER: tuple[Process, ...] = ("worker",)
BOTH: tuple[Process, ...] = ("front end", "worker")

CONTRACT = (
    _metric("masc_requests_total", "counter", FRONT, "endpoint outcome"),
    _metric("masc_rejections_total", "counter", FRONT, "reason"),
    _metric("masc_images_total", "counter", WORKER, "model format"),
    _metric("masc_tokens_total", "counter", WORKER, "kind"),
    _metric("masc_engine_steps_total", "counter", WORKER),
    _metric("masc_jobs_redelivered_total", "counter", FRONT, "reason"),
    _metric("masc_jobs_dead_lettered_total", "counter", FRONT),
    _metric("masc_fenced_results_total", "counter", FRONT),
    _metric("masc_request_duration_seconds", "histogram", FRONT, "endpoint", SECONDS),
    _metric("masc_stage_duration_seconds", "histogram", BOTH, "stage", SECONDS),
    _metric("masc_decode_step_duration_seconds", "histogram", WORKER, "", STEP_SECONDS),
    _metric("masc_time_to_first_preview_seconds", "histogram", FRONT),
    _metric("masc_batch_rows", "histogram", WORKER),
    _metric("masc_prediction_entropy_bits", "histogram", WORKER),
    _metric("masc_prediction_entropy_ratio", "histogram", WORKER),
    _metric("masc_prediction_cluster_entropy_bits", "histogram", WORKER),
    _metric("masc_batch_rows_active", "gauge", WORKER),
    _metric("masc_batch_rows_capacity", "gauge", WORKER),
    _metric("masc_queue_depth", "gauge", FRONT),
    _metric("masc_queue_oldest_age_seconds", "gauge", FRONT),
    _metric("masc_gpu_memory_bytes", "gauge", WORKER, "kind"),
    _metric("masc_last_step_timestamp_seconds", "gauge", WORKER),
    _metric("masc_ready", "gauge", BOTH),
    _metric("masc_draining", "gauge", BOTH),
    _metric(
        "masc_model_info",
        "gauge",
        WORKER,
        "model version weights_sha256 clusters tokens dtype",
    ),
)
# Beyond the contract; dashboards and alerts rely on them as well.
FURTHER = (
    _metric("masc_unreadable_records_total", "counter", FRONT),
    _metric("masc_results_dropped_total", "counter", FRONT),
    _metric("masc_connections_refused_total", "counter", FRONT, "reason"),
    _metric("masc_queue_up", "gauge", FRONT),
    _metric("masc_queue_priority_depth", "gauge", FRONT, "priority"),
    _metric("masc_queue_priority_oldest_age_seconds", "gauge", FRONT, "priority"),
    _metric("masc_jobs_running", "gauge", FRONT),
    _metric("masc_jobs_accepted_total", "counter", FRONT),
    _metric("masc_jobs_ended_total", "counter", FRONT, "outcome"),
    _metric("masc_engine_mode", "gauge", WORKER, "mode"),
    _metric("masc_model_queue_depth", "gauge", FRONT, "model"),
    _metric("masc_model_queue_oldest_age_seconds", "gauge", FRONT, "model"),
    _metric("masc_model_jobs_per_second", "gauge", FRONT, "model"),
    _metric("masc_model_workers_ready", "gauge", FRONT, "model"),
)
# Nothing is told of a GPU where there is none.
MAY_BE_EMPTY = {"masc_gpu_memory_bytes"}
