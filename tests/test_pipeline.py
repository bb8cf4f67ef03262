"""Builds end to end: what may not change the index, and what ends a build early."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from indexer_kernels import Keep

import indexer
from indexer.building import gathered, plan, run
from indexer.building.run import build
from indexer.building.states import States
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.index.unfinished import progress_of
from indexer.tokens import Batches
from tests.real_model import minilm, standard_library

TABLES = {
    "units": "site, layer, unit",
    "examples": "site, layer, unit, kind, band DESC, rank",
    "histograms": "site, layer, unit, lower, upper",
    "documents": "document",
    "panel": "panel.window",
}


def options(output: Path, corpus: list[str], **changes: Any) -> BuildConfig:
    plain = {
        "top": 4, "bottom": 3, "panel": 6, "context": 64, "max_tokens": 4000, "layers": "0-1",
        "batch_tokens": 1024,
    }  # fmt: skip
    return BuildConfig(model=str(minilm()), corpus=tuple(corpus), output=output, **{**plain, **changes})


def tables(output: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of an index, and a digest of each layer's activations on the panel."""
    with indexer.open_index(output) as index:
        kept = [name for name in TABLES if name != "panel" or index.info()["panel_windows"]]
        found = {
            name: index.sql(f"SELECT * FROM {name} ORDER BY {TABLES[name]}").to_pylist() for name in kept
        }
        for entry in index.manifest.layers if "panel" in kept else ():
            content = index.panel(entry.key).activations.tobytes()
            found[f"panel of {entry.key}"] = [hashlib.sha256(content).hexdigest()]
        return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents of many lengths."""
    folder = tmp_path_factory.mktemp("corpus")
    text = Path(standard_library("argparse.py")[0]).read_text()
    with open(folder / "a.jsonl", "w") as file:
        for number, size in enumerate((10, 300, 80, 2000, 45, 900, 3, 600) * 4):
            file.write(json.dumps({"text": text[number * 50 : number * 50 + size]}) + "\n")
    return [str(folder / "a.jsonl"), *standard_library("this.py")]


@pytest.fixture(scope="module")
def expected(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tables(build(options(tmp_path_factory.mktemp("index") / "a.index", corpus, threads=1)))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_set_and_threads_change_no_row(
    corpus: list[str], expected: dict[str, Any], isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer_kernels._cpp import instruction_sets

    if isa not in instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("NEURON_INDEXER_ISA", isa)

    def on_two_threads(*arguments: Any, **options: Any) -> States:
        return States(*arguments, **{**options, "threads": 2})

    # the model's own products stay on one thread, so that the activations are the same bits
    monkeypatch.setattr(gathered, "States", on_two_threads)
    assert tables(build(options(tmp_path / "a.index", corpus, threads=1))) == expected


def test_order_of_batches_changes_no_row(
    corpus: list[str], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(Batches):
        def __iter__(self) -> Any:
            batches = []
            while (batch := next(self, None)) is not None:
                batches.append(batch)
            return iter(batches[::-1])

    monkeypatch.setattr(run, "Batches", Reversed)
    assert tables(build(options(tmp_path / "a.index", corpus, threads=1))) == expected


def test_hooks_and_reference_agree_with_fused(corpus: list[str], tmp_path: Path) -> None:
    small = {"max_tokens": 600, "threads": 1, "layers": "0"}
    compiled = tables(build(options(tmp_path / "a.index", corpus, hooks=True, **small)))
    reference = tables(build(options(tmp_path / "b.index", corpus, hooks=True, kernels="reference", **small)))
    assert compiled == reference
    fused = tables(build(options(tmp_path / "c.index", corpus, **small)))
    for left, right in zip(fused["units"], compiled["units"], strict=True):
        assert left["maximum"] == pytest.approx(right["maximum"], rel=1e-5, abs=1e-6)
        assert left["count"] == right["count"]


@pytest.mark.parametrize("by", ["token", "document"])
def test_other_competitors(corpus: list[str], by: str, tmp_path: Path) -> None:
    output = build(options(tmp_path / "a.index", corpus, by=by))
    with indexer.open_index(output) as index:
        again = "document, sequence, position" if by == "token" else "document"
        repeated = index.sql(
            "SELECT count(*) AS n FROM (SELECT 1 FROM examples WHERE kind <> 'sample' "
            f"GROUP BY layer, unit, kind, {again} HAVING count(*) > 1)"
        )
        assert repeated["n"][0].as_py() == 0


def test_bfloat16_and_special_tokens(corpus: list[str], tmp_path: Path) -> None:
    output = build(options(tmp_path / "a.index", corpus, dtype="bfloat16", count_special_tokens=True))
    with indexer.open_index(output) as index:
        info = index.info()
        assert info["model"]["dtype"] == "bfloat16"
        values = index.sql("SELECT value FROM examples LIMIT 500")["value"].to_numpy().copy()
    assert (torch.from_numpy(values).bfloat16().float().numpy() == values).all()


def test_non_finite_activations_are_counted_and_placed(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = plan.find

    def poisoned(loaded: Any, *asked: Any) -> Any:
        # of a model that is damaged from the start no MLP would be recognised
        found = original(loaded, *asked)
        loaded.model.encoder.layer[1].intermediate.dense.bias[7] = float("nan")
        return found

    monkeypatch.setattr(plan, "find", poisoned)
    output = build(options(tmp_path / "a.index", corpus))
    with indexer.open_index(output) as index:
        row = index.unit("mlp.1.7").to_pylist()[0]
        assert row["nan"] == row["count"] > 0
        assert row["mean"] is None
        assert index.top("mlp.1.7").num_rows == 0
    said = capsys.readouterr().err
    assert "warning" in said
    assert "nan at mlp.1.7, document 0, sequence 0, position 1" in said


def test_a_full_disk_leaves_nothing(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    def full(*arguments: Any, **names: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(IndexerError, match="No space left"):
        build(options(tmp_path / "a.index", corpus))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_cleanly(corpus: list[str], tmp_path: Path) -> None:
    program = subprocess.Popen(
        [
            sys.executable, "-m", "indexer", "build", str(minilm()), *standard_library("."), "--output",
            str(tmp_path / "a.index"), "--threads", "1",
        ],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert program.stderr is not None
    # the plan is said once the model is loaded
    first = program.stderr.readline()
    assert "indexing 9,216 units, mlp of layers 0-5 (6 fused, 0 by hook)" in first
    os.killpg(program.pid, signal.SIGINT)
    out, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert out == ""
    assert "the same command continues there" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.index.build"]
    state = progress_of(tmp_path / "a.index")
    assert state is not None
    assert state["state"] == "interrupted; the same command continues it"
    assert state["tokens"] > 0


def test_a_window_is_no_wider_than_the_context(corpus: list[str], tmp_path: Path) -> None:
    config = options(tmp_path / "a.index", corpus, window=(1000, 1000), context=32, max_tokens=200)
    with indexer.open_index(build(config)) as index:
        rows = index.sql("SELECT token_ids, activations FROM examples").to_pylist()
    assert max(len(row["token_ids"]) for row in rows) == 32
    # and no place is made for more
    assert Keep(window=(1000, 1000)).within(32) == Keep(window=(31, 31))


def test_views_serve_a_plain_duckdb(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = build(options(tmp_path / "a.index", corpus, max_tokens=500))
    monkeypatch.chdir(output)
    with duckdb.connect() as connection:
        connection.execute(Path("views.sql").read_text())
        rows = connection.execute("SELECT value FROM top(1, 5) ORDER BY rank").fetchall()
        name = connection.execute("SELECT unit_name('mlp', 1, 5)").fetchone()
        bins = connection.execute("SELECT sum(count) FROM histogram(1, 5)").fetchone()
    assert rows == sorted(rows, reverse=True)
    assert len(rows) == 4
    assert name == ("mlp.1.5",)
    assert bins is not None
    assert bins[0] > 300


def test_a_broken_file_before_the_first_batch_leaves_nothing(corpus: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "corpus"
    bad.mkdir()
    (bad / "b.txt").write_bytes(b"fine " * 3000 + b"\xff")
    with pytest.raises(IndexerError, match="15000"):
        build(options(tmp_path / "a.index", [*corpus, str(bad / "b.txt")], max_tokens=None))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
