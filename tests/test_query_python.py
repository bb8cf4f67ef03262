"""Questions from Python: how units are named, what an index says of itself, tables of one's own in SQL."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.unfinished import progress_of

SIZE = Size(layers=3, units=40, top=5, bottom=3, vocabulary=200, documents=3_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("python") / "my.index", SIZE)


@pytest.fixture(scope="module")
def index(path: Path) -> Index:
    return indexer.open_index(path)


def test_a_neuron_by_layer_and_number(index: Index) -> None:
    for method in ("unit", "histogram", "top", "bottom"):
        asked = getattr(index, method)
        assert asked(2, 7).equals(asked("mlp.2.7"))
        assert asked(np.int64(2), np.int32(7)).equals(asked("mlp.2.7"))
    assert index.top(2, 7, k=2).equals(index.top("mlp.2.7", k=2))
    assert index.record(2, 7, k=1).bottom.equals(index.bottom("mlp.2.7", k=1))


@pytest.mark.parametrize("unit", [(2,), ("mlp.2.7", 5), (2.0, 7), ("2", "7"), (2, "7"), (None,), (None, 7)])
def test_what_names_no_unit_is_one_line(unit: tuple[Any, ...], index: Index) -> None:
    with pytest.raises(IndexerError, match=r"give a name.*or a layer and a number|expected SITE") as error:
        index.top(*unit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unit", [(3, 0), (0, 40), (-1, 0), (0, -1), (1 << 70, 0)])
def test_a_unit_it_has_not_is_one_line(unit: tuple[int, int], index: Index) -> None:
    with pytest.raises(IndexerError, match="not in index"):
        index.unit(*unit)


def test_repr_says_what_it_holds(index: Index, path: Path) -> None:
    assert repr(index) == f"<Index {path}: synthetic, mlp of layers 0-2, 120 units, 1,000,000 tokens>"


def test_documents_by_their_ids(index: Index) -> None:
    every = index.sql("FROM documents ORDER BY document")
    ids = every["document"].to_pylist()
    for wanted in ([], ids[:1], ids[-1:], [ids[5], ids[3], ids[5]], ids[::7], [-1, ids[2], 1 << 62], ids):
        found = index.documents(wanted)
        assert found["document"].to_pylist() == sorted(set(wanted) & set(ids))
        assert found.equals(
            every.filter(pa.compute.is_in(every["document"], pa.array(wanted, pa.int64()))).cast(found.schema)
        )


def test_documents_out_of_many_row_groups(tmp_path: Path) -> None:
    size = Size(layers=1, units=2_000, top=20, bottom=0, window=2, vocabulary=50, documents=100_000)
    with indexer.open_index(write_synthetic(tmp_path / "i", size)) as index:
        ids = index.sql("SELECT document FROM documents ORDER BY document")["document"].to_pylist()
        assert len(ids) > 2 * 16_384
        wanted = [ids[0], ids[20_000], ids[-1]]
        assert index.documents(wanted)["document"].to_pylist() == wanted


def test_tables_of_ones_own(path: Path) -> None:
    with indexer.open_index(path) as index:
        mine = {"layer": [0, 2], "unit": [7, 9], "label": ["if", "for"]}
        joined = "SELECT label, maximum FROM units JOIN mine USING (layer, unit) ORDER BY label"
        wanted = [
            ("for", index.unit(2, 9)["maximum"][0].as_py()),
            ("if", index.unit(0, 7)["maximum"][0].as_py()),
        ]
        for table in (mine, pa.table(mine), pd.DataFrame(mine)):
            index.register("mine", table)
            assert [tuple(row.values()) for row in index.sql(joined).to_pylist()] == wanted
        index.register("mine", {"a": [1]})
        assert index.sql("FROM mine").to_pydict() == {"a": [1]}
        for name in ("units", "Examples", "", "a b", "x; DROP VIEW units", 'x"', "é"):
            with pytest.raises(IndexerError, match="cannot register"):
                index.register(name, mine)
        with pytest.raises(IndexerError, match=r"^SQL: "):
            index.register("other", 5)
        # the connection is as closed as before
        for query in (
            "INSERT INTO mine VALUES (2)",
            "COPY mine TO '/tmp/x'",
            "FROM read_text('/etc/passwd')",
        ):
            with pytest.raises(IndexerError):
                index.sql(query)
        assert index.sql("SELECT count(*) AS n FROM units").to_pydict() == {"n": [120]}


@pytest.mark.parametrize(
    "place", ["http://host/my.index", "hf://datasets/me/my.index", "s3://bucket/my.index"]
)
def test_an_index_on_the_network_is_one_line(place: str) -> None:
    for given in (place, Path(place)):
        with pytest.raises(IndexerError, match="is read from a disk, not over the network"):
            indexer.open_index(given)


def test_a_command_imports_neither_pandas_nor_what_it_does_not_need(path: Path) -> None:
    program = (
        "import sys, indexer.commands as c\n"
        "try: c.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*{'pandas', 'duckdb', 'torch'} & {*sys.modules}, file=sys.stderr)"
    )
    for arguments in (["top", "mlp.1.7"], ["unit", "mlp.1.7"], ["histogram", "mlp.1.7"], ["info"]):
        command = [sys.executable, "-c", program, arguments[0], str(path), *arguments[1:]]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr.strip() == ""


def _log(folder: Path, *events: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "build.json").write_text("{}")
    (folder / "build.log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_an_index_that_is_being_built_says_how_far_it_is(tmp_path: Path) -> None:
    now = datetime.now(UTC).isoformat()
    _log(tmp_path / "i.build", {"event": "progress", "time": now, "tokens": 41_000, "share": 0.41})
    with pytest.raises(IndexerError) as error:
        indexer.open_index(tmp_path / "i")
    assert str(error.value) == (
        f"index {tmp_path / 'i'}: not finished: running, 41,000 tokens, 41% done; "
        f"neuron-indexer info {tmp_path / 'i'} says more"
    )


def test_unfinished_shards_are_not_to_be_merged(tmp_path: Path) -> None:
    shards = tmp_path / "i.shards"
    _log(shards / "1-of-2.index.build", {"event": "interrupted", "time": "2026-01-01T00:00:00+00:00"})
    write_synthetic(shards / "0-of-2.index", Size(layers=1, units=2, vocabulary=9))
    progress = progress_of(tmp_path / "i")
    assert progress is not None
    assert progress["state"] == "1 of 2 shards finished"
    assert progress["next"].startswith("the same build commands finish the shards")
    with pytest.raises(IndexerError, match="not finished: 1 of 2 shards finished"):
        indexer.open_index(tmp_path / "i")
    (shards / "1-of-2.index.build").rename(tmp_path / "elsewhere")
    write_synthetic(shards / "1-of-2.index", Size(layers=1, units=2, vocabulary=9))
    progress = progress_of(tmp_path / "i")
    assert progress is not None
    assert progress["next"] == f"neuron-indexer merge {shards} --output {tmp_path / 'i'}"
