"""The SQL that presents an index: its views and macros over the Parquet files.

The same text serves `views.sql`, with paths relative to the index for the plain duckdb program, and our own
connection, with absolute paths. It is always written from the manifest, never read from an index: SQL out
of a folder that came from elsewhere could do anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.index import schema
from indexer.index.vocabulary import BROKEN, CUT_AT_END, CUT_AT_START, REPLACEMENT

_HEADER = """\
-- Views of this index. From inside its folder:  duckdb -cmd ".read views.sql"
-- Tables: units, examples, histograms, documents, vocabulary.
-- For site mlp: FROM top(layer, unit), bottom(layer, unit), histogram(layer, unit).
-- Keeps footers in memory between queries; without it every query reads those of all layers again.
SET parquet_metadata_cache = true;
"""
# the site that the macros speak of
_SITE = "mlp"


def views_file(layers: Sequence[tuple[str, int]], spaced: bool) -> str:
    """The text of views.sql: the statements of `views` with paths relative to the index."""
    return _HEADER + "".join(f"{statement};\n" for statement in views(layers, spaced))


def views(layers: Sequence[tuple[str, int]], spaced: bool, index: Path | None = None) -> list[str]:
    """The statements that make the views and macros.

    layers: site and layer of every indexed layer. spaced: as in Vocabulary.
    index: the folder that paths start from; None for paths relative to the working directory.
    """

    def place(path: str) -> str:
        return path if index is None else str(index / path)

    vocabulary = place(schema.VOCABULARY_FILE)
    examples = [place(schema.examples_file(*layer)) for layer in layers]
    histograms = [place(schema.histograms_file(*layer)) for layer in layers]
    here = [layer for site, layer in layers if site == _SITE]
    # a path that follows from the layer: the macros open one file, however many layers there are
    of_layer = [
        _path_of_layer(place(f"{folder}/{_SITE}."), here)
        for folder in (schema.EXAMPLES_FOLDER, schema.HISTOGRAMS_FOLDER)
    ]
    histogram = (
        f"SELECT h.* FROM read_parquet({of_layer[1]}) AS h WHERE h.unit = unit ORDER BY h.lower, h.upper"
    )
    return [
        _view("units", schema.UNITS.names, [place(schema.UNITS_FILE)]),
        "CREATE OR REPLACE VIEW examples AS " + _examples(_files(examples), vocabulary, spaced),
        _view("histograms", schema.HISTOGRAMS.names, histograms),
        _view("documents", schema.DOCUMENTS.names, [place(schema.DOCUMENTS_FILE)]),
        "CREATE OR REPLACE VIEW vocabulary AS SELECT unnest(range(len(tokens)))::INTEGER AS token_id, "
        f"unnest(tokens) AS token FROM read_parquet({_string(vocabulary)})",
        *(
            f"CREATE OR REPLACE MACRO {extreme}(layer, unit) AS TABLE SELECT e.* "
            f"FROM ({_examples(of_layer[0], vocabulary, spaced)}) AS e "
            f"WHERE e.unit = unit AND e.extreme = '{extreme}' ORDER BY e.rank"
            for extreme in ("top", "bottom")
        ),
        f"CREATE OR REPLACE MACRO histogram(layer, unit) AS TABLE {histogram}",
        "CREATE OR REPLACE MACRO unit_name(site, layer, unit) AS site || '.' || layer || '.' || unit",
    ]


def _view(name: str, columns: Sequence[str], files: Sequence[str]) -> str:
    return f"CREATE OR REPLACE VIEW {name} AS SELECT {_names(columns)} FROM read_parquet({_files(files)})"


def _examples(files: str, vocabulary: str, spaced: bool) -> str:
    """A query for the examples of `files`, the argument of read_parquet.

    Tokens and text are looked up in the vocabulary; a query that asks for neither does not touch it.
    """

    def spelled(column: str) -> str:
        lists = f"(SELECT v.{column} FROM read_parquet({_string(vocabulary)}) AS v)"
        return f"list_select({lists}, list_transform(s.token_ids, lambda id: id + 1))"

    mark = _string(REPLACEMENT)
    whole = f"regexp_replace(j.pieces, {_string(CUT_AT_START)}, {mark})"
    whole = f"regexp_replace({whole}, {_string(CUT_AT_END)}, {mark})"
    broken = f"url_decode(regexp_replace({whole}, {_string(BROKEN)}, {mark}, 'g'))"
    decoded = f"coalesce(TRY(url_decode({whole})), {broken})"
    text = f"CASE WHEN contains(j.pieces, '%') THEN {decoded} ELSE j.pieces END"
    if spaced:
        text = f"ltrim({text}, ' ')"
    stored = [name for name in schema.EXAMPLES.names if name != "text"]
    # TRY cannot stand around a subquery, so the pieces are joined one level below.
    joined = (
        f"SELECT s.*, {spelled('tokens')} AS tokens, array_to_string({spelled('pieces')}, '') AS pieces "
        f"FROM read_parquet({files}) AS s"
    )
    return f"SELECT {_names(stored, 'j.')}, {text} AS text FROM ({joined}) AS j"


def _path_of_layer(start: str, layers: Sequence[int]) -> str:
    known = ", ".join(map(str, layers)) or "NULL"
    path = f"{_string(start)} || layer || '.parquet'"
    unknown = "error('layer ' || layer || ' is not in this index')"
    return f"CASE WHEN layer IN ({known}) THEN {path} ELSE {unknown} END"


def _files(files: Sequence[str]) -> str:
    return f"[{', '.join(map(_string, files))}]"


def _names(columns: Sequence[str], table: str = "") -> str:
    return ", ".join(f'{table}"{column}"' for column in columns)


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
