"""Pieces of the SQL that presents an index: paths, files as tables, and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

# the SQL expression of a path within the index
Place = Callable[[str], str]


def place_in(index: Path | None) -> Place:
    """Places in a folder; with None, in the one that the variable `index_path` leads to."""

    def place(path: str) -> str:
        if index is None:
            return f"getvariable('index_path') || {string(path)}"
        return string(literal_path(index / path))

    return place


def literal_path(path: Path | str) -> str:
    """A path as DuckDB finds it: characters that would search for files stand in brackets.

    A backslash cannot stand beside them; DuckDB finds no file then.
    """
    return re.sub(r"[*?[]", r"[\g<0>]", str(path))


def read(files: str) -> str:
    """The files, an expression for one path or a list of them, as a table of the columns that they hold."""
    return f"read_parquet({files}, hive_partitioning = false)"


def list_of(files: Sequence[str]) -> str:
    """A list of expressions as one."""
    return f"[{', '.join(files)}]"


def view(name: str, columns: Sequence[str], files: Sequence[str]) -> str:
    """The statement that makes a view of some columns of files of one kind."""
    return f"CREATE OR REPLACE VIEW {name} AS SELECT {names(columns)} FROM {read(list_of(files))}"


def tokens_of(ids: str, vocabulary: str) -> str:
    """The tokens of a list of ids, looked up where a query asks for them; vocabulary: the file's place."""
    words = f"(SELECT v.tokens FROM {read(vocabulary)} AS v)"
    return f"list_select({words}, list_transform({ids}, lambda id: id + 1))"


def path_of_layer(start: str, layers: Sequence[int]) -> str:
    """The path `start`LAYER.parquet for the parameter `layer` of a macro.

    A macro opens one file that way, however many layers there are.
    """
    known = ", ".join(map(str, layers)) or "NULL"
    unknown = "error('layer ' || layer || ' is not in this index')"
    return f"CASE WHEN layer IN ({known}) THEN {start} || layer || '.parquet' ELSE {unknown} END"


def names(columns: Sequence[str]) -> str:
    """Columns, quoted."""
    return ", ".join(f'"{column}"' for column in columns)


def string(text: str) -> str:
    """A literal."""
    return "'" + text.replace("'", "''") + "'"
