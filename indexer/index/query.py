"""SQL on an index: a DuckDB connection that can read the index's files and do nothing else.

The settings keep a query from other files, extensions, settings and Python's variables. They do not keep
it from writing to the files it may read, and a SELECT can write: by COPY as the body of WITH, or in a string
that a table function runs. So a query has to be one SELECT by its type, its syntax tree must hold nothing
but SELECTs and table functions known to be harmless, and its plan no operator that writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index.addons import VIEWS, addon_views, read_addons
from indexer.index.codecs import CODECS
from indexer.index.files import printable
from indexer.index.manifest import Manifest
from indexer.index.sql import literal_path
from indexer.index.views import views

Parameters = Sequence[Any] | Mapping[str, Any] | None

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
    # nothing is written anywhere, not even what does not fit in memory
    "temp_directory": "",
}
_TABLE_FUNCTIONS = {
    *(macro for codec in CODECS for macro in codec.macros),
    "histogram_values",
    *("range", "generate_series", "repeat", "unnest", "json_each", "json_tree"),
    *("read_parquet", "parquet_scan", "parquet_schema", "parquet_metadata", "parquet_file_metadata"),
    *("duckdb_columns", "duckdb_functions", "duckdb_settings", "duckdb_views", "pragma_table_info"),
}
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_WRITES = re.compile(
    # an operator that only joins is called PIECEWISE_MERGE_JOIN
    "COPY|INSERT|UPDATE|DELETE|MERGE_INTO|CREATE|DROP|ALTER|ATTACH|EXPORT|LOAD|VACUUM|TRANSACTION"
)


class Queries:
    """Runs SELECT statements over the views of an index. Safe for use by several threads."""

    def __init__(self, index: Path, manifest: Manifest, memory: str | None = None) -> None:
        """index: absolute path. memory: what DuckDB may take, as 1GB; most of the machine's without."""
        self._tables: dict[str, pa.Table] = {}
        if "\\" in str(index) and literal_path(index) != str(index):
            raise IndexerError(
                f"SQL: the path of the index, {index}, has both a backslash and one of * ? [, with which "
                "DuckDB finds no file; rename the folder"
            )
        addons = read_addons(index)
        # names that a registered table would hide
        self._views = {*VIEWS, *(table for addon in addons for table in addon.tables)}
        paths = [*(file.path for file in manifest.files), *(path for one in addons for path in one.paths())]
        files = [index / path for path in paths if path.endswith(".parquet")]
        # both what is searched for and what is found has to be allowed
        allowed = sorted({name for file in files for name in (str(file), literal_path(file))})
        with _in_one_line():
            limit = {} if memory is None else {"memory_limit": memory}
            self._connection = duckdb.connect(":memory:", config=_SETTINGS | limit)
            self._connection.execute("SET parquet_metadata_cache = true")
            self._connection.execute("SET allowed_paths = ?", [allowed])
            self._connection.execute("SET enable_external_access = false")
            for statement in views(manifest.layers, index):
                self._connection.execute(statement)
            for one in addons:
                for statement in addon_views(one.name, one.tables, index):
                    self._connection.execute(statement)
            self._connection.execute("SET lock_configuration = true")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def register(self, name: str, table: Any) -> None:
        """Let queries read a table under a name. Raises IndexerError for a name or a table that cannot be."""
        if not _NAME.fullmatch(name) or name.lower() in self._views:
            raise IndexerError(
                f'SQL: cannot register a table as "{name}"; give a plain word, and none of the views'
            )
        with _in_one_line():
            self._tables[name] = table if isinstance(table, pa.Table) else pa.table(table)

    def run(self, query: str, parameters: Parameters = None, rows: int | None = None) -> pa.Table:
        """The result of one SELECT, with `rows` that many of it at most.

        Raises IndexerError, one line, for a mistake or for anything else.
        """
        with _in_one_line(), self._connection.cursor() as cursor:
            # a cursor sees the views of the connection, and no tables but its own
            for name, table in list(self._tables.items()):
                cursor.register(name, table)
            _check_statement(cursor, query)
            tree = cursor.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
            _check_tree(json.loads(tree[0][0]))
            plan = cursor.execute(f"EXPLAIN (FORMAT json) {query}", parameters).fetchall()
            _check_plan(json.loads(plan[0][1]))
            found = cursor.sql(query, params=parameters)
            return (found if rows is None else found.limit(rows)).to_arrow_table()


def _check_statement(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = cursor.extract_statements(query)
    if len(statements) != 1:
        raise IndexerError(f"SQL: {len(statements)} statements; give one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise IndexerError(
            f"SQL: {statements[0].type.name} is not allowed; an index answers SELECT statements only"
        )


def _check_tree(node: Any) -> None:
    """Raise IndexerError where a syntax tree holds another statement or an unknown table function.

    node: the tree as JSON.
    """
    if isinstance(node, list):
        for part in node:
            _check_tree(part)
    elif isinstance(node, dict):
        if node.get("error"):
            raise IndexerError(f"SQL: {printable(str(node.get('error_message')))}")
        kind = str(node.get("type"))
        if kind.endswith("_QUERY_NODE"):
            raise IndexerError(f"SQL: {kind.split('_')[0]} is not allowed; an index can only be read")
        function = node.get("function") if kind == "TABLE_FUNCTION" else None
        if isinstance(function, dict) and function.get("function_name") not in _TABLE_FUNCTIONS:
            raise IndexerError(f"SQL: the table function {function.get('function_name')} is not allowed here")
        for part in node.values():
            _check_tree(part)


def _check_plan(nodes: Any) -> None:
    """Raise IndexerError where an operator of a plan writes; each node has a name and children."""
    for node in nodes:
        if _WRITES.search(node["name"].upper()):
            raise IndexerError(f"SQL: {node['name'].strip()} is not allowed; an index can only be read")
        _check_plan(node.get("children", []))


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn what DuckDB raises, which draws the place in the query over several lines, into one line."""
    try:
        yield
    except duckdb.Error as error:
        message = str(error).split("\n\nLINE ")[0]
        raise IndexerError("SQL: " + printable(message)) from None
    except RecursionError:
        raise IndexerError("SQL: the query is nested too deeply") from None
    except MemoryError:
        raise IndexerError("SQL: the result does not fit in memory; ask for less, or add LIMIT") from None
    except (pa.ArrowException, TypeError, ValueError) as error:
        # a string that is no text, a parameter that SQL has no type for, a statement Python has no name for
        raise IndexerError("SQL: " + printable(str(error))) from None
