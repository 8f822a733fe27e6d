from __future__ import annotations

import numpy as np

from server.bench.client import STAGES, Answer, Sample
from server.bench.load import COLUMNS, MAX_TEXTS, OTHER_TEXT, Record


def sample(
    due: float = 0.0, status: int = 200, error: str = "", model: str = "tiny/7", detail: str = ""
) -> Sample:
    answer = Answer(1, {"queue": 0.25}, model, 3.0 if status == 503 else None, "", detail)
    return Sample(due, due + 0.125, due + 0.5, status, answer, error)


def test_rows_hold_every_number_of_a_sample() -> None:
    record = Record()
    record.add(sample(1.0))
    record.add(sample(2.0, 503))
    rows = record.rows()
    assert rows.dtype.names == COLUMNS
    assert rows["due"].tolist() == [1.0, 2.0]
    assert rows["sent"].tolist() == [1.125, 2.125]
    assert rows["finished"].tolist() == [1.5, 2.5]
    assert rows["status"].tolist() == [200, 503]
    assert rows["num_images"].tolist() == [1, 1]
    assert np.isnan(rows["retry_after"][0])
    assert rows["retry_after"][1] == 3.0
    assert rows["queue"].tolist() == [0.25, 0.25]
    assert all(np.isnan(rows[name]).all() for name in STAGES if name != "queue")
    record.add(sample(3.0))  # a table that was handed out does not hold the record still
    assert (len(rows), len(record.rows())) == (2, 3)


def test_an_empty_record() -> None:
    assert len(Record().rows()) == 0


def test_counters_leave_the_warm_up_out() -> None:
    record = Record()
    record.add(sample(-1.0, 500, "500 broken", detail="warm"))
    for _ in range(3):
        record.add(sample(1.0))
    record.add(sample(1.0, 503, "503 full", detail="full"))
    record.add(sample(1.0, 500, "500 broken", model="", detail="first"))
    record.add(sample(1.0, 500, "500 broken", model="", detail="second"))
    assert record.statuses == {200: 3, 503: 1, 500: 2}
    assert record.reasons == {"503 full": 1, "500 broken": 2}
    assert record.models == {"tiny/7": 4}
    assert record.first_detail == "first"
    assert len(record.rows()) == 7


def test_a_server_that_words_every_error_anew_does_not_fill_the_memory() -> None:
    record = Record()
    for number in range(1000):
        record.add(sample(1.0, 500, f"500 request {number}"))
    assert len(record.reasons) == MAX_TEXTS + 1
    assert record.reasons[OTHER_TEXT] == 1000 - MAX_TEXTS
