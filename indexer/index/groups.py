"""Writing the row groups of one Parquet file as their rows come."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.index.encoding import parquet_options


class RowGroups:
    """A Parquet file that is being written; a context manager, and whole when its block ends.

    Tables are gathered until they are of `wanted` units, and are one row group then: no table lies in two of
    them. Memory: the rows of one group, twice.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, wanted: int = 1, page_values: int | None = None
    ) -> None:
        """Create the file; page_values: see parquet_options. Raises OSError where it cannot be."""
        self.rows = 0
        self._schema = schema
        self._wanted = wanted
        self._gathered: list[pa.Table] = []
        self._units = 0
        self._writer = pq.ParquetWriter(path, schema, **parquet_options(schema, page_values))

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            self._writer.close()

    def add(self, table: pa.Table, units: int = 1) -> None:
        """Append the rows of some units; strings may be dictionaries. Raises OSError where the disk fails."""
        self._gathered.append(table.cast(self._schema))
        self._units += units
        if self._units >= self._wanted:
            self._write()

    def _write(self) -> None:
        if self._gathered:
            whole = pa.concat_tables(self._gathered)
            self._gathered, self._units = [], 0
            if whole.num_rows:
                self._writer.write_table(whole, row_group_size=whole.num_rows)
            self.rows += whole.num_rows
