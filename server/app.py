"""The front end as an ASGI application.

The caller of `create_app` chooses the queue, the folder of models and the metrics registry, and
runs the workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.registry import Registry
from masc_core.errors import ConfigError
from server import error_forms, openapi
from server.activation import Activator
from server.auth.api_keys import Authenticator
from server.codebook_view import route as codebook
from server.codebook_view.cache import CodebookCache
from server.drain import Drain
from server.error_forms import AnswerUnexpected
from server.intake.idempotency import replay_headers
from server.metrics import MeasureRequests, ServerMetrics
from server.middleware.body_limit import BodyLimit
from server.middleware.head_requests import HeadAsGet
from server.middleware.headers import SECURITY_HEADERS, AddHeaders
from server.middleware.hosts import AllowedHosts, allowed_names
from server.middleware.root_path import RootPath
from server.middleware.tracing import TraceRequests
from server.openai import route as openai
from server.openai.schemas import CompletedEvent, OpenAIBody, PartialImageEvent
from server.routes import admin, generate, health, jobs, models, page
from server.schemas.generate import GenerateBody
from server.schemas.job import EVENT_MODELS, JobBody
from server.settings import ServerSettings
from server.state import AppState, app_state
from worker.jobs.queue import JobProducer
from worker.jobs.tracing import open_tracer

DESCRIPTION = """Images of a class, from an autoregressive model over clusters of codes.

Errors are problem documents (RFC 9457)."""
BODIES = (GenerateBody, JobBody, OpenAIBody, admin.ActivateBody)
ROUTES = (generate, jobs, openai, models, codebook, health, admin, page)
STREAMED: tuple[type[BaseModel], ...] = (*EVENT_MODELS.values(), PartialImageEvent, CompletedEvent)


def create_app(
    settings: ServerSettings,
    queue: JobProducer,
    registry: Registry,
    metrics_registry: CollectorRegistry,
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings : limits and the default model
    queue : where jobs go; opened and closed with the application
    registry : the folder of model bundles; manifests are read, weights never
    metrics_registry : what ``/metrics`` exposes; an embedded worker shares it

    Raises
    ------
    ConfigError : the default model is none, or several and none is chosen; the root path begins
        like a route; as from `Authenticator`
    ArtifactError : there is no model, or the default model's manifest is damaged
    """
    _check_root_path(settings.root_path)
    default = _default_manifest(registry, settings.default_model)
    metrics = ServerMetrics(metrics_registry)
    access = Authenticator(settings)
    app = FastAPI(
        title="MASC",
        summary="Image generation server",
        description=DESCRIPTION,
        version=health.software_version(),
        openapi_url=None,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        docs_url=None,  # both fetch their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    drain = Drain(settings.drain_seconds)
    app.state.masc = AppState(
        settings=settings,
        queue=queue,
        registry=registry,
        default_model=default.name,
        metrics=metrics,
        drain=drain,
        access=access,
        activator=Activator(registry, queue),
        codebook_cache=CodebookCache(registry),
        manifests={(default.name, default.version): default},
    )
    error_forms.install(app)
    # The last one added is the outermost.
    app.add_middleware(AnswerUnexpected, drain=drain)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
    names = allowed_names(
        settings.allowed_hosts,
        host=settings.host,
        published_host=settings.published_host,
        has_keys=settings.api_keys_file is not None,
    )
    if names is not None:
        app.add_middleware(AllowedHosts, names=names)
    app.add_middleware(AddHeaders, headers_of=lambda _: SECURITY_HEADERS)
    app.add_middleware(AddHeaders, headers_of=replay_headers)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*", "Location", "Retry-After"],
            allow_private_network=True,  # listed origins may also reach a private address
        )
    app.add_middleware(MeasureRequests, metrics=metrics)
    tracer = open_tracer("masc-server", settings.traces_endpoint)
    if tracer is not None:
        app.add_middleware(TraceRequests, tracer=tracer)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(HeadAsGet)
    # By a kept connection the next requests would reach the process that refuses them.
    closing = {"Connection": "close"}
    app.add_middleware(AddHeaders, headers_of=lambda _: closing if drain.is_draining else {})
    for routes in ROUTES:
        app.include_router(routes.router)
    _describe(app)
    return app


def _check_root_path(root_path: str) -> None:
    """Refuse one like a route's: whether a proxy has taken it off, nobody could tell."""
    paths = [route.path for routes in ROUTES for route in routes.router.routes]
    if root_path.split("/")[:2] in [path.split("/")[:2] for path in paths] and root_path:
        raise ConfigError(f"MASC_ROOT_PATH: {root_path} begins like the service's own paths")


def _default_manifest(registry: Registry, preferred: str | None) -> Manifest:
    try:
        name = registry.default(preferred or "")
    except ConfigError as error:
        raise ConfigError(f"MASC_DEFAULT_MODEL: {error}") from error
    return registry.manifest(name)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app_state(app)
    async with state.queue:
        try:
            yield
        finally:
            await state.drain.until_released()
            await state.activator.close()


def _describe(app: FastAPI) -> None:
    @cache  # routes do not change any more, and building it takes 10 ms
    def content() -> bytes:
        return bytes(JSONResponse(openapi.document(app, BODIES, STREAMED)).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def description() -> Response:
        return Response(content(), media_type="application/json")
