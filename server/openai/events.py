"""A job as the events of the OpenAI Images API."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event

from masc_core.errors import MascError
from server.answers.images import base64_of
from server.answers.job_updates import JobUpdate
from server.openai.errors import openai_error
from server.openai.schemas import CompletedEvent, PartialImageEvent, TokenDetails, Usage
from worker.jobs.job import Job, NumberedEvent, Preview
from worker.jobs.outcome import ImageOutput, JobResult


@dataclass(slots=True)
class OpenAIEvents:
    """Encodes the updates of a job that OpenAI's API has events for.

    Attributes
    ----------
    job : the job
    size : of its images, as the API writes it
    partial_images : previews per image, at most
    sent : previews sent, by image
    """

    job: Job
    size: str
    partial_images: int
    sent: Counter[int] = field(default_factory=Counter)

    def show(self, update: JobUpdate) -> Iterator[bytes]:
        """Previews at even distances, and the finished images."""
        match update:
            case NumberedEvent(_, Preview() as preview) if self._is_due(preview):
                yield self._partial(preview)
            case JobResult():
                for index, image in enumerate(update.images):
                    yield self._completed(index, image)

    def fail(self, error: MascError) -> bytes:
        """The last event when there are no images."""
        return format_sse_event(event="error", data_str=openai_error(error).model_dump_json())

    def _is_due(self, preview: Preview) -> bool:
        sent = self.sent[preview.image]
        share = preview.rows / preview.num_rows
        return sent < self.partial_images and share >= (sent + 1) / (self.partial_images + 1)

    def _partial(self, preview: Preview) -> bytes:
        event = PartialImageEvent(
            b64_json=base64_of(preview.data),
            index=preview.image,
            partial_image_index=self.sent[preview.image],
            created_at=int(time.time()),
            size=self.size,
            output_format=preview.format,
        )
        self.sent[preview.image] += 1
        return format_sse_event(event=event.type, data_str=event.model_dump_json())

    def _completed(self, index: int, image: ImageOutput) -> bytes:
        event = CompletedEvent(
            b64_json=base64_of(image.data),
            index=index,
            created_at=int(time.time()),
            size=self.size,
            output_format=self.job.request.format,
            seed=image.seed,
            usage=usage_of(image),
        )
        return format_sse_event(event=event.type, data_str=event.model_dump_json())


def usage_of(*images: ImageOutput) -> Usage:
    """Tokens that images took: one for the class, and one a position."""
    read, written = len(images), sum(len(image.entropies) for image in images)
    return Usage(
        input_tokens=read,
        input_tokens_details=TokenDetails(image_tokens=0, text_tokens=read),
        output_tokens=written,
        total_tokens=read + written,
    )
