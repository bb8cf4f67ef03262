"""A build that is stopped anywhere, and started again, leaves the index of one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from indexer.building import checkpoints, folder
from indexer.building.folder import WorkFolder
from indexer.building.gathered import Gathered
from indexer.building.identity import differences
from indexer.building.run import build
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.unfinished import progress_of, read_events
from indexer.index.verify import verify_index
from tests.real_model import minilm, standard_library
from tests.test_pipeline import tables
from tests.tiny_models import saved, words


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Several files, one of records, in a folder of their own."""
    folder = tmp_path_factory.mktemp("corpus")
    text = Path(standard_library("argparse.py")[0]).read_text()
    for number in range(6):
        (folder / f"{number}.txt").write_text(text[number * 3000 : number * 3000 + 2500])
    with open(folder / "more.jsonl", "w") as file:
        for number in range(40):
            file.write(json.dumps({"text": text[number * 311 : number * 311 + 20 + number * 11]}) + "\n")
    return [str(folder)]


def options(output: Path, corpus: list[str], **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {
        "model": str(minilm()), "layers": "1", "panel": 6, "top": 3, "bottom": 2, "context": 48,
        "batch_tokens": 512, "threads": 1, "piece_bytes": 6000, "checkpoint_minutes": 0,
    }  # fmt: skip
    return BuildConfig(corpus=tuple(corpus), output=output, **{**plain, **changes})


@pytest.fixture(scope="module")
def expected(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tables(build(options(tmp_path_factory.mktemp("index") / "a.index", corpus)))


class KilledError(Exception):
    """Stands for the end of the process: nothing catches it on the way."""


def stopped_after(config: BuildConfig, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a build until so many batches were run and, with checkpoint_minutes 0, kept; then end it."""
    seen = 0
    original = checkpoints.save

    def counting(*arguments: Any, **options: Any) -> float:
        nonlocal seen
        seconds = original(*arguments, **options)
        seen += 1
        if seen == batches:
            raise KilledError
        return seconds

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", counting)
        with pytest.raises(KilledError):
            build(config)


@pytest.mark.parametrize("batches", [1, *(pytest.param(late, marks=pytest.mark.slow) for late in (2, 5, 9))])
def test_continued_after_any_batch(
    batches: int,
    corpus: list[str],
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = options(tmp_path / "a.index", corpus)
    stopped_after(config, batches, monkeypatch)
    state = progress_of(config.output)
    assert state is not None
    assert state["tokens"] > 0
    # a checkpoint is an index that can be asked
    (index,) = (tmp_path / "a.index.build").glob("checkpoint-*/index")
    assert verify_index(index, full=True)["files"] > 5
    stopped_after(config, 1, monkeypatch)
    capsys.readouterr()
    assert tables(build(config)) == expected
    assert "continuing after" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]
    verify_index(config.output, full=True)


def test_a_finished_index_is_left_alone(
    corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(tmp_path / "a.index", corpus, checkpoint_minutes=5)
    build(config)
    before = (config.output / "manifest.json").read_bytes()
    build(config)
    assert "is finished already" in capsys.readouterr().err
    assert (config.output / "manifest.json").read_bytes() == before
    with pytest.raises(IndexerError, match=r"already exists, and differs: --top was 3 and is 4.*--overwrite"):
        build(options(tmp_path / "a.index", corpus, top=4))
    with pytest.raises(IndexerError, match="the digest of the corpus's list of files"):
        build(options(tmp_path / "a.index", standard_library("this.py")))


@pytest.mark.slow
def test_another_build_does_not_continue(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus)
    stopped_after(config, 2, monkeypatch)
    for changes, said in (
        ({"context": 32}, "--context was 48 and is 32"),
        ({"layers": "0"}, r'--layers of each site was {"mlp": "1"} and is {"mlp": "0"}'),
        ({"dtype": "bfloat16"}, "the model's dtype was float32 and is bfloat16"),
        ({"attention": "eager"}, "--attention was sdpa and is eager"),
        ({"numerics": "reproducible"}, "--numerics was fast and is reproducible"),
    ):
        with pytest.raises(IndexerError, match=said):
            build(options(tmp_path / "a.index", corpus, **changes))
    # what does not change a row may change
    stopped_after(options(tmp_path / "a.index", corpus, threads=2), 1, monkeypatch)
    # discarded where that is asked for
    other = build(options(tmp_path / "a.index", corpus, context=32, overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_a_changed_file_is_refused(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(corpus[0], tmp_path / "corpus")
    config = options(tmp_path / "a.index", [str(copy)])
    stopped_after(config, 2, monkeypatch)
    text = (copy / "3.txt").read_text()
    (copy / "3.txt").write_text(text[::-1])
    with pytest.raises(IndexerError, match=r"3\.txt has changed"):
        build(config)
    (copy / "3.txt").write_text(text + "more")
    with pytest.raises(IndexerError, match="list of files and sizes"):
        build(config)


@pytest.mark.parametrize(
    "part", ["position.json", "position.npz", "index/units.parquet", "index/manifest.json"]
)
def test_a_damaged_checkpoint_is_refused(
    part: str, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus)
    stopped_after(config, 2, monkeypatch)
    (folder,) = (tmp_path / "a.index.build").glob("checkpoint-*")
    content = bytearray((folder / part).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / part).write_bytes(content)
    with pytest.raises(IndexerError, match="its checkpoint is damaged"):
        build(config)


def _hold(path: str, held: Any, done: Any) -> None:
    with WorkFolder(Path(path)) as work:
        work.begin({"a": 1}, overwrite=False)
        held.set()
        done.wait(60)


@pytest.mark.slow
def test_two_processes_do_not_build_one_index(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "a.index"), held, done))
    other.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(IndexerError, match="another process is building"),
            WorkFolder(tmp_path / "a.index") as work,
        ):
            work.begin({"a": 1}, overwrite=False)
    finally:
        done.set()
        other.join()


def test_the_log_tells_what_happened(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus)
    stopped_after(config, 3, monkeypatch)
    log = tmp_path / "a.index.build" / "build.log.jsonl"
    events = [event["event"] for event in read_events(log)][::-1]
    assert events == ["started", "checkpoint", "checkpoint", "checkpoint"]
    # a line that a crash cut off
    with open(log, "ab") as file:
        file.write(b'{"time": "20')
    stopped_after(config, 1, monkeypatch)
    assert [event["event"] for event in read_events(log)][::-1] == [*events, "resumed", "checkpoint"]


def test_differences_are_told_in_full() -> None:
    assert differences({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == ""
    assert differences({"a": 1, "b": None}, {"a": 2}) == "a was 1 and is 2"
    assert "characters)" in differences({"a": "x" * 500}, {"a": "y"})


@pytest.mark.slow
def test_shards_are_one_build(tmp_path: Path) -> None:
    from indexer.engines import build as run
    from indexer.engines import merge

    chosen = random.Random(0)
    (tmp_path / "corpus").mkdir()
    for number in range(56):
        (tmp_path / "corpus" / f"{number:02}.txt").write_text(" ".join(chosen.choices(words(), k=20)))
    with open(tmp_path / "corpus" / "more.jsonl", "w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": " ".join(chosen.choices(words(), k=20))}) + "\n")

    def config(output: Path, **changes: Any) -> BuildConfig:
        plain = {"model": str(model), "piece_bytes": 100, "checkpoint_minutes": 5}
        return options(output, [str(tmp_path / "corpus")], **plain, **changes)

    model = saved(tmp_path / "model", "bert")
    expected = tables(run(config(tmp_path / "whole.index")))
    for shards in (1, 2, 7, 64):
        output = tmp_path / f"{shards}.index"
        for shard in range(shards):
            run(config(output, shard=(shard, shards)))
        folder = tmp_path / f"{shards}.index.shards"
        parts = sorted(folder.iterdir())
        assert len(parts) == shards
        # nearly all of them have something to add; a piece of few bytes may hold the start of no row
        counted = [read_manifest(part).totals["counted_tokens"] for part in parts]
        assert sum(map(bool, counted)) > 0.9 * shards
        assert tables(merge([folder], output)) == expected
        verify_index(output, full=True)
    # a tree, in another order
    left = merge([parts[20], *parts[3:9]], tmp_path / "left.index")
    right = merge([*parts[:3], *parts[21:]], tmp_path / "right.index")
    rest = merge(parts[9:20][::-1], tmp_path / "rest.index")
    assert tables(merge([right, rest, left], tmp_path / "tree.index")) == expected
    with pytest.raises(IndexerError, match="would count them twice"):
        merge([left, right, parts[29]], tmp_path / "twice.index")
    # merged by a call that was stopped before it could tidy up; the part of another build stays
    other = shutil.copytree(parts[0], tmp_path / "7.index.shards" / parts[0].name)
    run(config(tmp_path / "7.index", workers=7))
    assert list((tmp_path / "7.index.shards").iterdir()) == [other]
    shutil.rmtree(other)
    run(config(tmp_path / "7.index", workers=7))
    assert not (tmp_path / "7.index.shards").exists()


def test_appended_files_join_the_index(corpus: list[str], tmp_path: Path) -> None:
    from indexer.engines import build as run

    folder = Path(corpus[0])
    first, second = [str(folder / f"{number}.txt") for number in range(3)], [str(folder / "more.jsonl")]
    plain = {"numerics": "reproducible", "checkpoint_minutes": 5}
    whole = tables(run(options(tmp_path / "whole.index", [*first, *second], **plain)))
    config = options(tmp_path / "a.index", first, **plain)
    with pytest.raises(IndexerError, match="not a finished index"):
        run(config.model_copy(update={"append": True}))
    run(config)
    grown = options(tmp_path / "a.index", second, append=True, **plain)
    assert tables(run(grown)) == whole
    before = os.stat(tmp_path / "a.index" / "manifest.json").st_ino
    # once more: it is there already
    assert tables(run(grown)) == whole
    assert os.stat(tmp_path / "a.index" / "manifest.json").st_ino == before
    with pytest.raises(IndexerError, match=r"is in .* already"):
        run(options(tmp_path / "a.index", first, append=True, **plain))
    with pytest.raises(IndexerError, match="built in another way: --top was 3 and is 5"):
        run(options(tmp_path / "a.index", [str(folder / "4.txt")], append=True, **{**plain, "top": 5}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", "whole.index"]


@pytest.mark.slow
def test_a_build_killed_when_its_index_is_whole_runs_nothing_again(
    corpus: list[str], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus, checkpoint_minutes=5)

    def killed(*arguments: Any, **options: Any) -> None:
        raise KilledError

    for place, name in ((folder, "put_in_place"), (WorkFolder, "remove")):
        for overwrite in (False, True):
            asked = config.model_copy(update={"overwrite": overwrite})
            with monkeypatch.context() as patched:
                patched.setattr(place, name, killed)
                with pytest.raises(KilledError):
                    build(asked)
            with monkeypatch.context() as patched:
                patched.setattr(Gathered, "run", killed)
                assert tables(build(asked)) == expected
            assert [path.name for path in tmp_path.iterdir()] == ["a.index"]
            shutil.rmtree(config.output)


def test_a_checkpoint_of_another_version_is_one_line(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", corpus)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "VERSION", 0)
        stopped_after(config, 1, patched)
    with pytest.raises(IndexerError, match="its checkpoint is of another version"):
        build(config)


@pytest.mark.slow
def test_an_append_that_cannot_be_merged_is_refused_before_it_runs(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.engines import append
    from indexer.engines import build as run

    first, second, third = [[str(Path(corpus[0]) / f"{number}.txt")] for number in range(3)]
    plain = {"numerics": "reproducible", "checkpoint_minutes": 5}
    run(options(tmp_path / "a.index", first, **plain))
    with pytest.raises(IndexerError, match="built in another way: the model's dtype was float32 and is bfl"):
        run(options(tmp_path / "a.index", second, append=True, dtype="bfloat16", **plain))
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]
    # stopped when what is to be added is built, and not yet merged: whatever is added next, that comes first
    with monkeypatch.context() as patched:
        patched.setattr(append, "_merge", lambda *indexes: None)
        run(options(tmp_path / "a.index", second, append=True, **plain))
    run(options(tmp_path / "a.index", third, append=True, **plain))
    whole = run(options(tmp_path / "whole.index", [*first, *second, *third], **plain))
    assert tables(tmp_path / "a.index") == tables(whole)


@pytest.mark.slow
def test_reproducible_whatever_the_batches(corpus: list[str], tmp_path: Path) -> None:
    wanted = None
    for number, changes in enumerate(
        ({}, {"batch_tokens": 64}, {"batch_tokens": 9000, "piece_bytes": 1 << 20}, {"piece_bytes": 900})
    ):
        config = options(tmp_path / f"{number}.index", corpus, numerics="reproducible", **changes)
        found = tables(build(config))
        wanted = wanted or found
        assert found == wanted
