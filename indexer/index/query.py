"""SQL on an index: a DuckDB connection that can read the index's files and do nothing else.

What holds the lock, each part tested: no access to files but those listed, no extensions, no settings, no
Python variables as tables. Access to a file that is listed includes writing to it, and a SELECT can hold a
COPY (as the body of WITH, inside query('...')), so every plan is searched for operators that write before
it runs.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.manifest import Manifest
from indexer.index.views import views

Parameters = Sequence[Any] | Mapping[str, Any] | None

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
    # Nothing is written anywhere, not even what does not fit in memory.
    "temp_directory": "",
}
_WRITES = re.compile(
    r"COPY|INSERT|UPDATE|DELETE|MERGE|CREATE|DROP|ALTER|ATTACH|EXPORT|LOAD|VACUUM|TRANSACTION"
)


class Queries:
    """Runs SELECT statements over the views of an index. Safe for use by several threads."""

    def __init__(self, index: Path, manifest: Manifest, spaced: bool) -> None:
        """index: absolute path. spaced: as in Vocabulary."""
        files = [str(index / file.path) for file in manifest.files if file.path != schema.VIEWS]
        layers = [(layer.site, layer.layer) for layer in manifest.layers]
        self._connection = duckdb.connect(":memory:", config=_SETTINGS)
        with _told():
            self._connection.execute("SET parquet_metadata_cache = true")
            self._connection.execute("SET allowed_paths = ?", [files])
            self._connection.execute("SET enable_external_access = false")
            for statement in views(layers, spaced, index):
                self._connection.execute(statement)
            self._connection.execute("SET lock_configuration = true")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def run(self, query: str, parameters: Parameters = None) -> pa.Table:
        """The result of one SELECT.

        Raises IndexerError, one line, for a mistake in it or anything else than it.
        """
        with _told(), self._connection.cursor() as cursor:
            _check_statement(cursor, query)
            plan = cursor.execute(f"EXPLAIN (FORMAT json) {query}", parameters).fetchall()
            _check_plan(json.loads(plan[0][1]))
            return cursor.sql(query, params=parameters).to_arrow_table()


def _check_statement(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = cursor.extract_statements(query)
    if len(statements) != 1:
        raise IndexerError(f"SQL: {len(statements)} statements; give one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise IndexerError(
            f"SQL: {statements[0].type.name} is not allowed; an index answers SELECT statements only"
        )


def _check_plan(nodes: Any) -> None:
    """Raise IndexerError where an operator of a plan writes. nodes: operators, each with a name and children."""
    for node in nodes:
        # Scans are called after their table function, which is the reader's concern and never writes.
        if _WRITES.search(node["name"].upper()) and "SCAN" not in node["name"].upper():
            raise IndexerError(f"SQL: {node['name'].strip()} is not allowed; an index can only be read")
        _check_plan(node.get("children", []))


@contextmanager
def _told() -> Iterator[None]:
    """Turn DuckDB's errors, which draw the place in the query over several lines, into one line."""
    try:
        yield
    except duckdb.Error as error:
        message = str(error).split("\n\nLINE ")[0]
        raise IndexerError("SQL: " + " ".join(message.split())) from None
