"""What a build keeps while it runs is its own, from the moment it takes the folder until it removes it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from indexer.building.folder import WorkFolder
from indexer.engines.shards import held_shards, shards_folder
from indexer.errors import IndexerError
from indexer.index import scratch
from indexer.index.schema import LOG
from indexer.index.unfinished import read_events

ONE, OTHER = {"a": 1}, {"a": 2}


def begun(output: Path, identity: dict[str, int] = ONE) -> WorkFolder:
    work = WorkFolder(output)
    work.begin(identity, overwrite=False)
    return work


def refused(output: Path) -> str:
    with pytest.raises(IndexerError) as refusal, WorkFolder(output) as work:
        work.begin(ONE, overwrite=False)
    return str(refusal.value)


def test_a_build_that_ends_leaves_the_next_one_its_folder(tmp_path: Path) -> None:
    output = tmp_path / "a.index"
    with WorkFolder(output) as first:
        first.begin(ONE, overwrite=False)
        first.remove()
        assert list(tmp_path.iterdir()) == []
        second = begun(output, OTHER)
    second.note("progress", tokens=1)
    assert [event["event"] for event in read_events(second.path / LOG)] == ["progress"]
    assert "another process is building" in refused(output)
    second.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_away_while_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, original = tmp_path / "a.index", scratch.locked
    first = begun(output)

    def after_the_first_one_ended(lock: IO[bytes]) -> bool | None:
        monkeypatch.setattr(scratch, "locked", original)
        first.remove()
        return original(lock)

    monkeypatch.setattr(scratch, "locked", after_the_first_one_ended)
    second = begun(output, OTHER)
    # it holds the folder that is there, not the one that was
    assert second.path.is_dir()
    assert "another process is building" in refused(output)


def test_an_index_that_is_finished_is_no_reason_to_remove_the_work_on_the_next(tmp_path: Path) -> None:
    output = tmp_path / "a.index"
    work = begun(output)
    WorkFolder(output).remove()
    assert sorted(path.name for path in work.path.iterdir()) == ["build.json", "lock"]
    work.__exit__(None, None, None)
    # one that a killed process left is removed
    (tmp_path / "a.index.build" / "checkpoint-1").mkdir(parents=True)
    WorkFolder(output).remove()
    assert list(tmp_path.iterdir()) == []


def test_who_is_refused_writes_nothing_into_the_log_of_the_other(tmp_path: Path) -> None:
    output = tmp_path / "a.index"
    work = begun(output)
    work.note("progress", tokens=1)
    refused(output)
    assert [event["event"] for event in read_events(work.path / LOG)] == ["progress"]
    with pytest.raises(IndexerError, match="no text"), work:
        raise IndexerError("the corpus has no text")
    assert list(tmp_path.iterdir()) == []

    work = begun(output)
    work.note("progress", tokens=1)
    (work.path / "checkpoint.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), work:
        raise KeyboardInterrupt
    assert [event["event"] for event in read_events(work.path / LOG)] == ["interrupted", "progress"]


def test_two_engines_do_not_work_in_one_folder(tmp_path: Path) -> None:
    output = tmp_path / "a.index"
    with held_shards(output) as folder:
        assert folder == shards_folder(output)
        with (
            pytest.raises(IndexerError, match=r"a\.index\.shards: another process is building"),
            held_shards(output),
        ):
            pass
        (folder / "0-of-2.index.build").mkdir()
    assert [path.name for path in folder.iterdir()] == ["0-of-2.index.build"]
    (folder / "0-of-2.index.build").rmdir()
    with held_shards(output):
        pass
    assert list(tmp_path.iterdir()) == []
