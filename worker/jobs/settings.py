"""Settings of the queue, which front ends and workers share; see `masc_core.settings`.

All processes of one service are to have the same.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from masc_core.settings import ProcessSettings, Seconds
from worker.jobs.queue import DEFAULT_PREFIX, QueueLimits

DEFAULTS: Final = QueueLimits()


class QueueSettings(ProcessSettings):
    """Settings of both sides of a queue; docs/settings.md explains them."""

    queue_url: str = "memory://"
    queue_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = DEFAULT_PREFIX
    max_queue: Annotated[int, Field(ge=1)] = DEFAULTS.max_jobs
    lease_seconds: Seconds = DEFAULTS.lease_seconds
    max_deliveries: Annotated[int, Field(ge=1)] = DEFAULTS.max_deliveries
    result_seconds: Seconds = DEFAULTS.result_seconds
    max_result_bytes: Annotated[int, Field(ge=1)] = DEFAULTS.max_result_bytes
    traces_endpoint: str = ""

    @property
    def limits(self) -> QueueLimits:
        """For `worker.jobs.connect.connect`."""
        return QueueLimits(
            max_jobs=self.max_queue,
            lease_seconds=self.lease_seconds,
            max_deliveries=self.max_deliveries,
            result_seconds=self.result_seconds,
            max_result_bytes=self.max_result_bytes,
        )
