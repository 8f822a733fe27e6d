"""The service under test: its version, model and classes, queried before the load.

An unusable service is an error in one line before any load is sent. Only the fields that are needed
are read, so older and newer servers work too.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from masc_core.errors import ConfigError
from server.bench.client import FAILURES, describe_failure, plain, read_answer

MAX_LISTED = 20

PlainText = Annotated[str, AfterValidator(plain)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ServiceInfo(_Part):
    """What was measured: the software, and the model that was asked for."""

    version: PlainText
    model: PlainText
    model_version: PlainText
    weights_sha256: PlainText


class _Version(_Part):
    name: Literal["masc"]
    version: PlainText


class _Model(_Part):
    name: PlainText
    version: PlainText
    default: bool = False
    weights_sha256: PlainText


class _Models(_Part):
    models: tuple[_Model, ...]


class _Class(_Part):
    id: int
    name: PlainText


class _Classes(_Part):
    classes: tuple[_Class, ...] = Field(min_length=1)


Document = TypeVar("Document", bound=_Part)


class Service:
    """A running service, by its address.

    A question raises `ConfigError` if it is not there, is not MASC, refuses the key, or does not
    have the model or class that is asked for.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def info(self, model: str | None) -> ServiceInfo:
        """Tell what it is, and which version it has of ``model`` or else of its default model."""
        version = await self._get("/version", _Version)
        models = (await self._get("/models", _Models)).models
        chosen = next(
            (m for m in models if (m.default if model is None else m.name == model)), None
        )
        if chosen is None:
            names = ", ".join(m.name for m in models[:MAX_LISTED]) or "none"
            wanted = "default model" if model is None else f"model {model!r}"
            raise ConfigError(f"{self._url} has no {wanted}; there are: {names}")
        return ServiceInfo(
            version=version.version,
            model=chosen.name,
            model_version=chosen.version,
            weights_sha256=chosen.weights_sha256,
        )

    async def class_ids(self, model: str, wanted: str | None) -> list[int]:
        """Ids of the classes to draw from: every one, or the one of that name or id."""
        known = (await self._get(f"/models/{quote(model, safe='')}/classes", _Classes)).classes
        if wanted is None:
            return [entry.id for entry in known]
        name = wanted.strip().casefold()
        ids = [entry.id for entry in known if entry.name.casefold() == name]
        ids = ids or [entry.id for entry in known if str(entry.id) == name]
        if not ids:
            names = ", ".join(entry.name for entry in known[:MAX_LISTED])
            ellipsis = ", ..." if len(known) > MAX_LISTED else ""
            raise ConfigError(f"no class {wanted!r}; there are: {names}{ellipsis}")
        if len(ids) > 1:
            raise ConfigError(f"several classes are called {wanted!r}: ids {ids}")
        return ids

    async def _get(self, path: str, kind: type[Document]) -> Document:
        try:
            async with self._session.get(self._url + path, allow_redirects=False) as response:
                status, content = response.status, await response.read()
                answer = read_answer(status, response.headers, content)
        except FAILURES as error:
            raise ConfigError(f"cannot reach {self._url}: {describe_failure(error)}") from error
        if status in {401, 403}:
            raise ConfigError(f"{self._url} wants a valid key, in MASC_API_KEY ({status})")
        if status in {429, 503}:
            raise ConfigError(f"{self._url} is not to be measured now: {status} {answer.detail}")
        try:
            if status == 200:
                return kind.model_validate_json(content)
        except ValidationError:
            pass  # status 200, but not what MASC says
        given = "something else" if status == 200 else f"status {status}"
        raise ConfigError(f"{self._url} is not MASC: GET {path} gave {given}")
