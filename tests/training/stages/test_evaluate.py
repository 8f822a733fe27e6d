from __future__ import annotations

import json
import math
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, ConfigError, MascError
from masc_core.sampling.params import SamplingParams
from tests.command_line import ROOT, environment
from tests.tiny_bundle import CLASS_NAMES, save_tiny_bundle
from tests.training.metrics.test_fidelity import inception_state
from tests.training.metrics.test_teacher_forcing import cache_for
from tests.training.rank_processes import all_well, run_ranks
from tests.training.stage_configs import power_cut
from training.data.code_cache import CodeCache
from training.loop.run_dir import lock_folder
from training.metrics.samples import make_images
from training.stages.classifier import train_classifier
from training.stages.configs import ClassifierConfig, EvaluateConfig
from training.stages.evaluate import evaluate

PER_CLASS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, real images of its classes, and a classifier of them."""
    root = tmp_path_factory.mktemp("evaluated")
    save_tiny_bundle(root / "models", partitions=(5,))
    size = Registry(root / "models").manifest("tiny").image_size
    generator = np.random.default_rng(0)
    for name in CLASS_NAMES:
        (root / "real" / name).mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "real" / name / f"{i}.png")
    config = {"data": root / "real", "val_data": root / "real", "out": root / "judge"}
    sizes = {"image_size": size, "width": 8, "epochs": 1, "batch_size": 5}
    train_classifier(ClassifierConfig.model_validate(config | sizes))
    cache_for(load_bundle(root / "models" / "tiny" / "1"), root / "codes")
    return root


def config(root: Path, **changes: object) -> EvaluateConfig:
    values = {"models": root / "models", "model": "tiny", "images_per_class": PER_CLASS}
    return EvaluateConfig.model_validate(values | changes)


def test_every_figure_of_the_classifiers_features(root: Path, tmp_path: Path) -> None:
    metrics = evaluate(
        config(
            root,
            classifier=root / "judge",
            reference=root / "real",
            codes=root / "codes",
            codes_cfg_scale=2.0,
            out=tmp_path / "out",
            save_images=True,
            save_archive=True,
            save_statistics=True,
            resamples=3,
        )
    )
    assert 0 <= metrics["class_agreement"] <= 1
    assert 0 <= metrics["classifier_accuracy"] <= 1
    assert metrics["frechet_classifier_distance"] > 0
    assert metrics["frechet_classifier_distance_error"] > 0
    assert "classifier: a Fréchet distance of 10 images in 32 features" in metrics["cautions"][0]
    assert 0 <= metrics["precision_classifier"] <= 1
    assert 0 <= metrics["recall_classifier"] <= 1
    assert not any("inception" in name for name in metrics)
    assert metrics["images"] == PER_CLASS * len(CLASS_NAMES)
    assert 0 < metrics["entropy_ratio"] <= 1
    bits = metrics["free_running_cluster_entropy_bits_5"]
    assert 0 < bits < metrics["entropy_bits"]
    assert bits == pytest.approx(np.mean(metrics["curves"]["free-running cluster entropy"]))
    assert metrics["free_running_cluster_entropy_ratio_5"] == pytest.approx(bits / math.log2(5))
    assert "free_running_cluster_entropy_bits_5" in metrics["definitions"]
    assert 0 < metrics["teacher_forced_entropy_ratio"] <= 1
    assert metrics["curves"].keys() == {
        "free-running entropy",
        "free-running cluster entropy",
        "teacher-forced entropy",
        "teacher-forced cross-entropy",
    }
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(metrics))
    assert written["settings"]["decoding"] == "uniform"
    assert written["settings"]["made_with"]["torch-fidelity"]
    explained = metrics.keys() - {"settings", "definitions", "curves", "cautions"}
    assert explained == metrics["definitions"].keys()
    with Image.open(tmp_path / "out" / "curves.png") as plot:
        assert np.asarray(plot).std() > 0
    images = sorted((tmp_path / "out" / "images").iterdir())
    with np.load(tmp_path / "out" / "samples.npz") as archive, Image.open(images[3]) as image:
        assert archive["arr_0"].shape[0] == len(images) == metrics["images"]
        assert np.array_equal(archive["arr_0"][3], np.asarray(image))
    saved = tmp_path / "out" / "statistics-classifier.npz"
    again = evaluate(config(root, classifier=root / "judge", reference=saved))
    assert again["definitions"].keys() <= metrics["definitions"].keys()
    assert again["frechet_classifier_distance"] == pytest.approx(
        metrics["frechet_classifier_distance"]
    )
    assert "precision_classifier" not in again


def test_features_of_a_reference_are_kept_until_it_changes(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "real", tmp_path / "real")

    def looked_at(**changes: object) -> tuple[int, dict[str, Any]]:
        """How many times real images went through the network; Fréchet distance and the like."""
        reports: list[str] = []
        judged: dict[str, object] = {"classifier": root / "judge", "reference": tmp_path / "real"}
        judged |= {"reference_features": tmp_path / "features"}
        metrics = evaluate(
            config(root, **judged | changes), lambda done, total, what: reports.append(what)
        )
        curves = {"settings", "curves", "seconds_per_image"}
        return sum("real" in r for r in reports), {k: metrics[k] for k in metrics.keys() - curves}

    times, metrics = looked_at()
    assert times > 0
    assert looked_at() == (0, metrics)
    assert looked_at(reference_features=None) == (times, metrics)
    assert looked_at(background="none")[0] == times
    image = next((tmp_path / "real").glob("*/*.png"))
    with Image.open(image) as before:
        red = Image.new("RGB", before.size, "red")
    red.save(image)
    times, changed = looked_at()
    assert times > 0
    assert changed["frechet_classifier_distance"] != metrics["frechet_classifier_distance"]


def test_a_reference_is_read_as_the_images_of_the_codes_were(root: Path, tmp_path: Path) -> None:
    index = CodeCache.open(root / "codes").index
    assert (index.exif_orientation, index.background) == (False, "none")
    given: dict[str, Any] = {"classifier": root / "judge", "reference": root / "real"}
    measured = evaluate(config(root, **given, codes=root / "codes"))
    assert not measured["settings"]["exif_orientation"]
    assert measured["settings"]["background"] == "none"
    for key, value in (("exif_orientation", True), ("background", "white")):
        with pytest.raises(ConfigError, match=f"{key}: .*, but the images of the codes were read"):
            evaluate(config(root, **given, codes=root / "codes", **{key: value}))
    assert evaluate(config(root, **given))["settings"]["exif_orientation"]


def test_statistics_need_no_generated_images(root: Path, tmp_path: Path) -> None:
    metrics = evaluate(
        config(
            root,
            images_per_class=0,
            classifier=root / "judge",
            reference=root / "real",
            out=tmp_path,
            save_statistics=True,
        )
    )
    assert set(metrics["definitions"]) == {"seconds_per_image", "seconds_per_image_threads"}
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "evaluation.json",
        "statistics-classifier.npz",
    }


def test_three_processes_make_the_same_images(root: Path, tmp_path: Path) -> None:
    names = ("alone", "together")
    alone, together = (
        config(root, batch_size=3, out=tmp_path / name, save_archive=True, device="cpu")
        for name in names
    )
    evaluate(alone)
    all_well(3, evaluate, together)
    first, second = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in names)
    assert len(first) == PER_CLASS * len(CLASS_NAMES)
    assert np.array_equal(first, second)
    curves = [json.loads((tmp_path / n / "evaluation.json").read_text())["curves"] for n in names]
    assert curves[0]["free-running entropy"] == pytest.approx(curves[1]["free-running entropy"])


def test_a_wrong_option_ends_all_processes(root: Path) -> None:
    ended = run_ranks(2, evaluate, config(root, reference=root / "real", device="cpu"))
    assert [rank.status for rank in ended] == [2, 2]
    assert "reference: needs" in ended[0].message
    assert "failed on another rank" in ended[1].message


def whole(root: Path, out: Path, **changes: object) -> EvaluateConfig:
    """All that an evaluation without weights of others measures."""
    every: dict[str, object] = {
        "classifier": root / "judge",
        "reference": root / "real",
        "codes": root / "codes",
        "out": out,
        "batch_size": 3,
        "save_images": True,
        "save_archive": True,
    }
    return config(root, **every | changes)


def results(metrics: dict[str, Any], out: Path) -> tuple[dict[str, Any], bytes, list[bytes]]:
    kept = {name: value for name, value in metrics.items() if "seconds" not in name}
    images = [path.read_bytes() for path in sorted((out / "images").iterdir())]
    with np.load(out / "samples.npz") as archive:
        return kept, archive["arr_0"].tobytes(), images


def test_goes_on_from_every_point(root: Path, tmp_path: Path) -> None:
    expected = results(evaluate(whole(root, tmp_path / "once")), tmp_path / "once")
    points: list[str] = []

    def die(done: int, total: int, text: str) -> None:
        points.append(f"{text.split(maxsplit=1)[0]} {done}")
        raise RuntimeError("power cut")

    for _ in range(20):
        try:
            metrics = evaluate(whole(root, tmp_path / "cut"), die)
            break
        except RuntimeError:
            continue
    assert points == [*(f"images {n}" for n in (3, 6, 9, 10)), "real 7", "classifier 10"]
    assert results(metrics, tmp_path / "cut") == expected
    assert not (tmp_path / "cut" / "unfinished").exists()


IN_A_PROCESS = """
import os, signal, sys
from training.stages.evaluate import EvaluateConfig, evaluate

def report(done, total, text):
    print(done, flush=True)
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(EvaluateConfig.model_validate_json(sys.argv[1]), report)
"""


def evaluate_in_a_process(config: EvaluateConfig, killed_at: int = -1) -> tuple[int, list[int]]:
    """Status and reports of a process of its own; last bits depend on the threads of this one."""
    program = [
        sys.executable,
        "-c",
        IN_A_PROCESS,
        config.model_dump_json(exclude_unset=True),
        str(killed_at),
    ]
    done = subprocess.run(
        program, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, [int(line) for line in done.stdout.split()]


def test_goes_on_when_it_was_killed(root: Path, tmp_path: Path) -> None:
    cut, once = (whole(root, tmp_path / name, device="cpu") for name in ("cut", "once"))
    assert evaluate_in_a_process(cut, killed_at=6) == (-signal.SIGKILL, [3, 6])
    status, reported = evaluate_in_a_process(cut)
    assert (status, reported[0]) == (0, 9)
    assert evaluate_in_a_process(once)[0] == 0
    found = [
        results(json.loads((out / "evaluation.json").read_text()), out)
        for out in (tmp_path / "cut", tmp_path / "once")
    ]
    assert found[0] == found[1]


def test_on_a_full_disk_what_was_there_stays(root: Path, tmp_path: Path) -> None:
    wanted = whole(root, tmp_path / "cut", save_archive=False)
    with power_cut(3) as report:
        evaluate(wanted, report)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, usual[1]))
    try:
        with pytest.raises((OSError, ArtifactError), match=r"File too large|cannot be written"):
            evaluate(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    reported: list[int] = []
    evaluate(wanted, lambda n, *_: reported.append(n))
    assert reported[0] == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"cfg_scale": 3.0},
        {"temperature": 0.5},
        {"cfg_schedule": "linear"},
        {"top_k": 3},
        {"top_p": 0.9},
        {"cluster_top_k": 2},
        {"decoding": "frequency"},
        {"images_per_class": 3},
        {"image_size": 32},
        {"codes_cfg_scale": 2.0},
        {"save_images": False},
        {"classifier": None, "reference": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_begun_otherwise_is_refused(
    root: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    with power_cut(3) as report:
        evaluate(whole(root, tmp_path), report)
    key = {"classifier": "extractors"}.get(name := next(iter(changes)), name)
    with pytest.raises(ConfigError, match=f"unfinished with other .*{key}"):
        evaluate(whole(root, tmp_path, **changes))


def test_a_reference_that_changed_meanwhile_is_refused(root: Path, tmp_path: Path) -> None:
    real = shutil.copytree(root / "real", tmp_path / "real")
    wanted = whole(root, tmp_path / "out", reference=real)
    with power_cut(3) as report:
        evaluate(wanted, report)
    next(real.rglob("*.png")).unlink()
    with pytest.raises(ConfigError, match="unfinished with other reference"):
        evaluate(wanted)


def test_one_process_at_a_time(root: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="another run is using"):
        evaluate(config(root, out=tmp_path))


def test_processes_that_share_the_work_go_on_together(root: Path, tmp_path: Path) -> None:
    with power_cut(3) as report:
        evaluate(whole(root, tmp_path, device="cpu"), report)
    all_well(2, evaluate, whole(root, tmp_path, device="cpu"))
    with np.load(tmp_path / "samples.npz") as archive:
        assert len(archive["arr_0"]) == PER_CLASS * len(CLASS_NAMES)


def test_images_are_sampled_as_asked_and_the_settings_say_so(root: Path, tmp_path: Path) -> None:
    asked = {
        "cfg_scale": 1.5,
        "cfg_schedule": "step",
        "cfg_start": 0.5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "cluster_top_k": 2,
        "cluster_top_p": 0.7,
    }
    evaluate(config(root, out=tmp_path, save_archive=True, seed=4, **asked))
    settings = json.loads((tmp_path / "evaluation.json").read_text())["settings"]
    assert asked.items() <= settings.items()
    bundle = load_bundle(root / "models" / "tiny" / "1")
    params = SamplingParams(class_id=1, seed=4, **asked)  # type: ignore[arg-type]
    with np.load(tmp_path / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"][1], make_images(bundle, [params])[0][0])


def test_every_figure_of_inception(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(inception_state(), tmp_path / "inception.pth")
    weights: dict[str, Any] = {"inception_weights": tmp_path / "inception.pth"}
    skipped = shutil.ignore_patterns("1.png")  # Inception takes half a second for an image
    weights["reference"] = shutil.copytree(root / "real", tmp_path / "real", ignore=skipped)
    metrics = evaluate(config(root, **weights))
    named = {name for name in metrics if "inception" in name}
    assert named == {
        "inception_score_mean",
        "inception_score_std",
        "frechet_inception_distance",
        "kernel_inception_distance_mean",
        "kernel_inception_distance_std",
        "precision_inception",
        "recall_inception",
    }
    assert all(np.isfinite(metrics[name]) for name in named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reference": "real"}, "reference: needs inception_weights, vgg_weights, a classifier"),
        ({"reference_features": "kept"}, "reference_features: keeps features of a reference"),
        ({"save_images": True}, "out: says where"),
        ({"save_statistics": True}, "save_statistics: needs out"),
        ({"decoding": "refine"}, "decoding"),
        ({"inception_weights": "none.pth"}, "none.pth: is missing; it has to be weights-inception"),
    ],
)
def test_what_is_missing_is_said(root: Path, changes: dict[str, Any], named: str) -> None:
    changes = {key: root / v if key == "reference" else v for key, v in changes.items()}
    with pytest.raises(MascError, match=named):
        evaluate(config(root, **changes))


def test_one_resample_has_no_standard_error(root: Path) -> None:
    with pytest.raises(ValidationError, match="a standard error needs two resamples"):
        config(root, resamples=1)
