"""Engines that are stopped keep all that was done, and the same command does not do it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from indexer.building.progress import Progress
from indexer.config.build import BuildConfig
from indexer.engines import build, processes, ray_engine, shards
from indexer.engines.shards import Standing, shard_output
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.schema import LOG, MANIFEST
from indexer.index.unfinished import last_progress, read_events
from tests.real_model import minilm, standard_library
from tests.test_pipeline import tables
from tests.tiny_models import saved, words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "model", "bert")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    texts = [" ".join(words()[number % 7 :: 3][:20]) for number in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def options(model: Path, corpus: Path, output: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {"top": 3, "bottom": 2, "context": 48, "piece_bytes": 500, "threads": 1}
    return BuildConfig(model=str(model), corpus=(str(corpus),), output=output, **{**plain, **changes})


def manifests(output: Path) -> dict[str, bytes]:
    folder = shards.shards_folder(output)
    return {path.name: (path / MANIFEST).read_bytes() for path in folder.glob("*.index")}


@pytest.mark.slow
def test_ctrl_c_to_workers_and_to_their_parent_keeps_what_was_done(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "indexer", "build", str(minilm()), *standard_library("."), "--output",
        str(tmp_path / "a.index"), "--workers", "2", "--threads", "2", "--layers", "5",
        # a batch takes long enough to be hit by the second signal; and no checkpoint of another reason
        "--batch-tokens", "8192", "--checkpoint-minutes", "600", "--piece-bytes", "200kB",
    ]  # fmt: skip
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folders = [tmp_path / "a.index.shards" / f"{shard}-of-2.index.build" for shard in range(2)]
    deadline = time.monotonic() + 120
    while not all((folder / LOG).exists() for folder in folders):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=120)
    assert program.returncode == 130, said
    kept = [last_progress(folder, "checkpoint").get("tokens", 0) for folder in folders]
    assert all(kept)
    assert f"stopped; {sum(kept):,} tokens are kept in {tmp_path / 'a.index.shards'}" in said
    assert "Traceback" not in said
    for folder in folders:
        assert next(read_events(folder / LOG))["event"] == "interrupted"


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) for _ in range(2)]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    original = subprocess.Popen.wait

    def interrupted(self: Any, *arguments: Any) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes._end(started)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_what_is_finished_is_kept_by_overwrite_too(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = build(options(model, corpus, tmp_path / "a.index", top=1))
    config = options(model, corpus, output, workers=2, threads=2, overwrite=True)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(processes, "merge_parts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config)
        tokens = sum(last_progress(path)["tokens"] for path in (tmp_path / "a.index.shards").iterdir())
        assert f"stopped; {tokens:,} tokens are kept in" in capsys.readouterr().err
        before = manifests(output)
        assert len(before) == 2
        with pytest.raises(KeyboardInterrupt):
            build(config)
        assert manifests(output) == before
        # those of another build are replaced
        with pytest.raises(KeyboardInterrupt):
            build(config.model_copy(update={"bottom": 1}))
        assert not set(manifests(output).values()) & set(before.values())
    assert tables(build(config)) == tables(build(options(model, corpus, tmp_path / "b.index")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", "b.index"]


@pytest.mark.slow
def test_shards_that_were_merged_are_not_those_of_the_next_build(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "a.jsonl"
    text.write_bytes(corpus.read_bytes())
    config = options(model, text, tmp_path / "a.index", workers=2, threads=2)
    with monkeypatch.context() as patched:
        # killed before it could tidy up
        patched.setattr(shards, "clear_merged", lambda *arguments: None)
        build(config)
    assert len(manifests(config.output)) == 2
    # of the same size
    text.write_text(text.read_text().replace("w1 ", "w2 "))
    assert text.read_bytes() != corpus.read_bytes()
    build(config.model_copy(update={"overwrite": True}))
    assert tables(config.output) == tables(build(options(model, text, tmp_path / "b.index")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", "a.jsonl", "b.index"]


def test_an_index_that_goes_away_while_it_is_looked_at_is_not_built(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = build(options(model, corpus, tmp_path / "a.index"))
    config = options(model, corpus, output, workers=2)
    assert shards.is_finished(config)
    original = shards.MANIFEST

    def looked_at_last(self: Path) -> bool:
        found = is_file(self)
        if self == output / original and found:
            output.rename(tmp_path / "elsewhere")
        return found

    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", looked_at_last)
    assert not shards.is_finished(config)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.slow
def test_what_was_merged_is_said_to_be_finished(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(model, corpus, tmp_path / "a.index", workers=2, threads=2)
    build(config)
    before = (config.output / MANIFEST).read_bytes()
    capsys.readouterr()
    assert build(config) == config.output
    assert "is finished already" in capsys.readouterr().err
    assert (config.output / MANIFEST).read_bytes() == before
    with pytest.raises(IndexerError, match="already exists, and differs: --top was 3 and is 4"):
        build(config.model_copy(update={"top": 4}))
    with shards.held_shards(config.output) as folder:
        # another process is about to replace it
        (folder / "0-of-2.index.build").mkdir()
        build(config)
        with pytest.raises(IndexerError, match="another process is building"):
            build(config.model_copy(update={"overwrite": True}))
        assert (folder / "0-of-2.index.build").exists()


def log(folder: Path, events: int, share: float, tokens: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"event": "progress", "tokens": tokens * n // events, "share": share * n / events}
        for n in range(1, events + 1)
    ]
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_only_the_end_of_a_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, 20_000, 0.5, 1_000_000)
    with open(tmp_path / LOG, "ab") as file:
        file.write(b'{"event": "out of memory"}\n{"event": "progress", "tok')
    parsed: list[bytes] = []
    original = json.loads

    def counting(line: bytes) -> Any:
        parsed.append(line)
        return original(line)

    monkeypatch.setattr("indexer.index.unfinished.json.loads", counting)
    assert last_progress(tmp_path) == {"event": "progress", "tokens": 1_000_000, "share": 0.5}
    assert len(parsed) == 3
    monkeypatch.undo()
    forwards = [original(line) for line in (tmp_path / LOG).read_bytes().splitlines()[:-1]]
    assert list(read_events(tmp_path / LOG))[::-1] == forwards
    assert list(read_events(tmp_path / "missing")) == []
    assert last_progress(tmp_path, "checkpoint") == {}


def test_a_shard_that_is_done_keeps_its_tokens(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.index"
    build(options(model, corpus, output, shard=(0, 3)))
    outputs = [shard_output(output, shard, 3) for shard in range(3)]
    tokens = read_manifest(outputs[0]).totals["counted_tokens"]
    assert isinstance(tokens, int)
    assert tokens > 100
    building = outputs[1].with_name(outputs[1].name + ".build")
    log(building, 3, 0.75, 90)
    standing = Standing(outputs)
    assert standing.parts == [(1.0, tokens), (0.75, 90), (0.0, 0)]
    looked_at: list[Path] = []
    original = shards.shard_progress

    def look(path: Path) -> tuple[float, int]:
        looked_at.append(path)
        return original(path)

    monkeypatch.setattr(shards, "shard_progress", look)
    # its build has put the index in place elsewhere, or just now
    (building / LOG).unlink()
    standing.look(range(3))
    assert standing.parts == [(1.0, tokens), (0.75, 90), (0.0, 0)]
    assert looked_at == outputs[1:]
    standing.done(2, 70)
    looked_at.clear()
    standing.look(range(3))
    assert standing.parts == [(1.0, tokens), (0.75, 90), (1.0, 70)]
    assert looked_at == [outputs[1]]


def test_append_shows_how_far_the_merge_is(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = build(options(model, corpus, tmp_path / "a.index"))
    more = tmp_path / "more.txt"
    more.write_text(" ".join(words()[:50]))
    shown: list[tuple[float | None, str]] = []
    monkeypatch.setattr(Progress, "show_share", lambda self, share, what="": shown.append((share, what)))
    build(options(model, more, output, append=True))
    assert (1.0, "") in shown


def test_an_append_that_is_stopped_while_it_tidies_up_leaves_nothing(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = build(options(model, corpus, tmp_path / "a.index"))
    more = tmp_path / "more.txt"
    more.write_text(" ".join(words()[:50]))
    config = options(model, more, output, append=True)

    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("indexer.engines.append.merge_parts", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert (tmp_path / "a.index.shards" / "appended.index").exists()
    # what a killed build leaves that had begun to remove its folder
    (tmp_path / "a.index.shards" / "appended.index.build" / "checkpoint-1").mkdir(parents=True)
    build(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", "more.txt"]


def test_every_engine_looks_at_the_corpus_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "some text"}\n')
    for module, name in ((ray_engine, "build_on_ray"), (processes, "build_in_processes")):
        monkeypatch.setattr(module, name, lambda config: pytest.fail("begun"))
    for changes in ({"ray": "local"}, {"workers": 2}, {"shard": (0, 2)}, {}):
        with pytest.raises(IndexerError, match=r'a\.jsonl, line 1: no column "text"'):
            build(options(model, tmp_path / "a.jsonl", tmp_path / "a.index", **changes))
