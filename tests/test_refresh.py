"""A model is refreshed while it is served: trained anew, published, activated, taken back."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from masc_core.bundle.registry import Registry
from tests.command_line import ROOT, Masc, service
from tests.docs.markdown import Document, commands
from tests.tiny_images import CLASSES, make_images

Run = Callable[..., str]

SEEDS = 4
SIZE = ("--image-size", "16")
NARROW = ("--dim", "32", "--n-layer", "2", "--n-head", "2")
BRIEF = ("--epochs", "2", "--batch-size", "8", "--lr", "3e-3")
TOKENIZER = ("--tokenizer", "tokenizer/tokenizer.safetensors")


@pytest.fixture
def run(masc: Masc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in a folder with images: some of them, all of them, and others to judge."""
    make_images(tmp_path / "some", per_class=8, seed=0)
    make_images(tmp_path / "all", per_class=16, seed=0)
    make_images(tmp_path / "val", per_class=4, seed=1)
    monkeypatch.chdir(tmp_path)

    def ended_well(*arguments: str) -> str:
        done = masc(*arguments)
        assert done.status == 0, done.stderr
        return done.stdout

    return ended_well


@pytest.mark.slow
@pytest.mark.timeout(300)  # a GPT of 5.6 million parameters, trained and published
def test_the_included_model_is_refreshed_as_the_documents_say(
    masc: Masc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models", "training/configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    classes = Registry(ROOT / "models").manifest("cifar10").class_names
    for split, count in (("train", 7), ("val", 1)):
        drawn = make_images(tmp_path / split, per_class=count, size=40)
        for name in classes:
            shutil.copytree(drawn / CLASSES[0], tmp_path / "data" / "new" / split / name)
    monkeypatch.chdir(tmp_path)
    (script,) = (
        block
        for block in Document(ROOT / "docs" / "training.md").blocks("sh")
        if "masc models rollback cifar10" in block
    )
    for words in commands(script):
        done = masc(*words[1:])
        assert done.status == 0, done.stderr
        if words[:3] == ["masc", "models", "activate"]:
            assert done.stderr == ""  # nobody will miss anything
            assert Registry("models").current("cifar10") == "2"
    before, after = (
        json.loads((tmp_path / "runs" / "refresh" / name / "evaluation.json").read_text())
        for name in ("before", "after")
    )
    registry = Registry("models")
    assert registry.current("cifar10") == "1"
    old, new = registry.manifest("cifar10", "1"), registry.manifest("cifar10", "2")
    assert new.tokenizer_sha256 == old.tokenizer_sha256
    assert new.decodings == old.decodings
    name = "teacher_forced_cross_entropy_bits"
    assert after[name] < before[name]


class Traffic:
    """Requests without a pause, and what came of them.

    Attributes
    ----------
    answers : version to class and seed to the images that it gave for them
    failed : what was answered instead of an image
    """

    def __init__(self, url: str) -> None:
        self.answers: dict[str, dict[tuple[str, int], set[str]]] = {}
        self.failed: list[str] = []
        self._url = url
        self._ended = threading.Event()
        self._answered = threading.Condition()

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        threads = [threading.Thread(target=self._ask, args=(name,)) for name in CLASSES]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def wait_for(self, version: str) -> None:
        """Wait until every class has been answered by a version, from now on."""

        def has_come() -> bool:
            return bool(self.failed) or {name for name, _ in self.answers[version]} == set(CLASSES)

        with self._answered:
            self.answers[version] = {}
            came = self._answered.wait_for(has_come, timeout=60)
        assert not self.failed
        assert came, f"version {version} does not come"

    def _ask(self, name: str) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            for seed in itertools.cycle(range(SEEDS)):
                answer = client.post("/generate", json={"class_name": name, "seed": seed})
                with self._answered:
                    if answer.status_code == 200:
                        body = answer.json()
                        made = self.answers.setdefault(body["model"]["version"], {})
                        made.setdefault((name, seed), set()).add(body["images"][0]["b64"])
                    else:
                        self.failed.append(answer.text)
                    self._answered.notify_all()
                if self._ended.is_set() or self.failed:
                    return


def train(run: Run, images: str, out: str, *more: str) -> None:
    """Codes of the images, and a transformer over their clusters."""
    run("codes", "extract", *TOKENIZER, "--data", images, "--out", f"{out}/codes", *SIZE)
    run("transformer", "train", "--codes", f"{out}/codes", "--val-codes", "codes-val",
        "--prior", "prior/prior.npz", "--out", f"{out}/transformer", *NARROW, *more)  # fmt: skip


def refine(run: Run, out: str) -> None:
    """A refiner of the transformer."""
    run("refiner", "train", "--codes", f"{out}/codes", "--val-codes", "codes-val",
        "--prior", "prior/prior.npz", "--transformer", f"{out}/transformer/transformer.safetensors",
        "--out", f"{out}/refiner", "--width", "16", "--ffn-dim", "32", *BRIEF)  # fmt: skip


def complete(run: Run, out: str) -> None:
    """A completer of the same clusters."""
    run("completer", "train", "--codes", f"{out}/codes", "--val-codes", "codes-val",
        "--prior", "prior/prior.npz", "--out", f"{out}/completer", *NARROW, *BRIEF)  # fmt: skip


def publish(run: Run, out: str, version: str, *more: str) -> None:
    run("models", "publish", "--name", "mine", "--version", version, "--tokenizer", "tokenizer",
        "--prior", "prior", "--codes", f"{out}/codes", "--transformer", f"{out}/transformer",
        *more)  # fmt: skip


def test_a_model_is_refreshed_under_load(run: Run, tmp_path: Path) -> None:
    run("tokenizer", "train", "--data", "some", "--val-data", "val", "--out", "tokenizer", *SIZE,
        "--num-codes", "32", "--ch-mult", "1,1,1", "--num-res-blocks", "1", "--z-channels", "32",
        *BRIEF)  # fmt: skip
    run("codes", "extract", *TOKENIZER, "--data", "val", "--out", "codes-val", *SIZE,
        "--variants", "none")  # fmt: skip
    run("prior", "build", *TOKENIZER, "--num-clusters", "16", "--out", "prior")
    train(run, "some", "first", *BRIEF)
    publish(run, "first", "1")
    with service(tmp_path / "models") as (_, client):
        with Traffic(str(client.base_url)).flowing() as traffic:
            traffic.wait_for("1")
            start = "first/transformer/transformer.safetensors"
            train(run, "all", "second", *BRIEF, "--init", start)
            refine(run, "second")
            complete(run, "second")
            publish(run, "second", "2", "--no-activate", "--refiner", "second/refiner",
                    "--completer", "second/completer")  # fmt: skip
            assert set(traffic.answers) == {"1"}, "published, but nobody activated it"
            run("models", "activate", "mine", "2")
            traffic.wait_for("2")
            refined = client.post("/generate", json={"class_id": 0, "decoding": "refine"})
            assert refined.json()["model"]["version"] == "2"
            body = {"class_id": 0, "decoding": "complete", "seed": 1, "code_top_k": 2}
            completed = [client.post("/generate", json=body).json()["images"] for _ in range(2)]
            assert completed[0] == completed[1]
            run("models", "verify", "mine")
            run("evaluate", "mine", "--version", "2", "--decoding", "complete",
                "--images-per-class", "1")  # fmt: skip
            run("models", "rollback", "mine")
            traffic.wait_for("1")
        assert not traffic.failed
        for answers in traffic.answers.values():
            assert {len(images) for images in answers.values()} == {1}, "one image for a request"
        for asked, images in traffic.answers["2"].items():
            assert images != traffic.answers["1"].get(asked)
