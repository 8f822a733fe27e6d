from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from masc_core.errors import ConfigError
from masc_core.models.weights import load_transformer, read_inputs
from masc_core.prior import ClusterMap
from tests.training.rank_processes import all_well
from tests.training.stage_configs import power_cut
from tests.training.tiny_codes import NUM_CODES, walk_config
from training.data.cluster_data import ClusterData
from training.loop.batches import item_random_bits
from training.stages.align import align_transformer, alignment_batch
from training.stages.configs import AlignConfig
from training.stages.transformer import train_transformer

NO_DROPOUT = {"token_dropout": 0.0, "resid_dropout": 0.0, "ffn_dropout": 0.0}
SHORT = {"epochs": 1, "lr": 1e-3, "beta": 0.1, "negative_weight": 10.0}


@pytest.fixture(scope="module")
def trained(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer's run."""
    config = walk_config(walks, tmp_path_factory.mktemp("trained") / "run", epochs=10)
    train_transformer(config)
    return config.out


def config(walks: Path, out: Path, trained: Path, **changes: object) -> AlignConfig:
    values = walk_config(walks, out).model_dump(exclude_unset=True)
    return AlignConfig.model_validate(values | {"init": str(trained)} | SHORT | changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_transformer(run / "transformer.safetensors").state_dict()


def test_a_class_is_told_from_the_others_better_than_before(
    walks: Path, trained: Path, tmp_path: Path
) -> None:
    stage = config(walks, tmp_path / "aligned", trained, epochs=4)
    metrics = align_transformer(stage)
    rows = [json.loads(line) for line in (stage.out / "log.jsonl").read_text().splitlines()]
    validations = [row for row in rows if row["kind"] == "validation"]
    assert metrics["objective"] == min(row["objective"] for row in validations)
    assert metrics["alignment_margin"] > 1  # nats; 0 where nothing is learned
    assert metrics["alignment_accuracy"] > 0.5
    assert 0 < metrics["bits_per_position"] < 5
    path = stage.out / "transformer.safetensors"
    assert {"prior", "tokenizer", "codes", "init"} <= read_inputs(path).keys()
    # Whoever guides is still answered: the null class is there.
    before, after = load_transformer(trained / "transformer.safetensors"), load_transformer(path)
    assert after.config == before.config


def test_continues_where_it_stopped(walks: Path, trained: Path, tmp_path: Path) -> None:
    whole = config(walks, tmp_path / "whole", trained)
    align_transformer(whole)
    stopped = config(walks, tmp_path / "stopped", trained, checkpoint_every=1)
    with power_cut(2) as report:
        align_transformer(stopped, report)
    align_transformer(stopped)
    actual = weights(stopped.out)
    assert all(torch.equal(actual[key], value) for key, value in weights(whole.out).items())


def test_two_processes_align_as_one(walks: Path, trained: Path, tmp_path: Path) -> None:
    one = config(walks, tmp_path / "one", trained, **NO_DROPOUT)
    align_transformer(one)
    two = config(walks, tmp_path / "two", trained, **NO_DROPOUT)
    all_well(2, align_transformer, two)
    actual = weights(two.out)
    for key, value in weights(one.out).items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"init": None}, "init"), ({"partition_weights": (1.0,)}, "partition")],
)
def test_what_makes_no_sense_is_refused(
    walks: Path, trained: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        config(walks, tmp_path / "aligned", trained, **changes)


def test_what_is_aligned_has_learned_the_same_before(
    walks: Path, trained: Path, tmp_path: Path
) -> None:
    prior = tmp_path / "prior.npz"
    ClusterMap.from_labels([code // 2 for code in range(NUM_CODES)]).save(prior)
    with pytest.raises(ConfigError, match=r"init: .* is for 12 clusters, .* have 6"):
        align_transformer(config(walks, tmp_path / "aligned", trained, prior=prior))
    # Without a null class the table of classes would be another, and begin at random.
    with pytest.raises(ConfigError, match=r"class_dropout: .* with a null class"):
        align_transformer(config(walks, tmp_path / "aligned", trained, class_dropout=0.0))
    assert not (tmp_path / "aligned").exists()


def test_negatives_are_other_images_classes_and_some_labels_null(walks: Path) -> None:
    data = ClusterData(walks / "train", walks / "val", None)
    indices = np.arange(4000) % len(data.train)
    random_bits = item_random_bits(0, 1, 4000)
    labels, negatives, clusters = alignment_batch(data, 0.25, indices, random_bits)
    assert torch.equal(clusters, data.batch(indices, random_bits)[1])
    own = torch.from_numpy(data.train.labels[indices])
    assert float((labels == 3).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(labels[labels < 3], own[labels < 3])
    # Drawn without regard to the image: a third are of its own class.
    assert set(negatives.tolist()) == {0, 1, 2}
    assert float((negatives == own).double().mean()) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.slow
@pytest.mark.timeout(300)  # two graphs, each compiled forward and backward
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it compiles
def test_compiled_alignment_reaches_the_same_loss(
    walks: Path, trained: Path, tmp_path: Path
) -> None:
    # Compiled dropout draws otherwise.
    plain = align_transformer(config(walks, tmp_path / "plain", trained, **NO_DROPOUT))
    fast = align_transformer(config(walks, tmp_path / "fast", trained, compile=True, **NO_DROPOUT))
    assert fast["objective"] == pytest.approx(plain["objective"], rel=1e-2)
