from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import ROOT, environment
from tests.training.tiny_codes import walk_config
from training.loop.checkpoint import latest_checkpoint, latest_step


def torchrun(config: Path) -> subprocess.Popen[str]:
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *ranks, "-m", "masc", "transformer", "train", str(config)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_on_two_ranks_is_stopped_goes_on_and_is_heard_once(
    walks: Path, tmp_path: Path
) -> None:
    run = walk_config(walks, tmp_path / "run", parallel="fsdp", epochs=25, checkpoint_every=10)
    path = tmp_path / "transformer.toml"
    values = json.loads(run.model_dump_json(exclude_unset=True))
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    with torchrun(path) as first:
        while latest_checkpoint(run.out) is None and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=100)
        assert first.returncode != 0
        assert "interrupted; the same command goes on from here" in errors
    assert 0 < latest_step(latest_checkpoint(run.out)) < 100
    with torchrun(path) as second:
        printed, errors = second.communicate(timeout=100)
        assert second.returncode == 0, errors
    assert printed.count("bits a position") == 1
    rows = map(json.loads, (run.out / "log.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 101))
