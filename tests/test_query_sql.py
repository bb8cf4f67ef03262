"""SQL on an index: what it answers, what it refuses, and the views for the plain duckdb program."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.read import Index


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("sql") / "i", Size(layers=3, units=40, top=5, bottom=3))


@pytest.fixture(scope="module")
def index(path: Path) -> Index:
    return indexer.open_index(path)


def _digests(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*) FROM units", [(120,)]),
        ("FROM units SELECT layer, count(*) GROUP BY layer ORDER BY layer", [(0, 40), (1, 40), (2, 40)]),
        (
            "SELECT kind, count(*) FROM examples GROUP BY ALL ORDER BY ALL",
            [("bottom", 360), ("sample", 1680), ("top", 600)],
        ),
        ("SELECT DISTINCT sum(count) OVER (PARTITION BY layer, unit) FROM histograms", [(1_000_000,)]),
        ("SELECT unit_name('mlp', 5, 1733)", [("mlp.5.1733",)]),
        ("SELECT token FROM vocabulary WHERE token_id = 1", [(" the",)]),
        ("SELECT count(*) FROM vocabulary", [(30_000,)]),
        ("SELECT count(*) > 1 FROM examples JOIN documents USING (document)", [(True,)]),
        # the plan of an unequal join has an operator named after merging, which writes nothing
        ("SELECT count(*) FROM range(2000) a(i) JOIN range(2000) b(i) ON a.i < b.i", [(1_999_000,)]),
        ("WITH t AS (FROM top(1, 7)) SELECT max(rank), max(value) = (SELECT maximum FROM units "
         "WHERE layer = 1 AND unit = 7) FROM t", [(5, True)]),
        ("SELECT rank FROM bottom(1, 7) -- a comment; and more", [(1,), (2,), (3,)]),
        ("SELECT 1;", [(1,)]),
        ("SELECT 'COPY x TO y; DROP z' AS copy_to_file", [("COPY x TO y; DROP z",)]),
        ("PIVOT (SELECT layer, unit FROM units WHERE unit < 2) ON layer IN (0, 1) USING count(*)", None),
    ],
)  # fmt: skip
def test_answers(query: str, rows: list[tuple[object, ...]] | None, index: Index) -> None:
    table = index.sql(query)
    if rows is not None:
        assert [tuple(row.values()) for row in table.to_pylist()] == rows


def test_a_token_search_finds_what_is_there(index: Index) -> None:
    every = index.sql("SELECT layer, unit, token FROM examples").to_pylist()
    wanted = sorted((row["layer"], row["unit"]) for row in every if row["token"] == " the")
    found = index.sql("SELECT layer, unit FROM examples WHERE token = ' the' ORDER BY ALL").to_pylist()
    assert wanted
    assert [tuple(row.values()) for row in found] == wanted
    assert index.sql("SELECT 1 FROM examples WHERE token = 'nowhere to be found'").num_rows == 0


def test_parameters(index: Index) -> None:
    by_place = index.sql("SELECT unit FROM units WHERE layer = ? AND unit = ?", [2, 7])
    by_name = index.sql("SELECT unit FROM units WHERE layer = $l AND unit = $u", {"l": 2, "u": 7})
    assert by_place.equals(by_name)
    assert by_place["unit"].to_pylist() == [7]
    hostile = "' OR 1=1; COPY units TO 'x' --"
    assert index.sql("SELECT count(*) AS n FROM examples WHERE token = ?", [hostile])["n"].to_pylist() == [0]
    with pytest.raises(IndexerError, match=r"^SQL: "):
        index.sql("SELECT ?", [1, 2])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "0 statements"),
        ("-- nothing", "0 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM units", "nothing"),
        ("SELECT 1 FROM nowhere", "nowhere"),
        ("FROM top(99, 0)", "layer 99 is not in this index"),
        ("FROM histogram(99, 0)", "layer 99 is not in this index"),
        ("SELECT error('told')", "told"),
    ],
)
def test_a_mistake_gets_one_line(query: str, said: str, index: Index) -> None:
    with pytest.raises(IndexerError) as error:
        index.sql(query)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


FORBIDDEN = [
    # other files
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "FROM '/etc/passwd'",
    "FROM query_table('/etc/passwd')",
    "FROM query('FROM read_text(''/etc/passwd'')')",
    "FROM read_parquet('{index}/../*/units.parquet')",
    "FROM read_csv('{outside}')",
    "FROM parquet_metadata('{outside}')",
    "FROM read_csv('http://localhost:9/x')",
    "FROM 'https://localhost:9/x.parquet'",
    "SELECT getenv('HOME')",
    # Python's variables
    "SELECT * FROM secret",
    # writing, to the index and elsewhere
    "COPY units TO '{outside}'",
    "COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)",
    "WITH x AS (COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)) SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)) FROM x",
    "WITH y AS (SELECT 1), x AS (COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)) FROM x, y",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)) SELECT 1)",
    "FROM (WITH x AS (COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)) SELECT 1)",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{index}/units.parquet'' (USE_TMP_FILE false)) SELECT 1')",
    "FROM json_execute_serialized_sql(json_serialize_sql("
    "'WITH x AS (COPY (SELECT 1) TO ''{index}/units.parquet'' (USE_TMP_FILE false)) SELECT 1'))",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)",
    "EXPORT DATABASE '{outside}'",
    "ATTACH '{outside}'",
    "ATTACH ':memory:' AS other",
    # the connection itself
    "SET threads = 1",
    "RESET threads",
    "SET enable_external_access = true",
    "PRAGMA enable_profiling",
    "CALL enable_logging(storage_path = '{outside}')",
    "FROM enable_logging(storage_path = '{outside}')",
    "FROM enable_profiling('json')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TABLE t (a INTEGER)",
    "CREATE OR REPLACE VIEW units AS SELECT 1",
    "DROP VIEW units",
    "BEGIN TRANSACTION",
    "DETACH memory",
    "CHECKPOINT",
    "PREPARE p AS SELECT 1",
]


@pytest.mark.parametrize("query", FORBIDDEN)
def test_nothing_else_can_be_done(query: str, index: Index, path: Path, tmp_path: Path) -> None:
    secret = pa.table({"a": [1]})
    outside = tmp_path / "outside"
    before, here = _digests(path), os.listdir()
    with pytest.raises(IndexerError) as error:
        index.sql(query.format(index=path, outside=outside))
    assert "\n" not in str(error.value)
    assert not outside.exists()
    assert _digests(path) == before
    assert os.listdir() == here
    # and the connection is as it was
    assert index.sql("SELECT count(*) AS n FROM units")["n"].to_pylist() == [120]
    del secret


def test_a_file_that_is_put_beside_is_not_read(path: Path, index: Index) -> None:
    extra = path / "examples" / "mlp.9.parquet"
    extra.write_bytes((path / "examples" / "mlp.0.parquet").read_bytes())
    try:
        assert index.sql("SELECT count(*) AS n FROM examples")["n"].to_pylist() == [2640]
        with pytest.raises(IndexerError, match="disabled by configuration"):
            index.sql(f"FROM '{extra}'")
    finally:
        extra.unlink()


def test_views_serve_the_plain_duckdb_program(
    path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path)
    plain = duckdb.connect()
    plain.execute((path / "views.sql").read_text())
    for query in (
        "FROM units ORDER BY ALL",
        "SELECT * FROM examples WHERE layer = 1 AND unit < 3 ORDER BY unit, kind, band DESC, rank",
        "FROM histograms WHERE unit = 3 ORDER BY ALL",
        "FROM documents ORDER BY ALL",
        "FROM vocabulary ORDER BY ALL LIMIT 9",
        "FROM top(2, 39)",
        "FROM bottom(0, 0)",
        "FROM histogram(1, 1)",
        "SELECT unit_name(site, layer, unit) FROM units ORDER BY ALL LIMIT 3",
    ):
        assert plain.sql(query).to_arrow_table().equals(index.sql(query)), query
    with pytest.raises(duckdb.Error, match="layer 7 is not in this index"):
        plain.sql("FROM top(7, 0)")
    # a second time, as when the file is read again
    plain.execute((path / "views.sql").read_text())


def test_a_query_that_asks_for_no_text_reads_no_vocabulary(path: Path, index: Index) -> None:
    index.sql("SELECT 1")
    assert index._queries is not None
    explain = "EXPLAIN SELECT rank, value FROM examples WHERE unit = 3"
    plan = str(index._queries._connection.execute(explain).fetchall())
    assert plan.count("READ_PARQUET") == 1
