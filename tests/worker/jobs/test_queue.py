from __future__ import annotations

import pytest

from worker.jobs.queue import WorkerStatus


@pytest.mark.parametrize(
    ("detail", "refused", "public"),
    [
        ("", "", ""),
        ("warming up", "", "warming up"),
        ("the warm-up image failed: /srv/models: no space", "", "the warm-up image failed"),
        ("/srv/models/tiny/2: damaged", "2", "refuses version 2"),
    ],
)
def test_what_is_said_of_a_worker_in_public_names_no_path(
    detail: str, refused: str, public: str
) -> None:
    assert WorkerStatus("a", ready=False, detail=detail, refused=refused).public_detail == public
