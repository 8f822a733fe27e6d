"""Authentication as dependencies of routes.

A key comes as ``Authorization: Bearer KEY`` or as ``X-API-Key: KEY``; the latter wins, since the
former may be for a proxy. Keys are checked before a body is read.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from masc_core.errors import AccessError, RateLimitError
from server.auth.api_keys import Client
from server.state import State

HEADER = "X-API-Key"
CLIENT_KEY = "An API key, where the service wants one."
ADMIN_KEY = "The key of an admin."


def _bearer(scheme: str, description: str) -> HTTPBearer:
    return HTTPBearer(scheme_name=scheme, description=description, auto_error=False)


def _header(scheme: str, description: str) -> APIKeyHeader:
    return APIKeyHeader(name=HEADER, scheme_name=scheme, description=description, auto_error=False)


Bearer = HTTPAuthorizationCredentials | None
ClientBearer = Annotated[Bearer, Security(_bearer("bearer", CLIENT_KEY))]
ClientHeader = Annotated[str | None, Security(_header("key", CLIENT_KEY))]
AdminBearer = Annotated[Bearer, Security(_bearer("admin-bearer", ADMIN_KEY))]
AdminHeader = Annotated[str | None, Security(_header("admin-key", ADMIN_KEY))]


async def known_client(state: State, bearer: ClientBearer, header: ClientHeader) -> Client:
    """The client whose key the request has; errors as from `Authenticator.client`."""
    return state.access.client(_key(bearer, header))


ClientDependency = Annotated[Client, Depends(known_client)]


async def rate_limited_client(state: State, client: ClientDependency) -> Client:
    """Count a request that starts work.

    All front ends of one queue count together.

    Raises
    ------
    RateLimitError : it is one too many in this minute
    QueueDownError : as admission would
    """
    limit = client.requests_per_minute
    wait = await state.queue.count_request(client.name, limit) if limit else 0.0
    if wait:
        state.metrics.rejections.labels("rate_limit").inc()
        raise RateLimitError(f"{client.name} may start {limit} requests a minute", wait)
    return client


LimitedClientDependency = Annotated[Client, Depends(rate_limited_client)]


async def known_admin(state: State, bearer: AdminBearer, header: AdminHeader) -> str:
    """Name of the admin who has the request's key; errors as from `Authenticator.admin`."""
    return state.access.admin(_key(bearer, header))


AdminDependency = Annotated[str, Depends(known_admin)]


async def has_admin_key(state: State, bearer: AdminBearer, header: AdminHeader) -> bool:
    """Whether an admin asks; anybody may."""
    try:
        state.access.admin(_key(bearer, header))
    except AccessError:
        return False
    return True


IsAdmin = Annotated[bool, Depends(has_admin_key)]


def _key(bearer: HTTPAuthorizationCredentials | None, header: str | None) -> str | None:
    return header or (bearer.credentials if bearer else None)
