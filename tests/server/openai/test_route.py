"""The official client against a live server, and what it cannot send against the application."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    APIError,
    AsyncOpenAI,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from PIL import Image

from masc_core.errors import NonFiniteError
from server.openai.route import OpenAIEventEncoder, usage_of
from server.schemas.job import QueuedEvent
from tests.server.asgi import wait_until
from tests.server.listening import listening
from tests.server.service import GRID, Service, draw, paint, write_model
from tests.server.sse import Event, read_events
from worker.jobs.job import GenerationRequest, Job, NumberedEvent, Preview, Progress, Started
from worker.jobs.outcome import JobFailure

PATH = "/v1/images/generations"
SIZE = f"{GRID * 4}x{GRID * 4}"


@pytest.fixture
def client(own_service: Service) -> Iterator[OpenAI]:
    with listening(own_service) as port, client_at(port) as client:
        yield client


def client_at(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0, timeout=10)


def bytes_of(b64: str | None) -> bytes:
    assert b64 is not None
    return base64.b64decode(b64)


def post(service: Service, **fields: Any) -> httpx.Response:
    return service.call("POST", PATH, json={"prompt": "crane"} | fields)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_two_images(client: OpenAI, own_service: Service) -> None:
    answer = client.images.generate(
        prompt="teapot", n=2, size="auto", extra_body={"seed": 7, "cfg_scale": 2.0}
    )
    assert answer.data is not None
    assert [bytes_of(image.b64_json) for image in answer.data] == [
        draw(3, 7, "png"),
        draw(3, 8, "png"),
    ]
    assert (answer.size, answer.output_format, answer.background) == (SIZE, "png", "opaque")
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 2 * GRID**2)
    assert [image.to_dict()["seed"] for image in answer.data] == [7, 8]
    assert own_service.painter.requests[0].cfg_scale == 2.0


def test_everything_that_can_be_ignored(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt=" Golden Retriever",
        model="tiny",
        n=1,
        size=SIZE,
        response_format="b64_json",
        output_format="webp",
        output_compression=100,
        background="opaque",
        quality="high",
        style="vivid",
        moderation="low",
        user="alice",
    )
    assert answer.data is not None
    assert Image.open(io.BytesIO(bytes_of(answer.data[0].b64_json))).format == "WEBP"


def test_an_asynchronous_client(own_service: Service) -> None:
    async def run(port: int) -> list[bytes]:
        url = f"http://127.0.0.1:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.images.generate(prompt=str(i), extra_body={"seed": i}) for i in range(3))
            )
            stream = await client.images.generate(
                prompt="5", stream=True, partial_images=1, extra_body={"seed": 5}
            )
            events = [event async for event in stream]
        assert [event.type.split(".")[1] for event in events] == ["partial_image", "completed"]
        images = [answer.data[0].b64_json for answer in answers if answer.data]
        return [bytes_of(image) for image in (*images, events[-1].b64_json)]

    with listening(own_service) as port:
        images = asyncio.run(run(port))
    assert images == [draw(i, i, "png") for i in (0, 1, 2, 5)]


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_a_stream(client: OpenAI, partial_images: int) -> None:
    stream = client.images.generate(
        prompt="ship", stream=True, partial_images=partial_images, extra_body={"seed": 1}
    )
    *partial, completed = list(stream)
    indices = []
    for event in partial:
        assert event.type == "image_generation.partial_image"
        indices.append(event.partial_image_index)
        assert Image.open(io.BytesIO(bytes_of(event.b64_json))).width == GRID * 4
    assert indices == list(range(partial_images))
    assert completed.type == "image_generation.completed"
    assert bytes_of(completed.b64_json) == draw(5, 1, "png")
    assert completed.usage.output_tokens == GRID**2
    assert completed.size == SIZE


def test_a_stream_that_is_closed_ends_its_job(client: OpenAI, own_service: Service) -> None:
    own_service.painter.gate.clear()
    with client.images.generate(prompt="ship", stream=True):
        wait_until(lambda: bool(own_service.painter.requests))
    wait_until(lambda: not own_service.queue._records)
    assert own_service.queue._ends == {"cancelled": 1}


def test_the_client_knows_our_errors(client: OpenAI, own_service: Service) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.images.generate(prompt="unicorn")
    assert (unknown.value.param, unknown.value.code) == ("prompt", "unknown_class")
    with pytest.raises(NotFoundError, match="leave it out") as unknown:
        client.images.generate(prompt="ship", model="gpt-image-1")
    assert (unknown.value.param, unknown.value.code) == ("model", "unknown_model")
    with pytest.raises(BadRequestError, match="there are no links to them"):
        client.images.generate(prompt="ship", response_format="url")
    with pytest.raises(BadRequestError, match=f"tiny makes images of {SIZE}"):
        client.images.generate(prompt="ship", size="1024x1024")
    own_service.announce(ready=False)
    with pytest.raises(InternalServerError, match="no worker is ready") as none:
        client.images.generate(prompt="ship")
    assert int(none.value.response.headers["retry-after"]) >= 1
    assert none.value.status_code == 503


def test_a_failure_in_a_stream(client: OpenAI, own_service: Service) -> None:
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN at position 3")
    with pytest.raises(InternalServerError, match="a NaN at position 3"):
        client.images.generate(prompt="ship")
    stream = client.images.generate(prompt="ship", stream=True)
    with pytest.raises(APIError, match="a NaN at position 3"):
        list(stream)


def test_a_key_makes_it_once(client: OpenAI, own_service: Service) -> None:
    headers = {"Idempotency-Key": "order-7"}
    answers = [client.images.generate(prompt="ship", n=2, extra_headers=headers) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(own_service.painter.requests) == 1
    with pytest.raises(ConflictError):
        client.images.generate(prompt="ship", extra_headers=headers)


def test_a_deadline(client: OpenAI, own_service: Service) -> None:
    own_service.painter.gate.clear()
    with pytest.raises(InternalServerError) as late:
        client.images.generate(prompt="ship", extra_headers={"X-Masc-Timeout": "0.05"})
    assert late.value.status_code == 504
    with pytest.raises(BadRequestError) as refused:
        client.images.generate(prompt="ship", extra_headers={"X-Masc-Timeout": "0"})
    assert refused.value.param == "X-Masc-Timeout"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "16x17"}, "size"),
        ({"size": "x" * 30}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"stream": 1}, "stream"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "crane"}, "prompt"),  # several classes are called so
        ({"prompt": "x" * 201}, "prompt"),
        ({"cfg_scale": 0.5}, "cfg_scale"),
        ({"seed": -1}, "seed"),
        ({"decoding": "refine"}, "decoding"),
        ({"class_id": 1}, "class_id"),
        ({"complexity": "high"}, "complexity"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    service: Service, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(service, **fields), 400)
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert error["message"]


def test_null_means_the_default(service: Service) -> None:
    ignored = ("moderation", "quality", "safety_identifier", "style", "user", "response_format")
    fields = dict.fromkeys(("n", "size", "stream", "partial_images", "seed", "model", *ignored))
    assert post(service, prompt="ship", **fields).status_code == 200


@pytest.mark.parametrize("prompt", ["6", "007", "9" * 200, "-1", "\u0663", ""])
def test_a_prompt_that_is_no_class(service: Service, prompt: str) -> None:
    found = prompt == "007"
    error = error_of(post(service, prompt=prompt), 404)
    assert error["param"] == "prompt"
    assert found == (prompt.strip("0") == "7")


def test_a_class_whose_name_is_a_number(tmp_path: Path) -> None:
    write_model(tmp_path / "models", class_names=["5", "4", "3", "x", "y", "z"])
    with Service(tmp_path) as service:
        for prompt in ("5", "0", " 4 ", "x"):
            assert post(service, prompt=prompt).status_code == 200
        assert [r.class_id for r in service.painter.requests] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"prompt": "ship"}', "text/plain", 415),
        (b" " * 70_000, "application/json", 413),
    ],
)
def test_what_is_no_request_has_openai_s_form_too(
    service: Service, content: bytes, content_type: str, status: int
) -> None:
    headers = {"Content-Type": content_type}
    error_of(service.call("POST", PATH, content=content, headers=headers), status)


JOB = Job(GenerationRequest("tiny", 1, 1.0, 5, num_images=2, format="webp"))


def shown(encoder: OpenAIEventEncoder, *updates: object) -> list[Event]:
    chunks = [chunk for update in updates for chunk in encoder.encode(update)]  # type: ignore[arg-type]
    return read_events(b"".join(chunks).decode())


def previews(image: int, num_rows: int) -> list[NumberedEvent]:
    return [
        NumberedEvent(rows, Preview(image, rows, num_rows, "png", b"%d" % rows))
        for rows in range(1, num_rows + 1)
    ]


@pytest.mark.parametrize(
    ("partial_images", "rows"), [(0, []), (1, [4]), (2, [3, 6]), (3, [2, 4, 6])]
)
def test_partial_images_come_at_even_distances(partial_images: int, rows: list[int]) -> None:
    events = shown(OpenAIEventEncoder(JOB, "16x16", partial_images), *previews(0, 8))
    assert [base64.b64decode(event.data["b64_json"]) for event in events] == [
        b"%d" % row for row in rows
    ]
    assert [event.data["partial_image_index"] for event in events] == list(range(partial_images))
    for event in events:
        assert event.name == event.data["type"] == "image_generation.partial_image"
        assert (event.data["output_format"], event.data["size"]) == ("png", "16x16")


def test_images_are_counted_apart() -> None:
    updates = [one for pair in zip(previews(0, 4), previews(1, 4), strict=True) for one in pair]
    events = shown(OpenAIEventEncoder(JOB, "16x16", 1), *updates)
    assert [(e.data["index"], e.data["partial_image_index"]) for e in events] == [(0, 0), (1, 0)]


def test_the_images_are_the_last_events() -> None:
    encoder = OpenAIEventEncoder(JOB, "16x16", 3)
    quiet = [
        QueuedEvent(position=1, estimated_start_seconds=None),
        NumberedEvent(1, Started("v1")),
        NumberedEvent(2, Progress(0, 1, 4)),
    ]
    events = shown(encoder, *quiet, paint(JOB))
    assert [event.name for event in events] == ["image_generation.completed"] * 2
    for index, event in enumerate(events):
        assert event.data["index"] == index
        assert event.data["seed"] == 5 + index
        assert base64.b64decode(event.data["b64_json"]) == draw(1, 5 + index, "webp")
        assert event.data["output_format"] == "webp"
        assert event.data["usage"]["output_tokens"] == GRID**2


def test_a_failure_is_an_error() -> None:
    (event,) = read_events(
        OpenAIEventEncoder(JOB, "16x16", 0).encode_error(NonFiniteError("a NaN")).decode()
    )
    assert event.name == "error"
    assert event.data["error"]["message"] == "a NaN"
    assert event.data["error"]["type"] == "server_error"


def test_usage_is_what_the_transformer_read_and_wrote() -> None:
    usage = usage_of(*paint(JOB).images)
    assert (usage.input_tokens, usage.output_tokens) == (2, 2 * GRID**2)
    assert usage.total_tokens == 2 + 2 * GRID**2


def test_the_models_are_listed(service: Service) -> None:
    listed = service.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model == {"id": "tiny", "object": "model", "created": 1767225600, "owned_by": "masc"}
    assert service.get("/v1/models/tiny").json() == model


def test_a_compressed_body_is_refused_by_name(service: Service) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/generate", "/jobs", "/v1/images/generations"):
        answer = service.call("POST", path, content=b"\x1f\x8b", headers=headers)
        assert answer.status_code == 415
        assert "'gzip'" in answer.text
        assert answer.headers["accept-encoding"] == "identity"
