"""Indexes made to harm: files exchanged for others, with a manifest that agrees with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.index import schema
from indexer.index.encoding import parquet_options
from indexer.index.manifest import sealed, sha256


def sign(index: Path) -> None:
    """Make the manifest agree with the files as they are now."""

    def agree(manifest: dict[str, Any]) -> None:
        for entry in manifest["files"]:
            file = index / entry["path"]
            entry |= {"bytes": file.stat().st_size, "sha256": sha256(file)}

    edit_manifest(index, agree)


def edit_manifest(index: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of a manifest and sign it again."""
    manifest = json.loads((index / schema.MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (index / schema.MANIFEST).write_text(sealed(manifest), encoding="utf-8")


def craft(index: Path, file: str, column: str, values: Any) -> None:
    """Exchange a column of a file, encoded as the index's own are, and sign.

    values: a list or an array, cast to the column's type, or a function of the values that were there.
    """
    path = index / file
    table = pq.ParquetFile(path, arrow_extensions_enabled=False).read()
    field = table.schema.field(column)
    made = values(table[column].to_pylist()) if callable(values) else values
    array = made if isinstance(made, pa.Array) else pa.array(made, field.type)
    table = table.set_column(table.schema.get_field_index(column), field, array)
    pq.write_table(table, path, **parquet_options(table.schema))
    sign(index)
