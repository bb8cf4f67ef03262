"""The documents that winners point to, gathered from the tables of all inputs without holding any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.index import schema
from indexer.index.files import GroupedFile, in_one_line


class DocumentTable:
    """documents.parquet of one index: its footer's ranges of ids; the file is open only while it is read."""

    def __init__(self, index: Path) -> None:
        self._path = index / schema.DOCUMENTS_FILE
        file = GroupedFile(self._path, schema.DOCUMENTS)
        try:
            place = schema.DOCUMENTS.get_field_index("document")
            ranges = []
            for group in range(file.metadata.num_row_groups):
                with in_one_line(self._path):
                    held = file.metadata.row_group(group).column(place).statistics
                known = held is not None and held.has_min_max
                ranges.append((held.min, held.max) if known else (0, np.iinfo(np.int64).max))
        finally:
            file.close()
        self._ranges = np.array(ranges, np.int64).reshape(-1, 2)

    def rows(self, ids: np.ndarray) -> pa.Table:
        """The rows of some documents, as far as they are here; ids: int64, ascending."""
        groups = np.flatnonzero((self._ranges[:, 0] <= ids[-1]) & (self._ranges[:, 1] >= ids[0]))
        if not len(groups):
            return schema.DOCUMENTS.empty_table()
        file = GroupedFile(self._path, schema.DOCUMENTS)
        wanted = pa.array(ids)
        try:
            tables = (file.group(int(group)) for group in groups)
            return pa.concat_tables([table.filter(pc.is_in(table["document"], wanted)) for table in tables])
        finally:
            file.close()


def gathered(inputs: Sequence[Path], ids: np.ndarray) -> Iterator[pa.Table]:
    """Tables of the documents `ids` in ascending order, each of as many as a row group has.

    ids: int64, ascending. Each is looked for in all inputs; one that two describe is taken once.
    Memory: a few times the rows of one table.
    """
    tables = [DocumentTable(path) for path in inputs]
    rows = schema.rows_per_group(len(ids), schema.DOCUMENT_ROWS)
    for first in range(0, len(ids), rows):
        part = ids[first : first + rows]
        found = pa.concat_tables([table.rows(part) for table in tables])
        order = [("document", "ascending"), ("characters", "ascending")]
        found = found.sort_by(order).combine_chunks()
        number = found["document"].to_numpy()
        yield found.filter(np.append(True, number[1:] != number[:-1])) if len(number) else found
