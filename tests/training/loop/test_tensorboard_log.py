from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.config import LoopConfig
from training.loop.run_dir import Run


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
