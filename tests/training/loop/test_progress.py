from __future__ import annotations

import pytest

from training.loop.progress import progress


def test_without_a_terminal_there_is_a_line_at_the_start_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("codes") as report:
        for step in range(1, 101):
            report(step, 100, f"{step} done")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["codes 1/100  1 done", "codes 100/100  100 done"]
