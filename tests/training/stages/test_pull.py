"""Released weights by name, small ones under the names of the large, from a server on loopback."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.vq import VQConfig, VQModel
from tests.command_line import Masc, service
from tests.hub_server import Hub, hub_server
from tests.training.stage_configs import tokenizer_config, transformer_config
from training.pretrained.released import RELEASED
from training.stages.tokenizer import train_tokenizer
from training.stages.transformer import train_transformer

VQ = VQConfig(
    num_codes=96, code_dim=4, ch=32, ch_mult=(1, 1, 1, 1, 2), num_res_blocks=1, z_channels=32
)
GPT_CONFIG = GPTConfig(96, dim=32, n_layer=1, n_head=2, num_classes=1000, block_size=256)
QUICK = ("--samples", "0", "--shuffles", "1", "--weights-dtype", "float32")


def saved(path: Path, content: object) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A transformer of 256 pixels and a tokenizer of factor 16, in its containers."""
    folder, tables = tmp_path_factory.mktemp("released"), {"freqs_cis": torch.zeros(257, 8, 2)}
    gpt, tokenizer = GPT(GPT_CONFIG).state_dict(), VQModel(VQ).state_dict()
    names = {"c2i_B_256.pt": {"model": gpt | tables}, "vq_ds16_c2i.pt": {"model": tokenizer}}
    return {
        f"FoundationVision/LlamaGen/{name}": saved(folder / name, content)
        for name, content in names.items()
    }


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Where released weights lie, and an empty cache."""
    with hub_server() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        server.files = dict(files)
        yield server


def test_the_names_are_those_of_the_release() -> None:
    files = {one.gpt or one.tokenizer for one in RELEASED.values()}
    assert {file.removeprefix("hf://FoundationVision/LlamaGen/") for file in files} == {
        *("c2i_B_256.pt", "c2i_B_384.pt", "c2i_L_256.pt", "c2i_L_384.pt", "c2i_XL_384.pt"),
        *("c2i_XXL_384.pt", "c2i_3B_384.pt", "vq_ds16_c2i.pt", "vq_ds8_c2i.pt"),
    }
    for name, one in RELEASED.items():
        size = "" if one.gpt is None else one.gpt.rpartition("/c2i_")[2].removesuffix(".pt")
        assert name == f"llamagen-{size.lower().replace('_', '-')}" or name in {"vq-16", "vq-8"}
        assert size.endswith(str(one.image_size or ""))


def test_two_commands_to_a_service(masc: Masc, hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    command = ("models", "pull", "llamagen-b-256", "--models", models, *QUICK)
    done = masc(*command, "--cfg-schedule", "step", "--cfg-start", "0.25")
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("llamagen-b-256 1, ")
    manifest = Registry(models).verify("llamagen-b-256")
    assert (manifest.image_size, manifest.grid, len(manifest.class_names)) == (256, 16, 1000)
    defaults = manifest.defaults
    assert (defaults.cfg_schedule, defaults.cfg_start) == ("step", 0.25)
    assert {"tree.npy", "patches.webp"} <= manifest.files.keys()
    imported = json.loads(manifest.model_dump_json())["provenance"]["imported"]
    assert imported["gpt"]["address"] == "hf://FoundationVision/LlamaGen/c2i_B_256.pt"
    with service(models) as (_, client):
        answer = client.post("/generate", json={"class_name": "goldfish", "seed": 3}).json()
    assert answer["model"]["name"] == "llamagen-b-256"
    assert answer["images"][0]["b64"]
    again = masc(*command[:5])
    assert again.stdout.startswith("llamagen-b-256 1, ")  # the same files, no new version
    assert len(hub.gets()) == 2
    assert masc(*command, "--version", "mine").stdout.startswith("llamagen-b-256 mine, ")
    assert Registry(models).current("llamagen-b-256") == "mine"


def test_options_make_a_new_version(masc: Masc, hub: Hub, tmp_path: Path) -> None:
    models, name = tmp_path / "models", "llamagen-b-256"
    weights = GPT(GPT_CONFIG).state_dict() | {"freqs_cis": torch.zeros(257, 8, 2)}
    ema, quick = {"model": weights, "ema": weights}, ("--samples", "0", "--shuffles", "0")
    hub.files["FoundationVision/LlamaGen/c2i_B_256.pt"] = saved(tmp_path / "ema.pt", ema)
    gpt, tokenizer = (str(one) for one in (RELEASED[name].gpt, RELEASED[name].tokenizer))
    sources = ("--gpt", gpt, "--tokenizer", tokenizer, "--name", name, "--image-size", "256")
    imported = masc(
        *("models", "import", *sources, "--gpt-weights", "ema", "--models", models, *quick)
    )
    assert imported.status == 0, imported.stderr
    command = ("models", "pull", name, "--models", models)
    assert masc(*command, *quick).stdout.startswith(f"{name} 2, ")  # of other weights
    given = (("--cfg-scale", "3"), ("--with-encoder",), ("--note", "mine"))
    for number, options in enumerate(given, start=3):
        done = masc(*command, *options, *quick)
        assert done.stdout.startswith(f"{name} {number}, "), done.stderr
    assert Registry(models).manifest(name, "3").defaults.cfg_scale == 3
    assert masc(*command, "--no-activate", "--threads", "1").stdout.startswith(f"{name} 5, ")


def test_a_failed_pull_leaves_what_is_served(
    masc: Masc, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    command = ("models", "pull", "llamagen-b-256", "--models", models, *QUICK)
    assert masc(*command).status == 0
    before = Registry(models).verify("llamagen-b-256")
    gpt = "FoundationVision/LlamaGen/c2i_B_256.pt"
    for content, reason in (
        (b"<html>" + bytes(1000), "is a web page"),
        (bytes(2000), "is not a file of torch.save"),
        (files["FoundationVision/LlamaGen/vq_ds16_c2i.pt"], "holds no tok_embeddings"),
        (None, "the repository has no such file"),
    ):
        hub.files = dict(files) | {gpt: content or b""}
        if content is None:
            del hub.files[gpt]
        hub.commits["main"] = f"{len(hub.requests):040x}"
        done = masc(*command)
        assert done.status == 2
        complaint = done.stderr.splitlines()[-1]
        assert complaint.startswith("masc: ")
        assert reason in complaint
        assert done.stderr.count("masc: ") == 1
        assert Registry(models).verify("llamagen-b-256") == before
        assert Registry(models).versions("llamagen-b-256") == ("1",)


def test_ctrl_c_says_that_a_pull_goes_on(masc: Masc, hub: Hub, tmp_path: Path) -> None:
    hub.cut, hub.stalls = [1000], True

    def press() -> None:
        while not hub.gets():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    thread = threading.Thread(target=press)
    thread.start()
    try:
        done = masc("models", "pull", "llamagen-b-256", "--models", tmp_path / "models")
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.status == 130
    assert done.stderr == "masc: interrupted; the same command goes on from here\n"
    assert not (tmp_path / "models").exists()


def test_a_tokenizer_by_name_begins_a_training(masc: Masc, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    done = masc("models", "pull", "vq-16", "--out", out)
    assert done.status == 0, done.stderr
    built = masc("prior", "build", "--tokenizer", out, "--num-clusters", 8, "--out", tmp_path / "p")
    assert built.stdout.startswith("96 codes in 8 clusters")
    again = masc("models", "pull", "vq-16", "--out", out)
    assert (again.status, again.stdout) == (0, done.stdout)
    name = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
    hub.files[name] = saved(tmp_path / "new.pt", {"model": VQModel(VQ).state_dict()})
    hub.commits["main"] = "c" * 40
    other = masc("models", "pull", "vq-16", "--out", out)
    assert other.status == 2
    assert "exists already" in other.stderr


def test_an_unknown_name_lists_those_there_are(masc: Masc, hub: Hub) -> None:
    for arguments, complaint in (
        (("llamagen-xl-256",), "weights: no 'llamagen-xl-256'; there are llamagen-b-256, "),
        (("vq-16", "--samples", "1"), "samples: is no option of vq-16"),
        (("llamagen-b-256", "--out", "x"), "out: is no option of llamagen-b-256"),
    ):
        done = masc("models", "pull", *arguments)
        assert done.status == 2
        assert complaint in done.stderr
    help_text = masc("models", "pull", "--help").stdout
    assert all(name in help_text for name in RELEASED)
    assert not hub.requests


def test_addresses_and_files_mix(
    masc: Masc, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    name = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
    (tmp_path / "vq.pt").write_bytes(files[name])
    hub.files["plain/vq.pt"] = files[name]
    gpt = f"hf://FoundationVision/LlamaGen/c2i_B_256.pt@{hub.commits['v1']}"
    for tokenizer in (tmp_path / "vq.pt", f"{hub.web}/plain/vq.pt?signature=secret"):
        models = tmp_path / "models"
        done = masc(
            *("models", "import", "--gpt", gpt, "--tokenizer", tokenizer, "--name", "mixed"),
            *("--models", models, "--shuffles", "0", *QUICK[:2]),
        )
        assert done.status == 0, done.stderr
    imported = json.dumps(Registry(models).manifest("mixed", "2").provenance["imported"])
    assert gpt in imported
    assert f"{hub.web}/plain/vq.pt" in imported
    assert "secret" not in imported
    assert str(tmp_path) not in imported


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "import", "--gpt", "{}", "--tokenizer", "x", "--name", "n"),
        ("tokenizer", "import", "{}", "--out", "{out}"),
        ("prior", "import", "{}", "--out", "{out}"),
        ("evaluate", "cifar10", "--inception-weights", "{}"),
        ("evaluate", "cifar10", "--vgg-weights", "{}"),
    ],
)
def test_all_that_take_weights_of_others_take_addresses(
    masc: Masc, hub: Hub, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    given = [one.format("hf://owner/repo/x.pt", out=tmp_path / "out") for one in arguments]
    done = masc(*given)
    assert done.status == 2
    assert done.stderr.startswith("masc: hf://owner/repo/x.pt: there is no such repository")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_trainings_take_addresses(hub: Hub, prepared: Path, tmp_path: Path) -> None:
    address = "hf://owner/repo/x.pt"
    files = {"lpips_vgg": address, "lpips_linear": address}
    with pytest.raises(ArtifactError, match=f"{address}: there is no such repository"):
        train_tokenizer(tokenizer_config(prepared, out=tmp_path / "tokenizer", **files))
    with pytest.raises(ArtifactError, match=f"{address}: there is no such repository"):
        train_transformer(transformer_config(prepared, out=tmp_path / "gpt", init=address))
    assert not list(tmp_path.iterdir())
