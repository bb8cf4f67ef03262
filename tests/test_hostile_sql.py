"""SQL that tries to reach beyond the index: no file is read or written, nothing changes, one line is told."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.read import Index

SECRET = "a secret of another folder"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    size = Size(layers=1, units=20, top=3, bottom=2, window=4, vocabulary=200)
    write_synthetic(folder / "other", size)
    (folder / "secret").write_text(SECRET)
    return write_synthetic(folder / "i", size)


@pytest.fixture(scope="module")
def index(path: Path) -> Index:
    return indexer.open_index(path)


def _state(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


COPY = "COPY (SELECT 1) TO '{index}/units.parquet' (USE_TMP_FILE false)"
ATTACKS = [
    # files beside the index, by every reader and in every spelling of a path
    "FROM read_text('{folder}/secret')",
    "FROM read_text('{index}/../secret')",
    "FROM read_blob('file://{folder}/secret')",
    "FROM read_csv_auto('{folder}/secret', header = false)",
    "FROM read_json('{folder}/secret')",
    "FROM read_json_objects('{folder}/secret')",
    "FROM read_ndjson_auto('{folder}/secret')",
    "FROM read_parquet('{folder}/other/units.parquet')",
    "FROM read_parquet(['{index}/units.parquet', '{folder}/other/units.parquet'])",
    "FROM read_parquet('{index}/../other/units.parquet')",
    "FROM read_parquet('{index}/examples/../../other/units.parquet')",
    "FROM read_parquet('{folder}/*/units.parquet')",
    "FROM parquet_scan('{folder}/other/units.parquet')",
    "FROM parquet_metadata('{folder}/other/units.parquet')",
    "FROM parquet_kv_metadata('{folder}/other/units.parquet')",
    "FROM parquet_bloom_probe('{folder}/other/units.parquet', 'unit', 1)",
    "FROM '{folder}/other/units.parquet'",
    'FROM "{folder}/other/units.parquet"',
    "SELECT (SELECT content FROM read_text('{folder}/secret'))",
    "SELECT content FROM units, LATERAL (FROM read_text('{folder}/secret'))",
    "WITH RECURSIVE r AS (FROM read_text('{folder}/secret') UNION ALL FROM r) FROM r",
    "FROM units WHERE EXISTS (FROM read_text('{folder}/secret'))",
    "FROM (PIVOT (FROM read_text('{folder}/secret')) ON size IN (1) USING count(*))",
    "FROM (UNPIVOT (FROM read_text('{folder}/secret')) ON content)",
    "(FROM read_text('{folder}/secret')) UNION (FROM read_text('{folder}/secret'))",
    "FROM glob('{folder}/*')",
    "FROM glob('{index}/*')",
    "FROM read_text('/proc/self/environ')",
    "FROM read_text('/dev/stdin')",
    # what a table function would run
    "FROM query('SELECT 1')",
    "FROM query_table('units')",
    "FROM sql_auto_complete('SEL')",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "FROM arrow_scan(1, 2, 3)",
    "FROM pandas_scan(140000000000)",
    "FROM python_map_function(1)",
    "FROM seq_scan('units')",
    "FROM duckdb_secrets()",
    "FROM which_secret('x', 'y')",
    "FROM pragma_database_size()",
    "FROM duckdb_logs()",
    "FROM test_all_types()",
    "FROM checkpoint()",
    "FROM force_checkpoint()",
    "FROM storage_info('units')",
    "SELECT getenv('PATH')",
    "SELECT getvariable('x') FROM read_text('{folder}/secret')",
    # writing, as the body of something that reads
    COPY,
    f"WITH a AS MATERIALIZED ({COPY}) SELECT 1",
    f"WITH RECURSIVE a AS ({COPY}) SELECT 1",
    f"SELECT * FROM (WITH a AS ({COPY}) FROM a)",
    f"SELECT 1 WHERE EXISTS (WITH a AS ({COPY}) FROM a)",
    f"EXPLAIN {COPY}",
    f"EXPLAIN ANALYZE WITH a AS ({COPY}) FROM a",
    f"SELECT 1; {COPY}",
    f"SELECT 1;; {COPY} --",
    f"/* SELECT */ {COPY} /* 1 */",
    f"PREPARE p AS {COPY}",
    "COPY units TO '{folder}/out.parquet'",
    "COPY units FROM '{folder}/other/units.parquet'",
    "COPY FROM DATABASE memory TO system",
    "INSERT INTO units SELECT * FROM units",
    "WITH a AS (INSERT INTO units SELECT 1) FROM a",
    "UPDATE units SET unit = 1",
    "DELETE FROM units",
    "MERGE INTO units USING units AS u ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE units",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}/out'",
    "ATTACH '{folder}/out.db' AS o",
    "ATTACH OR REPLACE ':memory:' AS memory",
    "USE memory",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE OR REPLACE TEMP MACRO top(layer, unit) AS TABLE SELECT 1",
    "SELECT 1 INTO t",
    # settings
    "SET allowed_paths = ['/etc/passwd']",
    "SET GLOBAL allowed_directories = ['/']",
    "SET SESSION lock_configuration = false",
    "SET temp_directory = '{folder}/out'",
    "SET home_directory = '{folder}'",
    "SET VARIABLE x = (SELECT content FROM read_text('{folder}/secret'))",
    "SET log_query_path = '{folder}/out'",
    "PRAGMA enable_external_access = true",
    "PRAGMA profiling_output = '{folder}/out'",
    "PRAGMA enable_logging",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CALL disable_logging()",
    "LOAD '{folder}/secret'",
    "INSTALL json FROM community",
    "FORCE INSTALL httpfs FROM 'http://localhost:9'",
    "UPDATE EXTENSIONS",
]


@pytest.mark.parametrize("query", ATTACKS)
def test_nothing_outside_is_read_or_written(query: str, index: Index, path: Path) -> None:
    before, here = _state(path.parent), os.listdir()
    with pytest.raises(IndexerError) as error:
        index.sql(query.format(index=path, folder=path.parent))
    assert str(error.value).isprintable()
    assert SECRET not in str(error.value)
    assert _state(path.parent) == before
    assert os.listdir() == here
    assert index.sql("SELECT count(*) AS n FROM units")["n"].to_pylist() == [20]


def test_a_parameter_is_a_value_and_no_path(index: Index, path: Path) -> None:
    for outside in (path.parent / "secret", path.parent / "other" / "units.parquet", "/etc/passwd"):
        for function in ("read_text", "read_parquet", "read_csv", "glob"):
            with pytest.raises(IndexerError):
                index.sql(f"FROM {function}(?)", [str(outside)])


def test_links_within_the_index_lead_nowhere(index: Index, path: Path) -> None:
    link = path / "examples" / "link.parquet"
    link.symlink_to(path.parent / "other" / "units.parquet")
    try:
        with pytest.raises(IndexerError, match="disabled by configuration"):
            index.sql(f"FROM read_parquet('{link}')")
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT " + "(" * 3_000 + "1" + ")" * 3_000,
        "SELECT -" + "(" * 900 + "1" + ")" * 900,
        "SELECT " + "+".join(["1"] * 20_000),
        "SELECT 1 FROM " + "(SELECT * FROM " * 1_500 + "units" + ")" * 1_500,
        "SELECT " + "[" * 3_000 + "]" * 3_000,
        "WITH " + ", ".join(f"a{n} AS (SELECT 1)" for n in range(500)) + " SELECT 1 FROM nowhere",
        "SELECT '" + "x" * 5_000_000,
        "\0",
        "SELECT 1 \0 FROM units",
        "SELECT '\ud800'",
    ],
    ids=range(10),
)
def test_absurd_queries_end_in_one_line(query: str, index: Index) -> None:
    told = ""
    try:
        index.sql(query)
    except IndexerError as error:
        told = str(error)
    assert told == "" or told.isprintable()
    assert len(told) < 2_000
    assert index.sql("SELECT 1 AS n")["n"].to_pylist() == [1]


@pytest.mark.parametrize(
    "parameters",
    [["\ud800"], [object()], [1 << 200], [float("nan")], [{"a": [b"\xff"]}], {"a": 1}, [[[]] * 3]],
    ids=range(7),
)
def test_parameters_of_any_kind(parameters: Any, index: Index) -> None:
    told = ""
    try:
        index.sql("SELECT ?", parameters)
    except IndexerError as error:
        told = str(error)
    assert told == "" or told.isprintable()


def test_values_reach_no_terminal_through_a_message(index: Index) -> None:
    for hostile in ("\x1b[2J\x1b]0;owned\a", "a\nb\rc", "\u202egnp.exe", "\x9b31m", "x" * 100_000):
        with pytest.raises(IndexerError) as error:
            index.sql("SELECT error(?)", [hostile])
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 2_000
        with pytest.raises(IndexerError) as error:
            index.sql("SELECT ?::VARCHAR::INTEGER", [hostile])
        assert str(error.value).isprintable()
