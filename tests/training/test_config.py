from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gigatok import GigaTokConfig
from masc_core.models.gpt_config import GPTConfig
from tests.golden_files import load_golden_json
from training.config import StageConfig, load_config, set_threads
from training.metrics.step_cost import step_bytes
from training.stages.configs import (
    AlignConfig,
    ClassifierConfig,
    CodesConfig,
    CompareConfig,
    CompleterTrainingConfig,
    PriorConfig,
    PublishConfig,
    RefinerTrainingConfig,
    ShowConfig,
    TokenizerTrainingConfig,
    TransformerTrainingConfig,
)

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
STAGES: dict[str, type[StageConfig]] = {
    "tokenizer": TokenizerTrainingConfig,
    "codes": CodesConfig,
    "codes-val": CodesConfig,
    "prior": PriorConfig,
    "transformer": TransformerTrainingConfig,
    "align": AlignConfig,
    "refiner": RefinerTrainingConfig,
    "completer": CompleterTrainingConfig,
    "classifier": ClassifierConfig,
    "compare": CompareConfig,
    "show": ShowConfig,
}


def stage_of(path: Path) -> type[StageConfig]:
    """By the file's name, which may be a variant, as ``iar-b-masc`` and ``prior-kmeans``."""
    first, last = path.stem.split("-")[0], path.stem.split("-")[-1]
    if first in {"llamagen", "iar", "ctf", "gigatok"}:
        return RefinerTrainingConfig if last == "refiner" else TransformerTrainingConfig
    return STAGES.get(path.stem) or STAGES[first]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/*.toml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    if path.stem == "publish":
        assert load_config(PublishConfig, path, {}).name == path.parent.name
        return
    config = load_config(stage_of(path), path, {})
    assert str(config.out).startswith(f"runs/{path.parent.name}/")


def test_the_alignment_is_of_the_transformer() -> None:
    aligned = load_config(AlignConfig, CONFIGS / "cifar10" / "align.toml", {})
    trained = load_config(TransformerTrainingConfig, CONFIGS / "cifar10" / "transformer.toml", {})
    assert aligned.source == str(trained.out)
    for key in ("codes", "val_codes", "prior", "dim", "n_layer", "n_head", "class_dropout"):
        assert getattr(aligned, key) == getattr(trained, key)


@pytest.mark.parametrize("size", ["b", "l", "xl"])
@pytest.mark.parametrize("vocabulary", ["flat", "kmeans", "masc"])
def test_the_runs_of_the_paper(size: str, vocabulary: str) -> None:
    folder = CONFIGS / "imagenet256"
    path = folder / f"llamagen-{size}-{vocabulary}.toml"
    config = load_config(TransformerTrainingConfig, path, {})
    assert config.out == Path("runs/imagenet256") / path.stem
    named = GPTConfig.named(f"GPT-{size.upper()}")
    assert (config.dim, config.n_layer, config.n_head) == (named.dim, named.n_layer, named.n_head)
    assert config.lr == config.batch_size / 256 * 1e-4
    assert config.lr * config.min_lr_ratio == pytest.approx(2e-5 if size == "xl" else 1e-5)
    assert config.val_codes == load_config(CodesConfig, folder / "codes-val.toml", {}).out
    if vocabulary == "flat":
        assert config.prior is None
    else:
        prior = load_config(PriorConfig, folder / f"prior-{vocabulary}.toml", {})
        assert config.prior == prior.out / "prior.npz"
        assert prior.num_clusters == 8192
        named = replace(named, vocab_size=8192)
    steps = 1_281_167 // config.batch_size * config.epochs
    title = f"{round(named.num_parameters / 1e6)} million parameters, {steps:,} steps."
    assert path.read_text("utf-8").splitlines()[0].endswith(title)


@pytest.mark.parametrize("clusters", ["kmeans", "masc"])
def test_the_runs_of_ctf(clusters: str) -> None:
    folder = CONFIGS / "imagenet256"
    coarse = load_config(PriorConfig, folder / f"prior-ctf-{clusters}.toml", {})
    fine = load_config(PriorConfig, folder / f"prior-{clusters}.toml", {})
    assert (coarse.num_clusters, coarse.method) == (512, fine.method)
    counts: dict[Path, int] = {}
    for size in ("b", "l", "xl"):
        path = folder / f"ctf-{size}-{clusters}.toml"
        first = load_config(TransformerTrainingConfig, path, {})
        named = GPTConfig.named(f"GPT-{size.upper()}", vocab_size=512)
        assert (first.dim, first.n_layer, first.n_head) == (named.dim, named.n_layer, named.n_head)
        assert (first.prior, first.partitions) == (coarse.out / "prior.npz", ())
        counts[path] = named.num_parameters
    for prior in (coarse, fine):
        path = folder / f"completer-{clusters}-{prior.num_clusters}.toml"
        second = load_config(CompleterTrainingConfig, path, {})
        assert second.prior == prior.out / "prior.npz"
        assert (second.dim, second.n_layer, second.n_head) == (1024, 24, 16)
        sizes = CompleterConfig(
            vocab_size=16384, dim=1024, n_layer=24, n_head=16, num_clusters=prior.num_clusters
        )
        counts[path] = sizes.num_parameters
    for path, count in counts.items():
        assert load_config(stage_of(path), path, {}).out == Path("runs/imagenet256") / path.stem
        title = f"{round(count / 1e6)} million parameters, 1,501,200 steps."
        assert path.read_text("utf-8").splitlines()[0].endswith(title)


@pytest.mark.parametrize("size", ["b", "l", "xl"])
@pytest.mark.parametrize("clusters", ["kmeans", "masc"])
def test_the_runs_of_iar_are_flat_ones_with_clusters_in_the_loss(size: str, clusters: str) -> None:
    folder = CONFIGS / "imagenet256"
    path = folder / f"iar-{size}-{clusters}.toml"
    config = load_config(TransformerTrainingConfig, path, {})
    flat = load_config(TransformerTrainingConfig, folder / f"llamagen-{size}-flat.toml", {})
    for key in ("prior", "dim", "n_layer", "n_head", "codes", "val_codes", "micro_batch"):
        assert getattr(config, key) == getattr(flat, key)
    assert (config.lr, config.min_lr_ratio, config.batch_size) == (1e-4, 1, 256)
    prior = load_config(PriorConfig, folder / f"prior-iar-{clusters}.toml", {})
    assert (prior.num_clusters, config.partitions) == (128, (prior.out / "prior.npz",))
    assert config.out == Path("runs/imagenet256") / path.stem
    parameters = load_golden_json("shapes/param_counts.json")[f"GPT-{size.upper()}"]
    steps = 1_281_167 // config.batch_size * config.epochs
    title = f"{round(parameters / 1e6)} million parameters, {steps:,} steps."
    assert path.read_text("utf-8").splitlines()[0].endswith(title)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("l-flat", 343_174_144),
        ("l-kmeans-4096", 318_008_320),
        ("l-masc-4096", 318_008_320),
        ("l-kmeans-8192", 326_396_928),
        ("l-masc-8192", 326_396_928),
        ("b-masc-8192", 98_502_912),
    ],
)
def test_the_runs_of_gigatok(name: str, parameters: int) -> None:
    folder = CONFIGS / "imagenet256"
    path = folder / f"gigatok-{name}.toml"
    config = load_config(TransformerTrainingConfig, path, {})
    assert config.out == Path("runs/imagenet256") / path.stem
    size, *prior = name.split("-", 1)
    clusters = 16384
    if prior != ["flat"]:
        made = load_config(PriorConfig, folder / f"prior-gigatok-{prior[0]}.toml", {})
        clusters = made.num_clusters
        assert prior[0].endswith(str(clusters))
        tokenizer = "gigatok-dino" if size == "b" else "gigatok"
        out = str(made.out).replace("gigatok", tokenizer)
        assert config.prior == Path(out) / "prior.npz"
    named = GPTConfig.named(f"GPT-{size.upper()}", vocab_size=clusters)
    named = replace(named, positions="learned")
    assert (config.dim, config.n_layer, config.n_head) == (named.dim, named.n_layer, named.n_head)
    assert named.num_parameters == parameters
    assert (config.positions, config.schedule) == ("learned", "wsd")
    assert (config.lr, config.batch_size, config.warmup_steps) == (1e-4, 256, 5000)
    steps = 1_281_167 // config.batch_size * config.epochs
    title = f"{round(parameters / 1e6)} million parameters, {steps:,} steps."
    assert path.read_text("utf-8").splitlines()[0].endswith(title)


def test_the_codes_of_gigatok_are_of_its_image_size() -> None:
    for split in ("codes", "codes-val"):
        config = load_config(CodesConfig, CONFIGS / "imagenet256" / f"{split}-gigatok.toml", {})
        assert GigaTokConfig.named("B-L").grid_size(config.image_size) == 16
        assert config.out == Path(f"runs/imagenet256/gigatok-{split}")


@pytest.mark.parametrize("size", ["b", "l", "xl"])
@pytest.mark.parametrize("vocabulary", ["flat", "masc"])
def test_the_runs_of_the_paper_fit_on_a_gpu_of_80_gb(size: str, vocabulary: str) -> None:
    path = CONFIGS / "imagenet256" / f"llamagen-{size}-{vocabulary}.toml"
    config, room = load_config(TransformerTrainingConfig, path, {}), 0.8 * 80e9
    clusters = 16384 if vocabulary == "flat" else 8192
    sizes = GPTConfig.named(f"GPT-{size.upper()}", vocab_size=clusters)
    assert step_bytes(sizes, config.micro_batch) < room < step_bytes(sizes, 2 * config.micro_batch)
    for world_size in (1, 2, 4, 8, 16):
        assert config.batch_size // world_size % config.micro_batch_of(world_size) == 0


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prior.toml"
    path.write_text('tokenizer = "a"\nout = "b"\nnum_clusters = 5\n')
    config = load_config(PriorConfig, path, {"num_clusters": 7, "out": None})
    assert config.num_clusters == 7
    assert config.out == Path("b")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('tokenizer = "a"\nout = "b"\nnum_cluster = 5\n', "num_cluster: Extra inputs"),
        ('tokenizer = "a"\nout = "b"\n', "num_clusters: Field required"),
        ('tokenizer = "a"\nout = "b"\nnum_clusters = 0\n', "num_clusters: "),
        ('tokenizer = "a"\nout = "b"\nnum_clusters = "many"\n', "num_clusters: "),
        ("tokenizer = ", "is not TOML"),
    ],
)
def test_wrong_files_name_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prior.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        load_config(PriorConfig, path, {})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["inf", "nan"])
def test_rates_are_finite(text: str) -> None:
    values = {"codes": "c", "val_codes": "v", "out": "o", "lr": text}
    with pytest.raises(ConfigError, match="lr: Input should be a finite number"):
        load_config(TransformerTrainingConfig, None, values)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(PriorConfig, tmp_path / "none.toml", {})


def test_threads_are_set_only_when_asked() -> None:
    before = torch.get_num_threads()
    set_threads(0)
    assert torch.get_num_threads() == before
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)
