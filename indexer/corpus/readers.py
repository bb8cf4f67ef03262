"""Which reader takes which kind of file: each yields (row, content) of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Reading
from indexer.corpus.records import read_csv, read_json, read_jsonl
from indexer.corpus.tables import read_arrow, read_parquet

# of files of records
READERS: dict[str, Callable[[Run, Reading], Iterator[tuple[int, Any]]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
