"""The SQL that presents an index: its views and macros over the Parquet files.

The same statements serve `views.sql`, for the plain duckdb program, and our own connection. They are always
written from the manifest, never read from an index: SQL out of a folder that came from elsewhere could do
anything. Every file is named, and nothing is taken from the names of the folders around it: DuckDB would
make columns of `layer=5`, and of `a*b` a search for other folders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from indexer.index import schema
from indexer.names import MLP, Key

# The path is put together once: a view reads as many files as there are layers.
_HEADER = r"""-- Views of this index for the duckdb program, version 1.3 or newer. From inside this folder:
--   duckdb -cmd ".read views.sql"
-- From anywhere else, with the folder's path in the variable `index`:
--   duckdb -cmd "SET VARIABLE index = '/path/to/my.index'" -cmd ".read /path/to/my.index/views.sql"
-- Tables: units, examples, histograms, documents, vocabulary.
-- For site mlp: FROM top(layer, unit), bottom(layer, unit), histogram(layer, unit).
SET VARIABLE index_path = coalesce(regexp_replace(getvariable('index'), '([*?[])', '[\1]', 'g') || '/', '');
-- Keeps footers in memory between queries; without it every query reads those of all layers again.
SET parquet_metadata_cache = true;
"""


def views_file(layers: Sequence[Key]) -> str:
    """The text of views.sql: the statements of `views` for whatever folder the variable `index` names."""
    return _HEADER + "".join(f"{statement};\n" for statement in views(layers))


def literal_path(path: Path | str) -> str:
    """A path as DuckDB finds it: characters that would search for files stand in brackets.

    A backslash cannot stand beside them; DuckDB finds no file then.
    """
    return re.sub(r"[*?[]", r"[\g<0>]", str(path))


def views(layers: Sequence[Key], index: Path | None = None) -> list[str]:
    """The statements that make the views and macros.

    layers: every one that is indexed.
    index: the folder of the files; None for the one that the variable `index_path` leads to.
    """

    def place(path: str) -> str:
        """The SQL expression of a file's path."""
        if index is None:
            return f"getvariable('index_path') || {_string(path)}"
        return _string(literal_path(index / path))

    vocabulary = place(schema.VOCABULARY_FILE)
    examples = [place(schema.examples_file(layer)) for layer in layers]
    histograms = [place(schema.histograms_file(layer)) for layer in layers]
    here = [key.layer for key in layers if key.site == MLP]
    # a path that follows from the layer: the macros open one file, however many layers there are
    of_layer = [
        _path_of_layer(place(f"{folder}/{MLP}."), here)
        for folder in (schema.EXAMPLES_FOLDER, schema.HISTOGRAMS_FOLDER)
    ]
    histogram = f"SELECT h.* FROM {_read(of_layer[1])} AS h WHERE h.unit = unit ORDER BY h.lower, h.upper"
    return [
        _view("units", schema.UNITS.names, [place(schema.UNITS_FILE)]),
        "CREATE OR REPLACE VIEW examples AS " + _examples(_files(examples), vocabulary),
        _view("histograms", schema.HISTOGRAMS.names, histograms),
        _view("documents", schema.DOCUMENTS.names, [place(schema.DOCUMENTS_FILE)]),
        "CREATE OR REPLACE VIEW vocabulary AS SELECT unnest(range(len(tokens)))::INTEGER AS token_id, "
        f'unnest(tokens) AS token, unnest(counts) AS "count" FROM {_read(vocabulary)}',
        *(
            f"CREATE OR REPLACE MACRO {extreme}(layer, unit) AS TABLE SELECT e.* "
            f"FROM ({_examples(of_layer[0], vocabulary)}) AS e "
            f"WHERE e.unit = unit AND e.extreme = '{extreme}' ORDER BY e.rank"
            for extreme in ("top", "bottom")
        ),
        f"CREATE OR REPLACE MACRO histogram(layer, unit) AS TABLE {histogram}",
        "CREATE OR REPLACE MACRO unit_name(site, layer, unit) AS site || '.' || layer || '.' || unit",
    ]


def _view(name: str, columns: Sequence[str], files: Sequence[str]) -> str:
    return f"CREATE OR REPLACE VIEW {name} AS SELECT {_names(columns)} FROM {_read(_files(files))}"


def _read(files: str) -> str:
    """The files, an expression for one path or a list of them, as a table of the columns that they hold."""
    return f"read_parquet({files}, hive_partitioning = false)"


def _examples(files: str, vocabulary: str) -> str:
    """A query for the examples of `files`; like `vocabulary`, the expression of a path.

    Tokens are looked up in the vocabulary; a query that does not ask for them does not touch it.
    """
    words = f"(SELECT v.tokens FROM {_read(vocabulary)} AS v)"
    tokens = f"list_select({words}, list_transform(s.token_ids, lambda id: id + 1))"
    columns = ", ".join(
        f'{tokens} AS "tokens"' if name == "tokens" else f's."{name}"' for name in schema.EXAMPLES.names
    )
    return f"SELECT {columns} FROM {_read(files)} AS s"


def _path_of_layer(start: str, layers: Sequence[int]) -> str:
    known = ", ".join(map(str, layers)) or "NULL"
    path = f"{start} || layer || '.parquet'"
    unknown = "error('layer ' || layer || ' is not in this index')"
    return f"CASE WHEN layer IN ({known}) THEN {path} ELSE {unknown} END"


def _files(files: Sequence[str]) -> str:
    return f"[{', '.join(files)}]"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
