"""From a validated body to a job in the queue: defaults, time limit, admission.

The images depend on the model's weights and on the resolved request alone.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import Header
from starlette.types import Scope

from masc_core.bundle.manifest import Defaults, Manifest
from masc_core.errors import CapacityError, InvalidFieldError, UnknownClassError
from masc_core.escapes import quoted
from masc_core.images import ImageFormat
from masc_core.sampling.params import CODE_SETTINGS, check_cluster_filters, check_given
from server.auth.api_keys import Client
from server.errors import problem_type_of
from server.intake.idempotency import mark_replay
from server.middleware.tracing import traceparent_of
from server.schemas.generate import ImagesBody
from server.state import AppState
from worker.jobs.job import GenerationRequest, Job

logger = logging.getLogger(__name__)

TIMEOUT_HEADER: Final = "X-Masc-Timeout"
# JavaScript's numbers are exact up to here, so every client can send the seed back.
DRAWN_SEED_BITS = 53

TimeoutHeader = Annotated[
    float | None,
    Header(
        alias=TIMEOUT_HEADER,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the images are no longer wanted; by default, and at most, "
        "the service's own limit.",
    ),
]


def resolve(body: ImagesBody, manifest: Manifest, default_format: ImageFormat) -> GenerationRequest:
    """Fill in every default and turn names into ids.

    Raises
    ------
    UnknownClassError : the model has no such class
    InvalidFieldError : not exactly one class is given, a decoding or a partition that the model
        lacks, a start for a schedule without one, or a setting of a completer for another decoding
    """
    defaults = manifest.defaults.model_dump()
    given = body.model_dump(include=set(defaults), exclude_none=True)
    settings: dict[str, Any] = defaults | given
    decoding = settings["decoding"]
    if decoding not in manifest.decodings:
        offered = ", ".join(manifest.decodings)
        raise InvalidFieldError("decoding", f"{manifest.name} offers {offered}, not {decoding}")
    check_given(given, settings["cfg_schedule"], decoding)
    if decoding != "complete":  # to which a completer's settings mean nothing
        settings |= {name: Defaults.model_fields[name].default for name in CODE_SETTINGS}
    class_id = resolve_class(body, manifest)
    settings["top_k"] = min(settings["top_k"], manifest.num_clusters)
    settings["cluster_top_k"] = min([settings["cluster_top_k"], *manifest.partitions])
    settings["code_top_k"] = min(settings["code_top_k"], manifest.num_codes)
    request = GenerationRequest(
        model=manifest.name,
        class_id=class_id,
        seed=secrets.randbits(DRAWN_SEED_BITS) if body.seed is None else body.seed,
        num_images=body.num_images,
        format=body.format or default_format,
        version=manifest.version,
        class_name=manifest.class_names[class_id],
        **settings,
    )
    check_cluster_filters(request, has_partition=bool(manifest.partitions))
    return request


def resolve_class(body: ImagesBody, manifest: Manifest) -> int:
    """Id of the class that a request gives by id or by name; errors as from `resolve`."""
    names = manifest.class_names
    if body.class_id is not None and body.class_name is not None:
        raise InvalidFieldError("class_id", "give either class_id or class_name, not both")
    if body.class_name is not None:
        return _class_of_name(body.class_name, manifest)
    if body.class_id is None:
        raise InvalidFieldError("class_id", "one of class_id and class_name is required")
    if body.class_id >= len(names):
        raise UnknownClassError("class_id", f"{manifest.name} has classes 0 to {len(names) - 1}")
    return body.class_id


def _class_of_name(name: str, manifest: Manifest) -> int:
    ids = manifest.class_ids(name)
    if not ids:
        raise UnknownClassError(
            "class_name", f"{manifest.name} has no class {quoted(name.strip())}"
        )
    if len(ids) > 1:
        listed = ", ".join(str(i) for i in ids)
        raise InvalidFieldError("class_name", f"several classes are called so: ids {listed}")
    return ids[0]


def time_limit(given: float | None, maximum: float) -> float:
    """Time limit of a request in seconds; ``maximum`` is also the default."""
    if given is None:
        return maximum
    if given > maximum:
        raise InvalidFieldError(TIMEOUT_HEADER, f"must be at most {maximum:g} seconds here")
    return given


async def admit(state: AppState, scope: Scope, client: Client, job: Job) -> Job:
    """Put a job into the queue.

    Parameters
    ----------
    scope : the HTTP request, which is marked as a replay if it was sent before
    client : the job's owner
    job : without its owner and its trace

    Returns
    -------
    Job : this one, or the earlier one with the same idempotency key

    Raises
    ------
    CapacityError : no worker is ready for its model, the queue is full, or this front end drains
    IdempotencyConflictError : the key belongs to another request
    """
    job = replace(job, owner=client.owner, trace=traceparent_of(scope))
    try:
        state.drain.check()
        await state.ready_workers(job.request.model)
        receipt = await state.queue.submit(job, client.queue_share, client.weight)
    except CapacityError as error:
        reason = problem_type_of(error).slug.replace("-", "_")
        state.metrics.rejections.labels(reason).inc()
        raise
    logger.info("job %s of %s", receipt.job_id, client.name)
    if receipt.is_new:
        return job
    mark_replay(scope)
    return (await state.queue.status(receipt.job_id)).job
