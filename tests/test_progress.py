"""What a build says of how far it is, against what it then turns out to have been."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from indexer.building import progress
from indexer.building.progress import Course, Progress
from indexer.building.run import build
from indexer.engines.shards import shard_progress
from indexer.index.schema import LOG
from indexer.index.unfinished import read_events
from tests.real_model import standard_library
from tests.test_resume import options, stopped_after


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("expected_writing", [0.0, 10.0, 48.0, 200.0])
def test_writing_is_part_of_the_work(expected_writing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shown, course = Progress(io.StringIO()), Course()
    course.writing_seconds = expected_writing
    shown.start()
    shares, pass_seconds, writing_seconds = [0.0], 100, 48
    for second in range(1, pass_seconds + 1):
        clock.now += 1
        course.run(second / pass_seconds, second)
        assert course.share is not None
        shares.append(course.share)
        _, left = shown.rate(course.share, second)
        assert left == pytest.approx(pass_seconds - second + expected_writing)
    shown.start(course.share)
    for second in range(1, writing_seconds + 1):
        clock.now += 1
        course.written(second / writing_seconds)
        shares.append(course.share)
        _, left = shown.rate(course.share, 0)
        # however wrong the expectation was, its own pace is what counts now
        if course.share < 1:
            assert left == pytest.approx(writing_seconds - second)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if expected_writing == writing_seconds:
        assert shares[50] == pytest.approx(50 / 148)


def test_a_share_that_is_not_known_tells_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shown, course = Progress(io.StringIO()), Course()
    shown.start(course.share, 100)
    clock.now += 10
    course.run(None, 10)
    assert course.share is None
    assert shown.rate(course.share, 300) == (20, None)


def test_a_share_never_falls() -> None:
    course = Course()
    for share in (0.1, 0.4, 0.3, None, 0.5):
        course.run(share, 1)
    assert course.share == 0.5
    course.run(0.45, 1)
    assert course.share == 0.5


def test_a_continued_build_is_timed_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shown = Progress(io.StringIO())
    shown.start(0.5, 5000)
    clock.now += 10
    assert shown.rate(0.6, 6000) == (pytest.approx(100), pytest.approx(40))


def test_workers_are_timed_until_the_merge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    shown = Progress()
    shown._spoke = clock.now
    shown.start_sum([(0.5, 100), (0.5, 100)])
    clock.now += 100
    shown.show_sum([(1.0, 200), (0.5, 100)])
    assert capsys.readouterr().err == "75% done, 2 min left until the merge, 300 tokens, 1/s 100% 50%\n"


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    text = Path(standard_library("argparse.py")[0]).read_text()
    with open(tmp_path / "a.jsonl", "w") as file:
        for number in range(60):
            file.write(json.dumps({"text": text[number * 50 : number * 50 + 40 + 17 * number]}) + "\n")
    return [str(tmp_path / "a.jsonl")]


def test_the_log_of_a_build_tells_the_share_of_its_tokens(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.building.pace.EVENT_SECONDS", 0.0)
    # what a checkpoint after every batch tells of the writing is left out, and so its part in the share
    monkeypatch.setattr("indexer.building.gathered.WRITING_SPEED", 1e15)
    config = options(tmp_path / "a.index", corpus, checkpoint_minutes=5)
    build(config)
    events = list(read_events(config.output / LOG))[::-1]
    names = [event["event"] for event in events]
    assert names[0] == "started"
    assert names[-1] == "finished"
    assert "writing" in names
    assert names.index("writing") > max(place for place, name in enumerate(names) if name == "progress")
    tokens = events[-1]["tokens"]
    ran = [event for event in events if event["event"] == "progress"]
    assert len(ran) > 5
    for event in ran:
        assert event["share"] == pytest.approx(event["tokens"] / tokens, abs=0.03)
    shares = [event["share"] for event in events if "share" in event and event["share"] is not None]
    assert shares == sorted(shares)
    assert shard_progress(config.output) == (1.0, tokens)


def test_a_continued_build_goes_on_from_its_share(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus)
    stopped_after(config, 5, monkeypatch)
    before = next(read_events(tmp_path / "a.index.build" / LOG))
    assert before["event"] == "checkpoint"
    assert 0 < before["share"] < 1
    share, tokens = shard_progress(config.output)
    assert (share, tokens) == (before["share"], before["tokens"])
    started: list[Any] = []
    original = Progress.start

    def start(self: Progress, share: float | None = 0.0, tokens: int = 0) -> None:
        started.append((share, tokens))
        original(self, share, tokens)

    monkeypatch.setattr(Progress, "start", start)
    stopped_after(config, 1, monkeypatch)
    assert started[0] == (before["share"], before["tokens"])
    events = list(read_events(tmp_path / "a.index.build" / LOG))
    (resumed,) = (event for event in events if event["event"] == "resumed")
    assert (resumed["share"], resumed["tokens"]) == started[0]
