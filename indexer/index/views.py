"""The SQL that presents an index: its views and macros over the Parquet files.

The same statements serve `views.sql`, for the plain duckdb program, and our own connection. They are always
written from the manifest, never read from an index: SQL out of a folder that came from elsewhere could do
anything. Every file is named, and nothing is taken from the names of the folders around it: DuckDB would
make columns of `layer=5`, and of `a*b` a search for other folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.index import schema, sql
from indexer.index.codecs import codecs_of
from indexer.index.manifest import LayerEntry

# The path is put together once: a view reads as many files as there are layers.
_HEADER = r"""-- Views of this index for the duckdb program, version 1.3 or newer. From inside this folder:
--   duckdb -cmd ".read views.sql"
-- From anywhere else, with the folder's path in the variable `index`:
--   duckdb -cmd "SET VARIABLE index = '/path/to/my.index'" -cmd ".read /path/to/my.index/views.sql"
-- Tables: units, examples, histograms, documents, vocabulary; panel and panel_activations where one was kept;
-- heads where attention heads were indexed.
-- For site mlp: FROM top(layer, unit), bottom(layer, unit), sample(layer, unit), histogram(layer, unit).
SET VARIABLE index_path = coalesce(regexp_replace(getvariable('index'), '([*?[])', '[\1]', 'g') || '/', '');
-- Keeps footers in memory between queries; without it every query reads those of all layers again.
SET parquet_metadata_cache = true;
"""


def views_file(layers: Sequence[LayerEntry]) -> str:
    """The text of views.sql: the statements of `views` for whatever folder the variable `index` names."""
    return _HEADER + "".join(f"{statement};\n" for statement in views(layers))


def views(layers: Sequence[LayerEntry], index: Path | None = None) -> list[str]:
    """The statements that make the views and macros.

    layers: all that are indexed.
    index: the folder of the files; None for the one that the variable `index_path` leads to.
    """
    place = sql.place_in(index)
    statements = [
        sql.view("units", schema.UNITS.names, [place(schema.UNITS_FILE)]),
        sql.view("documents", schema.DOCUMENTS.names, [place(schema.DOCUMENTS_FILE)]),
        "CREATE OR REPLACE VIEW vocabulary AS SELECT unnest(range(len(tokens)))::INTEGER AS token_id, "
        f'unnest(tokens) AS token, unnest(counts) AS "count" FROM {sql.read(place(schema.VOCABULARY_FILE))}',
        "CREATE OR REPLACE MACRO unit_name(site, layer, unit) AS site || '.' || layer || '.' || unit",
    ]
    for codec in codecs_of({name for layer in layers for name in layer.statistics}):
        here = [layer.key for layer in layers if codec.name in layer.statistics]
        statements += codec.views(place, here)
    return statements
