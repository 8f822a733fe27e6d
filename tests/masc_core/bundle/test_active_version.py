"""The choice among versions, whose folders it does not look at."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from masc_core.bundle.active_version import CURRENT_FILE, HISTORY_FILE, ActiveVersion
from masc_core.errors import ArtifactError


def chosen(folder: Path, *versions: str) -> ActiveVersion:
    choice = ActiveVersion(folder)
    for version in versions:
        choice.choose(version)
    return choice


def test_the_chosen_version_is_the_active_one_and_the_others_were_before(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "1", "2", "3")
    assert choice.read() == "3"
    assert choice.earlier(choice.read()) == ("1", "2")
    assert (tmp_path / CURRENT_FILE).read_bytes() == b"3\n"
    assert (tmp_path / HISTORY_FILE).read_bytes() == b"1\n2\n3\n"


def test_each_version_is_in_the_past_once(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "1", "2", "1", "1")
    assert choice.read() == "1"
    assert choice.earlier(choice.read()) == ("2",)


def test_what_was_gone_back_from_is_forgotten_at_the_next_choice(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "1", "2", "3")
    choice.go_back("1")
    assert (choice.read(), choice.earlier(choice.read())) == ("1", ())
    choice.choose("4")
    assert choice.earlier(choice.read()) == ("1",)


def test_before_the_first_choice_nothing_is_active(tmp_path: Path) -> None:
    choice = ActiveVersion(tmp_path)
    with pytest.raises(FileNotFoundError):
        choice.read()
    assert choice.earlier("1") == ()


def test_without_a_history_the_active_version_is_the_whole_past(tmp_path: Path) -> None:
    (tmp_path / CURRENT_FILE).write_text("  7\n\n")
    choice = ActiveVersion(tmp_path)
    assert (choice.read(), choice.earlier(choice.read())) == ("7", ())
    choice.choose("8")
    assert choice.earlier(choice.read()) == ("7",)


def test_a_kill_before_the_choice_is_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = chosen(tmp_path, "1", "2")

    def die(version: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(choice, "go_back", die)
    with pytest.raises(KeyboardInterrupt):
        choice.choose("3")
    again = ActiveVersion(tmp_path)
    assert (again.read(), again.earlier(again.read())) == ("2", ("1",))


@pytest.mark.parametrize("file", [CURRENT_FILE, HISTORY_FILE])
def test_what_is_no_text_is_refused_and_kept(tmp_path: Path, file: str) -> None:
    choice = chosen(tmp_path, "1", "2")
    (tmp_path / file).write_bytes(b"2\xff\n")
    with pytest.raises(ArtifactError, match=f"{file}: cannot be read"):
        choice.choose("3")
    assert (tmp_path / file).read_bytes() == b"2\xff\n"


def test_choices_at_the_same_time_are_all_in_the_past(tmp_path: Path) -> None:
    versions = [str(i) for i in range(8)]

    def choose(version: str) -> None:
        choice = ActiveVersion(tmp_path)
        with choice.locked():
            choice.choose(version)

    threads = [threading.Thread(target=choose, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    choice = ActiveVersion(tmp_path)
    assert sorted([*choice.earlier(choice.read()), choice.read()]) == versions


def test_the_lock_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lost"), ActiveVersion(tmp_path).locked():
        raise RuntimeError("lost")
    free = threading.Event()

    def take() -> None:
        with ActiveVersion(tmp_path).locked():
            free.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert free.wait(10)
