"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from masc_core.bundle.registry import Registry
from masc_core.io.files import atomic_write
from masc_core.models.weights import save_model
from server.process import listen
from tests.command_line import ROOT, Masc, environment, service
from tests.tiny_bundle import save_tiny_bundle, tiny_parts
from tests.training.stage_configs import photographs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return root


# Shows the help of everything, and says of what before the first of the heavy packages appears.
HELP_OF_EVERYTHING = """
import sys, typer, masc
SLOW = ["torch", "matplotlib", "sklearn", "scipy", "numba", "fastapi", "aiohttp", "numpy"]
def show_help(path):
    command = typer.main.get_command(masc.build_app(path))
    try:
        command.main([*path, "--help"], prog_name="masc")
    except SystemExit as end:
        assert end.code == 0
    print("SLOW", *path, *(name for name in SLOW if name in sys.modules))
    for name in path:
        command = command.commands[name]
    for name in getattr(command, "commands", {}):
        show_help([*path, name])
show_help([])
"""


def test_every_command_shows_its_help_without_what_is_slow_to_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_EVERYTHING],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SLOW")]
    commands = "serve worker generate bench keys tokenizer codes prior transformer refiner models"
    assert shown[0] == []
    assert {path[0] for path in shown[1:]} >= {*commands.split(), "classifier", "evaluate"}
    below = [*(["tokenizer", c] for c in ("train", "reconstruct", "import")), ["keys", "revoke"]]
    assert all(path in shown for path in [*below, ["models", "publish"], ["models", "list"]])
    assert all(len(path) <= 2 for path in shown)
    assert "--restart-codes-every" in done.stdout


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    """Of a service that runs."""
    with service(models) as (_, client):
        yield client


def test_generate_gives_the_pixels_that_the_service_gives(
    masc: Masc, models: Path, client: httpx.Client, tmp_path: Path
) -> None:
    body = {"class_name": "bee", "seed": 5, "cfg_scale": 1.5}
    answer, again = (
        client.post("/generate", json=body, headers={"Accept": "image/png"}) for _ in range(2)
    )
    assert answer.status_code == 200
    assert answer.headers["X-Masc-Seed"] == "5"
    assert answer.content.startswith(b"\x89PNG")
    assert again.content == answer.content
    out = tmp_path / "bee.png"
    done = masc(
        "generate", "bee", "--seed", "5", "--cfg-scale", "1.5", "--out", out, "--models", models
    )
    assert done.status == 0, done.stderr
    assert out.read_bytes() == answer.content


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_file_says_how_to_make_it_again(client: httpx.Client, file_format: str) -> None:
    body = {"class_name": "bee", "seed": 5, "num_images": 2, "cfg_scale": 1.5, "top_k": 9}
    images = client.post("/generate", json={**body, "format": file_format}).json()["images"]
    second = base64.b64decode(images[1]["b64"])
    with Image.open(io.BytesIO(second)) as image:
        tags = image.info.get("Description") or image.getexif()[ExifTags.Base.ImageDescription]
    made_with = json.loads(tags)
    assert made_with["class_name"] == "bee"
    assert made_with["request"] | {"seed": 6, "cfg_scale": 1.5, "top_k": 9} == made_with["request"]
    headers = {"Accept": f"image/{file_format}"}
    again = client.post("/generate", json=made_with["request"], headers=headers)
    assert again.content == second
    model = client.post("/generate", json=made_with["request"]).json()["model"]
    assert made_with | {k: model[k] for k in ("version", "weights_sha256")} == made_with


def test_generate_writes_sheets_and_folders(masc: Masc, models: Path, tmp_path: Path) -> None:
    done = masc("generate", "--models", models, "--out", tmp_path / "all.png", "--scale", "2")
    assert done.status == 0, done.stderr
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.width == 5 * 34 - 2
    folder = tmp_path / "many"
    done = masc("generate", "cat", "1", "--num-images", "2", "--models", models, "--out", folder)
    assert done.status == 0, done.stderr
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["001-bee-0.png", "001-bee-1.png", "002-cat-0.png", "002-cat-1.png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "unicorn"], "no class 'unicorn'; there are: ant, bee"),
        (["generate", "--out", "x.tiff"], "not an image format"),
        (["generate", "--decoding", "refine"], "decoding must be"),
        (["generate", "--decoding", "complete"], "decoding must be"),
        (["generate", "--code-top-k", "3"], "code_top_k is of the decoding complete, not uniform"),
        (["generate", "--top-p", "0"], "top_p must be"),
        (["models", "verify", "nothing"], "there is no model 'nothing'"),
        (["models", "activate", "tiny", "9"], "has no version '9'"),
        (["serve", "--port", "70000"], "MASC_PORT"),
        (["serve", "--queue", "kafka://x"], "kafka"),
        (["serve", "--device", "tpu"], "MASC_DEVICE"),
        (["keys", "list"], "MASC_API_KEYS_FILE"),
        (["keys", "list", "--file", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["serve", "--model", "other"], "no model 'other'"),
        (["serve", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
        (["bench"], "give exactly one of --rate (open loop) and --clients (closed loop)"),
        (["bench", "--rate", "1", "--clients", "1"], "give exactly one of --rate"),
        (["bench", "--rate", "-1"], "--rate: "),
        (["bench", "localhost", "--rate", "1"], "URL: must be an address"),
        (["bench", "http://127.0.0.1:1", "--rate", "1"], "cannot reach http://127.0.0.1:1"),
        (["bench", "--rate", "1", "--api-key", "two words"], "MASC_API_KEY: must be printable"),
    ],
)
def test_mistakes_are_one_clear_line_and_status_2(
    masc: Masc, models: Path, arguments: list[str], named: str
) -> None:
    done = masc(*arguments, MASC_MODELS_DIR=models)
    assert done.status == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("masc: ")]
    assert len(lines) == 1, done.stderr
    assert named in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MASC_PORT", "http"), ("MASC_MAX_BATCH", "0"), ("MASC_MAX_QUEUE", "-1"), ("MASC_DTYPE", "x")],
)
def test_a_bad_setting_is_named(masc: Masc, models: Path, variable: str, value: str) -> None:
    done = masc("serve", MASC_MODELS_DIR=models, **{variable: value})
    assert done.status == 2
    assert variable in done.stderr


def test_a_port_in_use(masc: Masc, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = masc("serve", "--port", port, "--models", models)
    assert done.status == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_a_missing_and_an_empty_models_folder(masc: Masc, tmp_path: Path) -> None:
    for folder, named in [(tmp_path / "none", "none"), (tmp_path, "holds no model")]:
        done = masc("serve", "--port", "0", "--models", folder)
        assert done.status == 2
        assert named in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_bundle_is_refused_and_the_file_named(
    masc: Masc, models: Path, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "models"
    shutil.copytree(models, broken)
    path = broken / "tiny" / "1" / "transformer.safetensors"
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-100])
    elif damage == "alter":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()
    done = masc("serve", "--port", "0", "--models", broken)
    assert done.status == 2
    assert "transformer.safetensors" in done.stderr.splitlines()[-1]
    done = masc("models", "verify", "tiny", "--models", broken)
    assert done.status == 2
    assert "transformer.safetensors" in done.stderr


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0, keys=True) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("keys", [False, True])
def test_bound_to_the_world_without_keys_there_is_a_warning(
    models: Path, tmp_path: Path, keys: bool
) -> None:
    command = [sys.executable, "-m", "masc", "serve", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    variables = {}
    if keys:
        atomic_write(tmp_path / "keys.toml", b"", mode=0o600)
        variables["MASC_API_KEYS_FILE"] = str(tmp_path / "keys.toml")
    process = subprocess.Popen(
        [*command, "--models", str(models)],
        cwd=ROOT,
        env=environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert ("WARNING" in first) is not keys
        assert ("everyone who can reach this machine" in first) is not keys
        assert ("MASC_API_KEYS_FILE=keys.toml" in first) is not keys
    finally:
        process.kill()
        process.communicate()


def test_versions_are_activated_rolled_back_and_listed(masc: Masc, tmp_path: Path) -> None:
    for version in ("1", "2"):
        save_tiny_bundle(tmp_path, version=version)
    done = masc("models", "list", "--models", tmp_path)
    assert done.status == 0
    states = [line.split("│")[3].strip() for line in done.stdout.splitlines() if "tiny" in line]
    assert states == ["previous", "*"]
    assert "2025-01-02" in done.stdout
    done = masc("models", "rollback", "tiny", "--models", tmp_path)
    assert done.stdout == "tiny 1 is active again\n"
    done = masc("models", "rollback", "tiny", "--models", tmp_path)
    assert done.status == 2
    assert "current: no version was active before '1'" in done.stderr
    assert masc("models", "activate", "tiny", "2", "--models", tmp_path).status == 0
    assert Registry(tmp_path).current("tiny") == "2"


def test_an_activation_warns_of_what_clients_will_miss(masc: Masc, tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, version="2", counts=False)
    save_tiny_bundle(tmp_path, version="1")
    done = masc("models", "activate", "tiny", "2", "--models", tmp_path)
    assert (done.status, done.stdout) == (0, "tiny 2 is active\n")
    assert done.stderr == "tiny 2: unlike before, no frequency decoding\n"
    assert masc("models", "activate", "tiny", "1", "--models", tmp_path).stderr == ""


def test_verify_without_a_name_checks_all_and_names_every_damage(
    masc: Masc, tmp_path: Path
) -> None:
    for name in ("one", "two", "three"):
        save_tiny_bundle(tmp_path, name)
    done = masc("models", "verify", "--models", tmp_path)
    assert done.status == 0
    assert len(done.stdout.splitlines()) == 3
    for name in ("one", "two"):
        (tmp_path / name / "1" / "prior.npz").write_bytes(b"")
    done = masc("models", "verify", "--models", tmp_path)
    assert done.status == 2
    assert done.stdout.startswith("three 1: ")
    assert [line.split("/")[-3] for line in done.stderr.splitlines()] == ["one", "two"]


def test_flags_and_files_reject_unknown_keys(masc: Masc, tmp_path: Path) -> None:
    done = masc("prior", "build", "--num-cluster", "5")
    assert done.status == 2
    assert "--num-cluster" in done.stderr
    config = tmp_path / "prior.toml"
    config.write_text('tokenizer = "t"\nout = "o"\nnum_clusters = 4\nclusters = 4\n')
    done = masc("prior", "build", config)
    assert done.status == 2
    assert "clusters: Extra inputs" in done.stderr


def test_from_photographs_to_a_served_image(
    masc: Masc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--batch-size", "8"]

    def run(*arguments: str) -> str:
        done = masc(*arguments)
        assert done.status == 0, done.stderr
        return done.stdout

    sizes = ["--image-size", "16", "--num-codes", "32", "--ch-mult", "1,1,1"]
    narrow = ["--num-res-blocks", "1", "--z-channels", "32"]
    out = run("tokenizer", "train", "--data", "train", "--val-data", "val", "--out", "tok",
              *sizes, *narrow, *small)  # fmt: skip
    assert re.search(r"PSNR [\d.]+ dB, SSIM [\d.]+, [\d.]+% of the codes in use", out)
    run("tokenizer", "reconstruct", "tok", "val", "--image-size", "16", "--out", "r.png")
    assert (tmp_path / "r.png").exists()
    weights = ["--tokenizer", "tok/tokenizer.safetensors", "--image-size", "16"]
    (tmp_path / "train" / "disc" / "broken.png").write_bytes(b"?")
    out = run("codes", "extract", *weights, "--data", "train", "--out", "codes")
    assert "36 images, 1 skipped: codes" in out
    assert "skipped: train/disc/broken.png" in out
    run("codes", "extract", *weights, "--data", "val", "--out", "codes-val",
        "--variants", "none")  # fmt: skip
    run("prior", "build", *weights[:2], "--num-clusters", "16", "--out", "prior")
    run("transformer", "train", "--codes", "codes", "--val-codes", "codes-val", "--prior",
        "prior/prior.npz", "--out", "gpt", "--dim", "32", "--n-layer", "2", "--n-head", "2",
        *small)  # fmt: skip
    run("classifier", "train", "--data", "train", "--val-data", "val", "--out", "judge",
        "--image-size", "16", "--width", "8", *small)  # fmt: skip
    out = run("models", "publish", "--name", "mine", "--version", "1", "--tokenizer", "tok",
              "--prior", "prior", "--codes", "codes", "--transformer", "gpt", "--classifier",
              "judge", "--images-per-class", "2")  # fmt: skip
    figures = json.loads(out[out.index("{") :])
    assert figures["class_agreement_images"] == 6
    assert {"psnr", "codebook_usage", "bits_per_position", "unigram_bits"} <= figures.keys()
    out = run("evaluate", "mine", "--classifier", "judge", "--images-per-class", "2")
    measured: dict[str, Any] = json.loads(out[out.index("{") :])
    assert measured["class_agreement"] == figures["class_agreement"]
    with service(tmp_path / "models") as (_, client):
        classes = client.get("/models/mine/classes").json()
        assert "stripes" in json.dumps(classes)
        answer = client.post("/generate", json={"class_name": "stripes", "num_images": 2})
        assert answer.status_code == 200
        assert len(answer.json()["images"]) == 2
    with Image.open(tmp_path / "models" / "mine" / "1" / "samples.png") as sheet:
        assert np.asarray(sheet).std() > 0


def test_one_variable_names_the_default_model_everywhere(
    masc: Masc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        save_tiny_bundle(tmp_path / "models", name)
    monkeypatch.setenv("MASC_MODELS_DIR", str(tmp_path / "models"))
    out = ["--out", tmp_path / "x.png"]
    assert "name one: one, two" in masc("generate", "bee", *out).stderr
    assert "name one: one, two" in masc("evaluate").stderr
    monkeypatch.setenv("MASC_DEFAULT_MODEL", "two")
    assert masc("generate", "bee", *out).status == 0
    assert (
        json.loads(masc("evaluate", "--images-per-class", "1").stdout)["settings"]["model"] == "two"
    )


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for seed, name in enumerate(("one", "two")):
        save_tiny_bundle(root, name, seed=seed)
    return root


def image_of(client: httpx.Client, **model: str) -> httpx.Response:
    body = {"class_id": 0, "seed": 1, **model}
    return client.post("/generate", json=body, headers={"Accept": "image/png"})


def served_by(client: httpx.Client) -> dict[str, tuple[int, bool]]:
    models = client.get("/models").json()["models"]
    return {model["name"]: (model["workers"], model["default"]) for model in models}


def test_a_folder_of_several_models_is_served_whole_but_for_what_is_damaged(
    two_models: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    shutil.copytree(two_models, root)
    shutil.copytree(root / "one", root / "damaged")  # the first by name, with another's manifest
    with service(root) as (_, client):
        assert served_by(client) == {"one": (1, True), "two": (1, False)}
        one, two = (image_of(client, model=name) for name in ("one", "two"))
        assert (one.status_code, two.status_code) == (200, 200)
        assert image_of(client).content == one.content != two.content
        assert image_of(client, model="three").status_code == 404
        assert image_of(client, model="damaged").status_code == 500
        text = client.get("/metrics").text
        assert 'masc_model_info{clusters="16",dtype="float32",model="one"' in text
        assert 'masc_model_info{clusters="16",dtype="float32",model="two"' in text
        assert "masc_batch_rows_capacity 64.0" in text


def test_options_name_the_models_that_are_served(two_models: Path) -> None:
    with service(two_models, "--model", "two", MASC_DEFAULT_MODEL="one") as (_, client):
        assert served_by(client) == {"one": (0, False), "two": (1, True)}
        assert image_of(client).headers["x-masc-model"].startswith("two")
        refused = image_of(client, model="one")
        assert refused.status_code == 503
        assert "no worker serves the model 'one'" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("options", "variables", "named"),
    [
        (["--model", "three"], {}, "no model 'three' in "),
        (["--model", "one", "--model", "three"], {}, "no model 'three' in "),
        ([], {"MASC_DEFAULT_MODEL": "three"}, "MASC_DEFAULT_MODEL: no model 'three' in "),
        (
            [],
            {"MASC_DEFAULT_MODEL": "one", "MASC_SERVED_MODELS": "two"},
            "MASC_DEFAULT_MODEL: 'one' is not served, but two",
        ),
        (["--model", "all"], {"MASC_MAX_MODEL_BYTES": "1000"}, "one 1 takes "),
    ],
)
def test_models_that_cannot_be_served_are_one_line(
    masc: Masc, two_models: Path, options: list[str], variables: dict[str, str], named: str
) -> None:
    done = masc("serve", "--port", "0", "--models", two_models, *options, **variables)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("masc: ")]
    assert named in line


def test_a_damaged_version_does_not_hide_the_others(
    masc: Masc, models: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    shutil.copytree(models, root)
    save_tiny_bundle(root, "broken")
    path = root / "broken" / "1" / "manifest.json"
    path.write_text(path.read_text().replace("ant", "aunt"))
    done = masc("models", "list", "--models", root)
    assert done.status == 0
    assert "damaged: was altered" in done.stdout
    assert "tiny" in done.stdout


def test_an_altered_manifest_is_refused_at_start(masc: Masc, models: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    shutil.copytree(models, root)
    path = root / "tiny" / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"cfg_scale": 2.0', '"cfg_scale": 9.0'))
    done = masc("serve", "--port", "0", "--models", root)
    assert done.status == 2
    assert "manifest.json: was altered" in done.stderr
    path.unlink()
    done = masc("serve", "--port", "0", "--models", root)
    assert done.status == 2
    assert "manifest.json: is missing" in done.stderr


def test_commands_behind_a_double_dash_are_the_real_ones(masc: Masc, models: Path) -> None:
    done = masc("--", "evaluate", "none", MASC_MODELS_DIR=models)
    assert done.status == 2
    assert "no model 'none'" in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--out", "nowhere/x.png"], "no place for a .png"),
        (["--out", "x.txt"], "no place for a .png"),
        (["--image-size", "17"], "image_size: must be a multiple of 4"),
    ],
)
def test_reconstruct_says_what_is_wrong(
    masc: Masc, tmp_path: Path, options: list[str], named: str
) -> None:
    save_model(tmp_path / "tokenizer.safetensors", tiny_parts().tokenizer)
    photographs(tmp_path)
    done = masc("tokenizer", "reconstruct", tmp_path, tmp_path / "val", *options)
    assert done.status == 2
    assert named in done.stderr


def test_sigterm_does_not_wait_for_a_client_that_says_nothing(models: Path) -> None:
    with service(models) as (process, client):
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0)) as idle:
            idle.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0


def test_bench_measures_a_running_service(masc: Masc, client: httpx.Client, tmp_path: Path) -> None:
    done = masc(
        "bench", client.base_url, "--clients", "2", "--requests", "8", "--class", "bee",
        "--out", tmp_path / "out", MASC_API_KEY="not-to-be-seen",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert "MASC" in done.stdout
    assert "closed loop, 2 clients" in done.stdout
    assert "8 │ 100.0%" in done.stdout
    document = (tmp_path / "out" / "bench.json").read_text()
    report = json.loads(document)
    assert (report["ok"], report["options"]["class_name"]) == (8, "bee")
    stages = {"queue", "prefill", "decode", "vq_decode", "encode", "total"}
    assert set(report["stages"]) == stages
    assert "not-to-be-seen" not in done.stdout + done.stderr + document
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        assert picture.format == "PNG"
    wrong = masc("bench", client.base_url, "--rate", "1", "--class", "unicorn")
    assert wrong.status == 2
    assert "no class 'unicorn'; there are: ant, bee" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_bench_that_is_broken_off_shows_what_it_measured(
    client: httpx.Client, tmp_path: Path
) -> None:
    def answered() -> list[str]:
        lines = client.get("/metrics").text.splitlines()
        return [line for line in lines if 'endpoint="/generate",outcome="ok"' in line]

    before = answered()
    # A shell may have told its children to ignore the signal.
    program = "import signal, masc; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [sys.executable, "-c", program + "masc.main()", "bench", str(client.base_url),
         "--clients", "1", "--duration", "100", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        while answered() == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "broken off" in stdout
    assert "latency" in stdout
    assert "Traceback" not in stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["interrupted"]
    assert report["ok"] >= 1
    assert report["sent"] == report["ok"] + report["unanswered"]


@pytest.mark.parametrize("missing", ["aiohttp", "matplotlib"])
def test_bench_names_the_extra_it_needs(tmp_path: Path, missing: str) -> None:
    program = f"""
import sys, masc
class Absent:
    def find_spec(self, name, *_):
        if name == {missing!r}:
            raise ModuleNotFoundError("no " + name, name=name)
sys.meta_path.insert(0, Absent())
masc.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "bench", "--rate", "1", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"masc: this command needs {missing}: pip install 'masc[bench]'\n"
    assert not (tmp_path / "out").exists()


def test_what_looks_like_markup_in_a_file_is_text(masc: Masc, tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    path = tmp_path / "tiny" / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"seal"', '"[/red]": 1, "seal"'))
    done = masc("models", "list", "--models", tmp_path)
    assert done.status == 0
    assert "damaged: [/red]" in done.stdout
