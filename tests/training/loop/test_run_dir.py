from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from masc_core.errors import ConfigError
from tests.training.stage_configs import tokenizer_config, transformer_config
from training.config import LoopConfig, MayChange
from training.loop.checkpoint import TrainState, save_checkpoint
from training.loop.distributed import Ranks
from training.loop.run_dir import Run
from training.loop.task import TrainedModule


def config(out: Path, **changes: object) -> LoopConfig:
    return LoopConfig.model_validate({"out": out, **changes})


def lines(run: Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]


def write_checkpoint(folder: Path, begun: dict[str, Any]) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    trained = TrainedModule(model, model, optimizer)
    save_checkpoint(folder, TrainState(), (trained,), None, begun, Ranks(torch.device("cpu")))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Run(tmp_path / "run", config(tmp_path)),
        pytest.raises(ConfigError, match="another run is using"),
    ):
        Run(tmp_path / "run", config(tmp_path))
    Run(tmp_path / "run", config(tmp_path)).close()


def test_results_of_another_kind_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.safetensors").write_bytes(b"imported")
    (tmp_path / "config.json").write_text('{"imported": true}')
    with pytest.raises(ConfigError, match="was begun otherwise: imported was True, is absent"):
        Run(tmp_path, config(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == {"imported": True}


def test_a_changed_configuration_is_refused_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    Run(tmp_path, config(tmp_path, lr=0.1)).close()
    Run(tmp_path, config(tmp_path, lr=0.2)).close()
    with Run(tmp_path, config(tmp_path, lr=0.2)) as run:
        write_checkpoint(tmp_path, run.config)
    with pytest.raises(ConfigError, match=r"begun otherwise: lr was 0.2, is 0.3;"):
        Run(tmp_path, config(tmp_path, lr=0.3))
    Run(tmp_path, config(tmp_path, lr=0.2, threads=3)).close()


class Keys(LoopConfig):
    source: MayChange[Path | None] = None
    width: int = 1


def test_keys_that_may_change_are_marked_on_their_fields(tmp_path: Path) -> None:
    with Run(tmp_path, Keys(out=tmp_path)) as run:
        write_checkpoint(tmp_path, run.config)
    Run(tmp_path, Keys(out=tmp_path, source=Path("moved"), micro_batch=1)).close()
    with pytest.raises(ConfigError, match="begun otherwise: width was 1, is 2;"):
        Run(tmp_path, Keys(out=tmp_path, source=Path("moved"), width=2))


@pytest.mark.parametrize("keys", [("init",), ("lpips_vgg", "lpips_linear")])
def test_secrets_of_addresses_are_not_written(tmp_path: Path, keys: tuple[str, ...]) -> None:
    kind = tokenizer_config if len(keys) == 2 else transformer_config
    address = "https://user:password@host/a.pt?signature=secret#sha256=1"
    given = kind(tmp_path, out=tmp_path, **dict.fromkeys(keys, address))
    with Run(tmp_path, given) as run:
        write_checkpoint(tmp_path, run.config)
    Run(tmp_path, given).close()  # goes on
    written = json.loads((tmp_path / "config.json").read_text())
    assert {written[key] for key in keys} == {"https://host/a.pt"}
    assert {getattr(given, key) for key in keys} == {address}


def test_a_key_that_came_later_ends_no_run_unless_it_is_set(tmp_path: Path) -> None:
    with Run(tmp_path, Keys(out=tmp_path)) as run:
        write_checkpoint(tmp_path, {k: v for k, v in run.config.items() if k != "width"})
    Run(tmp_path, Keys(out=tmp_path)).close()
    with pytest.raises(ConfigError, match="begun otherwise: width was absent, is 2;"):
        Run(tmp_path, Keys(out=tmp_path, width=2))


def test_log_lines_and_rewind(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run:
        for step in (1, 2, 3):
            run.log(step=step, loss=step / 2)
        with run.log_path.open("a") as file:
            file.write('{"step": 4, "lo')
        run.rewind_log(2)
        assert [line["step"] for line in lines(run)] == [1, 2]
        run.log(step=3, loss=9.0)
        assert lines(run)[-1]["loss"] == 9.0


def test_what_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run:
        run.log(step=1, loss=float("nan"), bits=float("-inf"), rate=0.5)
        assert lines(run)[0] | {"time": 0} == {
            "time": 0, "step": 1, "loss": None, "bits": None, "rate": 0.5
        }  # fmt: skip
        run.log_path.write_text('{"step": 1, "loss": NaN}\n')  # as earlier versions wrote it
        run.rewind_log(1)
        assert run.log_path.read_text() == '{"step": 1, "loss": NaN}\n'


def test_json_round_trip(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run:
        run.rewind_log(5)
        run.write_json("metrics.json", {"psnr": 21.5})
        assert run.read_json("metrics.json") == {"psnr": 21.5}


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Run(tmp_path / "file" / "run", config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_other_inputs_are_refused_wherever_they_lie(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path), {"prior": "a"}) as run:
        write_checkpoint(tmp_path, run.config)
    (tmp_path / "config.json").unlink()  # what counts is in the checkpoint
    Run(tmp_path, config(tmp_path), {"prior": "a"}).close()
    with pytest.raises(ConfigError, match=r"begun otherwise: inputs\.prior was 'a', is 'b'"):
        Run(tmp_path, config(tmp_path), {"prior": "b"})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_the_numbers_of_the_log(tmp_path: Path) -> None:
    config = LoopConfig.model_validate({"out": tmp_path, "tensorboard": True})
    with Run(tmp_path, config) as run:
        run.log(kind="train", step=1, loss=2.0)
        run.log(kind="train", step=2, loss=1.5, note="text is left out")
        run.log(kind="validation", step=2, objective=0.5)
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 2.0), (2, 1.5)],
        "validation/objective": [(2, 0.5)],
    }
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_without_the_key_there_are_no_files(tmp_path: Path) -> None:
    with Run(tmp_path, LoopConfig.model_validate({"out": tmp_path})) as run:
        run.log(kind="train", step=1, loss=2.0)
    assert not (tmp_path / "tensorboard").exists()
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 2.0
