from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masc_core.bundle.manifest import Defaults
from server.schemas.generate import GenerateBody
from tests.server.service import (
    CLASS_NAMES,
    GRID,
    NUM_CLUSTERS,
    OF_CLUSTERS,
    WEIGHTS,
    Service,
    assert_problem,
    draw,
    write_model,
)
from worker.jobs.job import MAX_SEED, GenerationRequest
from worker.jobs.outcome import JobFailure


@pytest.fixture
def last(service: Service) -> list[GenerationRequest]:
    """The requests that reach the worker during a test."""
    service.painter.requests.clear()
    return service.painter.requests


def test_the_json_answer_holds_everything(service: Service) -> None:
    response = service.generate(class_id=1, seed=40, num_images=3, cfg_scale=2.5)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert re.fullmatch(r"[0-9a-f]{32}", answer["id"])
    assert answer["model"] == {"name": "tiny", "version": "v1", "weights_sha256": WEIGHTS}
    assert set(answer["timings"]) == {
        *("queue", "prefill", "decode", "vq_decode", "encode", "total")
    }
    assert [image["seed"] for image in answer["images"]] == [40, 41, 42]
    for image in answer["images"]:
        data = base64.b64decode(image["b64"])
        assert data == draw(1, image["seed"], "png")
        assert Image.open(io.BytesIO(data)).format == "PNG"
        assert image["format"] == "png"
        assert 0 < image["entropy_ratio"] <= 1
        assert "entropies" not in image


def test_entropies_come_when_asked_for(service: Service) -> None:
    (image,) = service.generate(entropies=True).json()["images"]
    assert len(image["entropies"]) == GRID**2
    assert sum(image["entropies"]) / GRID**2 == pytest.approx(image["entropy_bits"])


def test_one_image_as_a_file(service: Service) -> None:
    response = service.generate(class_id=2, seed=5, accept="image/*")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == draw(2, 5, "png")
    assert response.headers["x-masc-seed"] == "5"
    assert response.headers["x-masc-model"] == "tiny/v1"
    assert float(response.headers["x-masc-entropy-bits"]) > 0
    assert response.headers["vary"] == "Accept"
    timing = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert float(timing["total"]) == pytest.approx(15.0)
    assert float(timing["vq_decode"]) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("accept", "fields", "content_type"),
    [
        ("image/webp", {}, "image/webp"),
        ("image/webp", {"format": "jpeg"}, "image/jpeg"),
        ("image/png;q=0.3, image/jpeg", {}, "image/jpeg"),
        ("image/*", {"format": "webp"}, "image/webp"),
        ("image/*", {"num_images": 2}, "application/json"),
        ("image/avif", {}, "application/json"),
        ("*/*", {"format": "webp"}, "application/json"),
    ],
)
def test_the_answer_s_type(
    service: Service, accept: str, fields: dict[str, Any], content_type: str
) -> None:
    response = service.generate(fields, accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == content_type
    if content_type.startswith("image/"):
        file_format = Image.open(io.BytesIO(response.content)).format
        assert file_format is not None
        assert f"image/{file_format.lower()}" == content_type


OPTIONAL = (
    "cfg_scale",
    "cfg_schedule",
    "cfg_start",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "cluster_top_k",
    "cluster_top_p",
    "decoding",
    "code_temperature",
    "code_top_k",
    "code_cfg_scale",
    "format",
    "model",
)


@pytest.mark.parametrize("body", [{}, dict.fromkeys(OPTIONAL)], ids=["absent", "null"])
def test_defaults_are_the_model_s(
    service: Service, last: list[GenerationRequest], body: dict[str, Any]
) -> None:
    seed = service.generate(body).json()["images"][0]["seed"]
    assert last == [GenerationRequest("tiny", 0, 3.0, seed, version="v1", class_name="goldfish")]


def test_every_default_of_a_manifest_is_used(tmp_path: Path) -> None:
    defaults = Defaults(
        cfg_scale=1.0,
        temperature=0.5,
        top_k=4,
        top_p=0.25,
        decoding="frequency",
        cfg_schedule="step",
        cfg_start=0.4,
        cluster_top_k=2,
        cluster_top_p=0.75,
    )
    write_model(tmp_path / "models", defaults=defaults, partitions=(5, 9))
    with Service(tmp_path) as service:
        service.generate(seed=1)
        service.generate(
            seed=1,
            cfg_scale=2.0,
            temperature=1,
            top_k=0,
            top_p=1.0,
            decoding="uniform",
            cfg_start=0.1,
            cluster_top_k=6,
            cluster_top_p=1,
        )
        assert service.painter.requests == [
            GenerationRequest(
                "tiny",
                0,
                1.0,
                1,
                temperature=0.5,
                top_k=4,
                top_p=0.25,
                decoding="frequency",
                version="v1",
                class_name="goldfish",
                cfg_schedule="step",
                cfg_start=0.4,
                cluster_top_k=2,
                cluster_top_p=0.75,
            ),
            GenerationRequest(
                "tiny",
                0,
                2.0,
                1,
                version="v1",
                class_name="goldfish",
                cfg_schedule="step",
                cfg_start=0.1,
                cluster_top_k=5,  # all that there are
            ),
        ]


def test_what_a_completer_is_asked_for(tmp_path: Path) -> None:
    write_model(
        tmp_path / "models",
        defaults=Defaults(decoding="complete", code_temperature=1.1, code_cfg_scale=1.5),
        decodings=("uniform", "complete"),
    )
    with Service(tmp_path) as service:
        completed = service.generate(seed=1)
        changed = {"code_temperature": 0.5, "code_top_k": 99, "code_cfg_scale": 1}
        service.generate({**changed, "decoding": "complete"}, seed=1)
        uniform = service.generate(seed=1, decoding="uniform")
        asked = [
            (r.decoding, r.code_temperature, r.code_top_k, r.code_cfg_scale)
            for r in service.painter.requests
        ]
        assert asked == [
            ("complete", 1.1, 0, 1.5),
            ("complete", 0.5, 32, 1.0),  # no more than there are codes
            ("uniform", 1.0, 0, 1.0),  # which is no completer's
        ]
        assert completed.json()["timings"]["complete"] == 0.006
        assert "complete;dur=6.000" in completed.headers["server-timing"]
        assert "complete" not in uniform.json()["timings"]
        assert "complete" not in uniform.headers["server-timing"]


@pytest.mark.parametrize("decoding", ["uniform", "complete"])
def test_previews_say_that_a_completer_changes_the_picture(tmp_path: Path, decoding: str) -> None:
    write_model(tmp_path / "models", decodings=("uniform", "complete"))
    with Service(tmp_path) as service:
        body = {"class_id": 0, "decoding": decoding, "stream": True}
        ours = service.generate(body, "text/event-stream").text
        openai = {"prompt": "ship", "decoding": decoding, "stream": True, "partial_images": 2}
        theirs = service.call("POST", "/v1/images/generations", json=openai).text
        for stream, name in ((ours, "preview"), (theirs, "image_generation.partial_image")):
            lines = stream.split(f"event: {name}\n")[1:]
            previews = [json.loads(line.split("\n")[0].removeprefix("data: ")) for line in lines]
            assert previews
            expected = [True] * len(previews) if decoding == "complete" else [None] * len(previews)
            assert [preview.get("provisional") for preview in previews] == expected


def test_entropies_of_clusters_come_with_those_of_codes(tmp_path: Path) -> None:
    write_model(tmp_path / "models", partitions=(5,))
    with Service(tmp_path) as service:
        service.painter.has_partition = True
        told = service.generate(entropies=True).json()["images"][0]
        assert {name: told[name] for name in OF_CLUSTERS} == OF_CLUSTERS | {
            "cluster_entropies": [1.5] * GRID**2
        }
        short = service.generate().json()["images"][0]
        assert short.keys() & OF_CLUSTERS == {"cluster_entropy_bits", "cluster_entropy_ratio"}
        assert '"cluster_entropy_bits":1.5' in service.generate(stream=True).text


def test_a_drawn_seed_is_exact_in_javascript_and_makes_the_image_again(service: Service) -> None:
    seeds = {service.generate().json()["images"][0]["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert max(seeds) < 2**53
    first = service.generate().json()["images"][0]
    assert service.generate(seed=first["seed"]).json()["images"][0] == first


@pytest.mark.parametrize("seed", [0, 2**53 + 1, MAX_SEED])
def test_seeds_come_back_digit_for_digit(service: Service, seed: int) -> None:
    response = service.generate(seed=seed, accept="image/png")
    assert response.headers["x-masc-seed"] == str(seed)
    assert f'"seed":{seed},' in service.generate(seed=seed).text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cfg_scale", 1),
        ("cfg_scale", 20.0),
        ("num_images", 16),
        ("temperature", 1e-30),
        ("temperature", 10),
        ("top_k", 3),
        ("top_p", 1),
        ("top_p", 1e-9),
        ("cluster_top_k", 0),
        ("cluster_top_p", 1),
        ("decoding", "frequency"),
        ("format", "jpeg"),
        ("model", "tiny"),
    ],
)
def test_values_at_the_edge_reach_the_worker(
    service: Service, last: list[GenerationRequest], field: str, value: object
) -> None:
    assert service.generate({field: value}).status_code == 200
    assert getattr(last[0], field) == value


def test_a_top_k_beyond_the_vocabulary_is_all_of_it(
    service: Service, last: list[GenerationRequest]
) -> None:
    assert service.generate(top_k=10**25).status_code == 200
    assert last[0].top_k == NUM_CLUSTERS


@pytest.mark.parametrize("name", ["golden retriever", "  GOLDEN Retriever\t"])
def test_a_class_by_name(service: Service, last: list[GenerationRequest], name: str) -> None:
    assert service.generate(class_name=name).status_code == 200
    assert last[0].class_id == 1


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        ({"class_id": len(CLASS_NAMES)}, 404, ["class_id"]),
        ({"class_id": 10**40}, 404, ["class_id"]),
        ({"class_id": -1}, 422, ["class_id"]),
        ({"class_id": -(10**5000)}, 422, ["class_id"]),
        ({"class_id": "1"}, 422, ["class_id"]),
        ({"class_id": True}, 422, ["class_id"]),
        ({"class_id": 1.5}, 422, ["class_id"]),
        ({"class_id": 1.0 * len(CLASS_NAMES)}, 404, ["class_id"]),
        ({"class_id": [1]}, 422, ["class_id"]),
        ({"class_name": "unicorn"}, 404, ["class_name"]),
        ({"class_name": ""}, 404, ["class_name"]),
        ({"class_name": "\u0000"}, 404, ["class_name"]),
        ({"class_name": "crane"}, 422, ["class_name"]),
        ({"class_name": 3}, 422, ["class_name"]),
        ({"class_name": "x" * 201}, 422, ["class_name"]),
        ({"class_name": "\ud800"}, 422, ["class_name"]),
        ({"class_id": 0, "class_name": "goldfish"}, 422, ["class_id"]),
        ({}, 422, ["class_id"]),
        ({"class_id": None, "class_name": None}, 422, ["class_id"]),
        ({"class_id": 0, "cfg_scale": 0.99}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": 20.01}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": NAN}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": INFINITY}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": -INFINITY}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": 10**400}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": "3"}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_scale": True}, 422, ["cfg_scale"]),
        ({"class_id": 0, "cfg_schedule": "cosine"}, 422, ["cfg_schedule"]),
        ({"class_id": 0, "cfg_schedule": "step", "cfg_start": 1.1}, 422, ["cfg_start"]),
        ({"class_id": 0, "cfg_schedule": "step", "cfg_start": NAN}, 422, ["cfg_start"]),
        ({"class_id": 0, "cfg_schedule": "linear", "cfg_start": 0.5}, 422, ["cfg_start"]),
        ({"class_id": 0, "cfg_start": 0.5}, 422, ["cfg_start"]),
        ({"class_id": 0, "code_temperature": 0.5}, 422, ["code_temperature"]),
        ({"class_id": 0, "code_top_k": 0}, 422, ["code_top_k"]),
        ({"class_id": 0, "code_cfg_scale": 0.9}, 422, ["code_cfg_scale"]),
        ({"class_id": 0, "decoding": "complete"}, 422, ["decoding"]),
        ({"class_id": 0, "num_images": 0}, 422, ["num_images"]),
        ({"class_id": 0, "num_images": 17}, 422, ["num_images"]),
        ({"class_id": 0, "num_images": 2.5}, 422, ["num_images"]),
        ({"class_id": 0, "num_images": None}, 422, ["num_images"]),
        ({"class_id": 0, "seed": -1}, 422, ["seed"]),
        ({"class_id": 0, "seed": 2**63}, 422, ["seed"]),
        ({"class_id": 0, "seed": NAN}, 422, ["seed"]),
        ({"class_id": 0, "temperature": 0}, 422, ["temperature"]),
        ({"class_id": 0, "temperature": 10.1}, 422, ["temperature"]),
        ({"class_id": 0, "temperature": NAN}, 422, ["temperature"]),
        ({"class_id": 0, "top_k": -1}, 422, ["top_k"]),
        ({"class_id": 0, "top_p": 0}, 422, ["top_p"]),
        ({"class_id": 0, "top_p": 1.1}, 422, ["top_p"]),
        ({"class_id": 0, "top_p": NAN}, 422, ["top_p"]),
        ({"class_id": 0, "cluster_top_k": -1}, 422, ["cluster_top_k"]),
        ({"class_id": 0, "cluster_top_k": 2.5}, 422, ["cluster_top_k"]),
        ({"class_id": 0, "cluster_top_k": 3}, 422, ["cluster_top_k"]),  # of no partition
        ({"class_id": 0, "cluster_top_p": 0}, 422, ["cluster_top_p"]),
        ({"class_id": 0, "cluster_top_p": 1.1}, 422, ["cluster_top_p"]),
        ({"class_id": 0, "cluster_top_p": NAN}, 422, ["cluster_top_p"]),
        ({"class_id": 0, "cluster_top_p": 0.5}, 422, ["cluster_top_p"]),
        ({"class_id": 0, "decoding": "refine"}, 422, ["decoding"]),
        ({"class_id": 0, "decoding": ["uniform"]}, 422, ["decoding"]),
        ({"class_id": 0, "format": "gif"}, 422, ["format"]),
        ({"class_id": 0, "entropies": 1}, 422, ["entropies"]),
        ({"class_id": 0, "model": "huge"}, 404, ["model"]),
        ({"class_id": 0, "model": "../tiny"}, 404, ["model"]),
        ({"class_id": 0, "model": ""}, 404, ["model"]),
        ({"class_id": 0, "model": 1}, 422, ["model"]),
        ({"class_id": 0, "stream": 0}, 422, ["stream"]),
        ({"class_id": 0, "steps": 20}, 422, ["steps"]),
        ({"class_id": 0, "\ud800": 20}, 422, ["body"]),
        ({"seed": -1, "num_images": 0, "x": 1}, 422, ["num_images", "seed", "x"]),
    ],
)
def test_bad_fields_are_named(
    service: Service, body: dict[str, Any], status: int, fields: list[str]
) -> None:
    content = json.dumps(body) if body.get("class_id", 0) != -(10**5000) else minus_huge()
    assert_problem(service.post(content.encode()), status, *fields)


def test_an_activation_does_not_change_the_class_that_a_running_worker_makes(
    own_service: Service,
) -> None:
    names = CLASS_NAMES[::-1]
    defaults = Defaults(cfg_scale=9.0)
    write_model(own_service.root, version="v2", defaults=defaults, class_names=names)
    for class_name, class_id in (("goldfish", 0), ("teapot", 3)):
        response = own_service.generate(class_name=class_name, seed=5, accept="image/png")
        assert response.content == draw(class_id, 5, "png")
        assert response.headers["x-masc-model"] == "tiny/v1"
    assert {(r.version, r.cfg_scale) for r in own_service.painter.requests} == {("v1", 3.0)}
    (model,) = own_service.get("/models").json()["models"]
    assert (model["version"], model["defaults"]["cfg_scale"]) == ("v1", 3.0)
    classes = own_service.get("/models/tiny/classes").json()
    assert (classes["version"], classes["classes"][0]["name"]) == ("v1", "goldfish")

    own_service.announce(version="v2")
    own_service.generate(class_name="teapot")
    last = own_service.painter.requests[-1]
    assert (last.class_id, last.version, last.cfg_scale) == (2, "v2", 9.0)
    assert own_service.get("/models/tiny/classes").json()["classes"][0]["name"] == names[0]


@pytest.mark.parametrize("damage", ["alter", "delete"])
def test_damage_on_the_disk_does_not_concern_a_version_that_is_served(
    own_service: Service, damage: str
) -> None:
    folder = own_service.root / "tiny" / "v1"
    path = folder / "manifest.json"
    if damage == "alter":
        path.write_text(path.read_text().replace("teapot", "kettle"))
    else:
        shutil.rmtree(folder)
    response = own_service.generate(class_name="teapot", seed=5, accept="image/png")
    assert response.content == draw(3, 5, "png")
    (model,) = own_service.get("/models").json()["models"]
    assert (model["name"], model["version"], model["ready"]) == ("tiny", "v1", True)
    assert own_service.get("/models/tiny/classes").json()["classes"][3]["name"] == "teapot"


def minus_huge() -> str:
    return f'{{"class_id": -1{"0" * 5000}}}'


def test_a_model_with_a_refiner_offers_it(tmp_path: Path) -> None:
    write_model(tmp_path / "models", decodings=["uniform", "refine"])
    with Service(tmp_path) as service:
        (model,) = service.get("/models").json()["models"]
        assert model["decodings"] == ["uniform", "refine"]
        assert service.generate(decoding="refine").status_code == 200
        assert [request.decoding for request in service.painter.requests] == ["refine"]
        detail = assert_problem(service.generate(decoding="frequency"), 422, "decoding")["detail"]
        assert "offers uniform, refine, not frequency" in detail


NASTY_BODIES = {
    "empty": b"",
    "blank": b" \n",
    "half": b'{"class_id": 1',
    "text": b"hello",
    "array": b"[1, 2]",
    "number": b"3",
    "string": b'"class_id"',
    "null": b"null",
    "nan": b"NaN",
    "trailing": b'{"class_id": 1} x',
    "single quotes": b"{'class_id': 1}",
    "latin-1": '{"class_name": "é"}'.encode("latin-1"),
    "utf-16": '{"class_id": 1}'.encode("utf-16"),
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"class_id": 1}',
    "nul": b'{"class_id": 1}\x00',
    "deep arrays": b"[" * 30_000,
    "deep objects": b'{"a":' * 10_000,
    "deep and closed": b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", NASTY_BODIES.values(), ids=NASTY_BODIES)
def test_what_is_no_json_object_is_refused(service: Service, content: bytes) -> None:
    assert_problem(service.post(content), 422, "body")


def test_a_field_given_twice_is_refused(service: Service) -> None:
    response = service.post(b'{"class_id": 1, "seed": 2, "class_id": 3}')
    assert_problem(response, 422, "class_id")
    assert_problem(service.post(b'{"\\ud800": 1, "\\ud800": 2}'), 422, "?")


def test_moderate_nesting_is_a_wrong_value(service: Service) -> None:
    content = b'{"class_id": ' + b"[" * 200 + b"]" * 200 + b"}"
    assert_problem(service.post(content), 422, "class_id")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(GenerateBody.model_fields)) | st.text()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(FIELDS, VALUES) | VALUES)
def test_whatever_is_sent_is_answered(service: Service, body: object) -> None:
    response = service.post(json.dumps(body).encode())
    assert response.status_code in {200, 404, 422}
    if response.status_code != 200:
        named = [error["field"] for error in response.json()["errors"]]
        assert_problem(response, response.status_code, *named)
        assert named


def test_thousands_of_unknown_fields_make_a_short_answer(service: Service) -> None:
    content = json.dumps({"class_id": 0} | {f"x{i}": i for i in range(4000)}).encode()
    response = service.post(content)
    assert response.status_code == 422
    assert len(response.content) < 5_000


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, b"\xff", "json", "text/plain", "text/json", "text/plain+json"),
        *("application/x-www-form-urlencoded", "application/jsonp"),
    ],
)
def test_another_content_type_is_refused(
    service: Service, content_type: str | bytes | None
) -> None:
    problem = assert_problem(service.post(b'{"class_id": 1}', content_type), 415)
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "APPLICATION/JSON", "application/ld+json"],
)
def test_json_by_other_spellings_is_taken(service: Service, content_type: str) -> None:
    assert service.post(b'{"class_id": 1}', content_type).status_code == 200


def test_bad_requests_never_reach_the_queue(
    service: Service, last: list[GenerationRequest]
) -> None:
    service.generate(num_images=17)
    service.generate(class_id=99)
    assert last == []


@pytest.mark.parametrize(
    ("failure", "status", "fields"),
    [
        (JobFailure("UnknownClassError", "no class 4", "class_id"), 404, ["class_id"]),
        (JobFailure("InvalidFieldError", "too small", "temperature"), 422, ["temperature"]),
        (JobFailure("NonFiniteError", "a NaN at position 3"), 500, []),
        (JobFailure("NoWorkerError", "draining"), 503, []),
        (JobFailure("SomethingNew", "of another version"), 500, []),
    ],
)
def test_a_worker_s_failure_is_the_client_s_problem(
    own_service: Service, failure: JobFailure, status: int, fields: list[str]
) -> None:
    own_service.painter.failure = failure
    problem = assert_problem(own_service.generate(), status, *fields)
    assert problem["detail"] == failure.message


def test_other_requests_go_on_beside_bad_ones(own_service: Service) -> None:
    async def run() -> list[int]:
        async with own_service.client() as client:
            bodies = [{"class_id": i % 7, "seed": i} for i in range(42)]
            answers = await asyncio.gather(
                *(client.post("/generate", json=body) for body in bodies)
            )
        return [answer.status_code for answer in answers]

    expected = [200 if i % 7 < len(CLASS_NAMES) else 404 for i in range(42)]
    assert asyncio.run(run()) == expected


def test_same_body_same_bytes_alone_and_among_others(own_service: Service) -> None:
    body = {"class_id": 3, "seed": 11}
    alone = own_service.generate(body, "image/png").content

    async def run() -> bytes:
        async with own_service.client() as client:
            others = [{"class_id": i % 5, "seed": 100 + i} for i in range(16)]
            calls = [client.post("/generate", json=other) for other in others]
            calls.insert(8, client.post("/generate", json=body, headers={"Accept": "image/png"}))
            return (await asyncio.gather(*calls))[8].content

    assert asyncio.run(run()) == alone
